// Three passes over the scores of one (row, selection), which stay in its core's cache: dots with
// the variance term and each head's maximum; exp and Z; keys. Only the first reads centroids,
// each once for up to kBlockHeads query heads.

#include "csrc/ops/retrieval/score_lists.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "csrc/ops/parallel/thread_pool.h"
#include "csrc/ops/retrieval/retrieval_tasks.h"
#include "csrc/ops/retrieval/workspace.h"

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "csrc/ops/retrieval/score_lists_host.cc"
#include <hwy/foreach_target.h>  // before highway.h and every -inl.h
#include <hwy/highway.h>
#include "csrc/ops/retrieval/list_dots-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace semkv {
namespace HWY_NAMESPACE {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// What a vector of lists is scored by. The last vector of a view reads a padded copy.
struct ListBlock {
  const float* scales;      // null: all 1
  const float* variances;   // null: all 0
  const uint16_t* offsets;  // one more than lanes
};

struct PaddedBlock {
  PaddedBlock(const ListBlock& from, int32_t count) {
    std::copy_n(from.offsets, count, offsets);
    std::fill(offsets + count, std::end(offsets), from.offsets[count]);  // empty lists
    if (from.scales != nullptr) std::copy_n(from.scales, count, scales);
    if (from.variances != nullptr) std::copy_n(from.variances, count, variances);
    block = {from.scales != nullptr ? scales : nullptr,
             from.variances != nullptr ? variances : nullptr, offsets};
  }
  PaddedBlock(const PaddedBlock&) = delete;
  PaddedBlock& operator=(const PaddedBlock&) = delete;

  ListBlock block;
  float scales[kScratchPadding] = {};
  float variances[kScratchPadding] = {};
  uint16_t offsets[kScratchPadding + 1];
};

// What f(v) of v = spread * variance needs of a list, once for all query heads.
struct VarianceOfLists {
  VF half;      // v / 2 = spread * half
  VF root;      // sqrt(2 v ln size) = sqrt(spread) * root
  VF log_size;  // ln size
};

HWY_INLINE VF LoadSizes(DF df, const uint16_t* offsets) {
  const hn::RebindToSigned<DF> d32;
  const hn::Rebind<uint16_t, DF> d16;
  const auto begin = hn::PromoteTo(d32, hn::LoadU(d16, offsets));
  const auto end = hn::PromoteTo(d32, hn::LoadU(d16, offsets + 1));
  return hn::ConvertTo(df, hn::Sub(end, begin));
}

// ln x for finite x >= 1 within 1e-6 of its value or of 1; exactly 0 for 1. Highway's divides.
HWY_INLINE VF LogOfSize(DF df, VF x) {
  const hn::RebindToSigned<DF> d32;
  // x = 2^exponent * (1 + f), 2/3 <= 1 + f < 4/3.
  const auto bits = hn::BitCast(d32, x);
  const auto above = hn::Sub(bits, hn::Set(d32, 0x3f2aaaab));
  const auto exponent = hn::And(above, hn::Set(d32, static_cast<int32_t>(0xff800000u)));
  const VF f = hn::Sub(hn::BitCast(df, hn::Sub(bits, exponent)), hn::Set(df, 1.0f));
  const VF exponents = hn::Mul(hn::ConvertTo(df, exponent), hn::Set(df, 1.19209290e-7f));
  // Minimax polynomial of ln(1 + f), even and odd terms apart: N. Juffa, "fast logf".
  const VF s = hn::Mul(f, f);
  VF even = hn::MulAdd(hn::Set(df, -0.130310059f), s, hn::Set(df, -0.121483512f));
  VF odd = hn::MulAdd(hn::Set(df, 0.140869141f), s, hn::Set(df, 0.139814854f));
  even = hn::MulAdd(even, s, hn::Set(df, -0.166846126f));
  odd = hn::MulAdd(odd, s, hn::Set(df, 0.200120345f));
  even = hn::MulAdd(even, s, hn::Set(df, -0.249996200f));
  VF r = hn::MulAdd(odd, f, even);
  r = hn::MulAdd(r, f, hn::Set(df, 0.333331972f));
  r = hn::MulAdd(r, f, hn::Set(df, -0.5f));
  r = hn::MulAdd(r, s, f);
  return hn::MulAdd(exponents, hn::Set(df, 0.693147182f), r);
}

template <VarianceTerm kTerm>
HWY_INLINE VarianceOfLists LoadVariances(DF df, const float* variances, VF sizes) {
  VarianceOfLists out = {hn::Zero(df), hn::Zero(df), hn::Zero(df)};
  if constexpr (kTerm == VarianceTerm::kNone) return out;
  const VF variance = hn::LoadU(df, variances);
  out.half = hn::Mul(variance, hn::Set(df, 0.5f));
  if constexpr (kTerm == VarianceTerm::kBounded) {
    out.log_size = LogOfSize(df, hn::Max(sizes, hn::Set(df, 1.0f)));
    out.root = hn::Sqrt(hn::Mul(hn::Add(variance, variance), out.log_size));
  }
  return out;
}

template <VarianceTerm kTerm>
HWY_INLINE VF AddVariance(DF df, VF score, const VarianceOfLists& of, float spread,
                          float root_spread) {
  if constexpr (kTerm == VarianceTerm::kNone) return score;
  const VF half = hn::Mul(of.half, hn::Set(df, spread));
  if constexpr (kTerm == VarianceTerm::kHalf) return hn::Add(score, half);
  const VF linear = hn::MulSub(of.root, hn::Set(df, root_spread), of.log_size);
  return hn::Add(score, hn::IfThenElse(hn::Le(half, of.log_size), half, linear));
}

// Lists marked in `dead` score -inf with every head and weigh nothing.
HWY_INLINE void BuryLists(hn::Mask<DF> dead, int32_t heads, int64_t i, const ScoreScratch& s) {
  const DF df;
  for (int32_t h = 0; h < heads; ++h) {
    float* const at = s.scores + h * s.stride + i;
    hn::StoreU(hn::IfThenElse(dead, hn::Set(df, -kInfinity), hn::LoadU(df, at)), df, at);
  }
  hn::StoreU(hn::IfThenZeroElse(dead, hn::LoadU(df, s.sizes + i)), df, s.sizes + i);
}

// Turns the dots of one vector of lists at `i` into scores, for every query head.
template <VarianceTerm kTerm>
HWY_INLINE void ScoreBlock(const ListBlock& block, int32_t heads, int64_t i,
                           const ScoreScratch& s) {
  const DF df;
  const VF sizes = LoadSizes(df, block.offsets);
  const VF scales = block.scales != nullptr ? hn::LoadU(df, block.scales) : hn::Set(df, 1.0f);
  const VarianceOfLists variances = LoadVariances<kTerm>(df, block.variances, sizes);
  auto dead = hn::Eq(sizes, hn::Zero(df));
  for (int32_t h = 0; h < heads; ++h) {
    float* const at = s.scores + h * s.stride + i;
    const VF factor = hn::Mul(scales, hn::Set(df, s.multiplier[h]));
    VF score = hn::MulAdd(hn::LoadU(df, at), factor, hn::Set(df, s.query.center_dot[h]));
    score = AddVariance<kTerm>(df, score, variances, s.spread[h], s.root_spread[h]);
    dead = hn::Or(dead, hn::IsNaN(score));
    hn::StoreU(score, df, at);
  }
  hn::StoreU(sizes, df, s.sizes + i);
  if (HWY_UNLIKELY(!hn::AllFalse(df, dead))) BuryLists(dead, heads, i, s);
  float* maximum = s.maximum;
  for (int32_t h = 0; h < heads; ++h, maximum += kScratchPadding) {
    const VF score = hn::LoadU(df, s.scores + h * s.stride + i);
    hn::Store(hn::Max(hn::Load(df, maximum), score), df, maximum);
  }
}

template <VarianceTerm kTerm>
void ScoreBlocks(const ListsView& view, int32_t heads, int64_t first, const ScoreScratch& s) {
  const int32_t lanes = hn::Lanes(DF());
  for (int32_t i = 0; i < view.nlist; i += lanes) {
    const ListBlock block = {HasScales(view.form) ? view.scales + i : nullptr,
                             view.variances != nullptr ? view.variances + i : nullptr,
                             view.offsets + i};
    if (view.nlist - i >= lanes) {
      ScoreBlock<kTerm>(block, heads, first + i, s);
    } else {
      const PaddedBlock padded(block, view.nlist - i);
      ScoreBlock<kTerm>(padded.block, heads, first + i, s);
    }
  }
}

// `v`: the view's number among those of all tasks; the one after it is read next, here or by the
// next task.
void ScoreView(const ScoreListsParams& p, int32_t v, VarianceTerm term, int64_t first,
               const ScoreScratch& s) {
  const ListsView& view = p.views[v];
  const int32_t num_views = p.view_begin[p.num_rows * p.num_selections];
  const void* const next = v + 1 < num_views ? p.views[v + 1].centroids : nullptr;
  const int32_t heads = p.num_heads / p.num_selections;
  DotCenter(view, heads, p.head_dim, p.scale, s.query);
  for (int32_t h = 0; h < heads; ++h) {
    s.multiplier[h] = DotMultiplier(view, s.query, h, p.scale);
  }
  DotView(view, next, s.query, heads, p.head_dim, s.scores + first, s.stride);
  if (view.variances == nullptr || view.form == CentroidForm::kBounds) term = VarianceTerm::kNone;
  switch (term) {
    case VarianceTerm::kBounded:
      ScoreBlocks<VarianceTerm::kBounded>(view, heads, first, s);
      return;
    case VarianceTerm::kHalf:
      ScoreBlocks<VarianceTerm::kHalf>(view, heads, first, s);
      return;
    case VarianceTerm::kNone:
      ScoreBlocks<VarianceTerm::kNone>(view, heads, first, s);
      return;
  }
}

// exp(x) for x <= 0 within 6e-6 of its value; 0 below 2^-126. A third of the work of a full exp.
HWY_INLINE VF ExpOfNonPositive(DF df, VF x) {
  const hn::RebindToSigned<DF> d32;
  const VF log2 = hn::Mul(x, hn::Set(df, 1.44269504f));
  // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits.
  const VF rounder = hn::Set(df, 12582912.0f);
  const VF rounded = hn::Add(log2, rounder);
  const VF f = hn::Sub(log2, hn::Sub(rounded, rounder));
  // 2^f for |f| <= 1/2: Cephes, exp2f.
  VF power = hn::MulAdd(f, hn::Set(df, 1.535336188e-4f), hn::Set(df, 1.339887440e-3f));
  power = hn::MulAdd(f, power, hn::Set(df, 9.618437357e-3f));
  power = hn::MulAdd(f, power, hn::Set(df, 5.550332471e-2f));
  power = hn::MulAdd(f, power, hn::Set(df, 2.402264791e-1f));
  power = hn::MulAdd(f, power, hn::Set(df, 6.931472028e-1f));
  power = hn::MulAdd(f, power, hn::Set(df, 1.0f));
  const auto exponent = hn::ShiftLeft<23>(hn::BitCast(d32, rounded));
  const VF scaled = hn::BitCast(df, hn::Add(hn::BitCast(d32, power), exponent));
  return hn::IfThenElseZero(hn::Ge(log2, hn::Set(df, -126.0f)), scaled);
}

// Infinite scores: inf - inf is no number, but equal scores have a difference of 0.
HWY_INLINE VF ExpBelow(DF df, VF score, VF maximum) {
  return hn::IfThenElse(hn::Eq(score, maximum), hn::Set(df, 1.0f),
                        ExpOfNonPositive(df, hn::Sub(score, maximum)));
}

void ExpView(const ListsView& view, int32_t heads, int64_t first, const ScoreScratch& s) {
  const DF df;
  const int32_t lanes = hn::Lanes(df);
  for (int32_t h = 0; h < heads; ++h) {
    const int64_t head = (view.partition * heads + h) * kScratchPadding;
    const VF maximum = hn::Set(df, s.maximum[int64_t{h} * kScratchPadding]);
    VF total = hn::Load(df, s.total + head);
    float* const scores = s.scores + h * s.stride + first;
    int32_t i = 0;
    for (; i + lanes <= view.nlist; i += lanes) {
      const VF e = ExpBelow(df, hn::LoadU(df, scores + i), maximum);
      total = hn::MulAdd(e, hn::LoadU(df, s.sizes + first + i), total);
      hn::StoreU(e, df, scores + i);
    }
    if (i < view.nlist) {
      // What follows belongs to the next view.
      const auto mine = hn::FirstN(df, view.nlist - i);
      const VF e = ExpBelow(df, hn::LoadU(df, scores + i), maximum);
      const VF mass = hn::Mul(e, hn::LoadU(df, s.sizes + first + i));
      total = hn::Add(total, hn::IfThenElseZero(mine, mass));
      hn::BlendedStore(e, mine, df, scores + i);
    }
    hn::Store(total, df, s.total + head);
  }
}

// Turns a head's sums of both partitions into what their lists' exp(score - maximum) are multiplied
// by: rank_weight / Z.
void WeighHead(const RetrievalRow& row, int32_t h, int32_t heads, const ScoreScratch& s) {
  const DF df;
  float* const totals[2] = {s.total + int64_t{h} * kScratchPadding,
                            s.total + (int64_t{heads} + h) * kScratchPadding};
  float z = 0.0f;
  for (const float* total : totals) {
    z = std::max(z, hn::GetLane(hn::SumOfLanes(df, hn::Load(df, total))));
  }
  for (int p = 0; p < 2; ++p) totals[p][0] = row.rank_weight[p] / z;
}

HWY_INLINE VF KeyBlock(DF df, GroupRank rank, int32_t heads, const float* weight_of_exp, int64_t i,
                       const ScoreScratch& s) {
  VF key = hn::Zero(df);
  for (int32_t h = 0; h < heads; ++h) {
    const VF share = hn::Mul(hn::LoadU(df, s.scores + h * s.stride + i),
                             hn::Set(df, weight_of_exp[h * kScratchPadding]));
    key = rank == GroupRank::kShareSum ? hn::Add(key, share) : hn::Max(key, share);
  }
  const auto dead = hn::Eq(hn::LoadU(df, s.sizes + i), hn::Zero(df));
  return hn::IfThenElse(dead, hn::Set(df, -1.0f), key);
}

void KeyView(const ListsView& view, GroupRank rank, int32_t heads, int64_t first,
             const ScoreScratch& s, float* keys) {
  const DF df;
  const int32_t lanes = hn::Lanes(df);
  const float* const weight_of_exp = s.total + view.partition * heads * kScratchPadding;
  int32_t i = 0;
  for (; i + lanes <= view.nlist; i += lanes) {
    hn::StoreU(KeyBlock(df, rank, heads, weight_of_exp, first + i, s), df, keys + i);
  }
  if (i < view.nlist) {
    HWY_ALIGN float last[kScratchPadding];
    hn::Store(KeyBlock(df, rank, heads, weight_of_exp, first + i, s), df, last);
    std::copy_n(last, view.nlist - i, keys + i);
  }
}

void ScoreLists(const ScoreListsParams& p, int64_t task, float* keys, Workspace workspace) {
  const DF df;
  const RetrievalRow& row = p.rows[task / p.num_selections];
  const ListsView* const views = p.views + p.view_begin[task];
  const int32_t num_views = p.view_begin[task + 1] - p.view_begin[task];
  const int32_t heads = p.num_heads / p.num_selections;
  const ScoreScratch s(workspace, heads, p.head_dim, CountLists(views, num_views));

  LoadQueries(p, task, s.query);
  for (int32_t h = 0; h < heads; ++h) {
    s.spread[h] = p.scale * p.scale * s.query.square_norm[h] / static_cast<float>(p.head_dim);
    s.root_spread[h] = std::sqrt(s.spread[h]);
  }
  std::fill_n(s.maximum, heads * kScratchPadding, -kInfinity);
  std::fill_n(s.total, 2 * heads * kScratchPadding, 0.0f);

  int64_t first = 0;
  for (int32_t v = 0; v < num_views; first += views[v++].nlist) {
    ScoreView(p, p.view_begin[task] + v, row.variance, first, s);
  }
  for (int64_t at = 0; at < heads * kScratchPadding; at += kScratchPadding) {
    const auto block = hn::Load(df, s.maximum + at);
    s.maximum[at] = hn::GetLane(hn::MaxOfLanes(df, block));
  }
  first = 0;
  for (int32_t v = 0; v < num_views; first += views[v++].nlist) ExpView(views[v], heads, first, s);
  for (int32_t h = 0; h < heads; ++h) WeighHead(row, h, heads, s);
  first = 0;
  for (int32_t v = 0; v < num_views; first += views[v++].nlist) {
    KeyView(views[v], row.rank, heads, first, s, keys + first);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace semkv
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace semkv {

HWY_EXPORT(ScoreLists);

void ScoreListsTask(const ScoreListsParams& params, int64_t task, float* keys,
                    Workspace workspace) {
  HWY_DYNAMIC_DISPATCH(ScoreLists)(params, task, keys, workspace);
}

size_t ScoreListsWorkspaceBytes(int32_t num_heads, int32_t num_selections, int32_t head_dim,
                                int32_t max_lists, int num_threads) {
  Workspace measure;
  const ScoreScratch scratch(measure, num_heads / num_selections, head_dim, max_lists);
  return Workspace::TotalBytes(measure.used_bytes(), num_threads);
}

void ScoreListsHost(const ScoreListsParams& params, void* workspace, size_t workspace_bytes,
                    ThreadPool& pool) {
  const int num_threads = pool.num_threads();
  pool.Run(int64_t{params.num_rows} * params.num_selections, [&](int64_t task, int thread) {
    ScoreListsTask(params, task, params.keys + task * params.keys_stride,
                   Workspace(workspace, workspace_bytes, num_threads, thread));
  });
}

}  // namespace semkv
#endif  // HWY_ONCE
