// Where sentences end, from token ids alone.
//
// A BoundaryTable holds every vocabulary entry's decoded bytes and a flag byte, computed once, so
// that merged tokens (period + newline, period + quote) are seen; a BoundaryScanner reads the bytes
// of one sequence's tokens with a state of fixed size. The rules are about characters, so the cuts
// do not depend on how a tokenizer splits the text:
//
//   . ! ?    end a sentence if, after more of them and after closing quotes and brackets, follows
//            white space or the end of the text: not in "3.14", "v1.2", URLs, file names. A run
//            ("...", "?!") ends it once. Not after usual abbreviations ("e.g.", "Dr.", "U.S."),
//            initials ("J.") and the number of a list item ("\n1. "), unless a line ends there.
//   fullwidth and ideographic stops end it whatever follows.
//   a blank line ends it.
//   a single newline ends it where a line of code does (after ; { or }), and where the sentence has
//            32 tokens or more: log lines end there, most sentences of hard-wrapped prose do not.
//   a special token ends it.
//
// The closing token is the one with the last character that belongs to the sentence (the closing
// quote, not the period before it). Only text that has something other than white space is closed,
// so runs of newlines are no sentences; they lead the next one.
//
// What it does not do: limit lengths, merge fragments (the sentence partitioner).
//
// Thread safety: BoundaryTable is immutable; BoundaryScanner is thread-compatible, and copyable: a
// fork of a sequence copies it.

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
  std::vector<uint8_t> flags_;     // [vocabulary]
  std::vector<uint32_t> offsets_;  // [vocabulary + 1], into bytes_
  std::string bytes_;
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

  // As if the text ended here: what closes[last] would be if nothing followed; 0 if no token is
  // pending. Does not change the state, so that feeding can go on.
  uint8_t PendingCloses() const;

  // Tokens fed whose fate is not known yet: 0 or 1; up to 4 while a character that is split over
  // tokens is incomplete.
  int32_t num_pending() const { return num_pending_; }

 private:
  enum class Char : uint8_t;
  static Char OfCodePoint(uint32_t code_point);
  static Char OfByte(uint8_t byte);
  void ReadWord(absl::string_view bytes);
  void ReadByte(uint8_t byte);
  void ReadChar(Char type, uint8_t byte);
  void ReadNewline();
  void FollowCandidate(Char type);
  void ReadSpecial();
  void AddToWord(uint8_t byte);
  bool AtAbbreviation() const;
  void Close(int32_t pending_token);
  void Emit(std::vector<uint8_t>* closes);

  static constexpr int32_t kNone = -1;
  static constexpr int32_t kMaxWord = 8;

  const BoundaryTable* table_;
  // Tokens whose fate is open, oldest first, the current one last.
  int32_t num_pending_ = 0;
  uint32_t closed_ = 0;              // a bit for each of them: it closes its sentence
  int32_t candidate_ = kNone;        // which of them closes it if what follows agrees
  bool candidate_is_hard_ = false;   // ... it does whatever follows
  bool candidate_is_point_ = false;  // ... it is one period, nothing else
  // The character being decoded.
  uint32_t code_point_ = 0;
  int32_t bytes_left_ = 0;
  // The open sentence, line and word.
  int32_t sentence_tokens_ = 0;
  bool sentence_has_text_ = false;
  bool line_has_text_ = false;
  bool last_was_newline_ = false;  // white space apart
  uint8_t last_byte_ = 0;          // white space apart
  char word_[kMaxWord] = {};       // letters, digits and points without a gap
  int32_t word_length_ = 0;        // kMaxWord + 1: longer than any abbreviation
  bool word_starts_line_ = false;
};

}  // namespace semkv

#endif  // SEMKV_FAISS_INDEX_SENTENCE_BOUNDARY_H_
