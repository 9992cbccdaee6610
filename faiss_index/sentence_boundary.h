// Where sentences end, from token ids alone.
//
// A BoundaryTable holds a flag byte per vocabulary entry, computed once from the entry's decoded
// bytes, so that merged tokens (period + newline, period + quote) are seen; a BoundaryScanner keeps
// one sequence's state, because whether a period ends a sentence depends on what follows it
// ("3.14", "v1.2", URLs) and because a character may be split over tokens.
//
// Thread safety: BoundaryTable is immutable; BoundaryScanner is thread-compatible.

#ifndef SEMKV_FAISS_INDEX_SENTENCE_BOUNDARY_H_
#define SEMKV_FAISS_INDEX_SENTENCE_BOUNDARY_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace semkv {

class BoundaryTable {
 public:
  // `vocabulary`: the decoded bytes of every token id (not its printable byte-level form); empty
  // for special tokens, which close a sentence.
  //
  // Errors: INVALID_ARGUMENT if the vocabulary is empty.
  static absl::StatusOr<std::unique_ptr<BoundaryTable>> Create(
      absl::Span<const absl::string_view> vocabulary);

  int32_t vocabulary_size() const;
  // Memory of the table, in bytes.
  int64_t bytes() const;

 private:
  friend class BoundaryScanner;
  BoundaryTable() = default;
  std::vector<uint8_t> flags_;
};

class BoundaryScanner {
 public:
  // `table` must outlive the scanner.
  explicit BoundaryScanner(const BoundaryTable* table);

  // Feeds tokens. Appends to `closes` one byte per token whose fate is now known, oldest first: 1
  // if it closes its sentence. The fate of the last token may stay open until the next one or
  // Finish; feeding one by one or all at once gives the same flags. Ids outside the vocabulary are
  // ordinary tokens.
  void Feed(absl::Span<const int32_t> ids, std::vector<uint8_t>* closes);

  // As if the text ended here: what closes[last] would be if nothing followed. Does not change the
  // state, so that feeding can go on.
  uint8_t PendingCloses() const;

  // Tokens fed whose fate is not known yet (0 or 1, more inside a split character).
  int32_t num_pending() const;

 private:
  const BoundaryTable* table_;
  // State: see sentence_boundary.cc.
  struct State;
};

}  // namespace semkv

#endif  // SEMKV_FAISS_INDEX_SENTENCE_BOUNDARY_H_
