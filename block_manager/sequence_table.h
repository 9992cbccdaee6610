// The sequences of a BlockManager, their block tables included. Ids are handles: a place and how
// often it has been given out, so an id of a released sequence is never mistaken for a later one.
//
// Thread safety: thread-compatible (callers lock). No call after the constructor allocates.

#ifndef SEMKV_BLOCK_MANAGER_SEQUENCE_TABLE_H_
#define SEMKV_BLOCK_MANAGER_SEQUENCE_TABLE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "block_manager/page_tag.h"

namespace semkv {

using SequenceId = int64_t;  // positive; 0 and negative numbers name no sequence

struct SequenceState {
  SequenceId id = 0;         // 0: this place is free
  int32_t* pages = nullptr;  // [max_pages], the block table; owned by the SequenceTable
  int32_t num_tokens = 0;
  int32_t num_written = 0;    // tokens whose keys and values are in place, <= num_tokens
  int32_t num_known_ids = 0;  // leading tokens whose ids are known, <= num_tokens
  Provenance provenance = Provenance::kExact;  // of tokens appended from now on; only gets worse

  // Prefix sharing: `chain` is the hash of the first `num_chained` pages, all of them EXACT when
  // `num_downgrades` pages had lost that (BlockManager::SetTag).
  uint64_t salt = 0;
  uint64_t chain = 0;
  uint64_t num_downgrades = 0;
  int32_t num_chained = 0;
  bool is_chain_broken = false;  // a page is not EXACT: none after it is published
};

class SequenceTable {
 public:
  // REQUIRES: max_sequences > 0, max_pages > 0.
  SequenceTable(int32_t max_sequences, int32_t max_pages);
  SequenceTable(const SequenceTable&) = delete;
  SequenceTable& operator=(const SequenceTable&) = delete;

  int32_t max_sequences() const { return static_cast<int32_t>(sequences_.size()); }
  int32_t max_pages() const { return max_pages_; }  // per sequence
  int32_t num_sequences() const { return max_sequences() - static_cast<int32_t>(free_.size()); }

  // A new, empty sequence, or nullptr if max_sequences exist. Its `pages` never moves.
  SequenceState* Create();

  // nullptr if there is no such sequence.
  SequenceState* Find(SequenceId id);
  const SequenceState* Find(SequenceId id) const;

  // REQUIRES: `sequence` was returned by Create or Find and not removed since.
  void Remove(SequenceState* sequence);

 private:
  const int32_t max_pages_;
  std::unique_ptr<int32_t[]> pages_;  // [max_sequences, max_pages]
  std::vector<SequenceState> sequences_;
  std::vector<int32_t> times_used_;  // [max_sequences]
  std::vector<int32_t> free_;        // places, last one next; capacity max_sequences
};

}  // namespace semkv

#endif  // SEMKV_BLOCK_MANAGER_SEQUENCE_TABLE_H_
