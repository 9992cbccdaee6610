#include "csrc/ops/cuda/launch.cuh"
#include "csrc/ops/retrieval/score_lists_cuda.h"
#include "csrc/ops/retrieval/score_lists_kernel.cuh"

namespace semkv {

cudaError_t ScoreListsCuda(const ScoreListsParams& params, const ScoreListsPlan& plan,
                           void* workspace, size_t workspace_bytes, cudaStream_t stream) {
  if (params.num_rows == 0) return cudaSuccess;
  if (!cuda::ScoreListsCudaServes(params, plan) ||
      workspace_bytes < ScoreListsCudaWorkspaceBytes(plan)) {
    return cudaErrorInvalidValue;
  }
  const cuda::ScoreListsKernelParams p = cuda::MakeScoreListsKernelParams(params, plan, workspace);
  const cudaError_t error =
      LaunchKernel(&cuda::ScoreTilesKernel, cuda::ScoreTilesShape(plan), p, stream);
  if (error != cudaSuccess) return error;
  return LaunchKernel(&cuda::ScoreKeysKernel, cuda::ScoreKeysShape(plan), p, stream);
}

}  // namespace semkv
