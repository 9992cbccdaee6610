#include "csrc/ops/cuda/launch.cuh"
#include "csrc/ops/retrieval/score_lists_cuda.h"
#include "csrc/ops/retrieval/select_lists_cuda.h"
#include "csrc/ops/retrieval/select_lists_kernel.cuh"
#include "csrc/ops/retrieval/select_lists_pages_cuda.h"

namespace semkv {

cudaError_t SelectListsCuda(const SelectListsParams& params, const SelectListsPlan& plan,
                            void* workspace, size_t workspace_bytes, cudaStream_t stream) {
  if (params.num_rows == 0) return cudaSuccess;
  if (!cuda::SelectListsCudaServes(params, plan) ||
      workspace_bytes < SelectListsCudaWorkspaceBytes(plan)) {
    return cudaErrorInvalidValue;
  }
  const LaunchShape shape = cuda::SelectListsShape(plan);
  const auto kernel_params = cuda::MakeSelectListsKernelParams(params, plan, workspace);
  if (params.wanted != nullptr) return cuda::LaunchSelectPages(kernel_params, shape, stream);
  return LaunchKernel(&cuda::SelectListsKernel<false>, shape, kernel_params, stream);
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
  const LaunchShape shape = cuda::SelectListsShape(plan.select);
  const auto kernel_params = cuda::MakeRetrieveKernelParams(score, select, plan, workspace);
  if (select.wanted != nullptr) return cuda::LaunchRetrievePages(kernel_params, shape, stream);
  return LaunchKernel(&cuda::RetrieveKernel<false>, shape, kernel_params, stream);
}

}  // namespace semkv
