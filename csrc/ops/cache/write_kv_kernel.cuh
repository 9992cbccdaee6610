// write_kv on the GPU: the kernel, its launch shape and the choice of its instance.

#ifndef SEMKV_OPS_CACHE_WRITE_KV_KERNEL_CUH_
#define SEMKV_OPS_CACHE_WRITE_KV_KERNEL_CUH_

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "csrc/ops/cache/write_kv.h"
#include "csrc/ops/cuda/dependent_launch.cuh"
#include "csrc/ops/cuda/dispatch.h"
#include "csrc/ops/cuda/element.cuh"
#include "csrc/ops/cuda/launch_shape.h"
#include "csrc/ops/cuda/vector_access.cuh"
#include "semkv/types.h"

namespace semkv::cuda {

constexpr int32_t kWriteKvMaxThreads = 256;

// What a thread moves at a time. Vectors: both sides in accesses of 16 bytes, so as many elements
// as the narrower dtype has in 16 bytes. Elements: whatever the strides and addresses are.
enum class WriteKvUnit { kVectors, kElements };

template <DType kFrom, DType kTo, WriteKvUnit kUnit>
constexpr int32_t kWriteKvUnitElements = kUnit == WriteKvUnit::kElements
                                             ? 1
                                             : static_cast<int32_t>(16 / std::min(DTypeBytes(kFrom),
                                                                                  DTypeBytes(kTo)));

// Per thread: kElements elements from global memory.
template <DType kDType, int32_t kElements>
__device__ inline void LoadUnit(const ElementBits<kDType>* from,
                                ElementBits<kDType> (&x)[kElements]) {
  if constexpr (kElements == 1) {
    x[0] = *from;
  } else {
    constexpr int32_t kPerVector = 16 / sizeof(x[0]);
    for (int32_t i = 0; i < kElements; i += kPerVector) {
      const Vec16 vector = LoadStreaming(from + i);
      std::memcpy(x + i, &vector, sizeof(vector));
    }
  }
}

// Per thread: divides kElements elements by the pool's scale and stores them to global memory as
// e4m3.
template <DType kFrom, int32_t kElements>
__device__ inline void StoreE4M3Unit(const ElementBits<kFrom> (&x)[kElements], float scale,
                                     uint8_t* to) {
  if constexpr (kElements == 1) {
    *to = E4M3FromFloat(FloatFromElement<kFrom>(x[0]) / scale);
  } else {
    static_assert(kElements == 16);
    Vec16 vector = {};
    for (int32_t i = 0; i < kElements; i += 2) {
      const uint32_t pair = PackE4M3(FloatFromElement<kFrom>(x[i]) / scale,
                                     FloatFromElement<kFrom>(x[i + 1]) / scale);
      vector.words[i / 4] |= pair << (8 * (i % 4));
    }
    Store(to, vector);
  }
}

// Per thread: converts kElements elements and stores them to global memory. `scale` is of e4m3.
template <DType kFrom, DType kTo, int32_t kElements>
__device__ inline void StoreUnit(const ElementBits<kFrom> (&x)[kElements], float scale,
                                 ElementBits<kTo>* to) {
  if constexpr (kTo == DType::kFloat8E4M3) {
    StoreE4M3Unit<kFrom>(x, scale, to);
  } else if constexpr (kElements == 1) {
    *to = ConvertElement<kFrom, kTo>(x[0]);
  } else {
    constexpr int32_t kPerVector = 16 / sizeof(to[0]);
    for (int32_t i = 0; i < kElements; i += kPerVector) {
      ElementBits<kTo> y[kPerVector];
      for (int32_t j = 0; j < kPerVector; ++j) y[j] = ConvertElement<kFrom, kTo>(x[i + j]);
      Vec16 vector;
      std::memcpy(&vector, y, sizeof(vector));
      Store(to + i, vector);
    }
  }
}

// grid = num_tokens; a CTA writes the keys and values of one token. A thread has the loads of a key
// and a value unit in flight before it stores either.
template <DType kFrom, DType kTo, WriteKvUnit kUnit>
__global__ void __launch_bounds__(kWriteKvMaxThreads)
    WriteKvKernel(const __grid_constant__ WriteKvParams p) {
  WaitForPreviousKernel();
  constexpr int32_t kElements = kWriteKvUnitElements<kFrom, kTo, kUnit>;
  using From = ElementBits<kFrom>;
  using To = ElementBits<kTo>;
  const int64_t t = blockIdx.x;
  const int32_t slot = p.slots[t];
  if (slot < 0) return;
  const int32_t head_units = p.head_dim / kElements;
  const int32_t num_units = p.num_kv_heads * head_units;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < num_units;
       i += static_cast<int32_t>(blockDim.x)) {
    const int32_t head = i / head_units;
    const int32_t channel = (i - head * head_units) * kElements;
    const From* key = static_cast<const From*>(p.k) + t * p.k_token + head * p.k_head + channel;
    const From* value = static_cast<const From*>(p.v) + t * p.v_token + head * p.v_head + channel;
    From key_unit[kElements], value_unit[kElements];
    LoadUnit<kFrom>(key, key_unit);
    LoadUnit<kFrom>(value, value_unit);
    To* key_slot = static_cast<To*>(p.view.k) + KeyOffset(p.view, slot, head) + channel;
    To* value_slot = static_cast<To*>(p.view.v) + ValueOffset(p.view, slot, head) + channel;
    StoreUnit<kFrom, kTo>(key_unit, p.view.k_scale, key_slot);
    StoreUnit<kFrom, kTo>(value_unit, p.view.v_scale, value_slot);
  }
}

// True when every row begins at a multiple of 16 bytes on both sides and is whole vectors.
inline bool WriteKvTakesVectors(const WriteKvParams& p) {
  const auto aligned = [](const void* base, DType dtype, std::initializer_list<int64_t> strides) {
    return reinterpret_cast<uintptr_t>(base) % 16 == 0 &&
           std::all_of(strides.begin(), strides.end(),
                       [&](int64_t stride) { return stride * DTypeBytes(dtype) % 16 == 0; });
  };
  const KvView& view = p.view;
  const int64_t unit = 16 / std::min(DTypeBytes(p.dtype), DTypeBytes(view.dtype));
  return p.head_dim % unit == 0 && aligned(p.k, p.dtype, {p.k_token, p.k_head}) &&
         aligned(p.v, p.dtype, {p.v_token, p.v_head}) &&
         aligned(view.k, view.dtype, {view.k_page, view.k_head, view.k_token}) &&
         aligned(view.v, view.dtype, {view.v_page, view.v_head, view.v_token});
}

inline LaunchShape WriteKvLaunchShape(const WriteKvParams& p, int32_t unit_elements) {
  const int32_t units = p.num_kv_heads * (p.head_dim / unit_elements);
  LaunchShape shape;
  shape.grid_x = static_cast<uint32_t>(p.num_tokens);
  shape.threads = static_cast<uint32_t>(
      std::clamp(CeilDiv(units, kWarpSize) * kWarpSize, kWarpSize, kWriteKvMaxThreads));
  shape.overlaps_previous = true;
  return shape;
}

template <DType kFrom, DType kTo, typename Launch>
auto DispatchWriteKvUnit(const WriteKvParams& params, const Launch& launch) {
  if (WriteKvTakesVectors(params)) {
    constexpr int32_t kElements = kWriteKvUnitElements<kFrom, kTo, WriteKvUnit::kVectors>;
    return launch(&WriteKvKernel<kFrom, kTo, WriteKvUnit::kVectors>,
                  WriteKvLaunchShape(params, kElements));
  }
  return launch(&WriteKvKernel<kFrom, kTo, WriteKvUnit::kElements>, WriteKvLaunchShape(params, 1));
}

// Returns launch(kernel, shape) with the instance of WriteKvKernel that serves `params`, of which
// dtype is not kFloat8E4M3.
template <typename Launch>
auto DispatchWriteKv(const WriteKvParams& params, const Launch& launch) {
  return DispatchDType(params.dtype, [&](auto from) {
    constexpr DType kFrom = decltype(from)::value;
    if (params.view.dtype == DType::kFloat8E4M3) {
      return DispatchWriteKvUnit<kFrom, DType::kFloat8E4M3>(params, launch);
    }
    return DispatchDType(params.view.dtype, [&](auto to) {
      return DispatchWriteKvUnit<kFrom, decltype(to)::value>(params, launch);
    });
  });
}

}  // namespace semkv::cuda

#endif  // SEMKV_OPS_CACHE_WRITE_KV_KERNEL_CUH_
