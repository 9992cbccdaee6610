// Byte-pair encoding: merges the symbols of a piece in the order of their rank.
//
// Thread safety: immutable after the last Add.
// Source: Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", ACL 2016;
// ties as in the `tokenizers` package: the leftmost pair of equal rank first.

#ifndef SEMKV_INTEGRATION_REFERENCE_BYTE_PAIRS_H_
#define SEMKV_INTEGRATION_REFERENCE_BYTE_PAIRS_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace semkv::reference {

class BytePairs {
 public:
  // Symbols `left` `right` may become `merged`; of several pairs the lowest rank goes first. A pair
  // added again takes the newer rank.
  void Add(int32_t left, int32_t right, int32_t rank, int32_t merged) {
    merges_[{left, right}] = {rank, merged};
  }

  // Merges `symbols` in place until no pair is left. O(n log n).
  void Merge(std::vector<int32_t>& symbols) const;

 private:
  struct Result {
    int32_t rank;
    int32_t merged;
  };
  absl::flat_hash_map<std::pair<int32_t, int32_t>, Result> merges_;
};

}  // namespace semkv::reference

#endif  // SEMKV_INTEGRATION_REFERENCE_BYTE_PAIRS_H_
