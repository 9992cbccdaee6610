// The channels of an attention result that a thread has in registers, and the scale that scores are
// in: what decode attention and merge_states have in common.

#ifndef SEMKV_OPS_ATTENTION_RESULT_CHANNELS_CUH_
#define SEMKV_OPS_ATTENTION_RESULT_CHANNELS_CUH_

#include <cstdint>
#include <cstring>

#include "csrc/ops/cuda/element.cuh"
#include "csrc/ops/cuda/mma.cuh"
#include "csrc/ops/cuda/vector_access.cuh"
#include "semkv/types.h"

namespace semkv::cuda {

constexpr int32_t kPartChannels = 8;  // those of 16 bytes of a 16-bit dtype

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.693147180559945309f;

__device__ inline float LowestScore() { return FloatFromBits(0xff800000u); }

__device__ inline void LoadFloats(const float* from, float (&x)[kPartChannels]) {
  const Vec16 low = Load(from), high = Load(from + kPartChannels / 2);
  std::memcpy(x, &low, sizeof(low));
  std::memcpy(x + kPartChannels / 2, &high, sizeof(high));
}

__device__ inline void StoreFloats(float* to, const float (&x)[kPartChannels]) {
  Vec16 low, high;
  std::memcpy(&low, x, sizeof(low));
  std::memcpy(&high, x + kPartChannels / 2, sizeof(high));
  Store(to, low);
  Store(to + kPartChannels / 2, high);
}

// 16 bytes of a 16-bit dtype, or 32 of float32, which the kernel does not write.
template <DType kDType>
__device__ inline void LoadChannels(const ElementBits<kDType>* from, float (&x)[kPartChannels]) {
  constexpr int32_t kPerVector = 16 / sizeof(*from);
  for (int32_t i = 0; i < kPartChannels; i += kPerVector) {
    const Vec16 vector = LoadStreaming(from + i);
    ElementBits<kDType> bits[kPerVector];
    std::memcpy(bits, &vector, sizeof(vector));
    for (int32_t j = 0; j < kPerVector; ++j) x[i + j] = FloatFromElement<kDType>(bits[j]);
  }
}

template <DType kDType>
__device__ inline void StoreChannels(ElementBits<kDType>* to, const float (&x)[kPartChannels]) {
  if constexpr (kDType == DType::kFloat32) {
    StoreFloats(reinterpret_cast<float*>(to), x);
  } else {
    Vec16 out;
    for (int32_t c = 0; c < kPartChannels; c += 2) {
      out.words[c / 2] = PackPair<kDType>(x[c], x[c + 1]);
    }
    Store(to, out);
  }
}

}  // namespace semkv::cuda

#endif  // SEMKV_OPS_ATTENTION_RESULT_CHANNELS_CUH_
