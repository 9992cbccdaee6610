// Reductions over the 32 lanes of a warp. All lanes call; every lane gets the result, and every
// lane gets the same bits.

#ifndef SEMKV_OPS_CUDA_WARP_REDUCE_CUH_
#define SEMKV_OPS_CUDA_WARP_REDUCE_CUH_

#include <cstdint>

#include "csrc/ops/cuda/launch_shape.h"

namespace semkv {

constexpr uint32_t kAllLanes = 0xffffffffu;

template <typename T>
__device__ inline T WarpSum(T x) {
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(kAllLanes, x, mask);
  return x;
}

__device__ inline uint32_t WarpOr(uint32_t x) {
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) x |= __shfl_xor_sync(kAllLanes, x, mask);
  return x;
}

// Of numbers: NaN is left out, as by fmaxf.
__device__ inline float WarpMax(float x) {
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
    x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, mask));
  }
  return x;
}

}  // namespace semkv

#endif  // SEMKV_OPS_CUDA_WARP_REDUCE_CUH_
