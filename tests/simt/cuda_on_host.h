// CUDA C++ for the host compiler: included before the first line of every source that the SIMT
// harness executes (semkv_add_simt_test), which is then a kernel's own source, unchanged. Holds
// only what kernels in use need; the rest does not compile, and neither does `__shared__`:
// csrc/ops/cuda/shared_memory.cuh is the one place for it.

#ifndef SEMKV_TESTS_SIMT_CUDA_ON_HOST_H_
#define SEMKV_TESTS_SIMT_CUDA_ON_HOST_H_

#include <cmath>

#include "tests/simt/device_calls.h"

#define __host__
// Inlined always, so that a copy without the memory hooks, from another source, never runs instead.
#define __device__ __attribute__((always_inline))
#define __forceinline__ inline
#define __global__ [[maybe_unused]] static
#define __launch_bounds__(...)
#define __grid_constant__

struct uint3 {
  unsigned int x, y, z;
};

using dim3 = uint3;

// Of the running CUDA thread.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

using SimtPlace = semkv::simt::Place;

inline void __syncthreads(SimtPlace place = SimtPlace::Here()) { semkv::simt::SyncThreads(place); }

inline void __syncwarp(unsigned int mask = 0xffffffffu, SimtPlace place = SimtPlace::Here()) {
  semkv::simt::SyncWarp(mask, place);
}

// Launches run their CTAs one after another in one host thread: memory is always coherent.
inline void __threadfence() {}

inline int __popc(unsigned int x) { return __builtin_popcount(x); }

// The bits in the opposite order.
inline unsigned int __brev(unsigned int x) {
  unsigned int reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1u) << (31 - i);
  return reversed;
}

// The number of the lowest set bit, counted from 1; 0 without one.
inline int __ffs(int x) { return __builtin_ffs(x); }

inline unsigned int __ballot_sync(unsigned int mask, int predicate,
                                  SimtPlace place = SimtPlace::Here()) {
  return semkv::simt::Ballot(mask, predicate != 0, place);
}

inline int __any_sync(unsigned int mask, int predicate, SimtPlace place = SimtPlace::Here()) {
  return semkv::simt::Ballot(mask, predicate != 0, place) != 0;
}

inline int __all_sync(unsigned int mask, int predicate, SimtPlace place = SimtPlace::Here()) {
  return semkv::simt::Ballot(mask, predicate != 0, place) == mask;
}

template <typename T>
__device__ inline T __shfl_sync(unsigned int mask, T value, int lane, int width = 32,
                                SimtPlace place = SimtPlace::Here()) {
  T result;
  semkv::simt::Shuffle(semkv::simt::ShuffleKind::kIndex, mask, &value, sizeof(T), lane, width,
                       &result, place);
  return result;
}

template <typename T>
__device__ inline T __shfl_up_sync(unsigned int mask, T value, unsigned int delta, int width = 32,
                                   SimtPlace place = SimtPlace::Here()) {
  T result;
  semkv::simt::Shuffle(semkv::simt::ShuffleKind::kUp, mask, &value, sizeof(T),
                       static_cast<int>(delta), width, &result, place);
  return result;
}

template <typename T>
__device__ inline T __shfl_down_sync(unsigned int mask, T value, unsigned int delta, int width = 32,
                                     SimtPlace place = SimtPlace::Here()) {
  T result;
  semkv::simt::Shuffle(semkv::simt::ShuffleKind::kDown, mask, &value, sizeof(T),
                       static_cast<int>(delta), width, &result, place);
  return result;
}

template <typename T>
__device__ inline T __shfl_xor_sync(unsigned int mask, T value, int lane_mask, int width = 32,
                                    SimtPlace place = SimtPlace::Here()) {
  T result;
  semkv::simt::Shuffle(semkv::simt::ShuffleKind::kXor, mask, &value, sizeof(T), lane_mask, width,
                       &result, place);
  return result;
}

template <typename T>
T atomicAdd(T* p, T x, SimtPlace place = SimtPlace::Here()) {
  return semkv::simt::Atomic(semkv::simt::AtomicKind::kAdd, p, x, place);
}

template <typename T>
T atomicMax(T* p, T x, SimtPlace place = SimtPlace::Here()) {
  return semkv::simt::Atomic(semkv::simt::AtomicKind::kMax, p, x, place);
}

template <typename T>
T atomicMin(T* p, T x, SimtPlace place = SimtPlace::Here()) {
  return semkv::simt::Atomic(semkv::simt::AtomicKind::kMin, p, x, place);
}

template <typename T>
T atomicOr(T* p, T x, SimtPlace place = SimtPlace::Here()) {
  return semkv::simt::Atomic(semkv::simt::AtomicKind::kOr, p, x, place);
}

template <typename T>
T atomicAnd(T* p, T x, SimtPlace place = SimtPlace::Here()) {
  return semkv::simt::Atomic(semkv::simt::AtomicKind::kAnd, p, x, place);
}

template <typename T>
T atomicExch(T* p, T x, SimtPlace place = SimtPlace::Here()) {
  return semkv::simt::Atomic(semkv::simt::AtomicKind::kExchange, p, x, place);
}

template <typename T>
T atomicCAS(T* p, T expected, T desired, SimtPlace place = SimtPlace::Here()) {
  return semkv::simt::AtomicCompareAndSwap(p, expected, desired, place);
}

#endif  // SEMKV_TESTS_SIMT_CUDA_ON_HOST_H_
