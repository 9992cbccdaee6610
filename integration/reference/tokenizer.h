// The byte-level BPE tokenizer of a Hugging Face tokenizer.json, giving the same ids as the
// `tokenizers` package for the configurations it accepts: model BPE, pre-tokenizers ByteLevel,
// Digits, Split (Llama 3's pattern) and sequences of them, added tokens, no normalizer. Anything
// else is refused by name.
//
// Thread safety: immutable.

#ifndef SEMKV_INTEGRATION_REFERENCE_TOKENIZER_H_
#define SEMKV_INTEGRATION_REFERENCE_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace semkv::reference {

// What special tokens that appear literally in a text become.
enum class SpecialTokens {
  kRecognized,  // their ids, as in `tokenizers`
  kAsText       // text like any other: for text from people who may not speak for the system
};

class Tokenizer {
 public:
  // Errors: NOT_FOUND if there is no file; DATA_LOSS if it is no JSON or incomplete; UNIMPLEMENTED
  // names the part that is not supported.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& path);
  ~Tokenizer();

  int32_t vocabulary_size() const;
  // Ids of `text` (UTF-8; invalid bytes are kept as bytes). Nothing is added: put the first token
  // (bos) there yourself, see ModelConfig::bos_token_id.
  std::vector<int32_t> Encode(absl::string_view text,
                              SpecialTokens special = SpecialTokens::kRecognized) const;
  // Bytes of `ids`, special tokens left out; may end inside a UTF-8 character.
  std::string Decode(absl::Span<const int32_t> ids) const;
  // Decoded bytes of one id; empty for special tokens and unknown ids.
  absl::string_view TokenBytes(int32_t id) const;
  // The id of a special or ordinary token by its text, or -1.
  int32_t TokenId(absl::string_view token) const;

 private:
  struct Rep;
  explicit Tokenizer(std::unique_ptr<Rep> rep);
  std::unique_ptr<Rep> rep_;
};

}  // namespace semkv::reference

#endif  // SEMKV_INTEGRATION_REFERENCE_TOKENIZER_H_
