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

// Pair by pair of float16.
__device__ inline uint32_t MultiplyFloat16Pairs(uint32_t a, uint32_t b) {
  const auto product = [](uint32_t x, uint32_t y) -> uint32_t {
    return Float16FromFloat(FloatFromFloat16(static_cast<uint16_t>(x)) *
                            FloatFromFloat16(static_cast<uint16_t>(y)));
  };
  return product(a, b) | product(a >> 16, b >> 16) << 16;
}

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

__device__ __forceinline__ uint32_t MultiplyFloat16Pairs(uint32_t a, uint32_t b) {
  uint32_t product;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}

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

// The two numbers of e4m3 in the low half of `pair` as two of float16: exact. NaN stays NaN, but
// not which. The harness executes what GPUs before sm_89 do.
__device__ inline uint32_t Float16PairFromE4M3(uint32_t pair) {
#if !defined(SEMKV_SIMT) && __CUDA_ARCH__ >= 890
  uint32_t halves;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(static_cast<uint16_t>(pair)));
  return halves;
#else
  // As a float16 with the same fields it is 2^-8 times the number, subnormal ones too. Where all of
  // them are ones the sum carries to bit 14, and 480 becomes float16's own NaN.
  const uint32_t bytes = (pair & 0xffu) << 8 | (pair & 0xff00u) << 16;
  const uint32_t magnitude = (bytes & 0x7f007f00u) >> 1;
  const uint32_t nan = ((magnitude + 0x00800080u) >> 14 & 0x00010001u) * (0x5f80u ^ 0x7e00u);
  return (MultiplyFloat16Pairs(magnitude, 0x5c005c00u) ^ nan) | (bytes & 0x80008000u);
#endif
}

}  // namespace semkv

#endif  // SEMKV_OPS_CUDA_ELEMENT_CUH_
