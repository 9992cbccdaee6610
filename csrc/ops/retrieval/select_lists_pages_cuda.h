// The launches of select_lists that want list pages. Internal to SelectListsCuda and RetrieveCuda.

#ifndef SEMKV_OPS_RETRIEVAL_SELECT_LISTS_PAGES_CUDA_H_
#define SEMKV_OPS_RETRIEVAL_SELECT_LISTS_PAGES_CUDA_H_

#include <cuda_runtime_api.h>

#include "csrc/ops/cuda/launch_shape.h"

namespace semkv::cuda {

struct SelectListsKernelParams;
struct RetrieveKernelParams;

cudaError_t LaunchSelectPages(const SelectListsKernelParams& params, const LaunchShape& shape,
                              cudaStream_t stream);
cudaError_t LaunchRetrievePages(const RetrieveKernelParams& params, const LaunchShape& shape,
                                cudaStream_t stream);

}  // namespace semkv::cuda

#endif  // SEMKV_OPS_RETRIEVAL_SELECT_LISTS_PAGES_CUDA_H_
