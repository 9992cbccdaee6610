#include "integration/reference/command/evaluate.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "integration/reference/command/decoding.h"
#include "integration/reference/command/evaluation.h"
#include "integration/reference/command/files.h"
#include "integration/reference/command/progress.h"
#include "integration/reference/command/prompt.h"
#include "integration/reference/semkv_status.h"
#include "integration/reference/status_macros.h"

namespace semkv::command {
namespace {

using reference::SemkvStatus;

// Pool beyond the documents and the tails of a batch's forks: copied last pages.
constexpr int32_t kForkTokens = 1024;

struct TokenizedQuestion {
  std::vector<int32_t> question;
  std::vector<int32_t> answer;  // the closing period included
};

struct TokenizedDocument {
  std::string kind;
  int32_t context = 0;  // nominal
  std::vector<int32_t> ids;
  std::vector<TokenizedQuestion> questions;

  // Tokens of the document with its longest question and answer.
  int32_t LongestSequence() const {
    size_t longest = 0;
    for (const TokenizedQuestion& q : questions) {
      longest = std::max(longest, q.question.size() + q.answer.size());
    }
    return static_cast<int32_t>(ids.size() + longest);
  }
  int32_t Budget(double fraction) const {
    return static_cast<int32_t>(std::floor(static_cast<double>(ids.size()) * fraction));
  }
};

TokenizedDocument Tokenize(const EvaluationDocument& document, const reference::ModelConfig& config,
                           const reference::Tokenizer& tokenizer) {
  TokenizedDocument tokenized;
  tokenized.kind = document.kind;
  tokenized.ids = EncodeDocument(config, tokenizer, document.text);
  tokenized.context = document.context > 0
                          ? document.context
                          : NominalContext(static_cast<int32_t>(tokenized.ids.size()));
  const std::vector<int32_t> period = tokenizer.Encode(".");
  for (const EvaluationQuestion& question : document.questions) {
    TokenizedQuestion ids = {tokenizer.Encode(question.question),
                             tokenizer.Encode(question.answer)};
    ids.answer.insert(ids.answer.end(), period.begin(), period.end());
    tokenized.questions.push_back(std::move(ids));
  }
  return tokenized;
}

class EvaluationSession {
 public:
  explicit EvaluationSession(const EvaluateOptions& options) : options_(options) {}

  absl::Status Load();
  absl::Status EvaluateAll();

  const Cells& cells() const { return cells_; }
  const std::string& model() const { return engine_->config().name; }
  int64_t num_documents() const { return static_cast<int64_t>(documents_.size()); }

 private:
  // Checks a document against the model and every policy's budget.
  absl::Status CheckDocument(const std::string& id, const TokenizedDocument& document,
                             const reference::ModelConfig& config) const;
  absl::Status EvaluateDocument(const TokenizedDocument& document);
  absl::Status EvaluatePolicy(const TokenizedDocument& document,
                              const std::vector<ForcedResult>& dense, semkv_sequence prefilled,
                              int32_t kind);
  // Every question after `parent`, in batches; what was read goes to `cell`. With
  // `question_policy` the questions are prefilled (PrefillQuestion), else decoded.
  absl::StatusOr<std::vector<ForcedResult>> FeedAll(const TokenizedDocument& document,
                                                    semkv_sequence parent, int32_t budget,
                                                    const ForcedOptions& forced,
                                                    const semkv_policy* question_policy,
                                                    Cell* cell);
  // Prefills the question into `sequence`, which holds the document, and puts both under `policy`.
  absl::StatusOr<ForcedRow> PrefillQuestion(const TokenizedQuestion& question,
                                            semkv_sequence sequence, const semkv_policy& policy);
  semkv_context* context() const { return engine_->context(); }

  const EvaluateOptions& options_;
  std::vector<TokenizedDocument> documents_;
  std::unique_ptr<reference::Engine> engine_;
  Cells cells_;
};

absl::Status EvaluationSession::CheckDocument(const std::string& id,
                                              const TokenizedDocument& document,
                                              const reference::ModelConfig& config) const {
  if (document.LongestSequence() > config.max_position_embeddings) {
    return absl::OutOfRangeError(absl::StrCat("document ", id, " with question and answer has ",
                                              document.LongestSequence(), " tokens, the model has ",
                                              config.max_position_embeddings, " positions"));
  }
  for (int32_t kind : options_.policies) {
    for (double fraction : options_.budget_fractions) {
      const absl::Status status =
          MakePolicy(kind, document.Budget(fraction), options_.overrides).status();
      if (status.ok()) continue;
      return absl::InvalidArgumentError(absl::StrCat("document ", id, ", budget fraction ",
                                                     fraction, ", policy ", semkv_policy_name(kind),
                                                     ": ", status.message()));
    }
  }
  return absl::OkStatus();
}

absl::Status EvaluationSession::Load() {
  const std::string& directory = options_.model.directory;
  SEMKV_ASSIGN_OR_RETURN(const std::string lines, ReadFile(options_.documents_file));
  absl::StatusOr<std::vector<EvaluationDocument>> documents = ParseDocuments(lines);
  if (documents.ok() && documents->empty()) {
    documents = absl::InvalidArgumentError("holds no document");
  }
  if (!documents.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(options_.documents_file, ": ", documents.status().message()));
  }
  SEMKV_ASSIGN_OR_RETURN(const reference::ModelConfig config,
                         reference::ModelConfig::Load(directory));
  SEMKV_ASSIGN_OR_RETURN(const std::unique_ptr<reference::Tokenizer> tokenizer,
                         LoadTokenizer(directory));
  reference::EngineOptions engine;
  engine.num_threads = options_.model.num_threads;
  engine.kv_dtype = options_.model.kv_dtype;
  engine.max_budget = 0;
  int32_t longest_tail = 0;
  for (const EvaluationDocument& document : *documents) {
    TokenizedDocument tokenized = Tokenize(document, config, *tokenizer);
    SEMKV_RETURN_IF_ERROR(CheckDocument(document.id, tokenized, config));
    const int32_t longest = tokenized.LongestSequence();
    engine.max_sequence_tokens = std::max(engine.max_sequence_tokens, longest);
    longest_tail = std::max(longest_tail, longest - static_cast<int32_t>(tokenized.ids.size()));
    for (double fraction : options_.budget_fractions) {
      engine.max_budget = std::max(engine.max_budget, tokenized.Budget(fraction));
      for (int32_t kind : options_.policies) {
        SEMKV_ASSIGN_OR_RETURN(const semkv_policy policy,
                               MakePolicy(kind, tokenized.Budget(fraction), options_.overrides));
        engine.max_budget = std::max(engine.max_budget, MostAttended(policy, longest));
        engine.query_window = std::max(engine.query_window, QueryWindow(policy));
      }
    }
    documents_.push_back(std::move(tokenized));
  }
  engine.pool_tokens = engine.max_sequence_tokens + engine.max_batch * longest_tail + kForkTokens;
  SEMKV_ASSIGN_OR_RETURN(engine_, reference::Engine::Load(directory, engine));
  return absl::OkStatus();
}

absl::StatusOr<ForcedRow> EvaluationSession::PrefillQuestion(const TokenizedQuestion& question,
                                                             semkv_sequence sequence,
                                                             const semkv_policy& policy) {
  // The last token is decoded: its step gives the logits of the answer's first.
  const absl::Span<const int32_t> ids = question.question;
  const size_t ahead = ids.size() - 1;
  if (ahead > 0) SEMKV_RETURN_IF_ERROR(engine_->Prefill(sequence, ids.first(ahead), {}));
  SEMKV_RETURN_IF_ERROR(PutUnderPolicy(context(), sequence, policy));
  return ForcedRow{sequence, ids.subspan(ahead), question.answer};
}

absl::StatusOr<std::vector<ForcedResult>> EvaluationSession::FeedAll(
    const TokenizedDocument& document, semkv_sequence parent, int32_t budget,
    const ForcedOptions& forced, const semkv_policy* question_policy, Cell* cell) {
  std::vector<ForcedResult> all;
  const size_t batch = engine_->options().max_batch;
  for (size_t first = 0; first < document.questions.size(); first += batch) {
    std::vector<OwnedSequence> forks;
    std::vector<ForcedRow> rows;
    for (size_t q = first; q < std::min(first + batch, document.questions.size()); ++q) {
      SEMKV_ASSIGN_OR_RETURN(OwnedSequence fork, ForkSequence(context(), parent));
      ForcedRow row = {fork.id(), document.questions[q].question, document.questions[q].answer};
      if (question_policy != nullptr) {
        SEMKV_ASSIGN_OR_RETURN(row,
                               PrefillQuestion(document.questions[q], fork.id(), *question_policy));
      }
      rows.push_back(row);
      forks.push_back(std::move(fork));
    }
    // After the questions' prefill, which is dense and no step of the policy.
    SEMKV_ASSIGN_OR_RETURN(const semkv_stats before, ReadStats(context()));
    SEMKV_ASSIGN_OR_RETURN(std::vector<ForcedResult> results,
                           FeedForced(engine_.get(), rows, forced));
    SEMKV_ASSIGN_OR_RETURN(const semkv_stats after, ReadStats(context()));
    int64_t num_steps = 0, context_tokens = 0;
    for (ForcedResult& result : results) {
      num_steps += result.num_steps;
      context_tokens += result.context_tokens;
      all.push_back(std::move(result));
    }
    const KvGeometry geometry = GeometryOf(engine_->config(), options_.model.kv_dtype);
    cell->AddReads(SummarizeReads(before, after, geometry, num_steps, context_tokens), budget,
                   num_steps);
  }
  return all;
}

absl::Status EvaluationSession::EvaluatePolicy(const TokenizedDocument& document,
                                               const std::vector<ForcedResult>& dense,
                                               semkv_sequence prefilled, int32_t kind) {
  for (double fraction : options_.budget_fractions) {
    const int32_t budget = document.Budget(fraction);
    SEMKV_ASSIGN_OR_RETURN(const semkv_policy policy, MakePolicy(kind, budget, options_.overrides));
    SEMKV_ASSIGN_OR_RETURN(const OwnedSequence indexed,
                           ForkUnderPolicy(context(), prefilled, policy, nullptr));
    Cell& cell = cells_[{document.kind, document.context, fraction, semkv_policy_name(kind)}];
    semkv_sequence_info info{};
    info.struct_size = sizeof(info);
    SEMKV_RETURN_IF_ERROR(SemkvStatus(semkv_sequence_info_get(context(), indexed.id(), &info)));
    cell.num_documents += 1;
    cell.index_share += GeometryOf(engine_->config(), options_.model.kv_dtype)
                            .IndexShare(info.index_bytes, info.num_tokens);
    SEMKV_ASSIGN_OR_RETURN(
        const std::vector<ForcedResult> results,
        options_.prefill_question
            ? FeedAll(document, prefilled, budget, {/*measure_mass=*/true, {}}, &policy, &cell)
            : FeedAll(document, indexed.id(), budget, {/*measure_mass=*/true, {}}, nullptr, &cell));
    for (size_t q = 0; q < results.size(); ++q) {
      cell.AddVerdict(Judge(document.questions[q].answer, dense[q].logits, results[q].logits));
      cell.captured_mass.insert(cell.captured_mass.end(), results[q].captured_mass.begin(),
                                results[q].captured_mass.end());
    }
  }
  return absl::OkStatus();
}

absl::Status EvaluationSession::EvaluateDocument(const TokenizedDocument& document) {
  SEMKV_ASSIGN_OR_RETURN(const OwnedSequence prefilled, CreateDenseSequence(context()));
  SEMKV_RETURN_IF_ERROR(engine_->Prefill(prefilled.id(), document.ids, {}));
  Cell& cell = cells_[{document.kind, document.context, 1.0, "dense"}];
  SEMKV_ASSIGN_OR_RETURN(
      const std::vector<ForcedResult> dense,
      FeedAll(document, prefilled.id(), document.LongestSequence(), {}, nullptr, &cell));
  for (size_t q = 0; q < dense.size(); ++q) {
    cell.AddVerdict(Judge(document.questions[q].answer, dense[q].logits, dense[q].logits));
  }
  for (int32_t kind : options_.policies) {
    SEMKV_RETURN_IF_ERROR(EvaluatePolicy(document, dense, prefilled.id(), kind));
  }
  return absl::OkStatus();
}

absl::Status EvaluationSession::EvaluateAll() {
  Progress progress;
  for (int64_t i = 0; i < num_documents(); ++i) {
    progress.Show("documents", i, num_documents());
    SEMKV_RETURN_IF_ERROR(EvaluateDocument(documents_[i]));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Evaluate(const EvaluateOptions& options) {
  if (!options.json_file.empty()) SEMKV_RETURN_IF_ERROR(CheckWritable(options.json_file));
  EvaluationSession session(options);
  SEMKV_RETURN_IF_ERROR(session.Load());
  SEMKV_RETURN_IF_ERROR(session.EvaluateAll());
  if (!options.json_file.empty()) {
    SEMKV_RETURN_IF_ERROR(
        WriteFile(options.json_file,
                  EvaluationJson(session.model(), session.num_documents(), session.cells())));
  }
  std::fputs(EvaluationTable(session.cells()).c_str(), stdout);
  return absl::OkStatus();
}

}  // namespace semkv::command
