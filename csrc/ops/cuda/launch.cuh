// The only `<<<>>>` of the project.

#ifndef SEMKV_OPS_CUDA_LAUNCH_CUH_
#define SEMKV_OPS_CUDA_LAUNCH_CUH_

#include <cuda_runtime.h>

#include <type_traits>

#include "csrc/ops/cuda/launch_shape.h"

namespace semkv {

#ifdef SEMKV_SIMT

template <typename Params>
cudaError_t LaunchKernel(void (*kernel)(Params), const LaunchShape& shape, const Params& params,
                         cudaStream_t stream) {
  if (IsEmpty(shape)) return cudaSuccess;
  const auto thread = [kernel, params] { kernel(params); };
  using Thread = decltype(thread);
  // A graph replays the parameters' bytes.
  static_assert(std::is_trivially_copyable_v<Params>);
  static_assert(sizeof(Thread) <= simt::kMaxKernelArgumentBytes);
  return static_cast<cudaError_t>(simt::LaunchOnDevice(
      shape, stream, [](void* t) { (*static_cast<Thread*>(t))(); }, &thread, sizeof(thread)));
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
