#include "csrc/ops/cache/append_lists_cuda.h"
#include "csrc/ops/cache/append_lists_kernel.cuh"
#include "csrc/ops/cuda/launch.cuh"

namespace semkv {

cudaError_t AppendListsCuda(const AppendListsParams& params, cudaStream_t stream) {
  if (AppendListsCudaUnsupported(params) != nullptr) return cudaErrorInvalidValue;
  return cuda::DispatchAppendLists(params, [&](auto* kernel, const LaunchShape& shape) {
    return LaunchKernel(kernel, shape, params, stream);
  });
}

}  // namespace semkv
