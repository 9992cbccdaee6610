// Dot products of query heads with the centroids of a view, for one Highway target: included by the
// *_host.cc files once per target.

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "csrc/ops/retrieval/dots_vnni.h"
#include "csrc/ops/retrieval/retrieval_tasks.h"
#include "csrc/ops/vnni.h"

#if defined(SEMKV_OPS_RETRIEVAL_LIST_DOTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SEMKV_OPS_RETRIEVAL_LIST_DOTS_INL_H_
#undef SEMKV_OPS_RETRIEVAL_LIST_DOTS_INL_H_
#else
#define SEMKV_OPS_RETRIEVAL_LIST_DOTS_INL_H_
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace semkv {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;
using VF = hn::Vec<DF>;

// Lists whose dot products are accumulated together: as many as a 128-bit block has lanes, so that
// their sums leave as one vector.
constexpr int kBlockLists = 4;
static_assert(kBlockLists == kVnniLists);
// Query heads likewise. 4 x 4 accumulators need the 32 registers of AVX-512.
constexpr int kBlockHeads = HWY_TARGET == HWY_AVX3 ? 4 : 2;
// Centroids are asked for this far ahead of their use: what a core reads in a memory latency.
constexpr int kPrefetchBytes = 2048;

// out[0 .. 4) = sum of a's lanes, of b's, of c's, of e's, as float.
#if HWY_TARGET == HWY_SCALAR
template <class D, class V>
HWY_INLINE void StoreSumsOfFour(D, V a, V b, V c, V e, float* out) {
  out[0] = hn::GetLane(a);
  out[1] = hn::GetLane(b);
  out[2] = hn::GetLane(c);
  out[3] = hn::GetLane(e);
}
#else
HWY_INLINE hn::Vec128<float> AsFloat(hn::Vec128<float> v) { return v; }
HWY_INLINE hn::Vec128<float> AsFloat(hn::Vec128<int32_t> v) {
  return hn::ConvertTo(hn::Full128<float>(), v);
}

template <class D, class V>
HWY_INLINE auto SumBlocks(D d, V v) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    return v;
  } else {
    const hn::Half<D> half;
    return SumBlocks(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  }
}

template <class D, class V>
HWY_INLINE void StoreSumsOfFour(D d, V a, V b, V c, V e, float* out) {
  const hn::Repartition<uint64_t, D> d64;
  const V ab = hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
  const V ce = hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e));
  const auto ab64 = hn::BitCast(d64, ab);
  const auto ce64 = hn::BitCast(d64, ce);
  const V abce = hn::Add(hn::BitCast(d, hn::InterleaveLower(d64, ab64, ce64)),
                         hn::BitCast(d, hn::InterleaveUpper(d64, ab64, ce64)));
  hn::StoreU(AsFloat(SumBlocks(d, abce)), hn::Full128<float>(), out);
}
#endif

// The rows of a view in blocks of kBlockLists. Where fewer are left, the last row stands for them.
template <typename T>
struct RowBlocks {
  RowBlocks(const void* rows, int64_t row_elements, int32_t nlist)
      : rows(static_cast<const T*>(rows)), row_elements(row_elements), nlist(nlist) {}

  HWY_INLINE void Point(int32_t first, const T* out[kBlockLists]) const {
    const T* const row = rows + first * row_elements;
    if (HWY_LIKELY(nlist - first >= kBlockLists)) {
      for (int l = 0; l < kBlockLists; ++l) out[l] = row + l * row_elements;
    } else {
      for (int l = 0; l < kBlockLists; ++l) {
        out[l] = row + std::min(l, nlist - first - 1) * row_elements;
      }
    }
    const char* const ahead = reinterpret_cast<const char*>(row) + kPrefetchBytes;
    const int64_t block_bytes = kBlockLists * row_elements * static_cast<int64_t>(sizeof(T));
    for (int64_t at = 0; at < block_bytes; at += 256) {
      for (int line = 0; line < 256; line += 64) hwy::Prefetch(ahead + at + line);
    }
  }

  const T* rows;
  int64_t row_elements;
  int32_t nlist;
};

// Codes of a list as int16 vectors: a row's element has kParts channels, which a vector each of
// their neighbours makes.
struct Int8Codes {
  using T = int8_t;
  static constexpr int kParts = 1;
  static HWY_INLINE int32_t Channel(int32_t at, int) { return at; }
  static HWY_INLINE int32_t At(const int8_t* list, int32_t c) { return list[c]; }
#if HWY_TARGET != HWY_SCALAR
  template <class D16>
  static HWY_INLINE void Load(D16 d16, const int8_t* list, hn::Vec<D16> (&out)[kParts]) {
    out[0] = hn::PromoteTo(d16, hn::LoadU(hn::Rebind<int8_t, D16>(), list));
  }
#endif
};

// `D16` has at most the 16 lanes of a block's half.
struct Int4Codes {
  using T = uint8_t;
  static constexpr int kParts = 2;
  static HWY_INLINE int32_t Channel(int32_t at, int part) {
    constexpr int kHalf = kInt4Block / kParts;
    return at / kHalf * kInt4Block + at % kHalf + part * kHalf;
  }
  static HWY_INLINE int32_t At(const uint8_t* list, int32_t c) {
    return Int4Code(list[Int4Byte(c)], c);
  }
#if HWY_TARGET != HWY_SCALAR
  template <class D16>
  static HWY_INLINE void Load(D16 d16, const uint8_t* list, hn::Vec<D16> (&out)[kParts]) {
    const auto bytes = hn::PromoteTo(d16, hn::LoadU(hn::Rebind<uint8_t, D16>(), list));
    out[0] = hn::ShiftRight<12>(hn::ShiftLeft<12>(bytes));
    out[1] = hn::ShiftRight<12>(hn::ShiftLeft<8>(bytes));
  }
#endif
};

// dots[h * stride + l] = dot(query head h, list l) of kBlockLists lists. `D16` has no more lanes
// than divide a row's elements.
#if HWY_TARGET == HWY_SCALAR
template <int kHeads, class Codes, class D16>
HWY_INLINE void DotBlockCodes(D16, const typename Codes::T* const* lists, const int16_t* queries,
                              int32_t head_dim, float* dots, int64_t stride) {
  for (int h = 0; h < kHeads; ++h) {
    for (int l = 0; l < kBlockLists; ++l) {
      int32_t sum = 0;
      for (int32_t c = 0; c < head_dim; ++c) {
        sum += queries[h * head_dim + c] * Codes::At(lists[l], c);
      }
      dots[h * stride + l] = static_cast<float>(sum);
    }
  }
}
#else
template <int kHeads, class Codes, class D16>
HWY_INLINE void DotBlockCodes(D16 d16, const typename Codes::T* const* lists,
                              const int16_t* queries, int32_t head_dim, float* dots,
                              int64_t stride) {
  const hn::RepartitionToWide<D16> d32;
  using V16 = hn::Vec<D16>;
  using V32 = hn::Vec<decltype(d32)>;
  V32 sums[kBlockLists][kHeads];
  for (int l = 0; l < kBlockLists; ++l) {
    for (int h = 0; h < kHeads; ++h) sums[l][h] = hn::Zero(d32);
  }
  V32 unused = hn::Zero(d32);  // x86 adds neighbours in place, so the second sum stays 0
  for (int32_t at = 0; at < head_dim / Codes::kParts; at += hn::Lanes(d16)) {
    V16 query[Codes::kParts][kHeads];
    for (int part = 0; part < Codes::kParts; ++part) {
      const int16_t* const from = queries + Codes::Channel(at, part);
      for (int h = 0; h < kHeads; ++h) query[part][h] = hn::Load(d16, from + h * head_dim);
    }
    for (int l = 0; l < kBlockLists; ++l) {
      V16 list[Codes::kParts];
      Codes::Load(d16, lists[l] + at, list);
      for (int part = 0; part < Codes::kParts; ++part) {
        for (int h = 0; h < kHeads; ++h) {
          sums[l][h] =
              hn::ReorderWidenMulAccumulate(d32, list[part], query[part][h], sums[l][h], unused);
        }
      }
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    StoreSumsOfFour(d32, sums[0][h], sums[1][h], sums[2][h], sums[3][h], dots + h * stride);
  }
}
#endif

// Loads of a list as float vectors: bf16, float32, and Quest's pair of bounds.
struct BFloat16Lists {
  using T = uint16_t;
  static HWY_INLINE VF Load(DF df, const uint16_t* p) {
    const hn::Rebind<uint16_t, DF> d16;
    const hn::RebindToUnsigned<DF> d32;
    return hn::BitCast(df, hn::ShiftLeft<16>(hn::PromoteTo(d32, hn::LoadU(d16, p))));
  }
  static HWY_INLINE VF Accumulate(DF df, const uint16_t* list, int32_t, VF query, VF sum) {
    return hn::MulAdd(query, Load(df, list), sum);
  }
};

struct Float32Lists {
  using T = float;
  static HWY_INLINE VF Accumulate(DF df, const float* list, int32_t, VF query, VF sum) {
    return hn::MulAdd(query, hn::LoadU(df, list), sum);
  }
};

struct BoundsLists {
  using T = uint16_t;
  static HWY_INLINE VF Accumulate(DF df, const uint16_t* list, int32_t head_dim, VF query, VF sum) {
    const VF least = hn::Mul(query, BFloat16Lists::Load(df, list));
    const VF greatest = hn::Mul(query, BFloat16Lists::Load(df, list + head_dim));
    // A bound that is not a number must not hide behind the other one.
    const VF bound = hn::IfThenElse(hn::IsNaN(least), least, hn::Max(greatest, least));
    return hn::Add(sum, hn::IfThenElse(hn::IsNaN(greatest), greatest, bound));
  }
};

template <int kHeads, class Lists>
HWY_INLINE void DotBlockFloat(const typename Lists::T* const* lists, const float* queries,
                              int32_t head_dim, float* dots, int64_t stride) {
  const DF df;
  VF sums[kBlockLists][kHeads];
  for (int l = 0; l < kBlockLists; ++l) {
    for (int h = 0; h < kHeads; ++h) sums[l][h] = hn::Zero(df);
  }
  for (int32_t c = 0; c < head_dim; c += hn::Lanes(df)) {
    for (int h = 0; h < kHeads; ++h) {
      const VF query = hn::Load(df, queries + h * head_dim + c);
      for (int l = 0; l < kBlockLists; ++l) {
        sums[l][h] = Lists::Accumulate(df, lists[l] + c, head_dim, query, sums[l][h]);
      }
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    StoreSumsOfFour(df, sums[0][h], sums[1][h], sums[2][h], sums[3][h], dots + h * stride);
  }
}

// kHeadDim: 0, or head_dim known to the compiler, whose loop over channels then vanishes.
template <int kHeads, class Codes, int kHeadDim, class D16>
HWY_INLINE void DotViewCodes(D16 d16, const ListsView& view, const int16_t* queries,
                             int32_t head_dim, float* dots, int64_t stride) {
  if constexpr (kHeadDim != 0) head_dim = kHeadDim;
  using T = typename Codes::T;
  const RowBlocks<T> rows(view.centroids, head_dim / Codes::kParts, view.nlist);
  const T* lists[kBlockLists];
  for (int32_t i = 0; i < view.nlist; i += kBlockLists) {
    rows.Point(i, lists);
    DotBlockCodes<kHeads, Codes>(d16, lists, queries, head_dim, dots + i, stride);
  }
}

// Whether the heads of a selection, kVnniHeads at a time, are served by DotsVnni.
inline bool UsesVnni(int32_t head_dim) {
  return HWY_TARGET == HWY_AVX3 && head_dim % kVnniChannels == 0 && HasVnni();
}

template <int kHeads>
HWY_INLINE void DotViewInt8(const ListsView& view, const void* next, const QueryScratch& query,
                            int32_t head, int32_t head_dim, float* dots, int64_t stride) {
  if (kHeads == kVnniHeads && UsesVnni(head_dim)) {
    DotsVnni(view, next, query.query_vnni + head * VnniQueryElements(head_dim), head_dim, dots,
             stride);
    return;
  }
  const hn::ScalableTag<int16_t> d16;
  const int16_t* const queries = query.query_int16 + int64_t{head} * head_dim;
  if (head_dim == 128) {
    DotViewCodes<kHeads, Int8Codes, 128>(d16, view, queries, head_dim, dots, stride);
  } else if (head_dim % hn::Lanes(d16) == 0) {
    DotViewCodes<kHeads, Int8Codes, 0>(d16, view, queries, head_dim, dots, stride);
  } else {  // an odd multiple of 16 with vectors of 32
    const hn::CappedTag<int16_t, 16> d16_half;
    DotViewCodes<kHeads, Int8Codes, 0>(d16_half, view, queries, head_dim, dots, stride);
  }
}

template <int kHeads>
HWY_INLINE void DotViewInt4(const ListsView& view, const void* next, const QueryScratch& query,
                            int32_t head, int32_t head_dim, float* dots, int64_t stride) {
  const int32_t channels = Int4Channels(head_dim);
  if (kHeads == kVnniHeads && UsesVnni(channels)) {
    DotsVnniInt4(view, next, query.query_vnni_int4 + head * VnniQueryElements(channels), channels,
                 dots, stride);
    return;
  }
  const hn::CappedTag<int16_t, kInt4Block / 2> d16;
  const int16_t* const queries = query.query_for_int4 + int64_t{head} * channels;
  DotViewCodes<kHeads, Int4Codes, 0>(d16, view, queries, channels, dots, stride);
}

template <int kHeads, class Lists>
HWY_INLINE void DotViewFloat(const ListsView& view, int32_t rows_per_list, const float* queries,
                             int32_t head_dim, float* dots, int64_t stride) {
  using T = typename Lists::T;
  const RowBlocks<T> rows(view.centroids, int64_t{rows_per_list} * head_dim, view.nlist);
  const T* lists[kBlockLists];
  for (int32_t i = 0; i < view.nlist; i += kBlockLists) {
    rows.Point(i, lists);
    DotBlockFloat<kHeads, Lists>(lists, queries, head_dim, dots + i, stride);
  }
}

// dots[h * stride + i], h in [0, kHeads): without center, scale of the list or step of the query.
template <int kHeads>
HWY_INLINE void DotViewOfHeads(const ListsView& view, const void* next, const QueryScratch& query,
                               int32_t head, int32_t head_dim, float* dots, int64_t stride) {
  const float* const queries = query.query + int64_t{head} * head_dim;
  switch (view.form) {
    case CentroidForm::kInt8:
      DotViewInt8<kHeads>(view, next, query, head, head_dim, dots, stride);
      return;
    case CentroidForm::kInt4:
      DotViewInt4<kHeads>(view, next, query, head, head_dim, dots, stride);
      return;
    case CentroidForm::kBFloat16:
      DotViewFloat<kHeads, BFloat16Lists>(view, 1, queries, head_dim, dots, stride);
      return;
    case CentroidForm::kFloat32:
      DotViewFloat<kHeads, Float32Lists>(view, 1, queries, head_dim, dots, stride);
      return;
    case CentroidForm::kBounds:
      DotViewFloat<kHeads, BoundsLists>(view, 2, queries, head_dim, dots, stride);
      return;
  }
}

// The same for every head of the selection. dots may be written up to kBlockLists - 1 past nlist.
// `next`: centroids that are read after these; may be null.
inline void DotView(const ListsView& view, const void* next, const QueryScratch& query,
                    int32_t heads, int32_t head_dim, float* dots, int64_t stride) {
  int32_t h = 0;
  for (; h + kBlockHeads <= heads; h += kBlockHeads) {
    DotViewOfHeads<kBlockHeads>(view, next, query, h, head_dim, dots + h * stride, stride);
  }
  for (; h + 2 <= heads; h += 2) {
    DotViewOfHeads<2>(view, next, query, h, head_dim, dots + h * stride, stride);
  }
  if (h < heads) DotViewOfHeads<1>(view, next, query, h, head_dim, dots + h * stride, stride);
}

inline float DotFloat(const float* a, const float* b, int32_t head_dim) {
  const DF df;
  VF sum = hn::Zero(df);
  for (int32_t c = 0; c < head_dim; c += hn::Lanes(df)) {
    sum = hn::MulAdd(hn::LoadU(df, a + c), hn::LoadU(df, b + c), sum);
  }
  return hn::GetLane(hn::SumOfLanes(df, sum));
}

inline void LoadQueryHead(const void* q, DType dtype, int64_t first, int32_t head_dim, float* out) {
  const DF df;
  if (dtype == DType::kBFloat16) {
    const uint16_t* const p = static_cast<const uint16_t*>(q) + first;
    for (int32_t c = 0; c < head_dim; c += hn::Lanes(df)) {
      hn::Store(BFloat16Lists::Load(df, p + c), df, out + c);
    }
    return;
  }
#if HWY_TARGET != HWY_SCALAR  // whose emulation of float16 knows no infinity
  if (dtype == DType::kFloat16) {
    const hn::Rebind<hwy::float16_t, DF> d16;
    const auto* const p = static_cast<const hwy::float16_t*>(q) + first;
    for (int32_t c = 0; c < head_dim; c += hn::Lanes(df)) {
      hn::Store(hn::PromoteTo(df, hn::LoadU(d16, p + c)), df, out + c);
    }
    return;
  }
#endif
  for (int32_t c = 0; c < head_dim; ++c) out[c] = LoadAsFloat(q, dtype, first + c);
}

// The greatest magnitude of a query head, and 0 or, if some channel is not finite, not a number.
struct QueryRange {
  float largest, poison;
};

inline QueryRange MeasureQueryHead(const float* query, int32_t head_dim) {
  const DF df;
  VF largest = hn::Zero(df);
  VF poison = hn::Zero(df);
  for (int32_t c = 0; c < head_dim; c += hn::Lanes(df)) {
    const VF x = hn::Load(df, query + c);
    largest = hn::Max(largest, hn::Abs(x));
    poison = hn::MulAdd(x, hn::Zero(df), poison);
  }
  return {hn::GetLane(hn::MaxOfLanes(df, largest)), hn::GetLane(hn::SumOfLanes(df, poison))};
}

// out = round(query / step); 0 for a query that is as good as 0.
inline void QuantizeQueryHead(const float* query, int32_t head_dim, float step, int16_t* out) {
  const DF df;
  const hn::Rebind<int16_t, DF> d16;
  const VF inverse = hn::Set(df, step > kLeastQueryStep ? 1.0f / step : 0.0f);
  for (int32_t c = 0; c < head_dim; c += hn::Lanes(df)) {
    const auto rounded = hn::NearestInt(hn::Mul(hn::Load(df, query + c), inverse));
    hn::StoreU(hn::DemoteTo(d16, rounded), d16, out + c);
  }
}

// Which integer forms of its query a task's lists are multiplied with.
struct QueryForms {
  bool int16 = false, int4 = false;
};

inline QueryForms FormsOf(const ScoreListsParams& p, int64_t task) {
  QueryForms forms;
  for (int32_t v = p.view_begin[task]; v < p.view_begin[task + 1]; ++v) {
    forms.int16 |= p.views[v].form == CentroidForm::kInt8;
    forms.int4 |= p.views[v].form == CentroidForm::kInt4;
  }
  return forms;
}

// Those forms of query head h.
inline void QuantizeQuery(const QueryForms& forms, const QueryScratch& out, int32_t h,
                          int32_t head_dim) {
  const float* const query = out.query + int64_t{h} * head_dim;
  const QueryRange range = MeasureQueryHead(query, head_dim);
  // The largest channel is +-32767: 8 bits more than the centroids have.
  const float step = range.largest / 32767.0f, int4_step = Int4QueryStep(range.largest);
  out.int16_step[h] = step + range.poison;
  out.int4_step[h] = int4_step + range.poison;
  if (forms.int16) {
    int16_t* const to = out.query_int16 + int64_t{h} * head_dim;
    QuantizeQueryHead(query, head_dim, step, to);
    if (UsesVnni(head_dim)) {
      SplitQueryForVnni(to, head_dim, out.query_vnni + h * VnniQueryElements(head_dim));
    }
  }
  if (forms.int4) {
    const int32_t channels = Int4Channels(head_dim);
    int16_t* const to = out.query_for_int4 + int64_t{h} * channels;
    QuantizeQueryHead(query, head_dim, int4_step, to);
    std::fill(to + head_dim, to + channels, int16_t{0});
    if (UsesVnni(channels)) {
      SplitQueryForVnniInt4(to, channels, out.query_vnni_int4 + h * VnniQueryElements(channels));
    }
  }
}

// Fills everything of `out` that the task's lists need, but center_dot.
inline void LoadQueries(const ScoreListsParams& p, int64_t task, const QueryScratch& out) {
  const QueryForms forms = FormsOf(p, task);
  const int32_t heads = p.num_heads / p.num_selections;
  const int64_t first_head = task % p.num_selections * heads;
  for (int32_t h = 0; h < heads; ++h) {
    float* const query = out.query + int64_t{h} * p.head_dim;
    LoadQueryHead(p.q, p.q_dtype, task / p.num_selections * p.q_row + (first_head + h) * p.q_head,
                  p.head_dim, query);
    out.square_norm[h] = DotFloat(query, query, p.head_dim);
    QuantizeQuery(forms, out, h, p.head_dim);
    if (std::isnan(out.int16_step[h])) std::fill(query, query + p.head_dim, out.int16_step[h]);
  }
}

// score(h, i) without its variance term = dots[h, i] * multiplier(h) * (scales[i], if any) +
// center_dot[h].
inline float DotMultiplier(const ListsView& view, const QueryScratch& query, int32_t h,
                           float scale) {
  if (!HasScales(view.form)) return scale;
  return scale * (view.form == CentroidForm::kInt4 ? query.int4_step : query.int16_step)[h];
}

inline void DotCenter(const ListsView& view, int32_t heads, int32_t head_dim, float scale,
                      const QueryScratch& query) {
  const bool has_center = HasCenter(view.form);
  for (int32_t h = 0; h < heads; ++h) {
    query.center_dot[h] =
        has_center ? scale * DotFloat(query.query + int64_t{h} * head_dim, view.center, head_dim)
                   : 0.0f;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace semkv
HWY_AFTER_NAMESPACE();

#endif  // SEMKV_OPS_RETRIEVAL_LIST_DOTS_INL_H_
