// Stored elements as bits, and their conversion, which has the bits of float_convert.h: the
// hardware's own conversions make every NaN one NaN.

#ifndef SEMKV_OPS_CUDA_ELEMENT_CUH_
#define SEMKV_OPS_CUDA_ELEMENT_CUH_

#include <cstdint>
#include <type_traits>

#include "csrc/ops/numeric/float_convert.h"
#include "semkv/types.h"

namespace semkv {

template <DType kDType>
using ElementBits =
    std::conditional_t<kDType == DType::kFloat32, uint32_t,
                       std::conditional_t<kDType == DType::kFloat8E4M3, uint8_t, uint16_t>>;

template <DType kDType>
__device__ inline float FloatFromElement(ElementBits<kDType> bits) {
  if constexpr (kDType == DType::kFloat32) return FloatFromBits(bits);
  if constexpr (kDType == DType::kFloat16) return FloatFromFloat16(bits);
  if constexpr (kDType == DType::kBFloat16) return FloatFromBFloat16(bits);
  if constexpr (kDType == DType::kFloat8E4M3) return FloatFromE4M3(bits);
}

template <DType kDType>
__device__ inline ElementBits<kDType> ElementFromFloat(float x) {
  if constexpr (kDType == DType::kFloat32) return FloatBits(x);
  if constexpr (kDType == DType::kFloat16) return Float16FromFloat(x);
  if constexpr (kDType == DType::kBFloat16) return BFloat16FromFloat(x);
  if constexpr (kDType == DType::kFloat8E4M3) return E4M3FromFloat(x);
}

// The same dtype is a copy, so that NaN payloads survive.
template <DType kFrom, DType kTo>
__device__ inline ElementBits<kTo> ConvertElement(ElementBits<kFrom> bits) {
  if constexpr (kFrom == kTo) {
    return bits;
  } else {
    return ElementFromFloat<kTo>(FloatFromElement<kFrom>(bits));
  }
}

#ifdef SEMKV_SIMT

__device__ inline uint16_t PackE4M3(float low, float high) {
  return static_cast<uint16_t>(E4M3FromFloat(low) | E4M3FromFloat(high) << 8);
}

template <DType kDType>
__device__ inline void UnpackPair(uint32_t pair, float& low, float& high) {
  static_assert(kDType == DType::kFloat16 || kDType == DType::kBFloat16);
  low = FloatFromElement<kDType>(static_cast<uint16_t>(pair));
  high = FloatFromElement<kDType>(static_cast<uint16_t>(pair >> 16));
}

#else

// Two numbers as e4m3, with the bits of E4M3FromFloat.
__device__ __forceinline__ uint16_t PackE4M3(float low, float high) {
#if __CUDA_ARCH__ >= 890
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return static_cast<uint16_t>(E4M3FromFloat(low) | E4M3FromFloat(high) << 8);
#endif
}

// Two elements of 16 bits as floats: exact, and one instruction each. NaN stays NaN, but not which.
template <DType kDType>
__device__ __forceinline__ void UnpackPair(uint32_t pair, float& low, float& high) {
  static_assert(kDType == DType::kFloat16 || kDType == DType::kBFloat16);
  if constexpr (kDType == DType::kFloat16) {
    asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %2;\ncvt.f32.f16 %0, l;\ncvt.f32.f16 %1, h;\n}"
        : "=f"(low), "=f"(high)
        : "r"(pair));
  } else {
    low = FloatFromBits(pair << 16);
    high = FloatFromBits(pair & 0xffff0000u);
  }
}

#endif

}  // namespace semkv

#endif  // SEMKV_OPS_CUDA_ELEMENT_CUH_
