// The document and its questions as tokens, checked against the model before it is loaded.

#ifndef SEMKV_INTEGRATION_REFERENCE_COMMAND_PROMPT_H_
#define SEMKV_INTEGRATION_REFERENCE_COMMAND_PROMPT_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "integration/reference/command/measurement.h"
#include "integration/reference/command/options.h"
#include "integration/reference/model_config.h"
#include "integration/reference/tokenizer.h"

namespace semkv::command {

struct Prompt {
  std::string document;
  std::vector<int32_t> ids;  // the document's, the model's first token before them
  std::vector<Question> questions;
  std::vector<std::vector<int32_t>> question_ids;  // [num_questions], in their template

  int32_t LongestQuestion() const;  // tokens
};

// The questions of a --questions-file: a JSON array of strings or {"question", "answer"}, or an
// object whose "questions" is one. Errors: INVALID_ARGUMENT says which entry is wrong.
absl::StatusOr<std::vector<Question>> ParseQuestions(absl::string_view json);

// Reads the document and the questions of `options`.
// Errors: those of ReadFile and ParseQuestions; INVALID_ARGUMENT for an empty document or question;
// OUT_OF_RANGE if document, question and answer exceed the model's positions (names all numbers).
absl::StatusOr<Prompt> ReadPrompt(const RunOptions& options, const reference::ModelConfig& config,
                                  const reference::Tokenizer& tokenizer);

// Ids of `text` after the model's first token, if it has one.
std::vector<int32_t> EncodeDocument(const reference::ModelConfig& config,
                                    const reference::Tokenizer& tokenizer, absl::string_view text);

// Tokenizer of a model directory.
absl::StatusOr<std::unique_ptr<reference::Tokenizer>> LoadTokenizer(const std::string& directory);

// The document cut into at most `num_bins` equal runs of tokens.
std::vector<MapBin> CutIntoBins(const Prompt& prompt, const reference::Tokenizer& tokenizer,
                                int32_t num_bins);

// Bins in which `text` stands as a whole word of the document, at most 8 of them; none for texts
// shorter than two characters.
std::vector<int32_t> FindInDocument(const std::string& text, const Prompt& prompt,
                                    const reference::Tokenizer& tokenizer,
                                    const std::vector<MapBin>& bins);

}  // namespace semkv::command

#endif  // SEMKV_INTEGRATION_REFERENCE_COMMAND_PROMPT_H_
