// SelectLists on the GPU. Apart from select_lists.h because it needs CUDA's headers.

#ifndef SEMKV_OPS_RETRIEVAL_SELECT_LISTS_CUDA_H_
#define SEMKV_OPS_RETRIEVAL_SELECT_LISTS_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstddef>

#include "csrc/ops/retrieval/score_lists.h"
#include "csrc/ops/retrieval/select_lists.h"
#include "csrc/ops/retrieval/select_lists_plan.h"

namespace semkv {

// Enqueues the work (one kernel) on `stream` and returns without waiting; may be captured in a
// graph. All pointers of `params` are device pointers, those inside its device arrays `rows`,
// `views` and `always` too. Rows and views may have changed since the plan was made. `workspace` is
// 64-byte aligned device memory of SelectListsCudaWorkspaceBytes (0 while lists fit shared memory),
// whatever it holds; launches that may run at the same time need one each.
//
// REQUIRES: no row has more tokens and no (row, selection) more lists or views than the plan's
// bounds.
//
// Returns cudaErrorInvalidValue for params that are not the plan's (`wanted` without wants_pages
// among them), a page size that is no power of two or, of list pages, above 32, more than 2^20
// tokens, 2^20 lists or 4,096 views, bounds on tokens and views that together do not fit shared
// memory, and a workspace that is too small.
cudaError_t SelectListsCuda(const SelectListsParams& params, const SelectListsPlan& plan,
                            void* workspace, size_t workspace_bytes, cudaStream_t stream);

// ScoreListsCuda and SelectListsCuda in two kernels: the second makes keys of scores on the chip
// and selects by them. What a decode step enqueues. If score.keys is null keys are written nowhere;
// select.keys is not read. `workspace` is 64-byte aligned device memory of
// RetrieveCudaWorkspaceBytes; all else as above.
//
// REQUIRES: `score` and `select` describe the same rows and views.
cudaError_t RetrieveCuda(const ScoreListsParams& score, const SelectListsParams& select,
                         const RetrievePlan& plan, void* workspace, size_t workspace_bytes,
                         cudaStream_t stream);

}  // namespace semkv

#endif  // SEMKV_OPS_RETRIEVAL_SELECT_LISTS_CUDA_H_
