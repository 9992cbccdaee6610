#include "csrc/ops/cuda/launch.cuh"
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

}  // namespace semkv
