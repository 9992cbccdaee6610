#include "csrc/ops/cuda/launch.cuh"
#include "csrc/ops/residency/gather_pages_cuda.h"
#include "csrc/ops/residency/gather_pages_kernel.cuh"

namespace semkv {
namespace {

using cuda::PageDirection;

template <PageDirection kDirection>
cudaError_t CopyPages(const PageCopyParams& params, int32_t num_ctas, cudaStream_t stream) {
  if (num_ctas < 1 || PageCopyCudaUnsupported(params) != nullptr) return cudaErrorInvalidValue;
  return LaunchKernel(&cuda::CopyPagesKernel<kDirection>,
                      cuda::PageCopyLaunchShape(params, num_ctas), params, stream);
}

cudaError_t CopyRuns(const PageCopyParams& params, PageDirection direction, const PageRun* runs,
                     int32_t num_runs, cudaStream_t stream) {
  if (!PageRunsFit(params, runs, num_runs)) return cudaErrorInvalidValue;
  for (int32_t i = 0; i < num_runs; ++i) {
    char* home = static_cast<char*>(params.home) + runs[i].home_page * params.page_bytes;
    char* hot = static_cast<char*>(params.hot) + runs[i].hot_page * params.page_bytes;
    const size_t bytes = static_cast<size_t>(runs[i].num_pages * params.page_bytes);
    const bool is_gather = direction == PageDirection::kGather;
    const cudaError_t error =
        cudaMemcpyAsync(is_gather ? hot : home, is_gather ? home : hot, bytes,
                        is_gather ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t GatherPagesCuda(const PageCopyParams& params, int32_t num_ctas, cudaStream_t stream) {
  return CopyPages<PageDirection::kGather>(params, num_ctas, stream);
}

cudaError_t SpillPagesCuda(const PageCopyParams& params, int32_t num_ctas, cudaStream_t stream) {
  return CopyPages<PageDirection::kSpill>(params, num_ctas, stream);
}

cudaError_t GatherPageRunsCuda(const PageCopyParams& params, const PageRun* runs, int32_t num_runs,
                               cudaStream_t stream) {
  return CopyRuns(params, PageDirection::kGather, runs, num_runs, stream);
}

cudaError_t SpillPageRunsCuda(const PageCopyParams& params, const PageRun* runs, int32_t num_runs,
                              cudaStream_t stream) {
  return CopyRuns(params, PageDirection::kSpill, runs, num_runs, stream);
}

}  // namespace semkv
