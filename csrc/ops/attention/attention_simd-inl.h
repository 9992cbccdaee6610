// SIMD pieces of attention on the host, compiled once per Highway target: widening loads of stored
// rows, sums of many accumulators at once, and the online softmax of a score tile.
//
// Query heads are handled four at a time (kQuadHeads) and so are tokens (kQuadTokens), whatever the
// vector width. The 16 scores of four tokens lie together as [head][token], so a 128-bit block of
// any vector belongs to one head: reductions per head never leave a block.
//
// NaN and infinities travel as in IEEE attention: a key with a NaN makes the outputs and lse of
// exactly the query heads that read it NaN, a score of -inf weighs 0, a score of +inf gives NaN.

#if defined(SEMKV_OPS_ATTENTION_ATTENTION_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SEMKV_OPS_ATTENTION_ATTENTION_SIMD_INL_H_
#undef SEMKV_OPS_ATTENTION_ATTENTION_SIMD_INL_H_
#else
#define SEMKV_OPS_ATTENTION_ATTENTION_SIMD_INL_H_
#endif

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "csrc/ops/attention/decode_attention_tile.h"
#include "csrc/ops/numeric/exp2-inl.h"
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
#include "semkv/types.h"

HWY_BEFORE_NAMESPACE();
namespace semkv {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::ScalableTag<float>;
using FloatVec = hn::Vec<FloatTag>;

constexpr size_t kLanes = HWY_LANES(float);
static_assert(kLanes >= 4 && kQuadScores % kLanes == 0, "a quad is a whole number of vectors");

// ------------------------------ Widening loads

// The kVectors * kLanes channels at `from`, as floats. With two or more vectors, bfloat16 comes as
// even and odd channels of 2 * kLanes at a time: a shift and a mask are all it takes. Whatever
// meets these vectors must be in the same, "stored", order (PackRow); one vector alone is in
// natural order.
template <size_t kVectors>
HWY_INLINE void WidenRow(const float* HWY_RESTRICT from, FloatVec (&x)[kVectors]) {
  const FloatTag d;
  for (size_t i = 0; i < kVectors; ++i) x[i] = hn::LoadU(d, from + i * kLanes);
}

template <size_t kVectors>
HWY_INLINE void WidenRow(const hwy::bfloat16_t* HWY_RESTRICT from, FloatVec (&x)[kVectors]) {
  const FloatTag d;
  if constexpr (kVectors == 1) {
    x[0] = hn::PromoteTo(d, hn::LoadU(hn::Rebind<hwy::bfloat16_t, FloatTag>(), from));
  } else {
    const hn::Repartition<uint16_t, FloatTag> du16;
    const hn::RebindToUnsigned<FloatTag> du32;
    const auto* bits = reinterpret_cast<const uint16_t*>(from);
    const auto high = hn::Set(du32, 0xffff0000u);
    for (size_t i = 0; i < kVectors; i += 2) {
      const auto pair = hn::BitCast(du32, hn::LoadU(du16, bits + i * kLanes));
      x[i] = hn::BitCast(d, hn::ShiftLeft<16>(pair));
      x[i + 1] = hn::BitCast(d, hn::And(pair, high));
    }
  }
}

template <size_t kVectors>
HWY_INLINE void WidenRow(const hwy::float16_t* HWY_RESTRICT from, FloatVec (&x)[kVectors]) {
  const FloatTag d;
#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX2
  // Without F16C, Highway 1.0.3 turns infinities into large numbers, so by hand: the product makes
  // subnormals right, too.
  const hn::RebindToUnsigned<FloatTag> du32;
  const auto* bits = reinterpret_cast<const uint16_t*>(from);
  const auto infinity = hn::Set(du32, 31u << 23);
  for (size_t i = 0; i < kVectors; ++i) {
    const auto half =
        hn::PromoteTo(du32, hn::LoadU(hn::Rebind<uint16_t, FloatTag>(), bits + i * kLanes));
    const auto magnitude = hn::ShiftLeft<13>(hn::And(half, hn::Set(du32, 0x7fffu)));
    const auto sign = hn::ShiftLeft<16>(hn::And(half, hn::Set(du32, 0x8000u)));
    const auto finite = hn::BitCast(du32, hn::Mul(hn::BitCast(d, magnitude), hn::Set(d, 0x1p112f)));
    const auto is_special =
        hn::RebindMask(du32, hn::Ge(hn::BitCast(hn::RebindToSigned<FloatTag>(), magnitude),
                                    hn::BitCast(hn::RebindToSigned<FloatTag>(), infinity)));
    const auto special = hn::Or(magnitude, hn::Set(du32, 0x7f800000u));
    x[i] = hn::BitCast(d, hn::Or(sign, hn::IfThenElse(is_special, special, finite)));
  }
#else
  for (size_t i = 0; i < kVectors; ++i) {
    const hn::Rebind<hwy::float16_t, FloatTag> d16;
    x[i] = hn::PromoteTo(d, hn::LoadU(d16, from + i * kLanes));
  }
#endif
}

// A row of floats from natural to stored order, times `factor`: to[] meets what WidenRow gives.
template <typename T>
HWY_INLINE void PackRow(const float* HWY_RESTRICT from, size_t head_dim, float factor,
                        float* HWY_RESTRICT to) {
  const FloatTag d;
  const auto f = hn::Set(d, factor);
  size_t c = 0;
  if constexpr (hwy::IsSame<T, hwy::bfloat16_t>()) {
    for (; c + 2 * kLanes <= head_dim; c += 2 * kLanes) {
      FloatVec even, odd;
      hn::LoadInterleaved2(d, from + c, even, odd);
      hn::Store(hn::Mul(f, even), d, to + c);
      hn::Store(hn::Mul(f, odd), d, to + c + kLanes);
    }
  }
  for (; c < head_dim; c += kLanes) hn::Store(hn::Mul(f, hn::LoadU(d, from + c)), d, to + c);
}

// The way back.
template <typename T>
HWY_INLINE void UnpackRow(const float* HWY_RESTRICT from, size_t head_dim, float factor,
                          float* HWY_RESTRICT to) {
  const FloatTag d;
  const auto f = hn::Set(d, factor);
  size_t c = 0;
  if constexpr (hwy::IsSame<T, hwy::bfloat16_t>()) {
    for (; c + 2 * kLanes <= head_dim; c += 2 * kLanes) {
      const auto even = hn::Mul(f, hn::Load(d, from + c));
      const auto odd = hn::Mul(f, hn::Load(d, from + c + kLanes));
      hn::StoreInterleaved2(even, odd, d, to + c);
    }
  }
  for (; c < head_dim; c += kLanes) hn::StoreU(hn::Mul(f, hn::Load(d, from + c)), d, to + c);
}

// A row of `dtype`, which is not kFloat8E4M3, as floats in natural order.
HWY_INLINE void LoadRow(const void* HWY_RESTRICT data, DType dtype, int64_t first, size_t head_dim,
                        float* HWY_RESTRICT to) {
  const FloatTag d;
  for (size_t c = 0; c < head_dim; c += kLanes) {
    FloatVec x[1];
    switch (dtype) {
      case DType::kFloat16:
        WidenRow(static_cast<const hwy::float16_t*>(data) + first + c, x);
        break;
      case DType::kBFloat16:
        WidenRow(static_cast<const hwy::bfloat16_t*>(data) + first + c, x);
        break;
      case DType::kFloat8E4M3:
        assert(false);
        return;
      case DType::kFloat32:
        WidenRow(static_cast<const float*>(data) + first + c, x);
        break;
    }
    hn::Store(x[0], d, to + c);
  }
}

// ------------------------------ Sums of accumulators

// Block b of the result holds, for j in [0, 4), the sum of block b of x[j].
HWY_INLINE FloatVec SumWithinBlocks(const FloatVec (&x)[kQuadTokens]) {
  const FloatTag d;
  const hn::Repartition<double, FloatTag> d64;
  const auto s01 = hn::BitCast(
      d64, hn::Add(hn::InterleaveLower(d, x[0], x[1]), hn::InterleaveUpper(d, x[0], x[1])));
  const auto s23 = hn::BitCast(
      d64, hn::Add(hn::InterleaveLower(d, x[2], x[3]), hn::InterleaveUpper(d, x[2], x[3])));
  return hn::Add(hn::BitCast(d, hn::InterleaveLower(d64, s01, s23)),
                 hn::BitCast(d, hn::InterleaveUpper(d64, s01, s23)));
}

// How many heads a vector of scores holds, and how many accumulate in registers together.
constexpr size_t kVectorHeads = kLanes / kQuadTokens;
constexpr size_t kScoreHeads = kVectorHeads < 2 ? 2 : kVectorHeads;

// Writes scores[head][token] = sum of acc[head][token].
HWY_INLINE void StoreSums(const FloatVec (&acc)[kScoreHeads][kQuadTokens],
                          float* HWY_RESTRICT scores) {
  const FloatTag d;
  FloatVec x[kScoreHeads];
  for (size_t h = 0; h < kScoreHeads; ++h) x[h] = SumWithinBlocks(acc[h]);
#if HWY_MAX_BYTES == 64
  const auto x02 =
      hn::Add(hn::ConcatLowerLower(d, x[2], x[0]), hn::ConcatUpperUpper(d, x[2], x[0]));
  const auto x13 =
      hn::Add(hn::ConcatLowerLower(d, x[3], x[1]), hn::ConcatUpperUpper(d, x[3], x[1]));
  const auto crossed = hn::SwapAdjacentBlocks(hn::OddEvenBlocks(x02, x13));
  hn::StoreU(hn::Add(hn::OddEvenBlocks(x13, x02), crossed), d, scores);
#elif HWY_MAX_BYTES == 32
  hn::StoreU(hn::Add(hn::ConcatLowerLower(d, x[1], x[0]), hn::ConcatUpperUpper(d, x[1], x[0])), d,
             scores);
#else
  for (size_t h = 0; h < kScoreHeads; ++h) hn::StoreU(x[h], d, scores + h * kQuadTokens);
#endif
}

// ------------------------------ Softmax

// The greatest lane of each 128-bit block, in all four of its lanes.
HWY_INLINE FloatVec MaxWithinBlocks(FloatVec x) {
  x = hn::Max(x, hn::Shuffle1032(x));
  return hn::Max(x, hn::Shuffle2301(x));
}

// Running softmax of four heads, in powers of two: per head, the greatest score so far and the sum
// of 2^(score - max), four partial sums each. Lanes [head][4].
struct SoftmaxState {
  alignas(64) float max[kQuadScores];
  alignas(64) float sum[kQuadScores];
};

HWY_INLINE void Reset(SoftmaxState& state) {
  for (size_t i = 0; i < kQuadScores; ++i) {
    state.max[i] = -std::numeric_limits<float>::infinity();
    state.sum[i] = 0.0f;
  }
}

// Turns the scores of `num_quads` quads into weights relative to the new maximum, in place. Writes
// what earlier accumulators must be multiplied by to `rescale` ([head][4]); returns whether that is
// anything but 1.
HWY_INLINE bool UpdateSoftmax(size_t num_quads, float* HWY_RESTRICT scores, SoftmaxState& state,
                              float* HWY_RESTRICT rescale) {
  const FloatTag d;
  const auto lowest = hn::Set(d, -std::numeric_limits<float>::infinity());
  bool changed = false;
  for (size_t j = 0; j < kQuadScores; j += kLanes) {
    auto top = lowest;
    for (size_t i = 0; i < num_quads; ++i) {
      top = hn::Max(top, hn::Load(d, scores + i * kQuadScores + j));
    }
    const auto old_max = hn::Load(d, state.max + j);
    const auto new_max = hn::Max(old_max, MaxWithinBlocks(top));
    // While every score is -inf, any finite base gives weight 0; -inf itself would give NaN.
    const auto base = hn::IfThenZeroElse(hn::Eq(new_max, lowest), new_max);
    const auto factor = Exp2(hn::Sub(old_max, base));
    auto sum = hn::Zero(d);
    for (size_t i = 0; i < num_quads; ++i) {
      float* s = scores + i * kQuadScores + j;
      const auto weight = Exp2(hn::Sub(hn::Load(d, s), base));
      hn::Store(weight, d, s);
      sum = hn::Add(sum, weight);
    }
    hn::Store(hn::MulAdd(hn::Load(d, state.sum + j), factor, sum), d, state.sum + j);
    hn::Store(new_max, d, state.max + j);
    hn::Store(factor, d, rescale + j);
    changed |= !hn::AllTrue(d, hn::Eq(old_max, new_max));
  }
  return changed;
}

// scores = cap * tanh(scores / cap), in powers of two.
HWY_INLINE void CapScores(size_t num_quads, float cap, float* HWY_RESTRICT scores) {
  const FloatTag d;
  const auto inverse = hn::Set(d, 1.0f / cap);
  const auto factor = hn::Set(d, cap * kLog2E);
  for (size_t i = 0; i < num_quads * kQuadScores; i += kLanes) {
    const auto x = hn::Mul(hn::Load(d, scores + i), inverse);
    hn::Store(hn::Mul(factor, hn::Tanh(d, x)), d, scores + i);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace semkv
HWY_AFTER_NAMESPACE();

#endif  // SEMKV_OPS_ATTENTION_ATTENTION_SIMD_INL_H_
