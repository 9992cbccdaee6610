// The questions of `semkv evaluate` and the table its measurements add up to. No engine here.
//
// Thread safety: thread-compatible.

#ifndef SEMKV_INTEGRATION_REFERENCE_COMMAND_EVALUATION_H_
#define SEMKV_INTEGRATION_REFERENCE_COMMAND_EVALUATION_H_

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "integration/reference/command/measurement.h"

namespace semkv::command {

struct EvaluationQuestion {
  std::string question;  // follows the text as it is
  std::string answer;    // without the closing period
};

struct EvaluationDocument {
  std::string id;
  std::string kind;
  int32_t context = 0;  // nominal tokens, 0: by the real number
  std::string text;
  std::vector<EvaluationQuestion> questions;
};

// One JSON object a line; empty lines are skipped.
// Errors: INVALID_ARGUMENT names the line and the field.
absl::StatusOr<std::vector<EvaluationDocument>> ParseDocuments(absl::string_view lines);

// The power of two nearest to `num_tokens` >= 1, by ratio.
int32_t NominalContext(int32_t num_tokens);

// How one question came out under one policy, with teacher forcing.
struct Verdict {
  bool dense_right = false;
  bool right = false;
  bool agrees = false;             // the same token is the likeliest at every place
  std::vector<double> divergence;  // KL(dense || policy) of each answer token
};

// `dense` and `logits`: [answer.size(), vocab_size].
Verdict Judge(absl::Span<const int32_t> answer, absl::Span<const float> dense,
              absl::Span<const float> logits);

struct CellKey {
  std::string kind;
  int32_t context = 0;
  double budget_fraction = 1.0;
  std::string policy;

  bool operator<(const CellKey& other) const {
    return std::tie(kind, context, budget_fraction, policy) <
           std::tie(other.kind, other.context, other.budget_fraction, other.policy);
  }
};

struct Cell {
  int64_t num_questions = 0;
  int64_t num_dense_right = 0;
  int64_t num_kept = 0;  // right where dense is right
  int64_t num_right = 0;
  int64_t num_agreeing = 0;
  std::vector<double> divergence;     // of every answer token
  std::vector<double> question_kl;    // of every question: the mean over its answer's tokens
  std::vector<double> captured_mass;  // of every answer token, sparse layer and head
  double attended_tokens = 0.0;       // summed over the decode steps
  double budget_tokens = 0.0;         // summed over the decode steps
  int64_t num_steps = 0;
  double most_attended_of_budget = 0.0;  // largest mean attended / budget of any document
  double index_share = 0.0;              // index bytes / 16-bit KV bytes, summed over the documents
  int64_t num_documents = 0;
  std::map<std::string, int64_t> fallbacks;

  void AddVerdict(const Verdict& verdict);
  void AddReads(const ReadSummary& reads, int32_t budget, int64_t steps);
  double kept_share() const;
  double attended_mean() const;
  double budget_mean() const;
};

using Cells = std::map<CellKey, Cell>;

// A markdown table, one line per cell: kinds and contexts ascending, then dense, then budgets
// descending.
std::string EvaluationTable(const Cells& cells);
std::string EvaluationJson(const std::string& model, int64_t num_documents, const Cells& cells);

}  // namespace semkv::command

#endif  // SEMKV_INTEGRATION_REFERENCE_COMMAND_EVALUATION_H_
