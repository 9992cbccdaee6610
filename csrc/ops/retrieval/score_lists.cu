#include "csrc/ops/cuda/launch.cuh"
#include "csrc/ops/retrieval/score_lists_cuda.h"
#include "csrc/ops/retrieval/score_lists_kernel.cuh"

namespace semkv {

cudaError_t ScoreTilesCuda(const ScoreListsParams& params, const ScoreListsPlan& plan,
                           void* workspace, size_t workspace_bytes, cudaStream_t stream) {
  if (params.num_rows == 0) return cudaSuccess;
  if (!cuda::ScoreListsCudaServes(params, plan) ||
      workspace_bytes < ScoreListsCudaWorkspaceBytes(plan)) {
    return cudaErrorInvalidValue;
  }
  return LaunchKernel(&cuda::ScoreTilesKernel, cuda::ScoreTilesShape(plan),
                      cuda::MakeScoreListsKernelParams(params, plan, workspace), stream);
}

cudaError_t ScoreListsCuda(const ScoreListsParams& params, const ScoreListsPlan& plan,
                           void* workspace, size_t workspace_bytes, cudaStream_t stream) {
  const cudaError_t error = ScoreTilesCuda(params, plan, workspace, workspace_bytes, stream);
  if (error != cudaSuccess || params.num_rows == 0) return error;
  return LaunchKernel(&cuda::ScoreKeysKernel, cuda::ScoreKeysShape(plan),
                      cuda::MakeScoreListsKernelParams(params, plan, workspace), stream);
}

}  // namespace semkv
