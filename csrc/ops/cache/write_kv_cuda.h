// WriteKv on the GPU. Apart from write_kv.h because it needs CUDA's headers.

#ifndef SEMKV_OPS_CACHE_WRITE_KV_CUDA_H_
#define SEMKV_OPS_CACHE_WRITE_KV_CUDA_H_

#include <cuda_runtime_api.h>

#include "csrc/ops/cache/write_kv.h"

namespace semkv {

// Enqueues the work on `stream` and returns without waiting. All pointers are device pointers; no
// slot may occur twice. Bit for bit what WriteKvReference writes. cudaErrorInvalidValue if k and v
// are of kFloat8E4M3.
cudaError_t WriteKvCuda(const WriteKvParams& params, cudaStream_t stream);

}  // namespace semkv

#endif  // SEMKV_OPS_CACHE_WRITE_KV_CUDA_H_
