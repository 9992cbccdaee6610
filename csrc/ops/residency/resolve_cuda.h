// Resolve on the GPU. Apart from resolve.h because it needs CUDA's headers.

#ifndef SEMKV_OPS_RESIDENCY_RESOLVE_CUDA_H_
#define SEMKV_OPS_RESIDENCY_RESOLVE_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstddef>

#include "csrc/ops/residency/resolve.h"
#include "csrc/ops/residency/resolve_plan.h"

namespace semkv {

// Enqueues the work on `stream`, in one launch or two, and returns without waiting; may be captured
// in a graph. All pointers of `params` are device pointers. `workspace` is 64-byte aligned device
// memory of ResolveCudaWorkspaceBytes(PlanResolve(params.shape)), whose first kResolveCounterBytes
// were zero before its first use; every launch that completes leaves them zero. Launches that may
// run at the same time need a workspace and a residency each. Returns cudaErrorInvalidValue for
// params that ResolveCudaUnsupported refuses and for a workspace that is too small.
cudaError_t ResolveCuda(const ResolveParams& params, void* workspace, size_t workspace_bytes,
                        cudaStream_t stream);

}  // namespace semkv

#endif  // SEMKV_OPS_RESIDENCY_RESOLVE_CUDA_H_
