#include "csrc/ops/attention/merge_states_cuda.h"
#include "csrc/ops/attention/merge_states_kernel.cuh"
#include "csrc/ops/cuda/launch.cuh"

namespace semkv {

cudaError_t MergeStatesCuda(const MergeStatesParams& params, cudaStream_t stream) {
  if (MergeStatesCudaUnsupported(params) != nullptr) return cudaErrorInvalidValue;
  return cuda::DispatchMergeStates(params, [&](auto* kernel, const LaunchShape& shape) {
    return LaunchKernel(kernel, shape, params, stream);
  });
}

}  // namespace semkv
