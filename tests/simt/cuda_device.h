// The GPU of the emulated CUDA runtime: its memory, its streams, what it has been asked and what
// went wrong. One in a process, used by one thread.

#ifndef SEMKV_TESTS_SIMT_CUDA_DEVICE_H_
#define SEMKV_TESTS_SIMT_CUDA_DEVICE_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "csrc/ops/cuda/launch_shape.h"
#include "tests/simt/cuda_capture.h"
#include "tests/simt/cuda_memory.h"
#include "tests/simt/cuda_streams.h"

namespace semkv::simt {

// `height` rows of `width` bytes, `pitch` bytes apart.
struct CopyShape {
  void* to;
  size_t to_pitch;
  const void* from;
  size_t from_pitch;
  size_t width, height;
};

class Device {
 public:
  cudaError_t Allocate(void** data, size_t bytes, Owner owner);
  cudaError_t Free(void* data, Owner owner);
  cudaError_t AllocateInOrder(void** data, size_t bytes, cudaStream_t stream);
  cudaError_t FreeInOrder(void* data, cudaStream_t stream);

  // Enqueued on the stream, or recorded. `waits`: the call returns when it has happened.
  cudaError_t Copy(const CopyShape& copy, cudaMemcpyKind kind, cudaStream_t stream, bool waits);
  cudaError_t Fill(void* to, int value, size_t bytes, cudaStream_t stream);
  cudaError_t Launch(const LaunchShape& shape, cudaStream_t stream, void (*function)(void*),
                     const void* argument, size_t argument_bytes);

  // The stream of a call that enqueues on it. Not while a capture forbids that.
  cudaError_t Use(cudaStream_t handle, Stream** stream);
  Ticket Submit(Stream& stream, std::function<void()> run);

  CudaMemory& memory() { return memory_; }
  Streams& streams() { return streams_; }
  Captures& captures() { return captures_; }

  void Count(const char* call) { ++calls_[call]; }
  std::map<std::string, int64_t> TakeCalls();
  void SetSeed(uint64_t seed);
  // A failed kernel leaves a context that answers everything with its error.
  cudaError_t last_error() const { return last_error_; }

 private:
  // `to_owner`, `from_owner`: what the call found, and the copy must still find when it happens.
  void RunCopy(const CopyShape& copy, Owner to_owner, Owner from_owner);
  void RunFill(void* to, int value, size_t bytes);
  void RunKernel(const LaunchShape& shape, void (*function)(void*), void* argument);
  void Fail(const std::string& message, cudaError_t error);

  CudaMemory memory_;
  Streams streams_;
  Captures captures_;
  std::map<std::string, int64_t> calls_;
  uint64_t seed_ = 1;
  cudaError_t last_error_ = cudaSuccess;
};

Device& TheDevice();

// The device, which has then seen a call of this name.
Device& Call(const char* name);

}  // namespace semkv::simt

#endif  // SEMKV_TESTS_SIMT_CUDA_DEVICE_H_
