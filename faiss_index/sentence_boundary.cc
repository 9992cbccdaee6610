#include "faiss_index/sentence_boundary.h"

#include <algorithm>
#include <array>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace semkv {
namespace {

constexpr uint8_t kSpecial = 1;  // no bytes
constexpr uint8_t kWord = 2;     // at most one space, then ASCII letters and digits only

// From this length on, a newline ends a sentence (the header says why).
constexpr int32_t kLineTokens = 32;

// Lower case, without the last period. Words that often end sentences ("etc" aside, whose next
// paragraph ends them) are not here.
constexpr std::array<absl::string_view, 31> kAbbreviations = {
    "al",   "approx", "cf",   "ch",  "col", "dept", "dr",  "ed",  "eq", "eqs", "est",
    "etc",  "fig",    "figs", "gen", "jr",  "lt",   "mr",  "mrs", "ms", "mt",  "pp",
    "prof", "ref",    "rev",  "sec", "sr",  "st",   "vol", "vs",  "viz"};

uint8_t Classify(absl::string_view bytes) {
  if (bytes.empty()) return kSpecial;
  absl::string_view rest = bytes;
  if (rest.front() == ' ') rest.remove_prefix(1);
  const bool word = !rest.empty() && std::all_of(rest.begin(), rest.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c));
  });
  return word ? kWord : 0;
}

}  // namespace

absl::StatusOr<std::unique_ptr<BoundaryTable>> BoundaryTable::Create(
    absl::Span<const absl::string_view> vocabulary) {
  if (vocabulary.empty()) {
    return absl::InvalidArgumentError("the vocabulary has 0 entries, at least 1 is needed");
  }
  std::unique_ptr<BoundaryTable> table(new BoundaryTable);
  uint64_t total = 0;
  for (absl::string_view bytes : vocabulary) total += bytes.size();
  if (total > UINT32_MAX) {
    return absl::InvalidArgumentError(
        absl::StrCat("the vocabulary has ", total, " bytes, at most ", UINT32_MAX, " are allowed"));
  }
  table->flags_.reserve(vocabulary.size());
  table->offsets_.reserve(vocabulary.size() + 1);
  table->bytes_.reserve(total);
  table->offsets_.push_back(0);
  for (absl::string_view bytes : vocabulary) {
    table->flags_.push_back(Classify(bytes));
    table->bytes_.append(bytes.data(), bytes.size());
    table->offsets_.push_back(static_cast<uint32_t>(table->bytes_.size()));
  }
  return table;
}

int32_t BoundaryTable::vocabulary_size() const { return static_cast<int32_t>(flags_.size()); }

int64_t BoundaryTable::bytes() const {
  return static_cast<int64_t>(flags_.capacity() + offsets_.capacity() * sizeof(uint32_t) +
                              bytes_.capacity());
}

enum class BoundaryScanner::Char : uint8_t {
  kOther,
  kSpace,
  kNewline,
  kPoint,     // .
  kMark,      // ! ?
  kHardStop,  // needs nothing after it
  kCloser,    // quotes and brackets that may follow a stop
};

BoundaryScanner::BoundaryScanner(const BoundaryTable* table) : table_(table) {}

void BoundaryScanner::Feed(absl::Span<const int32_t> ids, std::vector<uint8_t>* closes) {
  for (int32_t id : ids) {
    ++num_pending_;
    ++sentence_tokens_;
    if (id < 0 || id >= table_->vocabulary_size()) {
      bytes_left_ = 0;
      ReadChar(Char::kOther, 0);
    } else if (table_->flags_[id] == kSpecial) {
      ReadSpecial();
    } else {
      const absl::string_view bytes(table_->bytes_.data() + table_->offsets_[id],
                                    table_->offsets_[id + 1] - table_->offsets_[id]);
      if (table_->flags_[id] == kWord && candidate_ == kNone && bytes_left_ == 0) {
        ReadWord(bytes);
      } else {
        for (char byte : bytes) ReadByte(static_cast<uint8_t>(byte));
      }
    }
    Emit(closes);
  }
}

uint8_t BoundaryScanner::PendingCloses() const {
  return candidate_ != kNone && candidate_ == num_pending_ - 1 ? 1 : 0;
}

// Most tokens are words: the same effects as ReadByte on each byte.
void BoundaryScanner::ReadWord(absl::string_view bytes) {
  if (bytes.front() == ' ') {
    word_length_ = 0;
    bytes.remove_prefix(1);
  }
  for (char byte : bytes) {
    AddToWord(static_cast<uint8_t>(byte));
    line_has_text_ = true;
  }
  sentence_has_text_ = true;
  last_was_newline_ = false;
  last_byte_ = static_cast<uint8_t>(bytes.back());
}

BoundaryScanner::Char BoundaryScanner::OfCodePoint(uint32_t code_point) {
  switch (code_point) {
    case 0x3002:  // ideographic full stop
    case 0xFF01:  // fullwidth exclamation mark
    case 0xFF1F:  // fullwidth question mark
    case 0xFF61:  // halfwidth ideographic full stop
      return Char::kHardStop;
    case 0x2026:  // ellipsis
    case 0x203C:  // double exclamation mark
      return Char::kMark;
    case 0x00A0:  // no-break space
    case 0x3000:  // ideographic space
      return Char::kSpace;
    case 0x2028:  // line separator
    case 0x2029:  // paragraph separator
      return Char::kNewline;
    case 0x2019:  // closing single quote
    case 0x201D:  // closing double quote
    case 0x00BB:  // closing angle quote
    case 0x300D:  // corner brackets
    case 0x300F:
    case 0x300B:  // double angle bracket
    case 0x3011:  // lenticular bracket
    case 0xFF09:  // fullwidth parenthesis
      return Char::kCloser;
    default:
      return Char::kOther;
  }
}

BoundaryScanner::Char BoundaryScanner::OfByte(uint8_t byte) {
  switch (byte) {
    case ' ':
    case '\t':
    case '\r':
      return Char::kSpace;
    case '\n':
      return Char::kNewline;
    case '.':
      return Char::kPoint;
    case '!':
    case '?':
      return Char::kMark;
    case '"':
    case '\'':
    case ')':
    case ']':
    case '}':
    case '*':  // emphasis in markup
      return Char::kCloser;
    default:
      return Char::kOther;
  }
}

// Decodes UTF-8; what is malformed reads as other characters.
void BoundaryScanner::ReadByte(uint8_t byte) {
  if (bytes_left_ > 0) {
    if ((byte & 0xC0) == 0x80) {
      code_point_ = code_point_ << 6 | (byte & 0x3F);
      if (--bytes_left_ == 0) ReadChar(OfCodePoint(code_point_), 0);
      return;
    }
    bytes_left_ = 0;
    ReadChar(Char::kOther, 0);
  }
  if (byte >= 0xC2 && byte <= 0xF4) {
    bytes_left_ = byte >= 0xF0 ? 3 : byte >= 0xE0 ? 2 : 1;
    code_point_ = byte & (0x3F >> bytes_left_);
    return;
  }
  ReadChar(OfByte(byte), byte);
}

void BoundaryScanner::ReadChar(Char type, uint8_t byte) {
  const bool had_candidate = candidate_ != kNone;
  if (had_candidate) FollowCandidate(type);
  switch (type) {
    case Char::kSpace:
      word_length_ = 0;
      return;
    case Char::kNewline:
      ReadNewline();
      return;
    case Char::kPoint:
    case Char::kMark:
    case Char::kHardStop:
      candidate_is_point_ = !had_candidate && type == Char::kPoint;
      candidate_is_hard_ = (had_candidate && candidate_is_hard_) || type == Char::kHardStop;
      candidate_ = num_pending_ - 1;
      break;
    default:
      break;
  }
  const bool in_word = type == Char::kPoint || (byte < 0x80 && absl::ascii_isalnum(byte));
  if (in_word) {
    AddToWord(byte);
  } else {
    word_length_ = 0;
  }
  sentence_has_text_ = true;
  line_has_text_ = true;
  last_was_newline_ = false;
  last_byte_ = byte;
}

// What comes after a stop confirms it, belongs to it, or shows that it was none.
void BoundaryScanner::FollowCandidate(Char type) {
  switch (type) {
    case Char::kPoint:
    case Char::kMark:
    case Char::kHardStop:
      return;  // a run of stops
    case Char::kCloser:
      candidate_ = num_pending_ - 1;
      candidate_is_point_ = false;
      return;
    case Char::kNewline:
      return Close(candidate_);
    case Char::kSpace:
      if (!candidate_is_point_ || !AtAbbreviation()) return Close(candidate_);
      candidate_ = kNone;
      return;
    case Char::kOther:
      if (candidate_is_hard_) return Close(candidate_);
      candidate_ = kNone;
      return;
  }
}

void BoundaryScanner::ReadNewline() {
  const bool code_line = last_byte_ == ';' || last_byte_ == '{' || last_byte_ == '}';
  if (sentence_has_text_ && (last_was_newline_ || code_line || sentence_tokens_ >= kLineTokens)) {
    Close(num_pending_ - 1);
  }
  last_was_newline_ = true;
  line_has_text_ = false;
  word_length_ = 0;
}

void BoundaryScanner::ReadSpecial() {
  bytes_left_ = 0;
  if (sentence_has_text_) Close(num_pending_ - 1);
  last_was_newline_ = false;
  line_has_text_ = false;
  last_byte_ = 0;
  word_length_ = 0;
}

void BoundaryScanner::AddToWord(uint8_t byte) {
  if (word_length_ == 0) word_starts_line_ = !line_has_text_;
  if (word_length_ < kMaxWord) word_[word_length_] = static_cast<char>(byte);
  word_length_ = std::min(word_length_ + 1, kMaxWord + 1);
}

// Whether the word, which ends with the candidate's period, often goes on after it.
bool BoundaryScanner::AtAbbreviation() const {
  if (word_length_ < 2 || word_length_ > kMaxWord) return false;
  const absl::string_view word(word_, static_cast<size_t>(word_length_ - 1));
  if (absl::ascii_isdigit(word[0])) {
    return word_starts_line_ && word.size() <= 3 &&
           std::all_of(word.begin(), word.end(), absl::ascii_isdigit);
  }
  if (word.size() == 1) return absl::ascii_isupper(word[0]) && word[0] != 'I';
  // Letters with periods in between: "e.g", "U.S", "a.m".
  bool letters = word.size() % 2 == 1;
  for (size_t i = 0; letters && i < word.size(); ++i) {
    letters = i % 2 == 0 ? absl::ascii_isalpha(word[i]) : word[i] == '.';
  }
  if (letters || word == "No" || word == "Nos") return true;
  return std::any_of(kAbbreviations.begin(), kAbbreviations.end(), [&](absl::string_view a) {
    return a.size() == word.size() &&
           std::equal(a.begin(), a.end(), word.begin(), [](char x, char y) {
             return x == absl::ascii_tolower(static_cast<unsigned char>(y));
           });
  });
}

void BoundaryScanner::Close(int32_t pending_token) {
  closed_ |= 1u << pending_token;
  candidate_ = kNone;
  sentence_has_text_ = false;
  sentence_tokens_ = num_pending_ - 1 - pending_token;
}

// Tokens before the candidate are decided, all of them if there is none.
void BoundaryScanner::Emit(std::vector<uint8_t>* closes) {
  const int32_t known = candidate_ == kNone ? num_pending_ : candidate_;
  for (int32_t i = 0; i < known; ++i) closes->push_back(closed_ >> i & 1);
  closed_ >>= known;
  num_pending_ -= known;
  if (candidate_ != kNone) candidate_ = 0;
}

}  // namespace semkv
