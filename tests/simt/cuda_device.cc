#include "tests/simt/cuda_device.h"

#include <cstdio>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "tests/simt/device_calls.h"
#include "tests/simt/launch.h"
#include "tests/simt/runtime_calls.h"

namespace semkv::simt {
namespace {

// From the first byte to the last.
size_t Span(size_t pitch, size_t width, size_t height) { return (height - 1) * pitch + width; }

// The rows of pageable memory, copied when the call is made.
std::shared_ptr<std::vector<char>> Staged(const CopyShape& copy) {
  auto rows = std::make_shared<std::vector<char>>(copy.width * copy.height);
  for (size_t row = 0; row < copy.height; ++row) {
    std::memcpy(rows->data() + row * copy.width,
                static_cast<const char*>(copy.from) + row * copy.from_pitch, copy.width);
  }
  return rows;
}

bool IsHost(Owner owner) { return owner == Owner::kPinned || owner == Owner::kPageable; }

}  // namespace

Device& TheDevice() {
  static Device device;
  return device;
}

Device& Call(const char* name) {
  TheDevice().Count(name);
  return TheDevice();
}

std::map<std::string, int64_t> Device::TakeCalls() { return std::exchange(calls_, {}); }

void Device::SetSeed(uint64_t seed) {
  seed_ = seed;
  streams_.set_seed(seed);
}

void Device::Fail(const std::string& message, cudaError_t error) {
  std::fprintf(stderr, "%s", message.c_str());
  last_error_ = error;
}

cudaError_t Device::Allocate(void** data, size_t bytes, Owner owner) {
  *data = nullptr;
  if (const cudaError_t error = captures_.RefuseUnsafe(); error != cudaSuccess) return error;
  if (bytes == 0) return cudaSuccess;
  *data = memory_.Allocate(bytes, owner);
  return *data == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}

cudaError_t Device::Free(void* data, Owner owner) {
  if (const cudaError_t error = captures_.RefuseUnsafe(); error != cudaSuccess) return error;
  if (data == nullptr) return cudaSuccess;
  if (!memory_.CanFree(data, owner)) return cudaErrorInvalidValue;
  // The documentation promises no such wait of cudaFreeHost.
  if (owner == Owner::kDevice) streams_.WaitForDevice();
  memory_.Free(data);
  return cudaSuccess;
}

cudaError_t Device::AllocateInOrder(void** data, size_t bytes, cudaStream_t handle) {
  *data = nullptr;
  Stream* stream = nullptr;
  cudaError_t error = Use(handle, &stream);
  if (error == cudaSuccess) error = Captures::RefuseIfCapturing(*stream);
  if (error != cudaSuccess) return error;
  if (bytes == 0) return cudaSuccess;
  void* memory = memory_.Allocate(bytes, Owner::kDevice);
  if (memory == nullptr) return cudaErrorMemoryAllocation;
  memory_.SetReachable(memory, false);
  Submit(*stream, [this, memory] { memory_.SetReachable(memory, true); });
  *data = memory;
  return last_error_;
}

cudaError_t Device::FreeInOrder(void* data, cudaStream_t handle) {
  Stream* stream = nullptr;
  cudaError_t error = Use(handle, &stream);
  if (error == cudaSuccess) error = Captures::RefuseIfCapturing(*stream);
  if (error != cudaSuccess) return error;
  if (data == nullptr) return cudaSuccess;
  if (!memory_.CanFree(data, Owner::kDevice)) return cudaErrorInvalidValue;
  memory_.NoteFreeAsked(data);
  Submit(*stream, [this, data] { memory_.Free(data); });
  return last_error_;
}

cudaError_t Device::Use(cudaStream_t handle, Stream** stream) {
  *stream = streams_.Find(handle);
  if (*stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (handle == nullptr) return captures_.RefuseNullStream();
  const bool is_invalid = (*stream)->capture != nullptr && !(*stream)->capture->is_valid;
  return is_invalid ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
}

Ticket Device::Submit(Stream& stream, std::function<void()> run) {
  if (stream.capture == nullptr) return streams_.Enqueue(stream, std::move(run));
  Captures::Record(stream, std::move(run));
  return {};
}

cudaError_t Device::Copy(const CopyShape& copy, cudaMemcpyKind kind, cudaStream_t handle,
                         bool waits) {
  Stream* stream = nullptr;
  if (const cudaError_t error = Use(handle, &stream); error != cudaSuccess) return error;
  if (copy.width == 0 || copy.height == 0) return last_error_;
  if (copy.width > copy.to_pitch || copy.width > copy.from_pitch) {
    return cudaErrorInvalidPitchValue;
  }
  const Owner to = memory_.FindEventually(copy.to, Span(copy.to_pitch, copy.width, copy.height));
  const Owner from =
      memory_.FindEventually(copy.from, Span(copy.from_pitch, copy.width, copy.height));
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (kind == cudaMemcpyDefault || !(to_device ? to == Owner::kDevice : IsHost(to)) ||
      !(from_device ? from == Owner::kDevice : IsHost(from))) {
    return cudaErrorInvalidValue;
  }
  std::function<void()> run = [this, copy, to, from] { RunCopy(copy, to, from); };
  if (stream->capture == nullptr && to_device && from == Owner::kPageable) {
    run = [this, copy, rows = Staged(copy)] {
      CopyShape staged = copy;
      staged.from = rows->data();
      staged.from_pitch = copy.width;
      RunCopy(staged, Owner::kDevice, Owner::kPageable);
    };
  }
  const Ticket ticket = Submit(*stream, std::move(run));
  const bool within_host = !to_device && !from_device;
  if (waits || to == Owner::kPageable || within_host) streams_.WaitFor(ticket);
  return last_error_;
}

void Device::RunCopy(const CopyShape& copy, Owner to_owner, Owner from_owner) {
  if (memory_.Find(copy.to, Span(copy.to_pitch, copy.width, copy.height)) != to_owner ||
      memory_.Find(copy.from, Span(copy.from_pitch, copy.width, copy.height)) != from_owner) {
    Fail("a copy to or from memory that is not allocated when it happens\n",
         cudaErrorIllegalAddress);
    return;
  }
  memory_.Open();
  for (size_t row = 0; row < copy.height; ++row) {
    std::memmove(static_cast<char*>(copy.to) + row * copy.to_pitch,
                 static_cast<const char*>(copy.from) + row * copy.from_pitch, copy.width);
  }
  memory_.Close();
}

cudaError_t Device::Fill(void* to, int value, size_t bytes, cudaStream_t handle) {
  Stream* stream = nullptr;
  if (const cudaError_t error = Use(handle, &stream); error != cudaSuccess) return error;
  if (bytes == 0) return last_error_;
  if (memory_.FindEventually(to, bytes) != Owner::kDevice) return cudaErrorInvalidValue;
  Submit(*stream, [this, to, value, bytes] { RunFill(to, value, bytes); });
  return last_error_;
}

void Device::RunFill(void* to, int value, size_t bytes) {
  if (memory_.Find(to, bytes) != Owner::kDevice) {
    Fail("a memset of memory that is not allocated when it happens\n", cudaErrorIllegalAddress);
    return;
  }
  memory_.Open();
  std::memset(to, value, bytes);
  memory_.Close();
}

cudaError_t Device::Launch(const LaunchShape& shape, cudaStream_t handle, void (*function)(void*),
                           const void* argument, size_t argument_bytes) {
  Stream* stream = nullptr;
  if (const cudaError_t error = Use(handle, &stream); error != cudaSuccess) return error;
  const char* bytes = static_cast<const char*>(argument);
  const std::vector<char> copy(bytes, bytes + argument_bytes);
  if (stream->capture != nullptr) Count("captured launch");
  Submit(*stream, [this, shape, function, copy] {
    // On the host's stack, where kernels may read what is no buffer.
    alignas(16) char kernel_argument[kMaxKernelArgumentBytes];
    std::memcpy(kernel_argument, copy.data(), copy.size());
    RunKernel(shape, function, kernel_argument);
  });
  return last_error_;
}

void Device::RunKernel(const LaunchShape& shape, void (*function)(void*), void* argument) {
  Count("launch");
  LaunchOptions options;
  options.seed = seed_++;
  options.buffers = memory_.ReachableBuffers();
  memory_.Open();
  const LaunchReport report = LaunchFunction(shape, options, function, argument);
  memory_.Close();
  if (!report.Errors().empty()) Fail(report.Errors(), cudaErrorLaunchFailure);
}

std::map<std::string, int64_t> TakeRuntimeCalls() { return TheDevice().TakeCalls(); }

void SetRuntimeSeed(uint64_t seed) { TheDevice().SetSeed(seed); }

void FailAllocation(int which) { TheDevice().memory().FailAllocation(which); }

void SetLazyStreams(bool lazy) { TheDevice().streams().set_lazy(lazy); }

int LaunchOnDevice(const LaunchShape& shape, CUstream_st* stream, void (*function)(void*),
                   const void* argument, size_t bytes) {
  return TheDevice().Launch(shape, stream, function, argument, bytes);
}

}  // namespace semkv::simt
