// Vocabularies small enough to read, and a greedy tokenizer over them.

#ifndef SEMKV_TESTS_FAISS_INDEX_TOY_VOCABULARY_H_
#define SEMKV_TESTS_FAISS_INDEX_TOY_VOCABULARY_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "faiss_index/sentence_boundary.h"

namespace semkv::testing {

constexpr int32_t kSpecialId = 256;

// Every byte, a special token (256), and `merged` entries.
class ToyVocabulary {
 public:
  explicit ToyVocabulary(const std::vector<std::string>& merged) {
    for (int32_t byte = 0; byte < 256; ++byte) entries_.emplace_back(1, static_cast<char>(byte));
    entries_.emplace_back();
    entries_.insert(entries_.end(), merged.begin(), merged.end());
    std::vector<absl::string_view> views(entries_.begin(), entries_.end());
    table_ = *BoundaryTable::Create(views);
  }

  const BoundaryTable* table() const { return table_.get(); }
  const std::string& entry(int32_t id) const { return entries_[id]; }

  // The longest entry at every place.
  std::vector<int32_t> Tokenize(absl::string_view text) const {
    std::vector<int32_t> ids;
    while (!text.empty()) {
      int32_t best = static_cast<uint8_t>(text[0]);
      for (int32_t id = kSpecialId + 1; id < static_cast<int32_t>(entries_.size()); ++id) {
        if (entries_[id].size() > entries_[best].size() && absl::StartsWith(text, entries_[id])) {
          best = id;
        }
      }
      ids.push_back(best);
      text.remove_prefix(entries_[best].size());
    }
    return ids;
  }

  // The flags of all tokens, as if the text ended after them.
  std::vector<uint8_t> Closes(const std::vector<int32_t>& ids) const {
    BoundaryScanner scanner(table());
    std::vector<uint8_t> closes;
    scanner.Feed(ids, &closes);
    const uint8_t last = scanner.PendingCloses();
    closes.resize(ids.size(), 0);
    if (last != 0) closes.back() = 1;
    return closes;
  }

  // The text cut at the flags; a rest that nothing closes is left out.
  std::vector<std::string> Sentences(const std::vector<int32_t>& ids) const {
    const std::vector<uint8_t> closes = Closes(ids);
    std::vector<std::string> sentences(1);
    for (size_t i = 0; i < ids.size(); ++i) {
      sentences.back() += ids[i] == kSpecialId ? "<|>" : entries_[ids[i]];
      if (closes[i] != 0) sentences.emplace_back();
    }
    sentences.pop_back();
    return sentences;
  }
  std::vector<std::string> Sentences(absl::string_view text) const {
    return Sentences(Tokenize(text));
  }

 private:
  std::vector<std::string> entries_;
  std::unique_ptr<BoundaryTable> table_;
};

// Single bytes; entries that end sentences inside; words with a space before, as byte-level BPE
// has.
inline std::vector<ToyVocabulary> ToyVocabularies() {
  std::vector<ToyVocabulary> all;
  all.emplace_back(std::vector<std::string>{});
  all.emplace_back(std::vector<std::string>{".\n\n", ".\"", "?)", "...", "\n\n", ". ", "\r\n",
                                            ";\n", "\n\n\n\n", "\xE3\x80\x82", "\xE3\x80"});
  all.emplace_back(std::vector<std::string>{" is", " The", "The", " tag", "Pi", " v", " said", "Dr",
                                            " He", " went", "end", " end", "word", " word",
                                            "\xE4\xBD\xA0\xE5", "\x82\xE4\xBD"});
  return all;
}

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_FAISS_INDEX_TOY_VOCABULARY_H_
