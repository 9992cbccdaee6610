// 2^x for softmax weights, compiled once per Highway target.

#if defined(SEMKV_OPS_NUMERIC_EXP2_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SEMKV_OPS_NUMERIC_EXP2_INL_H_
#undef SEMKV_OPS_NUMERIC_EXP2_INL_H_
#else
#define SEMKV_OPS_NUMERIC_EXP2_INL_H_
#endif

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace semkv {
namespace HWY_NAMESPACE {

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.693147180559945309f;

// Weights relative to a greatest weight of 1 that are smaller than 2^kLowestExponent vanish: even
// 2^30 of them would not change a float32 sum. Kept, they or their products with values would be
// subnormal, and each such number costs a multiply-add more than 100 cycles.
constexpr float kLowestExponent = -64.0f;

// 2^x for x <= 0, with relative error below 2e-7; 0 below kLowestExponent; NaN stays NaN.
HWY_INLINE hwy::HWY_NAMESPACE::Vec<hwy::HWY_NAMESPACE::ScalableTag<float>> Exp2(
    hwy::HWY_NAMESPACE::Vec<hwy::HWY_NAMESPACE::ScalableTag<float>> x) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::ScalableTag<float> d;
  const hn::RebindToSigned<hn::ScalableTag<float>> di;
  const auto vanishes = hn::Lt(x, hn::Set(d, kLowestExponent));
  // What comes of such lanes is dropped, but must not be subnormal on the way, either.
  x = hn::IfThenZeroElse(vanishes, x);
  // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits.
  const auto magic = hn::Set(d, 12582912.0f);
  const auto shifted = hn::Add(x, magic);
  const auto r = hn::Sub(x, hn::Sub(shifted, magic));
  auto p = hn::Set(d, 1.535336188319500e-4f);
  p = hn::MulAdd(p, r, hn::Set(d, 1.339887440266574e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 9.618437357674640e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 5.550332471162809e-2f));
  p = hn::MulAdd(p, r, hn::Set(d, 2.402264791363012e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 6.931472028550421e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  const auto exponent =
      hn::Add(hn::ShiftLeft<23>(hn::BitCast(di, shifted)), hn::Set(di, 127 << 23));
  return hn::IfThenZeroElse(vanishes, hn::Mul(p, hn::BitCast(d, exponent)));
}

}  // namespace HWY_NAMESPACE
}  // namespace semkv
HWY_AFTER_NAMESPACE();

#endif  // SEMKV_OPS_NUMERIC_EXP2_INL_H_
