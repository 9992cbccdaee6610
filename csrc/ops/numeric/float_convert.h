// float32 <-> float16, bfloat16 and float8 e4m3, one number at a time: what references, encoders
// and tests use. Rounds to nearest even; NaN stays NaN; float16 overflow gives infinity; e4m3,
// which has none, saturates to +-448, infinity too. SIMD code has its own.

#ifndef SEMKV_OPS_NUMERIC_FLOAT_CONVERT_H_
#define SEMKV_OPS_NUMERIC_FLOAT_CONVERT_H_

#include <cstdint>
#include <cstring>

#include "semkv/types.h"

namespace semkv {

SEMKV_HOST_DEVICE inline uint32_t FloatBits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

SEMKV_HOST_DEVICE inline float FloatFromBits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

SEMKV_HOST_DEVICE inline float FloatFromBFloat16(uint16_t x) {
  return FloatFromBits(static_cast<uint32_t>(x) << 16);
}

SEMKV_HOST_DEVICE inline uint16_t BFloat16FromFloat(float x) {
  const uint32_t bits = FloatBits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// The greatest bfloat16 that is not above x, and the least that is not below it. Not for NaN.
SEMKV_HOST_DEVICE inline uint16_t BFloat16Below(float x) {
  return static_cast<uint16_t>((FloatBits(x) + (x < 0.0f ? 0xffffu : 0u)) >> 16);
}

SEMKV_HOST_DEVICE inline uint16_t BFloat16Above(float x) {
  return static_cast<uint16_t>((FloatBits(x) + (x > 0.0f ? 0xffffu : 0u)) >> 16);
}

SEMKV_HOST_DEVICE inline float FloatFromFloat16(uint16_t x) {
  const uint32_t sign = static_cast<uint32_t>(x & 0x8000u) << 16;
  const uint32_t magnitude = x & 0x7fffu;
  if (magnitude >= 0x7c00u) return FloatFromBits(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  if (magnitude >= 0x400u) return FloatFromBits(sign | ((magnitude << 13) + (112u << 23)));
  const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;
  return sign != 0 ? -subnormal : subnormal;
}

SEMKV_HOST_DEVICE inline uint16_t Float16FromFloat(float x) {
  const uint32_t bits = FloatBits(x);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // rounds to 65536 or beyond
  if (magnitude < 0x38800000u) {  // subnormal or zero: scale, round by addition
    const float rounded = FloatFromBits(magnitude) + 0.5f;
    return sign | static_cast<uint16_t>(FloatBits(rounded) - 0x3f000000u);
  }
  const uint32_t odd = (magnitude >> 13) & 1u;
  return sign | static_cast<uint16_t>((magnitude - (112u << 23) + 0xfffu + odd) >> 13);
}

// Exact in float16 and bfloat16 too.
SEMKV_HOST_DEVICE inline float FloatFromE4M3(uint8_t x) {
  const uint32_t sign = static_cast<uint32_t>(x & 0x80u) << 24;
  const uint32_t magnitude = x & 0x7fu;
  if (magnitude == 0x7fu) return FloatFromBits(sign | 0x7fc00000u);
  if (magnitude >= 0x8u) return FloatFromBits(sign | ((magnitude << 20) + (120u << 23)));
  const float subnormal = static_cast<float>(magnitude) * 0x1p-9f;
  return sign != 0 ? -subnormal : subnormal;
}

// Every NaN becomes 0x7f, as cvt.rn.satfinite.e4m3x2.f32 has it.
SEMKV_HOST_DEVICE inline uint8_t E4M3FromFloat(float x) {
  const uint32_t bits = FloatBits(x);
  const uint8_t sign = static_cast<uint8_t>((bits >> 24) & 0x80u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7f;
  if (magnitude >= 0x43e00000u) return sign | 0x7e;  // 448 or beyond
  if (magnitude < 0x3c800000u) {  // subnormal or zero: rounded by addition, to multiples of 2^-9
    const float rounded = FloatFromBits(magnitude) + 0x1p14f;
    return sign | static_cast<uint8_t>(FloatBits(rounded) - 0x46800000u);
  }
  const uint32_t odd = (magnitude >> 20) & 1u;
  return sign | static_cast<uint8_t>((magnitude - (120u << 23) + 0x7ffffu + odd) >> 20);
}

// Element `i` of an array of `dtype`; no scale.
SEMKV_HOST_DEVICE inline float LoadAsFloat(const void* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kFloat16:
      return FloatFromFloat16(static_cast<const uint16_t*>(data)[i]);
    case DType::kBFloat16:
      return FloatFromBFloat16(static_cast<const uint16_t*>(data)[i]);
    case DType::kFloat8E4M3:
      return FloatFromE4M3(static_cast<const uint8_t*>(data)[i]);
    case DType::kFloat32:
      break;
  }
  return static_cast<const float*>(data)[i];
}

SEMKV_HOST_DEVICE inline void StoreFromFloat(void* data, DType dtype, int64_t i, float x) {
  switch (dtype) {
    case DType::kFloat16:
      static_cast<uint16_t*>(data)[i] = Float16FromFloat(x);
      return;
    case DType::kBFloat16:
      static_cast<uint16_t*>(data)[i] = BFloat16FromFloat(x);
      return;
    case DType::kFloat8E4M3:
      static_cast<uint8_t*>(data)[i] = E4M3FromFloat(x);
      return;
    case DType::kFloat32:
      break;
  }
  static_cast<float*>(data)[i] = x;
}

}  // namespace semkv

#endif  // SEMKV_OPS_NUMERIC_FLOAT_CONVERT_H_
