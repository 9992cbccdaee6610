#include "integration/reference/command/prompt.h"

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "integration/reference/command/files.h"
#include "integration/reference/status_macros.h"

namespace semkv::command {
namespace {

constexpr size_t kBinTextBytes = 160;
constexpr size_t kMaxPlaces = 8;

absl::Status CheckLengths(const Prompt& prompt, const RunOptions& options,
                          const reference::ModelConfig& config) {
  const int64_t document = static_cast<int64_t>(prompt.ids.size());
  const int64_t question = prompt.LongestQuestion();
  const int64_t total = document + question + options.max_new_tokens;
  if (total <= config.max_position_embeddings) return absl::OkStatus();
  return absl::OutOfRangeError(absl::StrCat("document of ", document, " + question of ", question,
                                            " + answer of ", options.max_new_tokens,
                                            " tokens = ", total, ", the model has ",
                                            config.max_position_embeddings, " positions"));
}

// Those of the command line, then those of the file.
absl::StatusOr<std::vector<Question>> GatherQuestions(const RunOptions& options) {
  std::vector<Question> questions;
  for (const std::string& text : options.questions) questions.push_back({text, ""});
  if (options.questions_file.empty()) return questions;
  SEMKV_ASSIGN_OR_RETURN(const std::string json, ReadFile(options.questions_file));
  absl::StatusOr<std::vector<Question>> more = ParseQuestions(json);
  if (more.ok() && more->empty() && questions.empty()) {
    more = absl::InvalidArgumentError("holds no question");
  }
  if (!more.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.questions_file, ": ", more.status().message()));
  }
  questions.insert(questions.end(), more->begin(), more->end());
  return questions;
}

}  // namespace

int32_t Prompt::LongestQuestion() const {
  size_t longest = 0;
  for (const std::vector<int32_t>& ids : question_ids) longest = std::max(longest, ids.size());
  return static_cast<int32_t>(longest);
}

absl::StatusOr<std::vector<Question>> ParseQuestions(absl::string_view json) {
  const nlohmann::json parsed = nlohmann::json::parse(json, nullptr, /*allow_exceptions=*/false);
  const bool named = parsed.is_object() && parsed.contains("questions");
  const nlohmann::json& array = named ? parsed["questions"] : parsed;
  if (!array.is_array()) return absl::InvalidArgumentError("holds no JSON array of questions");
  std::vector<Question> questions;
  for (size_t i = 0; i < array.size(); ++i) {
    const nlohmann::json& entry = array[i];
    Question question;
    if (entry.is_string()) {
      question.text = entry.get<std::string>();
    } else if (entry.is_object() && entry.contains("question") && entry["question"].is_string()) {
      question.text = entry["question"].get<std::string>();
      if (entry.contains("answer") && entry["answer"].is_string()) {
        question.expected = entry["answer"].get<std::string>();
      }
    } else {
      return absl::InvalidArgumentError(absl::StrCat(
          "entry ", i, " is neither a string nor an object with a \"question\" string"));
    }
    questions.push_back(std::move(question));
  }
  return questions;
}

absl::StatusOr<Prompt> ReadPrompt(const RunOptions& options, const reference::ModelConfig& config,
                                  const reference::Tokenizer& tokenizer) {
  Prompt prompt;
  SEMKV_ASSIGN_OR_RETURN(prompt.document, ReadFile(options.prompt_file));
  if (absl::StripAsciiWhitespace(prompt.document).empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the prompt ", options.prompt_file, " is empty"));
  }
  prompt.ids = EncodeDocument(config, tokenizer, prompt.document);
  SEMKV_ASSIGN_OR_RETURN(prompt.questions, GatherQuestions(options));
  for (const Question& question : prompt.questions) {
    prompt.question_ids.push_back(
        tokenizer.Encode(AskWith(options.question_template, question.text)));
    if (absl::StripAsciiWhitespace(question.text).empty() || prompt.question_ids.back().empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("question ", prompt.question_ids.size(), " is empty"));
    }
  }
  SEMKV_RETURN_IF_ERROR(CheckLengths(prompt, options, config));
  return prompt;
}

std::vector<int32_t> EncodeDocument(const reference::ModelConfig& config,
                                    const reference::Tokenizer& tokenizer, absl::string_view text) {
  std::vector<int32_t> ids = tokenizer.Encode(text);
  if (config.bos_token_id >= 0) ids.insert(ids.begin(), config.bos_token_id);
  return ids;
}

absl::StatusOr<std::unique_ptr<reference::Tokenizer>> LoadTokenizer(const std::string& directory) {
  return reference::Tokenizer::Load(absl::StrCat(directory, "/tokenizer.json"));
}

std::vector<MapBin> CutIntoBins(const Prompt& prompt, const reference::Tokenizer& tokenizer,
                                int32_t num_bins) {
  const int32_t num_tokens = static_cast<int32_t>(prompt.ids.size());
  const int32_t width = (num_tokens + num_bins - 1) / num_bins;
  std::vector<MapBin> bins;
  for (int32_t first = 0; first < num_tokens; first += width) {
    MapBin bin{first, std::min(width, num_tokens - first), ""};
    bin.text = tokenizer.Decode(absl::MakeConstSpan(prompt.ids).subspan(first, bin.num_tokens));
    if (bin.text.size() > kBinTextBytes) bin.text.resize(kBinTextBytes);
    bins.push_back(std::move(bin));
  }
  return bins;
}

std::vector<int32_t> FindInDocument(const std::string& text, const Prompt& prompt,
                                    const reference::Tokenizer& tokenizer,
                                    const std::vector<MapBin>& bins) {
  std::vector<int32_t> found;
  if (text.size() < 2) return found;
  const auto inside_word = [&](size_t at) {
    return at < prompt.document.size() && absl::ascii_isalnum(prompt.document[at]);
  };
  size_t position = 0;
  size_t position_end = 0;  // byte after the token at `position`
  const absl::string_view document = prompt.document;
  for (size_t at = document.find(text); at != absl::string_view::npos && found.size() < kMaxPlaces;
       at = document.find(text, at + 1)) {
    if ((at > 0 && inside_word(at - 1)) || inside_word(at + text.size())) continue;
    while (position < prompt.ids.size()) {
      const size_t length = tokenizer.TokenBytes(prompt.ids[position]).size();
      if (position_end + length > at) break;
      position_end += length;
      ++position;
    }
    const int32_t bin = static_cast<int32_t>(position) / bins.front().num_tokens;
    if (bin >= static_cast<int32_t>(bins.size())) break;
    if (found.empty() || found.back() != bin) found.push_back(bin);
  }
  return found;
}

}  // namespace semkv::command
