// cp.async: 16 bytes from global to shared memory without a register between. Per thread: a thread
// waits for its own copies; others see them after the barrier that follows the wait.

#ifndef SEMKV_OPS_CUDA_COPY_ASYNC_CUH_
#define SEMKV_OPS_CUDA_COPY_ASYNC_CUH_

#include <cstdint>

namespace semkv {

#ifdef SEMKV_SIMT

__device__ inline void CopyAsync16(void* shared, const void* global) {
  simt::BeginCopy(shared, global, 16, 16);
}

__device__ inline void CopyAsync16OrZero(void* shared, const void* global, bool is_copy) {
  simt::BeginCopy(shared, global, 16, is_copy ? 16 : 0);
}

__device__ inline void CopyAsyncCommit() { simt::CommitCopies(); }

template <int kGroups>
__device__ inline void CopyAsyncWait() {
  simt::WaitForCopies(kGroups);
}

#else

// Both 16-byte aligned. Not kept in L1.
__device__ __forceinline__ void CopyAsync16(void* shared, const void* global) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}

// Without is_copy zeros arrive and nothing is read; `global` must be a global address all the same.
__device__ __forceinline__ void CopyAsync16OrZero(void* shared, const void* global, bool is_copy) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const uint32_t bytes = is_copy ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes)
               : "memory");
}

// The thread's copies since the last commit become a group.
__device__ __forceinline__ void CopyAsyncCommit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until all but the thread's last kGroups groups have arrived.
template <int kGroups>
__device__ __forceinline__ void CopyAsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

#endif

}  // namespace semkv

#endif  // SEMKV_OPS_CUDA_COPY_ASYNC_CUH_
