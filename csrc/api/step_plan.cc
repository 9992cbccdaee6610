#include "csrc/api/step_plan.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "csrc/api/policy.h"
#include "csrc/status_macros.h"

namespace semkv {

StepPlan::StepPlan(Context* context, int32_t max_rows, int32_t max_budget)
    : context_(context),
      max_rows_(max_rows),
      max_budget_(max_budget),
      max_selections_(context->options().num_heads) {}

StepPlan::~StepPlan() {
  if (on_device_ == nullptr) return;
  // Its memory is freed on the context's stream.
  absl::MutexLock lock(&context_->mutex());
  on_device_.reset();
}

absl::StatusOr<std::unique_ptr<StepPlan>> StepPlan::Create(Context* context, int32_t max_rows,
                                                           int32_t max_budget) {
  if (max_rows < 1 || max_rows > (1 << 16)) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_rows is ", max_rows, ", must be in [1, ", 1 << 16, "]"));
  }
  const semkv_options& options = context->options();
  if (max_budget < 1 || max_budget > options.max_sequence_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_budget is ", max_budget,
                     ", must be in [1, max_sequence_tokens = ", options.max_sequence_tokens, "]"));
  }
  std::unique_ptr<StepPlan> plan(new StepPlan(context, max_rows, max_budget));
  plan->rows_.resize(max_rows);
  plan->runs_.reserve(max_rows);
  plan->retrieval_rows_.resize(max_rows);
  if (context->device() != nullptr) {
    SEMKV_ASSIGN_OR_RETURN(plan->on_device_, DeviceStep::Create(context, max_rows, max_budget));
    plan->device_rows_.resize(max_rows);
    return plan;
  }
  plan->block_tables_.resize(int64_t{max_rows} * context->max_pages());
  plan->row_tokens_.resize(max_rows);
  plan->query_start_.resize(max_rows + 1);
  plan->view_begin_.resize(int64_t{max_rows} * plan->max_selections_ + 1);
  const int64_t selections = int64_t{max_rows} * plan->max_selections_;
  plan->slots_.resize(selections * max_budget);
  plan->positions_.resize(selections * max_budget);
  plan->counts_.resize(selections);
  plan->always_.resize(selections);
  plan->workspace_bytes_ = plan->WorkspaceBytes();
  return plan;
}

size_t StepPlan::WorkspaceBytes() const {
  const semkv_options& o = context_->options();
  const size_t decode = DecodeAttentionWorkspaceBytes(max_rows_, o.num_heads, o.num_kv_heads,
                                                      o.head_dim, o.max_sequence_tokens);
  const size_t prefill = PrefillAttentionWorkspaceBytes(o.num_heads, o.num_kv_heads, o.head_dim,
                                                        context_->pool().num_threads());
  return std::max<size_t>(64, std::max(decode, prefill));
}

absl::Status StepPlan::Bind(void* workspace, size_t bytes) {
  if (on_device_ != nullptr) {
    return absl::UnimplementedError("on a device a plan's memory is its own");
  }
  if (workspace == nullptr || reinterpret_cast<uintptr_t>(workspace) % 64 != 0) {
    return absl::InvalidArgumentError("workspace must be 64-byte aligned and not null");
  }
  if (bytes < workspace_bytes_) {
    return absl::InvalidArgumentError(absl::StrCat(
        "workspace of ", bytes, " bytes is too small, the plan needs ", workspace_bytes_));
  }
  workspace_ = static_cast<uint8_t*>(workspace);
  own_workspace_.reset();
  return absl::OkStatus();
}

absl::Status StepPlan::Step(absl::Span<const semkv_sequence> sequences,
                            const int32_t* num_queries) {
  if (static_cast<int64_t>(sequences.size()) > max_rows_) {
    return absl::OutOfRangeError(
        absl::StrCat("a step of ", sequences.size(), " rows, the plan has room for ", max_rows_));
  }
  // A failure leaves a plan without rows, never one that is half of two steps.
  num_rows_ = 0;
  num_query_tokens_ = 0;
  runs_.clear();
  selected_layer_ = -1;
  int32_t query_tokens = 0;
  for (int32_t r = 0; r < static_cast<int32_t>(sequences.size()); ++r) {
    rows_[r].first_query = query_tokens;
    SEMKV_RETURN_IF_ERROR(PlanRow(r, sequences[r], num_queries != nullptr ? num_queries[r] : 1));
    query_tokens += rows_[r].num_queries;
  }
  num_rows_ = static_cast<int32_t>(sequences.size());
  num_query_tokens_ = query_tokens;
  ++context_->counters().steps;
  if (on_device_ != nullptr) {
    const absl::Status begun = BeginOnDevice();
    if (!begun.ok()) num_rows_ = 0;
    return begun;
  }
  MakeRuns();
  ReserveRetrieval();
  if (workspace_ == nullptr) {
    own_workspace_.reset(new uint8_t[workspace_bytes_ + 64]);
    workspace_ = own_workspace_.get();
    workspace_ += (64 - reinterpret_cast<uintptr_t>(workspace_) % 64) % 64;
  }
  return absl::OkStatus();
}

absl::Status StepPlan::BeginOnDevice() {
  for (int32_t r = 0; r < num_rows_; ++r) {
    const Row& row = rows_[r];
    DeviceStep::Row& out = device_rows_[r];
    out.sequence = row.sequence;
    out.state = row.state;
    out.is_sparse = row.reason == SEMKV_ROW_SPARSE;
    out.dense_layers = row.dense_layers;
    out.num_selections = row.num_selections;
    out.retrieval = retrieval_rows_[r];
    out.pages = context_->SequencePages(row.sequence);
  }
  SEMKV_RETURN_IF_ERROR(on_device_->Begin(absl::MakeConstSpan(device_rows_).first(num_rows_)));
  uint64_t* const layer_rows = context_->counters().layer_rows;
  const int32_t num_layers = context_->options().num_layers;
  for (int32_t r = 0; r < num_rows_; ++r) {
    const bool sparse = rows_[r].reason == SEMKV_ROW_SPARSE;
    const int32_t dense_layers = sparse ? std::min(rows_[r].dense_layers, num_layers) : 0;
    layer_rows[SEMKV_ROW_DENSE_LAYER] += dense_layers;
    layer_rows[rows_[r].reason] += num_layers - dense_layers;
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> StepPlan::GraphKey() const {
  if (num_rows_ == 0) return absl::FailedPreconditionError("semkv_plan_step has planned no rows");
  return on_device_ != nullptr ? on_device_->graph_key() : 0;
}

absl::Status StepPlan::PlanRow(int32_t r, semkv_sequence sequence, int32_t num_queries) {
  Row& row = rows_[r];
  SEMKV_ASSIGN_OR_RETURN(row.state, context_->FindSequence(sequence));
  row.sequence = sequence;
  row.num_tokens = row.state->num_tokens;
  row.num_queries = num_queries;
  if (num_queries < 1 || num_queries > row.num_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "row ", r, " has ", num_queries, " queries, its sequence has ", row.num_tokens, " tokens"));
  }
  if (on_device_ != nullptr && num_queries != 1) {
    return absl::UnimplementedError(
        absl::StrCat("row ", r, " has ", num_queries, " queries, on a device it must have one"));
  }
  const semkv_policy& policy = row.state->policy;
  if (policy.mean_query != 0 || policy.warm_up != 0) {
    row.state->open_sentence.Advance(row.state->closes, row.num_tokens);
  }
  row.dense_layers = DenseLayers(policy, context_->options().num_layers);
  row.num_selections =
      policy.per_query_head != 0 ? context_->options().num_heads : context_->options().num_kv_heads;
  if (policy.kind == SEMKV_POLICY_DENSE) {
    row.reason = SEMKV_ROW_DENSE_POLICY;
  } else if (num_queries > 1) {
    row.reason = SEMKV_ROW_MULTI_QUERY;
  } else if (policy.force_sparse == 0 &&
             row.num_tokens <= std::max(policy.budget, policy.min_context)) {
    row.reason = SEMKV_ROW_SHORT_CONTEXT;
  } else if (UsesLists(policy) && !row.state->index.indexed()) {
    row.reason = SEMKV_ROW_NOT_INDEXED;
  } else {
    row.reason = SEMKV_ROW_SPARSE;
  }
  FillRetrievalRow(r);
  if (row.reason == SEMKV_ROW_SPARSE) {
    if (retrieval_rows_[r].budget > max_budget_) {
      return absl::OutOfRangeError(absl::StrCat(
          "row ", r, " attends to ", retrieval_rows_[r].budget, " tokens in this step, its budget ",
          "is ", policy.budget, ", the plan's max_budget ", max_budget_));
    }
    if (row.dense_layers < context_->options().num_layers) {
      SEMKV_RETURN_IF_ERROR(context_->NoteSparse(sequence, row.state));
    }
  }
  if (on_device_ != nullptr) return absl::OkStatus();
  const absl::Span<const int32_t> pages = context_->SequencePages(sequence);
  std::copy(pages.begin(), pages.end(), block_tables_.begin() + int64_t{r} * context_->max_pages());
  return absl::OkStatus();
}

void StepPlan::FillRetrievalRow(int32_t r) {
  const Row& row = rows_[r];
  RetrievalRow& out = retrieval_rows_[r];
  out = RetrievalRow();
  if (row.reason != SEMKV_ROW_SPARSE) return;
  const semkv_policy& policy = row.state->policy;
  out.num_tokens = row.num_tokens;
  out.budget = policy.budget;
  out.num_sinks = std::min(policy.sinks, row.num_tokens);
  // Tokens that no list holds yet count as recent, as far as the budget goes or beside it.
  int32_t recent = RecentTokens(policy);
  if (UsesLists(policy)) {
    const int32_t open = std::max(0, row.num_tokens - row.state->index.reachable_end());
    if (policy.open_beside != 0) out.budget += open;
    recent = std::max(recent, open);
  }
  out.num_recent = std::min({recent, row.num_tokens, out.budget - out.num_sinks});
  out.variance = static_cast<VarianceTerm>(policy.variance_term);
  out.rank = static_cast<GroupRank>(policy.group_rank);
  out.rank_weight[0] = SentenceWeight(policy);
  // Both papers cut the last list's latest members; ours keeps them.
  const bool paper =
      policy.kind == SEMKV_POLICY_CLUSTERKV || policy.kind == SEMKV_POLICY_SENTENCEKV;
  out.trim = paper ? TrimKeep::kEarliest : TrimKeep::kMostRecent;
  out.mass_target = policy.mass_target;
  if (on_device_ == nullptr) {
    out.block_table = block_tables_.data() + int64_t{r} * context_->max_pages();
  }
  if (row.state->kept != nullptr) FillKeptRow(r);
  // More than there is costs room in the plan and changes nothing.
  out.budget = std::min(out.budget, row.num_tokens);
}

void StepPlan::FillKeptRow(int32_t r) {
  IndexedSequence& state = *rows_[r].state;
  const KeptPrompt& kept = *state.kept;
  RetrievalRow& out = retrieval_rows_[r];
  // Where tokens are hidden the start range is the first slots of the kept cache, per head.
  if (kept.num_kept() < kept.num_tokens()) out.num_sinks = 0;
  if (state.policy.warm_up == 0) return;
  const int32_t later = out.num_tokens - kept.num_tokens();
  const bool closes = static_cast<int32_t>(state.closes.size()) == out.num_tokens
                          ? state.closes.back() != 0
                          : state.scanner.PendingCloses() != 0;
  const int32_t num_queries = closes ? 0 : state.open_sentence.NumQueries(out.num_tokens);
  if (num_queries > state.policy.warm_up) return;
  out.budget = kept.num_kept() + later;
  out.num_recent = later;
}

void StepPlan::MakeRuns() {
  for (int32_t r = 0; r < num_rows_; ++r) {
    const bool single = rows_[r].num_queries == 1;
    const bool extends = !runs_.empty() && runs_.back().single_query == single &&
                         runs_.back().num_selections == rows_[r].num_selections;
    if (extends) {
      runs_.back().end = r + 1;
    } else {
      runs_.push_back(Run{r, r + 1, rows_[r].num_selections, single});
    }
    const int32_t first = runs_.back().first;
    rows_[r].first_selection =
        int64_t{first} * max_selections_ + int64_t{r - first} * rows_[r].num_selections;
  }
}

void StepPlan::ReserveRetrieval() {
  int64_t max_lists = 0, max_views = 0;
  bool mean_query = false;
  estimates_ = false;
  for (int32_t r = 0; r < num_rows_; ++r) {
    if (rows_[r].reason != SEMKV_ROW_SPARSE) continue;
    const IndexedSequence& state = *rows_[r].state;
    const KeptPrompt* const kept = state.kept.get();
    const int32_t kept_lists = kept != nullptr ? kept->max_lists() : 0;
    const int32_t kept_views = kept != nullptr ? kept->max_views() : 0;
    max_lists = std::max<int64_t>(max_lists, state.index.max_lists() + kept_lists);
    max_views += int64_t{rows_[r].num_selections} * (state.index.max_views() + kept_views);
    mean_query |= state.policy.mean_query != 0;
    estimates_ |= state.policy.estimate_rest != 0;
  }
  if (max_views == 0) return;
  const semkv_options& o = context_->options();
  if (static_cast<int64_t>(views_.size()) < max_views) views_.resize(max_views + max_views / 4);
  const int64_t query_floats = int64_t{max_rows_} * o.num_heads * o.head_dim;
  if (mean_query && mean_queries_.empty()) mean_queries_.resize(query_floats);
  if (estimates_ && rest_out_.empty()) {
    rest_out_.resize(query_floats);
    rest_lse_.resize(int64_t{max_rows_} * o.num_heads);
  }
  if (max_lists <= max_lists_ && !retrieval_scratch_.empty()) return;
  max_lists_ = static_cast<int32_t>(max_lists + max_lists / 4 + 64);
  const int threads = context_->pool().num_threads();
  const size_t retrieve = RetrieveWorkspaceBytes(o.num_heads, o.num_kv_heads, o.head_dim,
                                                 o.max_sequence_tokens, max_lists_, threads);
  const size_t estimate = EstimateRestWorkspaceBytes(o.num_heads, o.num_kv_heads, o.head_dim,
                                                     o.max_sequence_tokens, max_lists_, threads);
  retrieval_scratch_.resize(std::max(retrieve, estimate) + 64);
}

absl::StatusOr<int32_t> StepPlan::RowReason(int32_t layer, int32_t row) const {
  if (layer < 0 || layer >= context_->options().num_layers || row < 0 || row >= num_rows_) {
    return absl::OutOfRangeError(absl::StrCat("layer ", layer, ", row ", row, ": the step has ",
                                              context_->options().num_layers, " layers and ",
                                              num_rows_, " rows"));
  }
  if (rows_[row].reason != SEMKV_ROW_SPARSE) return rows_[row].reason;
  return IsSparse(layer, row) ? SEMKV_ROW_SPARSE : SEMKV_ROW_DENSE_LAYER;
}

absl::Status StepPlan::CheckArgs(int32_t layer, const semkv_attend_args& args) const {
  const semkv_options& o = context_->options();
  if (layer < 0 || layer >= o.num_layers) {
    return absl::OutOfRangeError(
        absl::StrCat("layer ", layer, " is not in [0, ", o.num_layers, ")"));
  }
  if (num_rows_ == 0) return absl::FailedPreconditionError("semkv_plan_step has planned no rows");
  if (args.q == nullptr) return absl::InvalidArgumentError("q is null");
  if (args.dtype < 0 || args.dtype > SEMKV_DTYPE_BF16) {
    return absl::InvalidArgumentError(absl::StrCat("dtype ", args.dtype, " is not one of 0, 1, 2"));
  }
  if (!(args.scale >= 0.0f) || !(args.logit_cap >= 0.0f)) {
    return absl::InvalidArgumentError(absl::StrCat("scale ", args.scale, " and logit_cap ",
                                                   args.logit_cap, " must not be negative"));
  }
  return absl::OkStatus();
}

absl::StatusOr<absl::Span<const int32_t>> StepPlan::SelectResult(int32_t row, int32_t selection) {
  if (row < 0 || row >= num_rows_ || selection < 0 || selection >= rows_[row].num_selections) {
    return absl::OutOfRangeError(absl::StrCat(
        "row ", row, ", selection ", selection, ": the step has ", num_rows_, " rows, the row ",
        row >= 0 && row < num_rows_ ? rows_[row].num_selections : 0, " selections"));
  }
  if (selected_layer_ < 0 || !IsSparse(selected_layer_, row)) {
    return absl::FailedPreconditionError(
        absl::StrCat("row ", row, " has no selection: it is dense, or nothing was selected yet"));
  }
  if (on_device_ != nullptr) return on_device_->Result(row, selection);
  const int64_t at = rows_[row].first_selection + selection;
  return absl::MakeConstSpan(positions_).subspan(at * max_budget_, counts_[at]);
}

}  // namespace semkv
