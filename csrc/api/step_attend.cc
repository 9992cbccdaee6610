// The per-layer half of a step: select and attend.

#include <chrono>

#include "absl/strings/str_cat.h"
#include "csrc/api/attend_args.h"
#include "csrc/api/step_plan.h"
#include "csrc/status_macros.h"

namespace semkv {
namespace {

int64_t NowNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

int64_t IndexBytes(const ListsView& view, int32_t head_dim) {
  int64_t bytes = CentroidRowBytes(view.form, head_dim);
  if (view.scales != nullptr) bytes += 4;
  if (view.variances != nullptr) bytes += 4;
  return bytes * view.nlist;
}

}  // namespace

ScoreListsParams StepPlan::ScoreParams(const Run& run, const semkv_attend_args& args) const {
  const semkv_options& o = context_->options();
  const Strides strides = QueryStrides(args, o);
  ScoreListsParams score = DescribeCall<ScoreListsParams>(args, o);
  score.q = Advance(args.q, rows_[run.first].first_query * strides.token, score.q_dtype);
  score.q_row = strides.token;
  score.q_head = strides.head;
  score.num_rows = run.end - run.first;
  score.num_selections = run.num_selections;
  score.rows = retrieval_rows_.data() + run.first;
  score.views = views_.data();
  score.view_begin = view_begin_.data();
  return score;
}

int32_t StepPlan::FillViews(const Run& run, int32_t layer) {
  const semkv_options& o = context_->options();
  int32_t n = 0, p = 0;
  for (int32_t r = run.first; r < run.end; ++r) {
    for (int32_t s = 0; s < run.num_selections; ++s, ++p) {
      view_begin_[p] = n;
      always_[p] = AlwaysTaken();
      if (!IsSparse(layer, r)) continue;
      if (const KeptPrompt* const kept = rows_[r].state->kept.get(); kept != nullptr) {
        // One selection per query head: ValidatePolicy.
        n += kept->Views(layer * o.num_heads + s, views_.data() + n);
        always_[p] = kept->FixedStart(layer * o.num_heads + s);
      }
      const int32_t kv_head =
          static_cast<int32_t>(int64_t{s} * o.num_kv_heads / run.num_selections);
      n += rows_[r].state->index.Views(layer * o.num_kv_heads + kv_head, views_.data() + n);
    }
  }
  view_begin_[p] = n;
  return n;
}

void StepPlan::CountSelection(const Run& run, int32_t layer, int32_t num_views) {
  const semkv_options& o = context_->options();
  const int64_t token_bytes = int64_t{2} * o.head_dim * DTypeBytes(static_cast<DType>(o.kv_dtype));
  semkv_stats& counters = context_->counters();
  for (int32_t r = run.first; r < run.end; ++r) {
    if (!IsSparse(layer, r)) continue;
    for (int32_t s = 0; s < run.num_selections; ++s) {
      const int32_t count = counts_[rows_[r].first_selection + s];
      counters.attended_tokens += count;
      counters.kv_bytes_read += count * token_bytes;
      ++counters.selections;
    }
  }
  for (int32_t i = 0; i < num_views; ++i) {
    counters.index_bytes_read += IndexBytes(views_[i], o.head_dim);
  }
}

void StepPlan::SelectRun(const Run& run, int32_t layer, const semkv_attend_args& args) {
  const int32_t num_views = FillViews(run, layer);
  ScoreListsParams score = ScoreParams(run, args);
  UseMeanQueries(run, layer, args, &score);
  const int64_t first = rows_[run.first].first_selection;
  SelectListsParams select;
  select.num_rows = score.num_rows;
  select.num_selections = run.num_selections;
  select.heads_per_selection = score.num_heads / run.num_selections;
  select.page_tokens = context_->options().page_tokens;
  select.rows = score.rows;
  select.views = score.views;
  select.view_begin = score.view_begin;
  select.always = always_.data();
  select.slots = slots_.data() + first * max_budget_;
  select.positions = positions_.data() + first * max_budget_;
  select.counts = counts_.data() + first;
  select.slots_stride = max_budget_;
  RetrieveHost(score, select, retrieval_scratch_.data(), retrieval_scratch_.size(),
               context_->pool());
  if (estimates_) EstimateRest(run, score);
  CountSelection(run, layer, num_views);
}

void StepPlan::EstimateRest(const Run& run, const ScoreListsParams& score) {
  const semkv_options& o = context_->options();
  const int64_t first = rows_[run.first].first_selection;
  EstimateRestParams estimate;
  estimate.score = score;
  estimate.positions = positions_.data() + first * max_budget_;
  estimate.counts = counts_.data() + first;
  estimate.positions_stride = max_budget_;
  estimate.rest_out = rest_out_.data() + int64_t{run.first} * o.num_heads * o.head_dim;
  estimate.rest_lse = rest_lse_.data() + int64_t{run.first} * o.num_heads;
  EstimateRestHost(estimate, retrieval_scratch_.data(), retrieval_scratch_.size(),
                   context_->pool());
}

absl::Status StepPlan::Select(int32_t layer, const semkv_attend_args& args) {
  SEMKV_RETURN_IF_ERROR(CheckArgs(layer, args));
  if (on_device_ != nullptr) {
    SEMKV_RETURN_IF_ERROR(on_device_->Select(layer, args));
    selected_layer_ = layer;
    return absl::OkStatus();
  }
  const int64_t start = NowNs();
  for (const Run& run : runs_) {
    bool any = false;
    for (int32_t r = run.first; r < run.end; ++r) any |= IsSparse(layer, r);
    if (any) SelectRun(run, layer, args);
  }
  selected_layer_ = layer;
  context_->counters().select_ns += NowNs() - start;
  return absl::OkStatus();
}

absl::Status StepPlan::Attend(int32_t layer, const semkv_attend_args& args) {
  SEMKV_RETURN_IF_ERROR(CheckArgs(layer, args));
  if (args.out == nullptr) return absl::InvalidArgumentError("out is null");
  if (context_->layers()[layer].k == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("layer ", layer, " has no storage: call semkv_register_kv"));
  }
  const bool dense = (args.flags & SEMKV_ATTEND_DENSE) != 0;
  for (int32_t r = 0; r < num_rows_ && !dense; ++r) {
    if (IsSparse(layer, r) && selected_layer_ != layer) {
      return absl::FailedPreconditionError(absl::StrCat("row ", r, " is sparse at layer ", layer,
                                                        ", semkv_select was last called for layer ",
                                                        selected_layer_));
    }
  }
  if (on_device_ != nullptr) return on_device_->Attend(layer, args);
  RecordQueries(layer, args);
  semkv_stats& counters = context_->counters();
  const int64_t start = NowNs();
  int64_t prefill_ns = 0;
  for (const Run& run : runs_) {
    const int64_t run_start = NowNs();
    if (run.single_query) {
      AttendDecode(run, layer, args);
    } else {
      AttendPrefill(run, layer, args);
      prefill_ns += NowNs() - run_start;
    }
  }
  counters.prefill_attend_ns += prefill_ns;
  counters.attend_ns += NowNs() - start - prefill_ns;
  for (int32_t r = 0; r < num_rows_; ++r) {
    const int32_t reason = *RowReason(layer, r);
    ++counters.layer_rows[reason == SEMKV_ROW_SPARSE && dense ? SEMKV_ROW_REQUESTED : reason];
  }
  return absl::OkStatus();
}

// What both kinds of attention are told alike; their strides have names of their own.
template <typename Params>
Params StepPlan::DescribeAttention(const Run& run, int32_t layer,
                                   const semkv_attend_args& args) const {
  const semkv_options& o = context_->options();
  const int64_t first_query = rows_[run.first].first_query;
  Params params = DescribeCall<Params>(args, o);
  params.q = Advance(args.q, first_query * QueryStrides(args, o).token, params.q_dtype);
  params.out = Advance(args.out, first_query * OutStrides(args, o).token, params.q_dtype);
  if (args.lse != nullptr) params.lse = args.lse + first_query * o.num_heads;
  params.num_rows = run.end - run.first;
  params.num_kv_heads = o.num_kv_heads;
  params.logit_cap = args.logit_cap;
  params.position = context_->layers()[layer];
  params.row_tokens = row_tokens_.data() + run.first;
  params.block_table = block_tables_.data() + int64_t{run.first} * context_->max_pages();
  params.block_table_stride = context_->max_pages();
  return params;
}

void StepPlan::AttendDecode(const Run& run, int32_t layer, const semkv_attend_args& args) {
  const semkv_options& o = context_->options();
  const Strides q = QueryStrides(args, o), out = OutStrides(args, o);
  const int64_t first = rows_[run.first].first_selection;
  DecodeAttentionParams params = DescribeAttention<DecodeAttentionParams>(run, layer, args);
  params.q_row = q.token;
  params.q_head = q.head;
  params.out_row = out.token;
  params.out_head = out.head;
  const bool dense = (args.flags & SEMKV_ATTEND_DENSE) != 0;
  bool any_sparse = false;
  for (int32_t r = run.first; r < run.end; ++r) {
    const bool sparse = !dense && IsSparse(layer, r);
    row_tokens_[r] = sparse ? -1 : rows_[r].num_tokens;
    any_sparse |= sparse;
  }
  params.num_selections = run.num_selections;
  params.position_slots.slots = slots_.data() + first * max_budget_;
  params.position_slots.counts = counts_.data() + first;
  params.position_slots.row_stride = int64_t{run.num_selections} * max_budget_;
  params.position_slots.selection_stride = max_budget_;
  if (estimates_ && any_sparse) {
    params.rest_out = rest_out_.data() + int64_t{run.first} * o.num_heads * o.head_dim;
    params.rest_lse = rest_lse_.data() + int64_t{run.first} * o.num_heads;
  }
  DecodeAttentionHost(params, workspace_, workspace_bytes_, context_->pool());
}

void StepPlan::AttendPrefill(const Run& run, int32_t layer, const semkv_attend_args& args) {
  const semkv_options& o = context_->options();
  const Strides q = QueryStrides(args, o), out = OutStrides(args, o);
  PrefillAttentionParams params = DescribeAttention<PrefillAttentionParams>(run, layer, args);
  params.q_token = q.token;
  params.q_head = q.head;
  params.out_token = out.token;
  params.out_head = out.head;
  query_start_[run.first] = 0;
  for (int32_t r = run.first; r < run.end; ++r) {
    query_start_[r + 1] = query_start_[r] + rows_[r].num_queries;
    row_tokens_[r] = rows_[r].num_tokens;
  }
  params.query_start = query_start_.data() + run.first;
  PrefillAttentionHost(params, workspace_, workspace_bytes_, context_->pool());
}

}  // namespace semkv
