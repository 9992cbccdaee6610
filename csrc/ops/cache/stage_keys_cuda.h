// StageKeys on the GPU. Apart from stage_keys.h because it needs CUDA's headers.

#ifndef SEMKV_OPS_CACHE_STAGE_KEYS_CUDA_H_
#define SEMKV_OPS_CACHE_STAGE_KEYS_CUDA_H_

#include <cuda_runtime_api.h>

#include "csrc/ops/cache/stage_keys.h"

namespace semkv {

// Enqueues the work, one kernel, on `stream` and returns without waiting; may be captured in a
// graph. All pointers are device pointers, those inside the device array `layers` too. Keys bit for
// bit as StageKeysReference (of e4m3 another NaN where that has one), numbers of tokens in another
// order from run to run.
//
// REQUIRES: rows of every layer, and `keys`, begin at multiples of 16 bytes.
//
// Returns cudaErrorInvalidValue for float32, another dtype of keys than stage_keys.h has, a
// head_dim that is not 64, 80, 96, 128 or 256, a num_tokens outside 0..kStageKeysMaxTokens, and
// page_tokens that is no power of two.
cudaError_t StageKeysCuda(const StageKeysParams& params, cudaStream_t stream);

}  // namespace semkv

#endif  // SEMKV_OPS_CACHE_STAGE_KEYS_CUDA_H_
