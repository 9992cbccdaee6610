// The lists that have unread members are packed together: their scores, how many members are unread
// and where their mean values lie. Weights and sums then run over them, sums in registers.

#include "csrc/ops/retrieval/estimate_rest.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>

#include "csrc/ops/parallel/thread_pool.h"
#include "csrc/ops/retrieval/retrieval_tasks.h"
#include "csrc/ops/retrieval/workspace.h"

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "csrc/ops/retrieval/estimate_rest_host.cc"
#include <hwy/foreach_target.h>  // before highway.h and every -inl.h
#include <hwy/cache_control.h>
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
        open(workspace.Take<uint8_t>(num_tokens)) {}

  QueryScratch query;
  int64_t stride;
  float* scores;                 // [heads, stride] of the packed lists: dots, scores, weights
  float* unread;                 // [stride] members that are in no slot
  const uint16_t** value_means;  // [stride]
  uint8_t* open;                 // [num_tokens] 1: to be estimated, 0: in a slot, or never is
};

}  // namespace semkv

#endif  // SEMKV_OPS_RETRIEVAL_ESTIMATE_REST_HOST_ONCE_

HWY_BEFORE_NAMESPACE();
namespace semkv {
namespace HWY_NAMESPACE {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int32_t kSumHeads = 4;    // whose sums are in registers together
constexpr int32_t kListsAhead = 8;  // whose mean values are asked for

void Close(int32_t position, int32_t num_tokens, uint8_t* open) {
  if (position < num_tokens) open[position] = 0;
}

// Members ascend.
int32_t CountUnread(const ListsView& view, int32_t list, const uint8_t* open, int32_t num_tokens) {
  const uint8_t* const open_here = open + view.first_position;
  const int32_t begin = view.offsets[list];
  int32_t end = view.offsets[list + 1];
  while (end > begin && MemberPosition(view, list, end - view.offsets[list] - 1) >= num_tokens) {
    --end;
  }
  if (view.members == nullptr) return std::accumulate(open_here + begin, open_here + end, 0);
  int32_t unread = 0;
  for (int32_t j = begin; j < end; ++j) unread += open_here[view.members[j]];
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
    const int32_t unread = CountUnread(view, i, s.open, num_tokens);
    if (unread == 0) continue;
    const float list_scale = HasScales(view.form) ? view.scales[i] : 1.0f;
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

// out[h, c, c + kVectors * lanes) = sum over the packed lists of weight * mean value, for the heads
// [first, first + kSumHeads) that there are.
template <size_t kVectors>
HWY_INLINE void SumValues(int32_t count, int32_t first, int32_t heads, int32_t head_dim, int32_t c,
                          const EstimateScratch& s, float* out) {
  const DF df;
  const int32_t lanes = hn::Lanes(df);
  const float* weights[kSumHeads];
  VF sums[kSumHeads][kVectors];
  for (int32_t h = 0; h < kSumHeads; ++h) {
    weights[h] = s.scores + std::min(first + h, heads - 1) * s.stride;
    for (size_t v = 0; v < kVectors; ++v) sums[h][v] = hn::Zero(df);
  }
  for (int32_t i = 0; i < count; ++i) {
    const uint16_t* const ahead = s.value_means[std::min(i + kListsAhead, count - 1)] + c;
    hwy::Prefetch(ahead);
    if (kVectors * lanes > 32) hwy::Prefetch(ahead + 32);
    VF values[kVectors];
    for (size_t v = 0; v < kVectors; ++v) {
      values[v] = BFloat16Lists::Load(df, s.value_means[i] + c + v * lanes);
    }
    for (int32_t h = 0; h < kSumHeads; ++h) {
      const VF weight = hn::Set(df, weights[h][i]);
      for (size_t v = 0; v < kVectors; ++v) {
        sums[h][v] = hn::MulAdd(weight, values[v], sums[h][v]);
      }
    }
  }
  for (int32_t h = 0; h < kSumHeads && first + h < heads; ++h) {
    for (size_t v = 0; v < kVectors; ++v) {
      hn::StoreU(sums[h][v], df, out + int64_t{first + h} * head_dim + c + v * lanes);
    }
  }
}

// Channels by the registers that their sums fill, so that each row is read once per 4 heads.
void SumAllValues(int32_t count, int32_t heads, int32_t head_dim, const EstimateScratch& s,
                  float* out) {
  constexpr size_t kVectors = HWY_MAX_BYTES == 64 ? 4 : 2;
  const int32_t lanes = hn::Lanes(DF());
  for (int32_t first = 0; first < heads; first += kSumHeads) {
    int32_t c = 0;
    for (; c + static_cast<int32_t>(kVectors) * lanes <= head_dim; c += kVectors * lanes) {
      SumValues<kVectors>(count, first, heads, head_dim, c, s, out);
    }
    for (; c < head_dim; c += lanes) SumValues<1>(count, first, heads, head_dim, c, s, out);
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
  std::fill_n(s.open, num_tokens, uint8_t{1});
  for (int32_t k = 0; k < params.counts[task]; ++k) {
    Close(params.positions[task * params.positions_stride + k], num_tokens, s.open);
  }
  int32_t count = 0;
  for (int32_t v = 0; v < num_views; ++v) {
    const ListsView& view = views[v];
    if (view.value_means == nullptr || view.form == CentroidForm::kBounds) continue;
    for (int32_t e = 0; e < view.num_excluded; ++e) {
      Close(view.first_position + view.excluded[e], num_tokens, s.open);
    }
    count = PackView(p, view, num_tokens, count, s);
  }
  std::fill_n(s.unread + count, kScratchPadding, 0.0f);
  for (int32_t h = 0; h < heads; ++h) lse[h] = WeighLists(h, count, s);
  if (count > 0) SumAllValues(count, heads, p.head_dim, s, out);
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
