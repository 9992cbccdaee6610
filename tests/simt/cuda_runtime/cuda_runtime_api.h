// What semkv uses of the CUDA runtime's header, for programs whose GPU is the SIMT harness: they
// have this folder before CUDA's in their include path (semkv_add_emulated_test) and link
// ../cuda_runtime.cc. Names and numbers are CUDA's; what is not here does not compile.
//
// Launches and copies have happened when the call returns. Device memory can be touched by kernels
// and copies alone: the host faults at once. A launch whose kernel did wrong returns
// cudaErrorLaunchFailure, prints what the harness found, and stays the last error.

#ifndef SEMKV_TESTS_SIMT_CUDA_RUNTIME_CUDA_RUNTIME_API_H_
#define SEMKV_TESTS_SIMT_CUDA_RUNTIME_CUDA_RUNTIME_API_H_

#include <cstddef>

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorNoDevice = 100,
  cudaErrorLaunchFailure = 719,
};

enum cudaMemcpyKind {
  cudaMemcpyHostToHost = 0,
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost = 2,
  cudaMemcpyDeviceToDevice = 3,
  cudaMemcpyDefault = 4,
};

using cudaStream_t = struct CUstream_st*;

constexpr unsigned int cudaHostAllocMapped = 2;

const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaMalloc(void** data, size_t bytes);
cudaError_t cudaFree(void* data);
cudaError_t cudaHostAlloc(void** data, size_t bytes, unsigned int flags);
cudaError_t cudaFreeHost(void* data);
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned int flags);
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemset(void* to, int value, size_t bytes);
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);

#endif  // SEMKV_TESTS_SIMT_CUDA_RUNTIME_CUDA_RUNTIME_API_H_
