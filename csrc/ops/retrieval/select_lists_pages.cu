// Apart from select_lists.cu: in one file with these instances nvcc gives those that want no pages
// more registers.

#include "csrc/ops/cuda/launch.cuh"
#include "csrc/ops/retrieval/select_lists_kernel.cuh"
#include "csrc/ops/retrieval/select_lists_pages_cuda.h"

namespace semkv::cuda {

cudaError_t LaunchSelectPages(const SelectListsKernelParams& params, const LaunchShape& shape,
                              cudaStream_t stream) {
  return LaunchKernel(&SelectListsKernel<true>, shape, params, stream);
}

cudaError_t LaunchRetrievePages(const RetrieveKernelParams& params, const LaunchShape& shape,
                                cudaStream_t stream) {
  return LaunchKernel(&RetrieveKernel<true>, shape, params, stream);
}

}  // namespace semkv::cuda
