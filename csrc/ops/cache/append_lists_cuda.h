// AppendLists on the GPU. Apart from append_lists.h because it needs CUDA's headers.

#ifndef SEMKV_OPS_CACHE_APPEND_LISTS_CUDA_H_
#define SEMKV_OPS_CACHE_APPEND_LISTS_CUDA_H_

#include <cuda_runtime_api.h>

#include "csrc/ops/cache/append_lists.h"

namespace semkv {

// Enqueues one kernel on `stream` and returns without waiting; may be captured in a graph. All
// pointers are device pointers; what is written does not overlap what is read. Sums are float32;
// results do not depend on the schedule. Returns cudaErrorInvalidValue for what
// AppendListsCudaUnsupported refuses.
cudaError_t AppendListsCuda(const AppendListsParams& params, cudaStream_t stream);

}  // namespace semkv

#endif  // SEMKV_OPS_CACHE_APPEND_LISTS_CUDA_H_
