#include <cuda_runtime_api.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <utility>

#include "tests/simt/device_calls.h"
#include "tests/simt/launch.h"
#include "tests/simt/runtime_calls.h"

namespace semkv::simt {
namespace {

struct Allocation {
  size_t bytes;        // as asked for
  size_t whole_pages;  // of memory, in bytes; a guard page follows
  bool on_device;
};

// The device: its memory, and the calls it has seen. One in a process, used by one thread.
class Device {
 public:
  cudaError_t Allocate(void** data, size_t bytes, bool on_device) {
    *data = nullptr;
    if (bytes == 0) return cudaSuccess;
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t whole = (bytes + page - 1) / page * page;
    void* memory = mmap(nullptr, whole + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return cudaErrorMemoryAllocation;
    mprotect(memory, whole, PROT_READ | PROT_WRITE);
    // Fresh memory holds no zeros on a GPU either.
    std::memset(memory, 0xff, whole);
    if (on_device) mprotect(memory, whole, PROT_NONE);
    allocations_[memory] = {bytes, whole, on_device};
    *data = memory;
    return cudaSuccess;
  }

  cudaError_t Free(void* data, bool on_device) {
    if (data == nullptr) return cudaSuccess;
    const auto it = allocations_.find(data);
    if (it == allocations_.end() || it->second.on_device != on_device) return cudaErrorInvalidValue;
    munmap(data, it->second.whole_pages + static_cast<size_t>(sysconf(_SC_PAGESIZE)));
    allocations_.erase(it);
    return cudaSuccess;
  }

  // A range of device memory, or of the host's where the runtime knows nothing of it.
  bool IsPlace(const void* data, size_t bytes, bool on_device) const {
    const char* at = static_cast<const char*>(data);
    auto it = allocations_.upper_bound(const_cast<char*>(at));
    if (it != allocations_.begin()) {
      --it;
      const char* begin = static_cast<const char*>(it->first);
      if (at < begin + it->second.bytes) {
        return it->second.on_device == on_device && at + bytes <= begin + it->second.bytes;
      }
    }
    return !on_device;
  }

  bool IsHost(const void* data) const { return allocations_.count(const_cast<void*>(data)) != 0; }

  cudaError_t Launch(const LaunchShape& shape, void (*function)(void*), void* argument) {
    Count("launch");
    LaunchOptions options;
    options.seed = seed_++;
    for (const auto& [data, allocation] : allocations_) {
      const std::string name = std::string("the allocation of ") +
                               std::to_string(allocation.bytes) + " bytes at " + Address(data);
      options.buffers.push_back(
          {name, data, static_cast<int64_t>(allocation.bytes), Access::kReadWrite});
    }
    Open();
    const LaunchReport report = LaunchFunction(shape, options, function, argument);
    Close();
    if (report.Errors().empty()) return cudaSuccess;
    std::fprintf(stderr, "%s", report.Errors().c_str());
    last_error_ = cudaErrorLaunchFailure;
    return last_error_;
  }

  // While open the host may touch device memory.
  void Open() { Protect(PROT_READ | PROT_WRITE); }
  void Close() { Protect(PROT_NONE); }

  void Count(const char* call) { ++calls_[call]; }
  std::map<std::string, int64_t> TakeCalls() { return std::exchange(calls_, {}); }
  void set_seed(uint64_t seed) { seed_ = seed; }
  // A failed kernel leaves a context that answers everything with its error.
  cudaError_t last_error() const { return last_error_; }

 private:
  static std::string Address(const void* data) {
    char text[32];
    std::snprintf(text, sizeof(text), "%p", data);
    return text;
  }

  void Protect(int protection) {
    for (const auto& [data, allocation] : allocations_) {
      if (allocation.on_device) mprotect(data, allocation.whole_pages, protection);
    }
  }

  std::map<void*, Allocation> allocations_;
  std::map<std::string, int64_t> calls_;
  uint64_t seed_ = 1;
  cudaError_t last_error_ = cudaSuccess;
};

Device& TheDevice() {
  static Device device;
  return device;
}

cudaError_t Copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  Device& device = TheDevice();
  if (bytes == 0) return device.last_error();
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (kind == cudaMemcpyDefault || !device.IsPlace(to, bytes, to_device) ||
      !device.IsPlace(from, bytes, from_device)) {
    return cudaErrorInvalidValue;
  }
  device.Open();
  std::memmove(to, from, bytes);
  device.Close();
  return device.last_error();
}

cudaError_t Fill(void* to, int value, size_t bytes) {
  Device& device = TheDevice();
  if (bytes == 0) return device.last_error();
  if (!device.IsPlace(to, bytes, true)) return cudaErrorInvalidValue;
  device.Open();
  std::memset(to, value, bytes);
  device.Close();
  return device.last_error();
}

}  // namespace

std::map<std::string, int64_t> TakeRuntimeCalls() { return TheDevice().TakeCalls(); }

void SetRuntimeSeed(uint64_t seed) { TheDevice().set_seed(seed); }

int LaunchOnDevice(const LaunchShape& shape, void (*function)(void*), void* argument) {
  return TheDevice().Launch(shape, function, argument);
}

}  // namespace semkv::simt

using semkv::simt::Copy;
using semkv::simt::Fill;
using semkv::simt::TheDevice;

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
  }
  return "unrecognized error code";
}

cudaError_t cudaGetLastError() { return TheDevice().last_error(); }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  TheDevice().Count(__func__);
  return TheDevice().last_error();
}

cudaError_t cudaMalloc(void** data, size_t bytes) {
  TheDevice().Count(__func__);
  return TheDevice().Allocate(data, bytes, true);
}

cudaError_t cudaFree(void* data) {
  TheDevice().Count(__func__);
  return TheDevice().Free(data, true);
}

cudaError_t cudaHostAlloc(void** data, size_t bytes, unsigned int) {
  TheDevice().Count(__func__);
  return TheDevice().Allocate(data, bytes, false);
}

cudaError_t cudaFreeHost(void* data) {
  TheDevice().Count(__func__);
  return TheDevice().Free(data, false);
}

cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned int) {
  TheDevice().Count(__func__);
  if (!TheDevice().IsHost(host)) return cudaErrorInvalidValue;
  *device = host;
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  TheDevice().Count(__func__);
  return Copy(to, from, bytes, kind);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t) {
  TheDevice().Count(__func__);
  return Copy(to, from, bytes, kind);
}

cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  TheDevice().Count(__func__);
  return Fill(to, value, bytes);
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  TheDevice().Count(__func__);
  return Fill(to, value, bytes);
}

cudaError_t cudaStreamSynchronize(cudaStream_t) {
  TheDevice().Count(__func__);
  return TheDevice().last_error();
}
