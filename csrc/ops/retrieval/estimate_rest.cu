#include "csrc/ops/cuda/launch.cuh"
#include "csrc/ops/retrieval/estimate_rest_cuda.h"
#include "csrc/ops/retrieval/estimate_rest_kernel.cuh"

namespace semkv {

cudaError_t EstimateRestCuda(const EstimateRestParams& params, const ScoreListsPlan& plan,
                             void* workspace, size_t workspace_bytes, cudaStream_t stream) {
  if (params.score.num_rows == 0) return cudaSuccess;
  if (!cuda::ScoreListsCudaServes(params.score, plan) ||
      workspace_bytes < EstimateRestCudaWorkspaceBytes(plan)) {
    return cudaErrorInvalidValue;
  }
  const auto kernel_params = cuda::MakeEstimateRestKernelParams(params, plan, workspace);
  const cudaError_t error = LaunchKernel(&cuda::EstimateTilesKernel, cuda::EstimateTilesShape(plan),
                                         kernel_params, stream);
  if (error != cudaSuccess) return error;
  return LaunchKernel(&cuda::EstimateJoinKernel, cuda::EstimateJoinShape(plan), kernel_params,
                      stream);
}

}  // namespace semkv
