#include "csrc/ops/cache/stage_keys_cuda.h"
#include "csrc/ops/cache/stage_keys_kernel.cuh"
#include "csrc/ops/cuda/launch.cuh"

namespace semkv {

cudaError_t StageKeysCuda(const StageKeysParams& params, cudaStream_t stream) {
  if (!cuda::StageKeysIsServed(params)) return cudaErrorInvalidValue;
  return cuda::DispatchStageKeys(params, [&](auto* kernel, const LaunchShape& shape) {
    return LaunchKernel(kernel, shape, params, stream);
  });
}

}  // namespace semkv
