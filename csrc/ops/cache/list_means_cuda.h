// ListMeans on the GPU. Apart from list_means.h because it needs CUDA's headers.

#ifndef SEMKV_OPS_CACHE_LIST_MEANS_CUDA_H_
#define SEMKV_OPS_CACHE_LIST_MEANS_CUDA_H_

#include <cuda_runtime_api.h>

#include "csrc/ops/cache/list_means.h"

namespace semkv {

// Enqueues the work on `stream` and returns without waiting. All pointers are device pointers.
// Returns cudaErrorInvalidValue for a head_dim above 512.
cudaError_t ListMeansCuda(const ListMeansParams& params, cudaStream_t stream);

}  // namespace semkv

#endif  // SEMKV_OPS_CACHE_LIST_MEANS_CUDA_H_
