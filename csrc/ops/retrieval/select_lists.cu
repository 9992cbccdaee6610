#include "csrc/ops/cuda/launch.cuh"
#include "csrc/ops/retrieval/score_lists_cuda.h"
#include "csrc/ops/retrieval/select_lists_cuda.h"
#include "csrc/ops/retrieval/select_lists_kernel.cuh"

namespace semkv {

cudaError_t SelectListsCuda(const SelectListsParams& params, const SelectListsPlan& plan,
                            void* workspace, size_t workspace_bytes, cudaStream_t stream) {
  if (params.num_rows == 0) return cudaSuccess;
  if (!cuda::SelectListsCudaServes(params, plan) ||
      workspace_bytes < SelectListsCudaWorkspaceBytes(plan)) {
    return cudaErrorInvalidValue;
  }
  return LaunchKernel(&cuda::SelectListsKernel, cuda::SelectListsShape(plan),
                      cuda::MakeSelectListsKernelParams(params, plan, workspace), stream);
}

cudaError_t RetrieveCuda(const ScoreListsParams& score, const SelectListsParams& select,
                         const RetrievePlan& plan, void* workspace, size_t workspace_bytes,
                         cudaStream_t stream) {
  if (score.num_rows == 0 && select.num_rows == 0) return cudaSuccess;
  if (!cuda::RetrieveCudaServes(score, select, plan) ||
      workspace_bytes < RetrieveCudaWorkspaceBytes(plan)) {
    return cudaErrorInvalidValue;
  }
  const cudaError_t error = ScoreTilesCuda(score, plan.score, workspace, workspace_bytes, stream);
  if (error != cudaSuccess) return error;
  return LaunchKernel(&cuda::RetrieveKernel, cuda::SelectListsShape(plan.select),
                      cuda::MakeRetrieveKernelParams(score, select, plan, workspace), stream);
}

}  // namespace semkv
