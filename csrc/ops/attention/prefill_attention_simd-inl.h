// Microkernels of prefill attention: one tile of tokens against one panel of queries.
//
// A *panel* is kPanelVectors vectors of lanes, one lane per (query token, query head). Everything
// is kept with the lanes innermost, so that keys and values are read as they lie (a broadcast per
// element), the softmax needs no horizontal operation, and nothing is ever transposed:
//
//   scores [token][lane]  = keys [token][channel] * queries [channel][lane]
//   out    [channel][lane] = out * rescale + values [token][channel] ^T * weights [token][lane]

#if defined(SEMKV_OPS_ATTENTION_PREFILL_ATTENTION_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SEMKV_OPS_ATTENTION_PREFILL_ATTENTION_SIMD_INL_H_
#undef SEMKV_OPS_ATTENTION_PREFILL_ATTENTION_SIMD_INL_H_
#else
#define SEMKV_OPS_ATTENTION_PREFILL_ATTENTION_SIMD_INL_H_
#endif

#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include <cstdint>
#include <limits>

#include "csrc/ops/numeric/exp2-inl.h"

HWY_BEFORE_NAMESPACE();
namespace semkv {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using Tag = hn::ScalableTag<float>;
using Floats = hn::Vec<Tag>;

constexpr int kPanelVectors = 3;
constexpr int kVectorLanes = static_cast<int>(HWY_LANES(float));
constexpr int kPanelLanes = kPanelVectors * kVectorLanes;
// Accumulators are kRows * kPanelVectors registers: 24 of 32 with AVX-512, 12 of 16 below. Divides
// every head_dim and the tile.
constexpr int kRows = HWY_TARGET <= HWY_AVX3 ? 8 : 4;

struct PanelState {
  float* greatest;  // [kPanelLanes]: of the scores so far
  float* sum;       // [kPanelLanes]: of 2^(score - greatest)
  float* out;       // [head_dim][kPanelLanes]: of 2^(score - greatest) * value
};

// sums[i][v] = sum over j < depth of a[i * row_stride + j * depth_stride] * b[j][v].
template <int kRowStride, int kDepthStride>
HWY_INLINE void Multiply(const float* HWY_RESTRICT a, const float* HWY_RESTRICT b, int depth,
                         Floats (&sums)[kRows][kPanelVectors]) {
  const Tag d;
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVectors; ++v) sums[i][v] = hn::Zero(d);
  }
  for (int j = 0; j < depth; ++j) {
    Floats x[kPanelVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVectors; ++v) {
      x[v] = hn::Load(d, b + j * kPanelLanes + v * kVectorLanes);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const Floats y = hn::Set(d, a[i * kRowStride + j * kDepthStride]);
#pragma GCC unroll 4
      for (int v = 0; v < kPanelVectors; ++v) sums[i][v] = hn::MulAdd(y, x[v], sums[i][v]);
    }
  }
}

// `scores` and `keys` hold num_tokens rounded up to kRows.
template <int kHeadDim>
void ScoreTile(const float* HWY_RESTRICT queries, const float* HWY_RESTRICT keys, int num_tokens,
               float* HWY_RESTRICT scores) {
  const Tag d;
  for (int t = 0; t < num_tokens; t += kRows) {
    Floats sums[kRows][kPanelVectors];
    Multiply<kHeadDim, 1>(keys + t * kHeadDim, queries, kHeadDim, sums);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kPanelVectors; ++v) {
        hn::Store(sums[i][v], d, scores + (t + i) * kPanelLanes + v * kVectorLanes);
      }
    }
  }
}

template <int kHeadDim>
void AddValues(const float* HWY_RESTRICT weights, const float* HWY_RESTRICT values, int num_tokens,
               const float* HWY_RESTRICT rescale, float* HWY_RESTRICT out) {
  const Tag d;
  for (int c = 0; c < kHeadDim; c += kRows) {
    Floats sums[kRows][kPanelVectors];
    Multiply<1, kHeadDim>(values + c, weights, num_tokens, sums);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kPanelVectors; ++v) {
        float* p = out + (c + i) * kPanelLanes + v * kVectorLanes;
        const Floats factor = hn::Load(d, rescale + v * kVectorLanes);
        hn::Store(hn::MulAdd(hn::Load(d, p), factor, sums[i][v]), d, p);
      }
    }
  }
}

// scores = cap * tanh(scores / cap), in powers of two.
HWY_INLINE void CapScores(float cap, int num_tokens, float* scores) {
  const Tag d;
  for (int i = 0; i < num_tokens * kPanelLanes; i += kVectorLanes) {
    const Floats x = hn::Mul(hn::Load(d, scores + i), hn::Set(d, 1.0f / cap));
    hn::Store(hn::Mul(hn::Tanh(d, x), hn::Set(d, cap * kLog2E)), d, scores + i);
  }
}

// Lane l sees the tokens below limits[l] (limits ascend): scores of the others become -inf.
HWY_INLINE void MaskScores(const int32_t* limits, int num_tokens, float* scores) {
  const Tag d;
  const hn::RebindToSigned<Tag> di;
  const Floats hidden = hn::Set(d, -std::numeric_limits<float>::infinity());
  for (int t = limits[0] > 0 ? limits[0] : 0; t < num_tokens; ++t) {
    for (int v = 0; v < kPanelVectors; ++v) {
      float* p = scores + t * kPanelLanes + v * kVectorLanes;
      const auto seen = hn::Gt(hn::Load(di, limits + v * kVectorLanes), hn::Set(di, t));
      hn::Store(hn::IfThenElse(hn::RebindMask(d, seen), hn::Load(d, p), hidden), d, p);
    }
  }
}

// Scores become weights 2^(score - greatest); the state moves to the new greatest, and `rescale`
// is the factor that what was summed before must be multiplied with.
HWY_INLINE void UpdateSoftmax(int num_tokens, float* HWY_RESTRICT scores, const PanelState& state,
                              float* HWY_RESTRICT rescale) {
  const Tag d;
  Floats greatest[kPanelVectors], sum[kPanelVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kPanelVectors; ++v) {
    greatest[v] = hn::Load(d, state.greatest + v * kVectorLanes);
    sum[v] = hn::Zero(d);
  }
  for (int t = 0; t < num_tokens; ++t) {
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVectors; ++v) {
      const Floats x = hn::Load(d, scores + t * kPanelLanes + v * kVectorLanes);
      greatest[v] = hn::Max(greatest[v], x);
    }
  }
  for (int t = 0; t < num_tokens; ++t) {
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVectors; ++v) {
      float* p = scores + t * kPanelLanes + v * kVectorLanes;
      const Floats weight = Exp2(hn::Sub(hn::Load(d, p), greatest[v]));
      sum[v] = hn::Add(sum[v], weight);
      hn::Store(weight, d, p);
    }
  }
  for (int v = 0; v < kPanelVectors; ++v) {
    const int at = v * kVectorLanes;
    const Floats factor = Exp2(hn::Sub(hn::Load(d, state.greatest + at), greatest[v]));
    hn::Store(factor, d, rescale + at);
    hn::Store(hn::MulAdd(hn::Load(d, state.sum + at), factor, sum[v]), d, state.sum + at);
    hn::Store(greatest[v], d, state.greatest + at);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace semkv
HWY_AFTER_NAMESPACE();

#endif  // SEMKV_OPS_ATTENTION_PREFILL_ATTENTION_SIMD_INL_H_
