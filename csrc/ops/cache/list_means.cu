#include "csrc/ops/cache/list_means_cuda.h"
#include "csrc/ops/cache/list_means_kernel.cuh"
#include "csrc/ops/cuda/launch.cuh"

namespace semkv {

cudaError_t ListMeansCuda(const ListMeansParams& params, cudaStream_t stream) {
  if (params.head_dim > cuda::kListMeansMaxHeadDim) return cudaErrorInvalidValue;
  return cuda::DispatchListMeans(params, [&](auto* kernel, const LaunchShape& shape) {
    return LaunchKernel(kernel, shape, params, stream);
  });
}

}  // namespace semkv
