// The queries of a step that outlive it: the observation window and the open sentence's mean.

#include <algorithm>

#include "csrc/api/attend_args.h"
#include "csrc/api/step_plan.h"
#include "csrc/ops/numeric/float_convert.h"

namespace semkv {

void StepPlan::RecordQueries(int32_t layer, const semkv_attend_args& args) {
  const semkv_options& o = context_->options();
  if (o.query_window == 0) return;
  const Strides strides = QueryStrides(args, o);
  for (int32_t r = 0; r < num_rows_; ++r) {
    const Row& row = rows_[r];
    QueryWindow::Queries queries;
    queries.dtype = static_cast<DType>(args.dtype);
    queries.q = Advance(args.q, row.first_query * strides.token, queries.dtype);
    queries.q_token = strides.token;
    queries.q_head = strides.head;
    queries.position = row.num_tokens - row.num_queries;
    queries.num_tokens = row.num_queries;
    queries.scale = Scale(args, o);
    row.state->queries.Record(layer, queries);
  }
}

void StepPlan::UseMeanQueries(const Run& run, int32_t layer, const semkv_attend_args& args,
                              ScoreListsParams* score) {
  bool any = false;
  for (int32_t r = run.first; r < run.end; ++r) {
    any |= IsSparse(layer, r) && rows_[r].state->policy.mean_query != 0;
  }
  if (!any) return;
  const semkv_options& o = context_->options();
  const int64_t row_floats = int64_t{o.num_heads} * o.head_dim;
  for (int32_t r = run.first; r < run.end; ++r) {
    IndexedSequence& state = *rows_[r].state;
    OpenSentence::Query query;
    query.q = Advance(score->q, (r - run.first) * score->q_row, score->q_dtype);
    query.dtype = score->q_dtype;
    query.head_stride = score->q_head;
    query.num_heads = o.num_heads;
    query.head_dim = o.head_dim;
    float* const out = mean_queries_.data() + r * row_floats;
    if (IsSparse(layer, r) && state.policy.mean_query != 0) {
      state.open_sentence.AddAndMean(layer, rows_[r].num_tokens, query, out);
      continue;
    }
    for (int64_t i = 0; i < row_floats; ++i) {
      const int64_t from = i / o.head_dim * query.head_stride + i % o.head_dim;
      out[i] = LoadAsFloat(query.q, query.dtype, from);
    }
  }
  score->q = mean_queries_.data() + run.first * row_floats;
  score->q_dtype = DType::kFloat32;
  score->q_row = row_floats;
  score->q_head = o.head_dim;
}

}  // namespace semkv
