// ScoreLists on the GPU. Apart from score_lists.h because it needs CUDA's headers.

#ifndef SEMKV_OPS_RETRIEVAL_SCORE_LISTS_CUDA_H_
#define SEMKV_OPS_RETRIEVAL_SCORE_LISTS_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstddef>

#include "csrc/ops/retrieval/score_lists.h"
#include "csrc/ops/retrieval/score_lists_plan.h"

namespace semkv {

// Enqueues the work (two kernels) on `stream` and returns without waiting; may be captured in a
// graph. All pointers of `params` are device pointers, those inside its device arrays `rows` and
// `views` too. Centroids and centers begin at multiples of 16 bytes. Rows and views may have
// changed since the plan was made. `workspace` is 64-byte aligned device memory of
// ScoreListsCudaWorkspaceBytes, whatever it holds; launches that may run at the same time need one
// each.
//
// REQUIRES: no (row, selection) has more lists, views or wider vectors than the plan's bounds.
//
// Returns cudaErrorInvalidValue for params that are not the plan's, for more than 64 query heads
// per selection, a head_dim that is no multiple of 16 or above 256, and a workspace that is too
// small.
cudaError_t ScoreListsCuda(const ScoreListsParams& params, const ScoreListsPlan& plan,
                           void* workspace, size_t workspace_bytes, cudaStream_t stream);

// The first of the two kernels alone: leaves scores in the workspace for RetrieveCuda's second.
cudaError_t ScoreTilesCuda(const ScoreListsParams& params, const ScoreListsPlan& plan,
                           void* workspace, size_t workspace_bytes, cudaStream_t stream);

}  // namespace semkv

#endif  // SEMKV_OPS_RETRIEVAL_SCORE_LISTS_CUDA_H_
