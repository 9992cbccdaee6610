// The only kernel launch of the project.

#ifndef SEMKV_OPS_CUDA_LAUNCH_CUH_
#define SEMKV_OPS_CUDA_LAUNCH_CUH_

#include <cuda_runtime.h>

#include <cstdlib>
#include <cstring>
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

// Whether this build's code for the current device waits in WaitForPreviousKernel: sm_90a's does,
// and runs on compute capability 9.0 alone; what runs elsewhere was made for sm_80.
inline bool HasDependentLaunch() {
  constexpr int kArchitectures[] = {__CUDA_ARCH_LIST__};
  bool is_built = false;
  for (const int architecture : kArchitectures) is_built |= architecture == 900;
  int device = 0, major = 0, minor = 0;
  return is_built && cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess &&
         major == 9 && minor == 0;
}

// SEMKV_CUDA_OVERLAP=0 makes every launch an ordinary one, to compare with.
inline bool WantsDependentLaunch() {
  static const bool wants = [] {
    const char* value = std::getenv("SEMKV_CUDA_OVERLAP");
    return value == nullptr || std::strcmp(value, "0") != 0;
  }();
  return wants;
}

// Allows the kernel all the dynamic shared memory that the current device has for it: the same
// bytes whatever the launch, so that threads which launch with more and with less do not disturb
// each other.
template <typename Params>
cudaError_t AllowShared(void (*kernel)(Params)) {
  cudaFuncAttributes attributes;
  int device = 0, of_cta = 0;
  cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  if (error == cudaSuccess) error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&of_cta, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  constexpr int kAlignment = 128;  // of dynamic memory, behind the static
  const int of_static = static_cast<int>(attributes.sharedSizeBytes + kAlignment - 1);
  const int allowed = of_cta - of_static / kAlignment * kAlignment;
  if (error != cudaSuccess || attributes.maxDynamicSharedSizeBytes >= allowed) return error;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, allowed);
}

// Enqueues kernel(params) on `stream` and returns without waiting; an empty grid is a success.
template <typename Params>
cudaError_t LaunchKernel(void (*kernel)(Params), const LaunchShape& shape, const Params& params,
                         cudaStream_t stream) {
  if (IsEmpty(shape)) return cudaSuccess;
  cudaError_t error = cudaSuccess;
  if (shape.dynamic_shared_bytes > kDynamicWithoutAsking) error = AllowShared(kernel);
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(shape.grid_x, shape.grid_y, shape.grid_z);
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.dynamic_shared_bytes;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs =
      shape.overlaps_previous && WantsDependentLaunch() && HasDependentLaunch() ? 1 : 0;
  if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, kernel, params);
  if (error != cudaSuccess) (void)cudaGetLastError();  // reported here, and not once more elsewhere
  return error;
}

#endif

}  // namespace semkv

#endif  // SEMKV_OPS_CUDA_LAUNCH_CUH_
