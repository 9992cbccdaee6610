#include "csrc/ops/cuda/launch.cuh"
#include "csrc/ops/residency/resolve_cuda.h"
#include "csrc/ops/residency/resolve_kernel.cuh"

namespace semkv {

cudaError_t ResolveCuda(const ResolveParams& params, void* workspace, size_t workspace_bytes,
                        cudaStream_t stream) {
  if (ResolveCudaUnsupported(params) != nullptr) return cudaErrorInvalidValue;
  const ResolvePlan plan = PlanResolve(params.shape);
  if (workspace_bytes < ResolveCudaWorkspaceBytes(plan)) return cudaErrorInvalidValue;
  const cuda::ResolveLaunch launch = cuda::MakeResolveLaunch(params, plan, workspace);
  return cuda::DispatchResolve(plan, cudaSuccess, [&](auto* kernel, const LaunchShape& shape) {
    return LaunchKernel(kernel, shape, launch, stream);
  });
}

}  // namespace semkv
