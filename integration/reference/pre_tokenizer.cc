#include "integration/reference/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cstdint>
#include <limits>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "integration/reference/status_macros.h"
#include "integration/reference/utf8.h"

namespace semkv::reference {

namespace {

// Unicode's White_Space, which is what \s means to `tokenizers`; to PCRE2 it also holds U+180E.
constexpr char kSpace[] =
    R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f})"
    R"(\x{3000})";

// The patterns below are for PCRE2 once kSpace stands for each \s; all of those are in brackets.
//
// GPT-2's, built into ByteLevel:
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
constexpr char kGpt2Pattern[] =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|[\s]+(?![^\s])|[\s]+)";

// Llama 3's, as its tokenizer.json writes it, and for PCRE2.
constexpr char kLlama3Source[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kLlama3Pattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|[\s]*[\r\n]+|[\s]+(?![^\s])|[\s]+)";

// Rust's char::is_numeric: the categories Nd, Nl and No.
constexpr char kDigitPattern[] = R"(\p{N})";
constexpr char kDigitsPattern[] = R"(\p{N}+)";

struct FreeMatchData {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
struct FreeMatchContext {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};

}  // namespace

void PreTokenizer::FreeCode::operator()(pcre2_real_code_8* code) const { pcre2_code_free(code); }

absl::StatusOr<PreTokenizer> PreTokenizer::Create(const Json& json) {
  // ByteLevel turns characters into bytes: without it, or with a cut behind it, ids would differ.
  const bool is_sequence = JsonMember(json, "type") == "Sequence";
  const Json& parts = is_sequence ? JsonMember(json, "pretokenizers") : json;
  const Json& last = parts.is_array() && !parts.empty() ? parts.back() : parts;
  PreTokenizer result;
  SEMKV_RETURN_IF_ERROR(result.AddStages(json));
  if (JsonMember(last, "type") != "ByteLevel") {
    return absl::UnimplementedError(
        absl::StrCat("pre_tokenizer ends with ", JsonExcerpt(last), "; it must be ByteLevel"));
  }
  return result;
}

absl::Status PreTokenizer::AddStages(const Json& json) {
  SEMKV_ASSIGN_OR_RETURN(const std::string type, StringMember(json, "type", ""));
  if (type == "Sequence") {
    const Json& parts = JsonMember(json, "pretokenizers");
    if (!parts.is_array()) return absl::DataLossError("Sequence without \"pretokenizers\"");
    for (const Json& part : parts) {
      if (JsonMember(part, "type") == "Sequence") {
        return absl::UnimplementedError("pre_tokenizer has a Sequence within a Sequence");
      }
      SEMKV_RETURN_IF_ERROR(AddStages(part));
    }
    return absl::OkStatus();
  }
  if (type == "Digits") {
    SEMKV_ASSIGN_OR_RETURN(const bool individual, BoolMember(json, "individual_digits", false));
    return AddStage(individual ? kDigitPattern : kDigitsPattern, false);
  }
  if (type == "ByteLevel") {
    SEMKV_ASSIGN_OR_RETURN(const bool use_regex, BoolMember(json, "use_regex", true));
    SEMKV_ASSIGN_OR_RETURN(const bool prefix_space, BoolMember(json, "add_prefix_space", true));
    return AddStage(use_regex ? kGpt2Pattern : nullptr, prefix_space);
  }
  if (type == "Split") {
    const Json& pattern = JsonMember(json, "pattern");
    if (JsonMember(pattern, "Regex") != kLlama3Source) {
      return absl::UnimplementedError(absl::StrCat("pre_tokenizer Split has the pattern ",
                                                   JsonExcerpt(pattern),
                                                   "; only Llama 3's is supported"));
    }
    SEMKV_ASSIGN_OR_RETURN(const bool invert, BoolMember(json, "invert", false));
    if (JsonMember(json, "behavior") != "Isolated" || invert) {
      return absl::UnimplementedError(absl::StrCat(
          "pre_tokenizer Split has behavior ", JsonExcerpt(JsonMember(json, "behavior")),
          " and invert ", invert ? "true" : "false", "; supported is \"Isolated\", not inverted"));
    }
    return AddStage(kLlama3Pattern, false);
  }
  return absl::UnimplementedError(
      absl::StrCat("pre_tokenizer ", JsonExcerpt(json),
                   "; supported are ByteLevel, Digits, Split and Sequence"));
}

absl::Status PreTokenizer::AddStage(const char* pattern, bool add_prefix_space) {
  Stage stage;
  stage.add_prefix_space = add_prefix_space;
  if (pattern != nullptr) {
    int error = 0;
    PCRE2_SIZE offset = 0;
    const std::string expanded = absl::StrReplaceAll(pattern, {{R"(\s)", kSpace}});
    stage.pattern.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expanded.data()),
                                      expanded.size(), PCRE2_UTF | PCRE2_UCP, &error, &offset,
                                      nullptr));
    if (stage.pattern == nullptr) {
      return absl::InternalError(
          absl::StrCat("PCRE2 error ", error, " at byte ", offset, " of ", expanded));
    }
    // Where there is no JIT the interpreter does the same, slower.
    pcre2_jit_compile(stage.pattern.get(), PCRE2_JIT_COMPLETE);
  }
  stages_.push_back(std::move(stage));
  return absl::OkStatus();
}

void PreTokenizer::Cut(const Stage& stage, const std::string& text,
                       std::vector<std::string>& pieces) {
  const bool prefix = stage.add_prefix_space && !absl::StartsWith(text, " ");
  const std::string piece = prefix ? " " + text : text;
  if (stage.pattern == nullptr) {
    pieces.push_back(piece);
    return;
  }
  const std::unique_ptr<pcre2_match_data, FreeMatchData> match(
      pcre2_match_data_create_from_pattern(stage.pattern.get(), nullptr));
  const std::unique_ptr<pcre2_match_context, FreeMatchContext> context(
      pcre2_match_context_create(nullptr));
  // A run of spaces is tried once per space: the default limit of 10 million could be reached, but
  // the work stays linear.
  pcre2_set_match_limit(context.get(), std::numeric_limits<uint32_t>::max());
  const auto subject = reinterpret_cast<PCRE2_SPTR>(piece.data());
  size_t done = 0;
  // No match, or (out of memory) no answer: the rest is one piece, so that nothing is lost.
  while (done < piece.size() && pcre2_match(stage.pattern.get(), subject, piece.size(), done,
                                            PCRE2_NO_UTF_CHECK, match.get(), context.get()) > 0) {
    const PCRE2_SIZE* span = pcre2_get_ovector_pointer(match.get());
    if (span[0] > done) pieces.push_back(piece.substr(done, span[0] - done));
    pieces.push_back(piece.substr(span[0], span[1] - span[0]));
    done = span[1];
  }
  if (done < piece.size()) pieces.push_back(piece.substr(done));
}

std::vector<std::string> PreTokenizer::Split(absl::string_view text) const {
  std::vector<std::string> pieces;
  while (!text.empty()) {
    size_t valid = 0;
    while (const size_t bytes = Utf8CharacterBytes(text.substr(valid))) valid += bytes;
    if (valid > 0) {
      std::vector<std::string> current = {std::string(text.substr(0, valid))};
      for (const Stage& stage : stages_) {
        std::vector<std::string> next;
        for (const std::string& piece : current) Cut(stage, piece, next);
        current = std::move(next);
      }
      for (std::string& piece : current) pieces.push_back(std::move(piece));
      text.remove_prefix(valid);
    }
    size_t damaged = 0;
    while (damaged < text.size() && Utf8CharacterBytes(text.substr(damaged)) == 0) ++damaged;
    if (damaged > 0) pieces.emplace_back(text.substr(0, damaged));
    text.remove_prefix(damaged);
  }
  return pieces;
}

}  // namespace semkv::reference
