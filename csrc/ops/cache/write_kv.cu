#include "csrc/ops/cache/write_kv_cuda.h"
#include "csrc/ops/cache/write_kv_kernel.cuh"
#include "csrc/ops/cuda/launch.cuh"

namespace semkv {

cudaError_t WriteKvCuda(const WriteKvParams& params, cudaStream_t stream) {
  if (params.dtype == DType::kFloat8E4M3) return cudaErrorInvalidValue;
  return cuda::DispatchWriteKv(params, [&](auto* kernel, const LaunchShape& shape) {
    return LaunchKernel(kernel, shape, params, stream);
  });
}

}  // namespace semkv
