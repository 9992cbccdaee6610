// The only `<<<>>>` of the project.

#ifndef SEMKV_OPS_CUDA_LAUNCH_CUH_
#define SEMKV_OPS_CUDA_LAUNCH_CUH_

#include <cuda_runtime.h>

#include "csrc/ops/cuda/launch_shape.h"

namespace semkv {

#ifdef SEMKV_SIMT

template <typename Params>
cudaError_t LaunchKernel(void (*kernel)(Params), const LaunchShape& shape, const Params& params,
                         cudaStream_t) {
  if (IsEmpty(shape)) return cudaSuccess;
  auto thread = [&] { kernel(params); };
  return static_cast<cudaError_t>(simt::LaunchOnDevice(
      shape, [](void* t) { (*static_cast<decltype(thread)*>(t))(); }, &thread));
}

#else

// Enqueues kernel(params) on `stream` and returns without waiting; an empty grid is a success.
template <typename Params>
cudaError_t LaunchKernel(void (*kernel)(Params), const LaunchShape& shape, const Params& params,
                         cudaStream_t stream) {
  if (IsEmpty(shape)) return cudaSuccess;
  constexpr uint32_t kSharedWithoutAsking = 48 * 1024;
  if (shape.dynamic_shared_bytes > kSharedWithoutAsking) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shape.dynamic_shared_bytes));
    if (error != cudaSuccess) return error;
  }
  const dim3 grid(shape.grid_x, shape.grid_y, shape.grid_z);
  // clang-format off
  kernel<<<grid, shape.threads, shape.dynamic_shared_bytes, stream>>>(params);
  // clang-format on
  return cudaGetLastError();
}

#endif

}  // namespace semkv

#endif  // SEMKV_OPS_CUDA_LAUNCH_CUH_
