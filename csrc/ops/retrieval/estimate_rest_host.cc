// The lists that have unread members are packed together: their scores, how many members are unread
// and where their mean values lie. Weights and sums then run over them in one sweep.

#include "csrc/ops/retrieval/estimate_rest.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "csrc/ops/parallel/thread_pool.h"
#include "csrc/ops/retrieval/retrieval_tasks.h"
#include "csrc/ops/retrieval/workspace.h"

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "csrc/ops/retrieval/estimate_rest_host.cc"
#include <hwy/foreach_target.h>  // before highway.h and every -inl.h
#include <hwy/highway.h>
#include "csrc/ops/numeric/exp2-inl.h"
#include "csrc/ops/retrieval/list_dots-inl.h"
// clang-format on

#ifndef SEMKV_OPS_RETRIEVAL_ESTIMATE_REST_HOST_ONCE_
#define SEMKV_OPS_RETRIEVAL_ESTIMATE_REST_HOST_ONCE_

namespace semkv {

struct EstimateScratch {
  EstimateScratch(Workspace& workspace, int32_t heads, int32_t head_dim, int32_t num_tokens,
                  int32_t lists)
      : query(workspace, heads, head_dim),
        stride(ScratchStride(lists)),
        scores(workspace.Take<float>(heads * stride)),
        unread(workspace.Take<float>(stride)),
        value_means(workspace.Take<const uint16_t*>(stride)),
        read(workspace.Take<uint64_t>(CeilDiv(num_tokens, 64))) {}

  QueryScratch query;
  int64_t stride;
  float* scores;                 // [heads, stride] of the packed lists: dots, scores, weights
  float* unread;                 // [stride] members that are in no slot
  const uint16_t** value_means;  // [stride]
  uint64_t* read;                // one bit per token of the row
};

}  // namespace semkv

#endif  // SEMKV_OPS_RETRIEVAL_ESTIMATE_REST_HOST_ONCE_

HWY_BEFORE_NAMESPACE();
namespace semkv {
namespace HWY_NAMESPACE {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kSumLists = 8;  // whose mean values are added in one pass over the output

int32_t CountUnread(const ListsView& view, int32_t list, const uint64_t* read, int32_t num_tokens) {
  int32_t unread = 0;
  for (int32_t j = 0; j < ListSize(view, list); ++j) {
    const int32_t position = MemberPosition(view, list, j);
    if (position < num_tokens) unread += (~read[position >> 6] >> (position & 63)) & 1;
  }
  return unread;
}

// Appends the lists of `view` with unread members to `count` packed ones; returns the new count.
int32_t PackView(const ScoreListsParams& p, const ListsView& view, int32_t num_tokens,
                 int32_t count, const EstimateScratch& s) {
  const int32_t heads = p.num_heads / p.num_selections;
  DotCenter(view, heads, p.head_dim, p.scale, s.query);
  DotView(view, nullptr, s.query, heads, p.head_dim, s.scores + count, s.stride);
  const int32_t first = count;
  for (int32_t i = 0; i < view.nlist; ++i) {
    const int32_t unread = CountUnread(view, i, s.read, num_tokens);
    if (unread == 0) continue;
    const float list_scale = view.form == CentroidForm::kInt8 ? view.scales[i] : 1.0f;
    for (int32_t h = 0; h < heads; ++h) {
      const float dot = s.scores[h * s.stride + first + i];
      const float factor = DotMultiplier(view, s.query, h, p.scale) * list_scale;
      const float score = dot * factor + s.query.center_dot[h];
      s.scores[h * s.stride + count] = std::isfinite(score) ? score : -kInfinity;
    }
    s.unread[count] = static_cast<float>(unread);
    s.value_means[count] = view.value_means + int64_t{i} * p.head_dim;
    ++count;
  }
  return count;
}

// Turns the scores of head `h` into weights of sum 1, or into zeros; returns the log of the sum
// that they had.
float WeighLists(int32_t h, int32_t count, const EstimateScratch& s) {
  const DF df;
  const int32_t lanes = hn::Lanes(df);
  float* const scores = s.scores + h * s.stride;
  std::fill_n(scores + count, kScratchPadding, -kInfinity);
  VF maximum = hn::Set(df, -kInfinity);
  for (int32_t i = 0; i < count; i += lanes) {
    maximum = hn::Max(maximum, hn::LoadU(df, scores + i));
  }
  maximum = hn::MaxOfLanes(df, maximum);
  if (hn::GetLane(maximum) == -kInfinity) {
    std::fill_n(scores, count + kScratchPadding, 0.0f);
    return -kInfinity;
  }
  VF lane_totals = hn::Zero(df);
  for (int32_t i = 0; i < count; i += lanes) {
    const VF below = hn::Sub(hn::LoadU(df, scores + i), maximum);
    const VF e = Exp2(hn::Mul(below, hn::Set(df, kLog2E)));
    const VF weight = hn::Mul(e, hn::LoadU(df, s.unread + i));
    hn::StoreU(weight, df, scores + i);
    lane_totals = hn::Add(lane_totals, weight);
  }
  const float total = hn::GetLane(hn::SumOfLanes(df, lane_totals));
  for (int32_t i = 0; i < count; ++i) scores[i] /= total;
  std::fill_n(scores + count, kScratchPadding, 0.0f);
  return hn::GetLane(maximum) + std::log(total);
}

// out[h] += sum over `num_lists` packed lists from `first` of weight * mean value.
HWY_INLINE void AddValues(int32_t first, int32_t num_lists, int32_t heads, int32_t head_dim,
                          const EstimateScratch& s, float* out) {
  const DF df;
  for (int32_t c = 0; c < head_dim; c += hn::Lanes(df)) {
    VF values[kSumLists];
    for (int l = 0; l < kSumLists; ++l) {
      values[l] =
          l < num_lists ? BFloat16Lists::Load(df, s.value_means[first + l] + c) : hn::Zero(df);
    }
    for (int32_t h = 0; h < heads; ++h) {
      const float* const weights = s.scores + h * s.stride + first;
      VF sum = hn::LoadU(df, out + h * head_dim + c);
      for (int l = 0; l < kSumLists; ++l) {
        sum = hn::MulAdd(values[l], hn::Set(df, weights[l]), sum);
      }
      hn::StoreU(sum, df, out + h * head_dim + c);
    }
  }
}

void EstimateRest(const EstimateRestParams& params, int64_t task, Workspace workspace) {
  const ScoreListsParams& p = params.score;
  const int32_t num_tokens = p.rows[task / p.num_selections].num_tokens;
  const ListsView* const views = p.views + p.view_begin[task];
  const int32_t num_views = p.view_begin[task + 1] - p.view_begin[task];
  const int32_t heads = p.num_heads / p.num_selections;
  const EstimateScratch s(workspace, heads, p.head_dim, num_tokens, CountLists(views, num_views));
  float* const out = params.rest_out + task * heads * p.head_dim;
  float* const lse = params.rest_lse + task * heads;
  std::fill_n(out, int64_t{heads} * p.head_dim, 0.0f);
  std::fill_n(lse, heads, -kInfinity);
  if (params.counts[task] < 0) return;

  LoadQueries(p, task, s.query);
  std::fill_n(s.read, CeilDiv(num_tokens, 64), uint64_t{0});
  for (int32_t k = 0; k < params.counts[task]; ++k) {
    const int32_t position = params.positions[task * params.positions_stride + k];
    s.read[position >> 6] |= uint64_t{1} << (position & 63);
  }
  int32_t count = 0;
  for (int32_t v = 0; v < num_views; ++v) {
    const ListsView& view = views[v];
    if (view.partition != params.partition || view.value_means == nullptr ||
        view.form == CentroidForm::kBounds) {
      continue;
    }
    count = PackView(p, view, num_tokens, count, s);
  }
  std::fill_n(s.unread + count, kScratchPadding, 0.0f);
  for (int32_t h = 0; h < heads; ++h) lse[h] = WeighLists(h, count, s);
  for (int32_t i = 0; i < count; i += kSumLists) {
    AddValues(i, std::min(kSumLists, count - i), heads, p.head_dim, s, out);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace semkv
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace semkv {

HWY_EXPORT(EstimateRest);

size_t EstimateRestWorkspaceBytes(int32_t num_heads, int32_t num_selections, int32_t head_dim,
                                  int32_t max_row_tokens, int32_t max_lists, int num_threads) {
  Workspace measure;
  const EstimateScratch scratch(measure, num_heads / num_selections, head_dim, max_row_tokens,
                                max_lists);
  return Workspace::TotalBytes(measure.used_bytes(), num_threads);
}

void EstimateRestHost(const EstimateRestParams& params, void* workspace, size_t workspace_bytes,
                      ThreadPool& pool) {
  const int num_threads = pool.num_threads();
  const ScoreListsParams& score = params.score;
  pool.Run(int64_t{score.num_rows} * score.num_selections, [&](int64_t task, int thread) {
    HWY_DYNAMIC_DISPATCH(EstimateRest)
    (params, task, Workspace(workspace, workspace_bytes, num_threads, thread));
  });
}

}  // namespace semkv
#endif  // HWY_ONCE
