// Memory of the GPU for tests.

#ifndef SEMKV_TESTS_CUDA_DEVICE_COPY_H_
#define SEMKV_TESTS_CUDA_DEVICE_COPY_H_

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace semkv::testing {

inline bool HasDevice() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

// A copy of host memory on the device, complete when it is made: cudaMemcpy may return before
// pageable memory has arrived, and non-blocking streams do not wait for it.
class DeviceCopy {
 public:
  DeviceCopy(const void* host, size_t bytes) : bytes_(bytes) {
    EXPECT_EQ(cudaMalloc(&data_, bytes), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(data_, host, bytes, cudaMemcpyHostToDevice), cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);
  }
  template <typename T>
  explicit DeviceCopy(const std::vector<T>& host)
      : DeviceCopy(host.data(), host.size() * sizeof(T)) {}
  DeviceCopy(const DeviceCopy&) = delete;
  DeviceCopy& operator=(const DeviceCopy&) = delete;
  ~DeviceCopy() { cudaFree(data_); }

  void* data() { return data_; }
  template <typename T = uint8_t>
  std::vector<T> Read() const {
    std::vector<T> host(bytes_ / sizeof(T));
    EXPECT_EQ(cudaMemcpy(host.data(), data_, bytes_, cudaMemcpyDeviceToHost), cudaSuccess);
    return host;
  }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

// A copy of host memory that is page-locked and mapped.
class MappedCopy {
 public:
  explicit MappedCopy(const std::vector<uint8_t>& bytes) : bytes_(bytes.size()) {
    EXPECT_EQ(cudaHostAlloc(&host_, bytes_, cudaHostAllocMapped), cudaSuccess);
    EXPECT_EQ(cudaHostGetDevicePointer(&device_, host_, 0), cudaSuccess);
    std::memcpy(host_, bytes.data(), bytes_);
  }
  MappedCopy(const MappedCopy&) = delete;
  MappedCopy& operator=(const MappedCopy&) = delete;
  ~MappedCopy() { cudaFreeHost(host_); }

  void* device() { return device_; }
  std::vector<uint8_t> Read() const {
    const uint8_t* bytes = static_cast<const uint8_t*>(host_);
    return {bytes, bytes + bytes_};
  }

 private:
  void* host_ = nullptr;
  void* device_ = nullptr;
  size_t bytes_;
};

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_CUDA_DEVICE_COPY_H_
