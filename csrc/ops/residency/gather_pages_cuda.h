// GatherPages and SpillPages on the GPU. Apart from gather_pages.h because they need CUDA's
// headers.

#ifndef SEMKV_OPS_RESIDENCY_GATHER_PAGES_CUDA_H_
#define SEMKV_OPS_RESIDENCY_GATHER_PAGES_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "csrc/ops/residency/gather_pages.h"

namespace semkv {

// CTAs with which the bytes in flight cover PCIe of generation 5 twice (docs/kernels/residency.md).
constexpr int32_t kPageCopyCtas = 8;

// Enqueue the work on `stream`, on at most `num_ctas` CTAs, and return without waiting; may be
// captured in a graph. All pointers are the device's: `home` is the device's address of page-locked
// host memory (cudaHostGetDevicePointer). The host sees spilled pages when it has waited for the
// stream. Return cudaErrorInvalidValue for params that PageCopyCudaUnsupported refuses and for
// num_ctas < 1.
cudaError_t GatherPagesCuda(const PageCopyParams& params, int32_t num_ctas, cudaStream_t stream);
cudaError_t SpillPagesCuda(const PageCopyParams& params, int32_t num_ctas, cudaStream_t stream);

// The same by the copy engines, a copy per run: for runs of a MiB and more, and where attention
// needs every multiprocessor. Of `params` only the tiers are used. Return cudaErrorInvalidValue,
// and enqueue nothing, for a run that is not in its tiers.
cudaError_t GatherPageRunsCuda(const PageCopyParams& params, const PageRun* runs, int32_t num_runs,
                               cudaStream_t stream);
cudaError_t SpillPageRunsCuda(const PageCopyParams& params, const PageRun* runs, int32_t num_runs,
                              cudaStream_t stream);

}  // namespace semkv

#endif  // SEMKV_OPS_RESIDENCY_GATHER_PAGES_CUDA_H_
