#include "csrc/ops/clustering/kmeans_cuda.h"
#include "csrc/ops/clustering/kmeans_kernel.cuh"
#include "csrc/ops/cuda/launch.cuh"

namespace semkv {

cudaError_t KMeansCuda(const KMeansParams& params, const KMeansPlan& plan, void* workspace,
                       size_t workspace_bytes, cudaStream_t stream) {
  if (!KMeansPlanServes(plan, params) || workspace_bytes < KMeansCudaWorkspaceBytes(plan)) {
    return cudaErrorInvalidValue;
  }
  if (params.num_problems == 0) return cudaSuccess;
  cudaError_t error = cudaSuccess;
  const auto launch = [&](auto* kernel, const LaunchShape& shape, const cuda::KMeansLaunch& run) {
    error = LaunchKernel(kernel, shape, run, stream);
    return error == cudaSuccess;
  };
  cuda::LaunchKMeans(cuda::MakeKMeansLaunch(params, plan, workspace), launch);
  return error;
}

}  // namespace semkv
