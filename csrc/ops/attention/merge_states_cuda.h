// MergeStates on the GPU. Apart from merge_states.h because it needs CUDA's headers.

#ifndef SEMKV_OPS_ATTENTION_MERGE_STATES_CUDA_H_
#define SEMKV_OPS_ATTENTION_MERGE_STATES_CUDA_H_

#include <cuda_runtime_api.h>

#include "csrc/ops/attention/merge_states.h"

namespace semkv {

// Enqueues the work on `stream` and returns without waiting; may be captured in a graph. All
// pointers are device pointers. Returns cudaErrorInvalidValue for params that
// MergeStatesCudaUnsupported refuses.
cudaError_t MergeStatesCuda(const MergeStatesParams& params, cudaStream_t stream);

}  // namespace semkv

#endif  // SEMKV_OPS_ATTENTION_MERGE_STATES_CUDA_H_
