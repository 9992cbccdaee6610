// EstimateRest on the GPU. Apart from estimate_rest.h because it needs CUDA's headers.

#ifndef SEMKV_OPS_RETRIEVAL_ESTIMATE_REST_CUDA_H_
#define SEMKV_OPS_RETRIEVAL_ESTIMATE_REST_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstddef>

#include "csrc/ops/retrieval/estimate_rest.h"
#include "csrc/ops/retrieval/estimate_rest_plan.h"

namespace semkv {

// Enqueues the work (two kernels) on `stream` and returns without waiting; may be captured in a
// graph. All pointers of `params` are device pointers, those inside its device arrays `rows` and
// `views` too; mean values, as centroids, and rest_out begin at multiples of 16 bytes. Rows and
// views may have changed since the plan was made. `workspace` is 64-byte aligned device memory of
// EstimateRestCudaWorkspaceBytes, whatever it holds; launches that may run at the same time need
// one each.
//
// REQUIRES: no (row, selection) has more lists, views or wider vectors than the plan's bounds.
//
// Returns cudaErrorInvalidValue for what ScoreListsCuda refuses, and a workspace that is too small.
cudaError_t EstimateRestCuda(const EstimateRestParams& params, const ScoreListsPlan& plan,
                             void* workspace, size_t workspace_bytes, cudaStream_t stream);

}  // namespace semkv

#endif  // SEMKV_OPS_RETRIEVAL_ESTIMATE_REST_CUDA_H_
