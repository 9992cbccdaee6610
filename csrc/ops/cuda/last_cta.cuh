// Which CTA comes last: a barrier between CTAs at which none waits.

#ifndef SEMKV_OPS_CUDA_LAST_CTA_CUH_
#define SEMKV_OPS_CUDA_LAST_CTA_CUH_

#include <cstdint>

namespace semkv {

// True in the one CTA of `num_ctas` that comes last, with what the others wrote before visible. All
// threads call; `is_last` is in shared memory. `counter` is zero before the first comes and again
// after the last has.
__device__ inline bool IsLastCta(uint32_t* counter, uint32_t num_ctas, int32_t thread,
                                 bool& is_last) {
  __syncthreads();
  if (thread == 0) {
    __threadfence();  // behind the barrier: what all threads wrote comes before the count
    is_last = atomicAdd(counter, 1u) == num_ctas - 1;
    if (is_last) *counter = 0;
  }
  __syncthreads();
  __threadfence();
  return is_last;
}

}  // namespace semkv

#endif  // SEMKV_OPS_CUDA_LAST_CTA_CUH_
