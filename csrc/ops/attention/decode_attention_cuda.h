// DecodeAttention on the GPU. Apart from decode_attention.h because it needs CUDA's headers.

#ifndef SEMKV_OPS_ATTENTION_DECODE_ATTENTION_CUDA_H_
#define SEMKV_OPS_ATTENTION_DECODE_ATTENTION_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstddef>

#include "csrc/ops/attention/decode_attention.h"
#include "csrc/ops/attention/decode_attention_plan.h"

namespace semkv {

// As decode_attention.h says, but that weights are rounded to the pools' dtype: a token whose
// weight becomes 0 and whose value is infinite or NaN makes that channel NaN.
//
// Enqueues the work on `stream` and returns without waiting; may be captured in a graph. All
// pointers of `params` are device pointers. `workspace` is 64-byte aligned device memory of
// DecodeAttentionCudaWorkspaceBytes, whose first DecodeCounterBytes were zero before its first use
// with this plan; every launch that completes leaves them zero. Launches that may run at the same
// time need a workspace each. Returns cudaErrorInvalidValue for params that
// DecodeAttentionCudaUnsupported or PlanServes refuses and for a workspace that is too small.
cudaError_t DecodeAttentionCuda(const DecodeAttentionParams& params,
                                const DecodeAttentionPlan& plan, void* workspace,
                                size_t workspace_bytes, cudaStream_t stream);

}  // namespace semkv

#endif  // SEMKV_OPS_ATTENTION_DECODE_ATTENTION_CUDA_H_
