#include "integration/reference/command/runner.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "integration/reference/command/decoding.h"
#include "integration/reference/command/files.h"
#include "integration/reference/command/measurement.h"
#include "integration/reference/command/progress.h"
#include "integration/reference/command/prompt.h"
#include "integration/reference/command/report_html.h"
#include "integration/reference/command/report_json.h"
#include "integration/reference/command/report_table.h"
#include "integration/reference/command/selection_map.h"
#include "integration/reference/semkv_status.h"
#include "integration/reference/status_macros.h"

namespace semkv::command {
namespace {

using reference::SemkvStatus;

// Columns of a selection map: about one to two pixels of a screen's width each would be unreadable.
constexpr int32_t kMapBins = 192;
// Questions over which mass is measured for each budget of the sweep.
constexpr size_t kSweepQuestions = 3;
// Budgets of the sweep as divisors of the context.
constexpr int32_t kSweepDivisors[] = {32, 16, 8, 4, 2};
// Pool beyond the document and two forks' tails: copied last pages.
constexpr int32_t kForkTokens = 1024;

// One run: the engine, the document in it, and the dense answers everything is compared with.
class RunSession {
 public:
  RunSession(const RunOptions& options, Progress* progress)
      : options_(options), progress_(progress) {}

  absl::StatusOr<RunMeasurement> Measure();

 private:
  absl::Status Load();
  absl::Status Prefill();
  // The policy as asked for, its budget cut to what a sequence can hold.
  absl::StatusOr<semkv_policy> PolicyOf(int32_t kind) const;
  // Answers of `parent`'s policy to every question, timed.
  absl::StatusOr<std::vector<DecodedAnswer>> DecodeAll(semkv_sequence parent,
                                                       PolicyMeasurement* policy);
  absl::StatusOr<PolicyMeasurement> MeasureDense();
  absl::StatusOr<PolicyMeasurement> MeasurePolicy(int32_t kind);
  // The untimed pass over the dense answers: divergence, mass and the maps.
  absl::Status MeasureForced(semkv_sequence parent, const semkv_policy& policy,
                             PolicyMeasurement* measurement);
  absl::Status SweepBudgets(semkv_sequence parent, const semkv_policy& policy,
                            PolicyMeasurement* measurement);
  absl::StatusOr<double> MassAt(semkv_sequence parent, semkv_policy policy, int32_t budget);
  // One question and its dense answer, teacher-forced, its mass measured.
  absl::StatusOr<ForcedResult> FeedQuestion(semkv_sequence parent, size_t question,
                                            LayerObserver observer);
  void DescribeMap();
  int32_t MaxSequenceTokens() const {
    return static_cast<int32_t>(prompt_.ids.size()) + prompt_.LongestQuestion() +
           options_.max_new_tokens;
  }
  bool wants_html() const { return !options_.html_file.empty(); }
  semkv_context* context() const { return engine_->context(); }
  std::string AnswerText(const std::vector<int32_t>& ids) const {
    return std::string(absl::StripAsciiWhitespace(engine_->tokenizer().Decode(ids)));
  }

  const RunOptions& options_;
  Progress* progress_;
  Prompt prompt_;
  std::unique_ptr<reference::Engine> engine_;
  std::optional<OwnedSequence> document_;
  std::vector<DecodedAnswer> dense_;  // [num_questions]
  RunMeasurement run_;
};

absl::StatusOr<semkv_policy> RunSession::PolicyOf(int32_t kind) const {
  SEMKV_ASSIGN_OR_RETURN(semkv_policy policy,
                         MakePolicy(kind, options_.budget, options_.overrides));
  const int64_t useful = std::max(int64_t{MaxSequenceTokens()}, LeastBudget(policy));
  policy.budget = static_cast<int32_t>(std::min(int64_t{policy.budget}, useful));
  return policy;
}

absl::Status RunSession::Load() {
  const std::string& directory = options_.model.directory;
  SEMKV_ASSIGN_OR_RETURN(const reference::ModelConfig config,
                         reference::ModelConfig::Load(directory));
  SEMKV_ASSIGN_OR_RETURN(const std::unique_ptr<reference::Tokenizer> tokenizer,
                         LoadTokenizer(directory));
  SEMKV_ASSIGN_OR_RETURN(prompt_, ReadPrompt(options_, config, *tokenizer));
  const int32_t context_tokens = static_cast<int32_t>(prompt_.ids.size());

  reference::EngineOptions engine;
  engine.num_threads = options_.model.num_threads;
  engine.kv_dtype = options_.model.kv_dtype;
  engine.max_sequence_tokens = MaxSequenceTokens();
  engine.pool_tokens = 2 * MaxSequenceTokens() - context_tokens + kForkTokens;
  engine.max_budget = context_tokens / 2;
  for (int32_t kind : options_.policies) {
    SEMKV_ASSIGN_OR_RETURN(semkv_policy policy, PolicyOf(kind));
    // The sweep reads up to half of the context.
    policy.budget = std::max(policy.budget, context_tokens / 2);
    engine.max_budget = std::max(engine.max_budget, MostAttended(policy, MaxSequenceTokens()));
    engine.query_window = std::max(engine.query_window, QueryWindow(policy));
  }
  SEMKV_ASSIGN_OR_RETURN(engine_, reference::Engine::Load(directory, engine));

  run_.model = config.name;
  run_.version = semkv_version();
  run_.document = std::filesystem::path(options_.prompt_file).filename().string();
  run_.geometry = GeometryOf(config, options_.model.kv_dtype);
  run_.context_tokens = context_tokens;
  run_.budget = options_.budget;
  run_.threads = options_.model.num_threads != 0
                     ? options_.model.num_threads
                     : static_cast<int32_t>(std::thread::hardware_concurrency());
  run_.questions = prompt_.questions;
  return absl::OkStatus();
}

absl::Status RunSession::Prefill() {
  SEMKV_ASSIGN_OR_RETURN(OwnedSequence document, CreateDenseSequence(context()));
  document_.emplace(std::move(document));
  const auto start = std::chrono::steady_clock::now();
  SEMKV_RETURN_IF_ERROR(engine_->Prefill(
      document_->id(), prompt_.ids, {},
      [this](int64_t done, int64_t total) { progress_->Show("prefill", done, total); }));
  const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - start;
  run_.prefill_ms = time.count();
  return absl::OkStatus();
}

absl::StatusOr<std::vector<DecodedAnswer>> RunSession::DecodeAll(semkv_sequence parent,
                                                                 PolicyMeasurement* policy) {
  DecodeOptions decode = {options_.max_new_tokens, options_.stop, {}};
  decode.sampler.temperature = options_.temperature;
  decode.sampler.seed = options_.seed;
  SEMKV_ASSIGN_OR_RETURN(const semkv_stats before, ReadStats(context()));
  std::vector<DecodedAnswer> answers;
  int64_t num_steps = 0, context_tokens = 0, total_ns = 0, select_ns = 0;
  const int64_t num_questions = static_cast<int64_t>(prompt_.questions.size());
  for (int64_t q = 0; q < num_questions; ++q) {
    progress_->Show(absl::StrCat(policy->name, ": questions"), q, num_questions);
    SEMKV_ASSIGN_OR_RETURN(const OwnedSequence fork, ForkSequence(context(), parent));
    SEMKV_ASSIGN_OR_RETURN(DecodedAnswer answer,
                           DecodeAnswer(engine_.get(), fork.id(), prompt_.question_ids[q], decode));
    policy->answers.push_back(AnswerText(answer.ids));
    num_steps += answer.num_steps;
    context_tokens += answer.context_tokens;
    total_ns += answer.total_ns;
    select_ns += answer.select_ns;
    answers.push_back(std::move(answer));
  }
  SEMKV_ASSIGN_OR_RETURN(const semkv_stats after, ReadStats(context()));
  policy->reads = SummarizeReads(before, after, run_.geometry, num_steps, context_tokens);
  policy->ms_per_token = static_cast<double>(total_ns) / 1e6 / static_cast<double>(num_steps);
  policy->select_ms_per_token =
      static_cast<double>(select_ns) / 1e6 / static_cast<double>(num_steps);
  return answers;
}

absl::StatusOr<PolicyMeasurement> RunSession::MeasureDense() {
  PolicyMeasurement measurement;
  measurement.name = semkv_policy_name(SEMKV_POLICY_DENSE);
  SEMKV_ASSIGN_OR_RETURN(dense_, DecodeAll(document_->id(), &measurement));
  measurement.agrees_with_dense.assign(dense_.size(), true);
  return measurement;
}

absl::StatusOr<PolicyMeasurement> RunSession::MeasurePolicy(int32_t kind) {
  SEMKV_ASSIGN_OR_RETURN(const semkv_policy policy, PolicyOf(kind));
  PolicyMeasurement measurement;
  measurement.name = semkv_policy_name(kind);
  progress_->Show(absl::StrCat(measurement.name, ": index"), 0, 1);
  SEMKV_ASSIGN_OR_RETURN(
      const OwnedSequence indexed,
      ForkUnderPolicy(context(), document_->id(), policy, &measurement.index_build_ms));
  semkv_sequence_info info{};
  info.struct_size = sizeof(info);
  SEMKV_RETURN_IF_ERROR(SemkvStatus(semkv_sequence_info_get(context(), indexed.id(), &info)));
  measurement.index_bytes = info.index_bytes;

  SEMKV_ASSIGN_OR_RETURN(const std::vector<DecodedAnswer> answers,
                         DecodeAll(indexed.id(), &measurement));
  for (size_t q = 0; q < answers.size(); ++q) {
    measurement.agrees_with_dense.push_back(answers[q].ids == dense_[q].ids);
  }
  SEMKV_RETURN_IF_ERROR(MeasureForced(indexed.id(), policy, &measurement));
  if (wants_html()) SEMKV_RETURN_IF_ERROR(SweepBudgets(indexed.id(), policy, &measurement));
  return measurement;
}

absl::StatusOr<ForcedResult> RunSession::FeedQuestion(semkv_sequence parent, size_t question,
                                                      LayerObserver observer) {
  SEMKV_ASSIGN_OR_RETURN(const OwnedSequence fork, ForkSequence(context(), parent));
  const ForcedRow row = {fork.id(), prompt_.question_ids[question], dense_[question].ids};
  SEMKV_ASSIGN_OR_RETURN(
      std::vector<ForcedResult> results,
      FeedForced(engine_.get(), {&row, 1}, {/*measure_mass=*/true, std::move(observer)}));
  return std::move(results.front());
}

absl::Status RunSession::MeasureForced(semkv_sequence parent, const semkv_policy& policy,
                                       PolicyMeasurement* measurement) {
  const size_t vocab_size = engine_->config().vocab_size;
  const int32_t num_selections =
      policy.per_query_head != 0 ? engine_->config().num_heads : engine_->config().num_kv_heads;
  const int32_t bin_tokens = (run_.context_tokens + kMapBins - 1) / kMapBins;
  SelectionMap map(engine_->config().num_layers, num_selections, run_.context_tokens, bin_tokens);
  LayerObserver observer;
  if (wants_html()) {
    observer = [&map](const reference::LayerObservation& layer) { return map.Add(layer); };
  }
  std::vector<double> divergences, masses;
  for (size_t q = 0; q < prompt_.questions.size(); ++q) {
    progress_->Show(absl::StrCat(measurement->name, ": mass and divergence"),
                    static_cast<int64_t>(q), static_cast<int64_t>(prompt_.questions.size()));
    SEMKV_ASSIGN_OR_RETURN(const ForcedResult result, FeedQuestion(parent, q, observer));
    masses.insert(masses.end(), result.captured_mass.begin(), result.captured_mass.end());
    for (size_t i = 0; i < dense_[q].ids.size(); ++i) {
      const size_t first = i * vocab_size;
      divergences.push_back(
          KlDivergence(absl::MakeConstSpan(dense_[q].logits).subspan(first, vocab_size),
                       absl::MakeConstSpan(result.logits).subspan(first, vocab_size)));
    }
  }
  measurement->mean_kl_to_dense = Mean(divergences);
  if (!masses.empty()) {
    measurement->captured_mass_mean = Mean(masses);
    measurement->captured_mass_p5 = Quantile(std::move(masses), 0.05);
  }
  if (wants_html()) measurement->maps = map.Shares();
  return absl::OkStatus();
}

absl::StatusOr<double> RunSession::MassAt(semkv_sequence parent, semkv_policy policy,
                                          int32_t budget) {
  policy.budget = budget;
  policy.force_sparse = 1;
  SEMKV_ASSIGN_OR_RETURN(const OwnedSequence indexed,
                         ForkUnderPolicy(context(), parent, policy, nullptr));
  std::vector<double> masses;
  for (size_t q = 0; q < std::min(kSweepQuestions, prompt_.questions.size()); ++q) {
    SEMKV_ASSIGN_OR_RETURN(const ForcedResult result, FeedQuestion(indexed.id(), q, {}));
    masses.insert(masses.end(), result.captured_mass.begin(), result.captured_mass.end());
  }
  return masses.empty() ? 1.0 : Mean(masses);
}

absl::Status RunSession::SweepBudgets(semkv_sequence parent, const semkv_policy& policy,
                                      PolicyMeasurement* measurement) {
  int64_t done = 0;
  for (int32_t divisor : kSweepDivisors) {
    progress_->Show(absl::StrCat(measurement->name, ": mass against budget"), done++,
                    std::size(kSweepDivisors));
    const int32_t budget = run_.context_tokens / divisor;
    if (budget < LeastBudget(policy)) continue;
    SEMKV_ASSIGN_OR_RETURN(const double mass, MassAt(parent, policy, budget));
    measurement->budget_sweep.push_back({budget, mass});
  }
  return absl::OkStatus();
}

void RunSession::DescribeMap() {
  const reference::Tokenizer& tokenizer = engine_->tokenizer();
  run_.bins = CutIntoBins(prompt_, tokenizer, kMapBins);
  for (size_t q = 0; q < prompt_.questions.size(); ++q) {
    const int32_t question = static_cast<int32_t>(q);
    for (int32_t id : prompt_.question_ids[q]) {
      run_.steps.push_back({question, false, std::string(tokenizer.TokenBytes(id))});
    }
    for (size_t i = 0; i + 1 < dense_[q].ids.size(); ++i) {
      run_.steps.push_back({question, true, std::string(tokenizer.TokenBytes(dense_[q].ids[i]))});
    }
    std::string place = prompt_.questions[q].expected;
    if (place.empty()) place = AnswerText(dense_[q].ids);
    while (!place.empty() && place.back() == '.') place.pop_back();
    run_.answer_bins.push_back(FindInDocument(std::string(absl::StripAsciiWhitespace(place)),
                                              prompt_, tokenizer, run_.bins));
  }
}

absl::StatusOr<RunMeasurement> RunSession::Measure() {
  SEMKV_RETURN_IF_ERROR(Load());
  SEMKV_RETURN_IF_ERROR(Prefill());
  SEMKV_ASSIGN_OR_RETURN(const PolicyMeasurement dense, MeasureDense());
  for (int32_t kind : options_.policies) {
    if (kind == SEMKV_POLICY_DENSE) {
      run_.policies.push_back(dense);
      continue;
    }
    SEMKV_ASSIGN_OR_RETURN(PolicyMeasurement policy, MeasurePolicy(kind));
    run_.policies.push_back(std::move(policy));
  }
  if (wants_html()) DescribeMap();
  return std::move(run_);
}

absl::StatusOr<RunMeasurement> Measure(const RunOptions& options) {
  Progress progress;
  RunSession session(options, &progress);
  return session.Measure();
}

}  // namespace

absl::Status Run(const RunOptions& options) {
  for (const std::string& path : {options.json_file, options.html_file}) {
    if (!path.empty()) SEMKV_RETURN_IF_ERROR(CheckWritable(path));
  }
  SEMKV_ASSIGN_OR_RETURN(const RunMeasurement run, Measure(options));
  if (!options.json_file.empty()) {
    SEMKV_RETURN_IF_ERROR(WriteFile(options.json_file, RunJson(run)));
  }
  if (!options.html_file.empty()) {
    SEMKV_RETURN_IF_ERROR(WriteFile(options.html_file, RunHtml(run)));
  }
  std::fputs(RunTable(run).c_str(), stdout);
  return absl::OkStatus();
}

}  // namespace semkv::command
