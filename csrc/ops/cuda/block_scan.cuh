// Prefix sums and minima over a warp and over a CTA of whole warps. All lanes, or all threads,
// call.

#ifndef SEMKV_OPS_CUDA_BLOCK_SCAN_CUH_
#define SEMKV_OPS_CUDA_BLOCK_SCAN_CUH_

#include <cstdint>

#include "csrc/ops/cuda/launch_shape.h"
#include "csrc/ops/cuda/warp_reduce.cuh"

namespace semkv {

// Sum of x over the lanes below this one.
__device__ inline int32_t WarpSumBelow(int32_t x, int32_t lane) {
  int32_t sum = x;
  for (int32_t delta = 1; delta < kWarpSize; delta *= 2) {
    const int32_t below = __shfl_up_sync(kAllLanes, sum, delta);
    if (lane >= delta) sum += below;
  }
  return sum - x;
}

// Shared memory of the functions below. Between two calls that use the same one must be a barrier.
struct BlockScratch {
  int32_t sums[kWarpSize];
  uint64_t minima[kWarpSize];
};

struct BlockSum {
  int32_t below;  // of the threads below this one
  int32_t total;
};

// A barrier in the middle, so what was written before the call is seen by all after it.
template <int32_t kWarps>
__device__ inline BlockSum SumOverBlock(int32_t x, int32_t thread, BlockScratch& scratch) {
  const int32_t warp = thread / kWarpSize, lane = thread % kWarpSize;
  const int32_t below = WarpSumBelow(x, lane);
  if (lane == kWarpSize - 1) scratch.sums[warp] = below + x;
  __syncthreads();
  const int32_t sum = lane < kWarps ? scratch.sums[lane] : 0;
  const int32_t sum_below = WarpSumBelow(sum, lane);
  return {below + __shfl_sync(kAllLanes, sum_below, warp),
          __shfl_sync(kAllLanes, sum_below + sum, kWarpSize - 1)};
}

// With a barrier at the end too: the scratch may be used again at once.
template <int32_t kWarps>
__device__ inline BlockSum SumOverBlockAndSync(int32_t x, int32_t thread, BlockScratch& scratch) {
  const BlockSum sum = SumOverBlock<kWarps>(x, thread, scratch);
  __syncthreads();
  return sum;
}

__device__ inline uint64_t WarpMin(uint64_t x) {
  for (int32_t mask = kWarpSize / 2; mask > 0; mask /= 2) {
    const uint64_t other = __shfl_xor_sync(kAllLanes, x, mask);
    x = other < x ? other : x;
  }
  return x;
}

// A barrier in the middle, as above.
template <int32_t kWarps>
__device__ inline uint64_t MinOverBlock(uint64_t x, int32_t thread, BlockScratch& scratch) {
  const int32_t warp = thread / kWarpSize, lane = thread % kWarpSize;
  x = WarpMin(x);
  if (lane == 0) scratch.minima[warp] = x;
  __syncthreads();
  return WarpMin(scratch.minima[lane < kWarps ? lane : 0]);
}

}  // namespace semkv

#endif  // SEMKV_OPS_CUDA_BLOCK_SCAN_CUH_
