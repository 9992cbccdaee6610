// Vectors and rows of float32, float16 and bfloat16, for Highway code that foreach_target compiles
// once per instruction set. Bit for bit what float_convert.h gives, on every target: hardware
// conversions and Highway's own differ among themselves in rounding and NaN payloads.
//
// Rows are contiguous; neither side needs alignment.

#if defined(SEMKV_OPS_NUMERIC_FLOAT_CONVERT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SEMKV_OPS_NUMERIC_FLOAT_CONVERT_INL_H_
#undef SEMKV_OPS_NUMERIC_FLOAT_CONVERT_INL_H_
#else
#define SEMKV_OPS_NUMERIC_FLOAT_CONVERT_INL_H_
#endif

#include <hwy/highway.h>

#include <cassert>
#include <cstdint>

#include "csrc/ops/numeric/float_convert.h"
#include "semkv/types.h"

HWY_BEFORE_NAMESPACE();
namespace semkv {
namespace HWY_NAMESPACE {
namespace {

// The storage of one element and its conversions.
template <DType kDType>
struct Element;

template <>
struct Element<DType::kFloat32> {
  using Type = float;

  template <class D>
  static HWY_INLINE hwy::HWY_NAMESPACE::Vec<D> Load(D d, const float* p) {
    return hwy::HWY_NAMESPACE::LoadU(d, p);
  }
  template <class D>
  static HWY_INLINE void Store(D d, hwy::HWY_NAMESPACE::Vec<D> x, float* p) {
    hwy::HWY_NAMESPACE::StoreU(x, d, p);
  }
};

template <>
struct Element<DType::kBFloat16> {
  using Type = uint16_t;

  template <class D>
  static HWY_INLINE hwy::HWY_NAMESPACE::Vec<D> Load(D d, const uint16_t* p) {
    namespace hn = hwy::HWY_NAMESPACE;
    const hn::Rebind<uint32_t, D> du;
    const hn::Rebind<uint16_t, D> du16;
    return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(du16, p))));
  }
  template <class D>
  static HWY_INLINE void Store(D d, hwy::HWY_NAMESPACE::Vec<D> x, uint16_t* p) {
    namespace hn = hwy::HWY_NAMESPACE;
    const hn::Rebind<int32_t, D> di;
    const hn::Rebind<uint32_t, D> du;
    const hn::Rebind<uint16_t, D> du16;
    const auto bits = hn::BitCast(du, x);
    const auto high = hn::ShiftRight<16>(bits);
    const auto odd = hn::And(high, hn::Set(du, 1u));
    const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(hn::Set(du, 0x7fffu), odd)));
    const auto magnitude = hn::BitCast(di, hn::And(bits, hn::Set(du, 0x7fffffffu)));
    const auto is_nan = hn::Gt(magnitude, hn::Set(di, 0x7f800000));
    const auto quiet = hn::BitCast(di, hn::Or(high, hn::Set(du, 0x40u)));
    const auto code = hn::IfThenElse(is_nan, quiet, hn::BitCast(di, rounded));
    hn::StoreU(hn::DemoteTo(du16, code), du16, p);
  }
};

template <>
struct Element<DType::kFloat16> {
  using Type = uint16_t;

  template <class D>
  static HWY_INLINE hwy::HWY_NAMESPACE::Vec<D> Load(D d, const uint16_t* p) {
    namespace hn = hwy::HWY_NAMESPACE;
    const hn::Rebind<int32_t, D> di;
    const hn::Rebind<uint16_t, D> du16;
    const auto x = hn::PromoteTo(di, hn::LoadU(du16, p));
    const auto magnitude = hn::And(x, hn::Set(di, 0x7fff));
    const auto sign = hn::ShiftLeft<16>(hn::Xor(x, magnitude));
    const auto rebias = hn::Set(di, 112 << 23);
    const auto normal = hn::Add(hn::ShiftLeft<13>(magnitude), rebias);
    const auto subnormal =
        hn::BitCast(di, hn::Mul(hn::ConvertTo(d, magnitude), hn::Set(d, 0x1p-24f)));
    auto bits = hn::IfThenElse(hn::Gt(hn::Set(di, 0x400), magnitude), subnormal, normal);
    bits = hn::IfThenElse(hn::Gt(magnitude, hn::Set(di, 0x7bff)), hn::Add(normal, rebias), bits);
    return hn::BitCast(d, hn::Or(bits, sign));
  }
  template <class D>
  static HWY_INLINE void Store(D d, hwy::HWY_NAMESPACE::Vec<D> x, uint16_t* p) {
    namespace hn = hwy::HWY_NAMESPACE;
    const hn::Rebind<int32_t, D> di;
    const hn::Rebind<uint32_t, D> du;
    const hn::Rebind<uint16_t, D> du16;
    const auto bits = hn::BitCast(du, x);
    const auto sign = hn::BitCast(di, hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 0x8000u)));
    const auto magnitude = hn::BitCast(di, hn::And(bits, hn::Set(du, 0x7fffffffu)));
    const auto odd = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(di, 1));
    const auto normal =
        hn::ShiftRight<13>(hn::Add(hn::Add(magnitude, odd), hn::Set(di, 0xfff - (112 << 23))));
    // The sum with 0.5 puts the subnormal's bits at the end of the mantissa, rounded by hardware.
    const auto shifted = hn::Add(hn::BitCast(d, magnitude), hn::Set(d, 0.5f));
    const auto subnormal = hn::Sub(hn::BitCast(di, shifted), hn::Set(di, 0x3f000000));
    auto code = hn::IfThenElse(hn::Gt(hn::Set(di, 0x38800000), magnitude), subnormal, normal);
    code = hn::IfThenElse(hn::Gt(magnitude, hn::Set(di, 0x477fefff)), hn::Set(di, 0x7c00), code);
    code = hn::IfThenElse(hn::Gt(magnitude, hn::Set(di, 0x7f800000)), hn::Set(di, 0x7e00), code);
    hn::StoreU(hn::DemoteTo(du16, hn::Or(code, sign)), du16, p);
  }
};

// dst[0, n) = src[0, n), converted.
template <DType kFrom, DType kTo>
HWY_INLINE void ConvertRow(const typename Element<kFrom>::Type* src, int64_t n,
                           typename Element<kTo>::Type* dst) {
  const hwy::HWY_NAMESPACE::ScalableTag<float> d;
  const int64_t lanes = static_cast<int64_t>(hwy::HWY_NAMESPACE::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    Element<kTo>::Store(d, Element<kFrom>::Load(d, src + i), dst + i);
  }
  for (; i < n; ++i) StoreFromFloat(dst, kTo, i, LoadAsFloat(src, kFrom, i));
}

// Calls f with an object whose `kDType` is `dtype`, which is not kFloat8E4M3: nothing on the host
// is.
template <DType kValue>
struct DTypeTag {
  static constexpr DType kDType = kValue;
};

template <class F>
HWY_INLINE void DispatchDType(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat16:
      return f(DTypeTag<DType::kFloat16>{});
    case DType::kBFloat16:
      return f(DTypeTag<DType::kBFloat16>{});
    case DType::kFloat8E4M3:
      assert(false);
      return;
    case DType::kFloat32:
      break;
  }
  f(DTypeTag<DType::kFloat32>{});
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace semkv
HWY_AFTER_NAMESPACE();

#endif  // SEMKV_OPS_NUMERIC_FLOAT_CONVERT_INL_H_
