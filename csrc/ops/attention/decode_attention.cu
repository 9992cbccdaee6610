#include "csrc/ops/attention/decode_attention_cuda.h"
#include "csrc/ops/attention/decode_attention_kernel.cuh"
#include "csrc/ops/cuda/launch.cuh"

namespace semkv {

cudaError_t DecodeAttentionCuda(const DecodeAttentionParams& params,
                                const DecodeAttentionPlan& plan, void* workspace,
                                size_t workspace_bytes, cudaStream_t stream) {
  if (DecodeAttentionCudaUnsupported(params) != nullptr || !PlanServes(plan, params) ||
      workspace_bytes < DecodeAttentionCudaWorkspaceBytes(plan)) {
    return cudaErrorInvalidValue;
  }
  const cuda::DecodeAttentionLaunch launch = cuda::MakeDecodeLaunch(params, plan, workspace);
  return cuda::DispatchDecodeAttention(params, plan, [&](auto* kernel, const LaunchShape& shape) {
    return LaunchKernel(kernel, shape, launch, stream);
  });
}

}  // namespace semkv
