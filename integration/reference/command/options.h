// The command line of `semkv`: parsed, and checked as far as that is possible without reading a
// file.
//
// Thread safety: pure functions and plain values.

#ifndef SEMKV_INTEGRATION_REFERENCE_COMMAND_OPTIONS_H_
#define SEMKV_INTEGRATION_REFERENCE_COMMAND_OPTIONS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "semkv/semkv.h"

namespace semkv::command {

// Fields of every policy that differ from semkv_policy_init.
struct PolicyOverrides {
  std::optional<int32_t> sinks;
  std::optional<int32_t> recent;
  std::optional<int32_t> min_context;
  std::optional<int32_t> dense_layers;
  std::optional<int32_t> cluster_size;
  std::optional<int32_t> centroid_form;
  std::optional<float> lone_share;
  std::optional<float> mass_target;
  std::optional<float> keep_factor;  // of sentencekv only
  bool force_sparse = false;
  bool estimate_rest = false;
};

struct ModelOptions {
  std::string directory;
  int32_t num_threads = 0;  // 0: all cores
  int32_t kv_dtype = SEMKV_DTYPE_F32;
};

struct RunOptions {
  ModelOptions model;
  std::string prompt_file;
  std::vector<std::string> questions;
  std::string questions_file;  // may be empty
  std::string question_template = "\nQuestion: {} Answer:";
  std::vector<int32_t> policies;  // SEMKV_POLICY_*, as given
  PolicyOverrides overrides;
  int32_t budget = 2048;
  int32_t max_new_tokens = 32;
  std::string stop = ".\n";  // an answer ends with a token that holds one of these characters
  float temperature = 0.0f;  // 0: greedy
  uint64_t seed = 1;
  std::string json_file;  // may be empty
  std::string html_file;  // may be empty
};

struct EvaluateOptions {
  ModelOptions model;
  std::string documents_file;
  std::vector<double> budget_fractions;
  std::vector<int32_t> policies;  // SEMKV_POLICY_*, without dense, which is always evaluated
  PolicyOverrides overrides;
  bool prefill_question = false;  // index what ends with the question, not the document alone
  std::string json_file;          // may be empty
};

// Text to print instead of working: help or the version.
struct Message {
  std::string text;
};

using CommandLine = std::variant<RunOptions, EvaluateOptions, Message>;

// `arguments` without the program's name.
// Errors: INVALID_ARGUMENT with one line that names the option and what is wrong with it.
absl::StatusOr<CommandLine> ParseCommandLine(const std::vector<std::string>& arguments);

// A policy of `kind` with the overrides, and `budget` tokens.
// Errors: INVALID_ARGUMENT if the budget is below sinks + recent (names all numbers).
absl::StatusOr<semkv_policy> MakePolicy(int32_t kind, int32_t budget,
                                        const PolicyOverrides& overrides);

// sinks + recent: what a budget must hold.
int64_t LeastBudget(const semkv_policy& policy);

// The most tokens that a row of `policy` attends to in a step of a sequence of `max_tokens`: the
// budget, unless the policy exceeds it (EngineOptions::max_budget).
int32_t MostAttended(const semkv_policy& policy, int32_t max_tokens);
// How many last queries `policy` wants remembered (EngineOptions::query_window).
int32_t QueryWindow(const semkv_policy& policy);

// The question in its template: "{}" is replaced.
std::string AskWith(absl::string_view question_template, absl::string_view question);

}  // namespace semkv::command

#endif  // SEMKV_INTEGRATION_REFERENCE_COMMAND_OPTIONS_H_
