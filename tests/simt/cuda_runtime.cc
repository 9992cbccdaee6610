// The functions of the emulated CUDA runtime: errors, the device, memory. Streams, events and
// graphs are in cuda_stream_calls.cc.

#include <cuda_runtime_api.h>

#include "tests/simt/cuda_device.h"

using semkv::simt::Call;
using semkv::simt::Device;
using semkv::simt::Owner;
using semkv::simt::TheDevice;

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidPitchValue:
      return "invalid pitch argument";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle:
      return "invalid resource handle";
    case cudaErrorIllegalState:
      return "the operation cannot be performed in the present state";
    case cudaErrorNotReady:
      return "device not ready";
    case cudaErrorIllegalAddress:
      return "an illegal memory access was encountered";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureMerge:
      return "operation would result in a merge of separate capture sequences";
    case cudaErrorStreamCaptureUnmatched:
      return "capture was not ended in the same stream as it began";
    case cudaErrorStreamCaptureUnjoined:
      return "capturing stream has unjoined work";
    case cudaErrorStreamCaptureIsolation:
      return "dependency created on uncaptured work in another stream";
    case cudaErrorStreamCaptureImplicit:
      return "operation would make the legacy stream depend on a capturing blocking stream";
    case cudaErrorCapturedEvent:
      return "operation not permitted on an event last recorded in a capturing stream";
  }
  return "unrecognized error code";
}

cudaError_t cudaGetLastError() { return TheDevice().last_error(); }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int number) {
  Call(__func__);
  return number == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}

cudaError_t cudaGetDevice(int* number) {
  Call(__func__);
  *number = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int number) {
  Call(__func__);
  if (number != 0) return cudaErrorInvalidDevice;
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = 4;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = 227 * 1024;
      return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

cudaError_t cudaDeviceSynchronize() {
  Device& device = Call(__func__);
  if (const cudaError_t error = device.captures().RefuseAny(); error != cudaSuccess) return error;
  device.streams().WaitForDevice();
  return device.last_error();
}

cudaError_t cudaMalloc(void** data, size_t bytes) {
  return Call(__func__).Allocate(data, bytes, Owner::kDevice);
}

cudaError_t cudaFree(void* data) { return Call(__func__).Free(data, Owner::kDevice); }

cudaError_t cudaMallocAsync(void** data, size_t bytes, cudaStream_t stream) {
  return Call(__func__).AllocateInOrder(data, bytes, stream);
}

cudaError_t cudaFreeAsync(void* data, cudaStream_t stream) {
  return Call(__func__).FreeInOrder(data, stream);
}

cudaError_t cudaHostAlloc(void** data, size_t bytes, unsigned int) {
  return Call(__func__).Allocate(data, bytes, Owner::kPinned);
}

cudaError_t cudaFreeHost(void* data) { return Call(__func__).Free(data, Owner::kPinned); }

cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned int) {
  if (!Call(__func__).memory().CanFree(host, Owner::kPinned)) return cudaErrorInvalidValue;
  *device = host;
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  Device& device = Call(__func__);
  const cudaError_t error = device.captures().RefuseUnsafe();
  if (error != cudaSuccess) return error;
  // CUDA waits for no copy within the device.
  const bool waits = kind != cudaMemcpyDeviceToDevice;
  return device.Copy({to, bytes, from, bytes, bytes, 1}, kind, nullptr, waits);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return Call(__func__).Copy({to, bytes, from, bytes, bytes, 1}, kind, stream, false);
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream) {
  return Call(__func__).Copy({to, to_pitch, from, from_pitch, width, height}, kind, stream, false);
}

cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  Device& device = Call(__func__);
  const cudaError_t error = device.captures().RefuseUnsafe();
  return error != cudaSuccess ? error : device.Fill(to, value, bytes, nullptr);
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return Call(__func__).Fill(to, value, bytes, stream);
}
