// A CTA's shared memory. Kernels declare it here and nowhere else, so that the SIMT harness knows
// every byte of it: it poisons shared memory when a CTA starts and finds races and accesses
// outside.

#ifndef SEMKV_OPS_CUDA_SHARED_MEMORY_CUH_
#define SEMKV_OPS_CUDA_SHARED_MEMORY_CUH_

#include <cstddef>

namespace semkv {

#ifdef SEMKV_SIMT

template <typename T>
inline constexpr char kSharedMemoryKey = 0;

template <typename T>
__device__ inline T& SharedMemory() {
  return *static_cast<T*>(simt::StaticShared(&kSharedMemoryKey<T>, sizeof(T), alignof(T)));
}

__device__ inline std::byte* DynamicSharedMemory() { return simt::DynamicShared(); }

#else

// The CTA's one object of type T in static shared memory, not initialised. Every call with the same
// T gives the same object.
template <typename T>
__device__ __forceinline__ T& SharedMemory() {
  __shared__ alignas(T) unsigned char storage[sizeof(T)];
  return *reinterpret_cast<T*>(storage);
}

// The launch's dynamic_shared_bytes, aligned to 128 bytes.
__device__ __forceinline__ std::byte* DynamicSharedMemory() {
  extern __shared__ __align__(128) unsigned char semkv_dynamic_shared[];
  return reinterpret_cast<std::byte*>(semkv_dynamic_shared);
}

#endif

}  // namespace semkv

#endif  // SEMKV_OPS_CUDA_SHARED_MEMORY_CUH_
