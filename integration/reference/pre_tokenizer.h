// Cuts a text into the pieces that byte-pair merges may not cross: the pre_tokenizer of a
// tokenizer.json. Supported are ByteLevel (its regex and its prefix space; the byte alphabet itself
// is the tokenizer's business), Digits, Split by Llama 3's pattern, and sequences of them.
//
// Character classes are those of Unicode 14 (PCRE2 10.42); characters added to Unicode later may be
// cut in other places than `tokenizers` cuts them.
//
// Thread safety: immutable.

#ifndef SEMKV_INTEGRATION_REFERENCE_PRE_TOKENIZER_H_
#define SEMKV_INTEGRATION_REFERENCE_PRE_TOKENIZER_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "integration/reference/json_file.h"

struct pcre2_real_code_8;

namespace semkv::reference {

class PreTokenizer {
 public:
  // `json` is the value of "pre_tokenizer".
  // Errors: UNIMPLEMENTED names the part that is not supported.
  static absl::StatusOr<PreTokenizer> Create(const Json& json);

  // The pieces of `text` in order. Joined they are `text`, apart from prefix spaces. Runs of bytes
  // that are no UTF-8 are pieces of their own.
  std::vector<std::string> Split(absl::string_view text) const;

 private:
  struct FreeCode {
    void operator()(pcre2_real_code_8* code) const;
  };
  // One cut: the matches of `pattern` and what lies between them are pieces.
  struct Stage {
    bool add_prefix_space = false;
    std::unique_ptr<pcre2_real_code_8, FreeCode> pattern;  // null: no cut
  };

  absl::Status AddStages(const Json& json);
  absl::Status AddStage(const char* pattern, bool add_prefix_space);
  static void Cut(const Stage& stage, const std::string& text, std::vector<std::string>& pieces);

  std::vector<Stage> stages_;
};

}  // namespace semkv::reference

#endif  // SEMKV_INTEGRATION_REFERENCE_PRE_TOKENIZER_H_
