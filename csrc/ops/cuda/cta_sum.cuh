// Prefix sums over the threads of a CTA.

#ifndef SEMKV_OPS_CUDA_CTA_SUM_CUH_
#define SEMKV_OPS_CUDA_CTA_SUM_CUH_

#include <cstdint>

#include "csrc/ops/cuda/launch_shape.h"
#include "csrc/ops/cuda/warp_reduce.cuh"

namespace semkv {

// Per warp: the sum of x over the lanes up to and with this one.
__device__ inline int32_t WarpPrefixSum(int32_t x, int32_t lane) {
  for (int32_t delta = 1; delta < kWarpSize; delta *= 2) {
    const int32_t below = __shfl_up_sync(kAllLanes, x, delta);
    if (lane >= delta) x += below;
  }
  return x;
}

// In shared memory; may be used again at once.
template <int32_t kWarps>
struct CtaSumShared {
  int32_t of_warp[kWarps];
};

// What the threads before this one have, and all of them. All threads of the CTA call; memory
// accesses before the call are ordered before those behind it.
struct CtaSum {
  int32_t before, total;
};

template <int32_t kWarps>
__device__ inline CtaSum SumOverCta(int32_t x, int32_t thread, CtaSumShared<kWarps>& shared) {
  static_assert(kWarps <= kWarpSize);
  const int32_t warp = thread / kWarpSize, lane = thread % kWarpSize;
  const int32_t in_warp = WarpPrefixSum(x, lane);
  if (lane == kWarpSize - 1) shared.of_warp[warp] = in_warp;
  __syncthreads();
  const int32_t warps = WarpPrefixSum(lane < kWarps ? shared.of_warp[lane] : 0, lane);
  const int32_t before = __shfl_sync(kAllLanes, warps, warp == 0 ? 0 : warp - 1);
  const int32_t total = __shfl_sync(kAllLanes, warps, kWarps - 1);
  __syncthreads();
  return {(warp == 0 ? 0 : before) + in_warp - x, total};
}

}  // namespace semkv

#endif  // SEMKV_OPS_CUDA_CTA_SUM_CUH_
