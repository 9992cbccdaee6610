// Global memory in accesses of 16 bytes, the widest that a thread has.

#ifndef SEMKV_OPS_CUDA_VECTOR_ACCESS_CUH_
#define SEMKV_OPS_CUDA_VECTOR_ACCESS_CUH_

#include <cstdint>

namespace semkv {

struct alignas(16) Vec16 {
  uint32_t words[4];
};

struct alignas(8) Vec8 {
  uint32_t words[2];
};

#ifdef SEMKV_SIMT

// One access of 16 bytes to the compiler too: it would split a struct into its members.
typedef uint32_t Vec16Access __attribute__((vector_size(16), may_alias));

__device__ inline Vec16 LoadStreaming(const void* p) {
  const Vec16Access x = *static_cast<const Vec16Access*>(p);
  return {{x[0], x[1], x[2], x[3]}};
}

__device__ inline Vec16 LoadAhead(const void* p) { return LoadStreaming(p); }

__device__ inline Vec16 Load(const void* p) { return LoadStreaming(p); }

typedef uint32_t Vec8Access __attribute__((vector_size(8), may_alias));

__device__ inline Vec8 Load8(const void* p) {
  const Vec8Access x = *static_cast<const Vec8Access*>(p);
  return {{x[0], x[1]}};
}

__device__ inline void Store(void* p, const Vec16& x) {
  *static_cast<Vec16Access*>(p) = Vec16Access{x.words[0], x.words[1], x.words[2], x.words[3]};
}

__device__ inline void StoreGlobal(void* p, const Vec16& x) { Store(p, x); }

#else

// p: global, 16-byte aligned, not written while the kernel runs, but perhaps by the one before,
// which may still run when this one starts: hence not by the read-only path (ld.global.nc), which
// WaitForPreviousKernel does not order. No allocation in L1: the bytes are read once.
__device__ __forceinline__ Vec16 LoadStreaming(const void* p) {
  Vec16 x;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.words[0]), "=r"(x.words[1]), "=r"(x.words[2]), "=r"(x.words[3])
               : "l"(p));
  return x;
}

// The same, but stores that follow it stay behind it: LoadStreaming may be moved there.
__device__ __forceinline__ Vec16 LoadAhead(const void* p) {
  Vec16 x;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.words[0]), "=r"(x.words[1]), "=r"(x.words[2]), "=r"(x.words[3])
               : "l"(p)
               : "memory");
  return x;
}

// p: 16-byte aligned. Of memory that the kernel writes.
__device__ __forceinline__ Vec16 Load(const void* p) {
  const uint4 x = *static_cast<const uint4*>(p);
  return {{x.x, x.y, x.z, x.w}};
}

// p: 8-byte aligned.
__device__ __forceinline__ Vec8 Load8(const void* p) {
  const uint2 x = *static_cast<const uint2*>(p);
  return {{x.x, x.y}};
}

// p: 16-byte aligned.
__device__ __forceinline__ void Store(void* p, const Vec16& x) {
  *static_cast<uint4*>(p) = make_uint4(x.words[0], x.words[1], x.words[2], x.words[3]);
}

// p: global, 16-byte aligned. One access even where nvcc would make four of Store.
__device__ __forceinline__ void StoreGlobal(void* p, const Vec16& x) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(x.words[0]),
               "r"(x.words[1]), "r"(x.words[2]), "r"(x.words[3])
               : "memory");
}

#endif

}  // namespace semkv

#endif  // SEMKV_OPS_CUDA_VECTOR_ACCESS_CUH_
