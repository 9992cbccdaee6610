#include "integration/reference/command/evaluation.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "integration/reference/status_macros.h"
#include "semkv/semkv.h"

namespace semkv::command {
namespace {

using Json = nlohmann::ordered_json;

absl::StatusOr<std::string> TextField(const Json& json, const char* field) {
  if (json.is_object() && json.contains(field) && json[field].is_string()) {
    return json[field].get<std::string>();
  }
  return absl::InvalidArgumentError(absl::StrCat("needs a string \"", field, "\""));
}

absl::StatusOr<EvaluationDocument> ParseDocument(absl::string_view line) {
  const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return absl::InvalidArgumentError("is no JSON object");
  EvaluationDocument document;
  SEMKV_ASSIGN_OR_RETURN(document.id, TextField(json, "id"));
  SEMKV_ASSIGN_OR_RETURN(document.kind, TextField(json, "kind"));
  SEMKV_ASSIGN_OR_RETURN(document.text, TextField(json, "text"));
  if (json.contains("context") && json["context"].is_number_integer()) {
    document.context = json["context"].get<int32_t>();
  }
  if (document.text.empty()) return absl::InvalidArgumentError("has an empty \"text\"");
  if (!json.contains("questions") || !json["questions"].is_array() || json["questions"].empty()) {
    return absl::InvalidArgumentError("needs an array \"questions\" that is not empty");
  }
  for (const Json& entry : json["questions"]) {
    EvaluationQuestion question;
    SEMKV_ASSIGN_OR_RETURN(question.question, TextField(entry, "question"));
    SEMKV_ASSIGN_OR_RETURN(question.answer, TextField(entry, "answer"));
    question.answer = std::string(absl::StripSuffix(question.answer, "."));
    if (question.question.empty() || question.answer.empty()) {
      return absl::InvalidArgumentError("has an empty \"question\" or \"answer\"");
    }
    document.questions.push_back(std::move(question));
  }
  return document;
}

// Dense first, then large budgets before small ones: reading down, less is read.
std::vector<Cells::const_iterator> InOrder(const Cells& cells) {
  std::vector<Cells::const_iterator> order;
  for (auto cell = cells.begin(); cell != cells.end(); ++cell) order.push_back(cell);
  const auto rank = [](const CellKey& key) {
    const int32_t kind = semkv_policy_kind(key.policy.c_str());
    return std::make_tuple(key.kind, key.context, kind != SEMKV_POLICY_DENSE, -key.budget_fraction,
                           kind);
  };
  std::sort(order.begin(), order.end(),
            [&](const auto& a, const auto& b) { return rank(a->first) < rank(b->first); });
  return order;
}

double Share(int64_t part, int64_t whole) {
  return whole == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(whole);
}

double MassMean(const Cell& cell) {
  return cell.captured_mass.empty() ? 1.0 : Mean(cell.captured_mass);
}

double MassP5(const Cell& cell) {
  return cell.captured_mass.empty() ? 1.0 : Quantile(cell.captured_mass, 0.05);
}

}  // namespace

absl::StatusOr<std::vector<EvaluationDocument>> ParseDocuments(absl::string_view lines) {
  std::vector<EvaluationDocument> documents;
  int64_t number = 0;
  for (absl::string_view line : absl::StrSplit(lines, '\n')) {
    ++number;
    if (absl::StripAsciiWhitespace(line).empty()) continue;
    absl::StatusOr<EvaluationDocument> document = ParseDocument(line);
    if (!document.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("line ", number, " ", document.status().message()));
    }
    documents.push_back(*std::move(document));
  }
  return documents;
}

int32_t NominalContext(int32_t num_tokens) {
  return static_cast<int32_t>(std::exp2(std::round(std::log2(num_tokens))));
}

Verdict Judge(absl::Span<const int32_t> answer, absl::Span<const float> dense,
              absl::Span<const float> logits) {
  Verdict verdict{true, true, true, {}};
  const size_t vocab_size = logits.size() / answer.size();
  for (size_t i = 0; i < answer.size(); ++i) {
    const absl::Span<const float> dense_row = dense.subspan(i * vocab_size, vocab_size);
    const absl::Span<const float> row = logits.subspan(i * vocab_size, vocab_size);
    const int32_t dense_token = ArgMax(dense_row);
    const int32_t token = ArgMax(row);
    verdict.dense_right &= dense_token == answer[i];
    verdict.right &= token == answer[i];
    verdict.agrees &= token == dense_token;
    verdict.divergence.push_back(KlDivergence(dense_row, row));
  }
  return verdict;
}

void Cell::AddVerdict(const Verdict& verdict) {
  num_questions += 1;
  num_dense_right += verdict.dense_right ? 1 : 0;
  num_right += verdict.right ? 1 : 0;
  num_kept += verdict.dense_right && verdict.right ? 1 : 0;
  num_agreeing += verdict.agrees ? 1 : 0;
  divergence.insert(divergence.end(), verdict.divergence.begin(), verdict.divergence.end());
  question_kl.push_back(Mean(verdict.divergence));
}

void Cell::AddReads(const ReadSummary& reads, int32_t budget, int64_t steps) {
  attended_tokens += reads.attended_tokens_mean * static_cast<double>(steps);
  budget_tokens += static_cast<double>(budget) * static_cast<double>(steps);
  num_steps += steps;
  most_attended_of_budget =
      std::max(most_attended_of_budget, reads.attended_tokens_mean / static_cast<double>(budget));
  for (const auto& [reason, count] : reads.fallbacks) fallbacks[reason] += count;
}

double Cell::kept_share() const { return Share(num_kept, num_dense_right); }

double Cell::attended_mean() const {
  return num_steps == 0 ? 0.0 : attended_tokens / static_cast<double>(num_steps);
}

double Cell::budget_mean() const {
  return num_steps == 0 ? 0.0 : budget_tokens / static_cast<double>(num_steps);
}

std::string EvaluationTable(const Cells& cells) {
  std::string table =
      "| kind | context | budget | policy | questions | dense right | kept | agree | KL | attended "
      "| mass | mass p5 | index/KV16 | fallbacks |\n"
      "|---|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|\n";
  for (const Cells::const_iterator entry : InOrder(cells)) {
    const auto& [key, cell] = *entry;
    const bool dense = semkv_policy_kind(key.policy.c_str()) == SEMKV_POLICY_DENSE;
    absl::StrAppendFormat(
        &table,
        "| %s | %d | %s | %s | %d | %d | %.3f | %.3f | %.5f | %.0f | %.3f | %.3f | %.1f %% | %s "
        "|\n",
        key.kind, key.context, dense ? "all" : absl::StrFormat("%.4g", key.budget_fraction),
        key.policy, cell.num_questions, cell.num_dense_right, cell.kept_share(),
        Share(cell.num_agreeing, cell.num_questions), Mean(cell.divergence), cell.attended_mean(),
        MassMean(cell), MassP5(cell),
        100.0 * cell.index_share / static_cast<double>(std::max<int64_t>(cell.num_documents, 1)),
        cell.fallbacks.empty() ? "0"
                               : absl::StrJoin(cell.fallbacks, ", ", absl::PairFormatter(" ")));
  }
  return table;
}

std::string EvaluationJson(const std::string& model, int64_t num_documents, const Cells& cells) {
  Json array = Json::array();
  for (const Cells::const_iterator entry : InOrder(cells)) {
    const auto& [key, cell] = *entry;
    Json fallbacks = Json::object();
    for (const auto& [reason, count] : cell.fallbacks) fallbacks[reason] = count;
    array.push_back(
        {{"kind", key.kind},
         {"context", key.context},
         {"budget_fraction", key.budget_fraction},
         {"policy", key.policy},
         {"questions", cell.num_questions},
         {"dense_right", cell.num_dense_right},
         {"right", cell.num_right},
         {"kept", cell.num_kept},
         {"kept_share", cell.kept_share()},
         {"agreement", Share(cell.num_agreeing, cell.num_questions)},
         {"mean_kl_to_dense", Mean(cell.divergence)},
         {"kl_by_question", cell.question_kl},
         {"budget_mean", cell.budget_mean()},
         {"attended_tokens_mean", cell.attended_mean()},
         {"most_attended_of_budget", cell.most_attended_of_budget},
         {"captured_mass_mean", MassMean(cell)},
         {"captured_mass_p5", MassP5(cell)},
         {"index_share_of_kv16",
          cell.index_share / static_cast<double>(std::max<int64_t>(cell.num_documents, 1))},
         {"fallbacks", std::move(fallbacks)}});
  }
  const Json json = {{"model", model},
                     {"version", semkv_version()},
                     {"documents", num_documents},
                     {"cells", std::move(array)}};
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace semkv::command
