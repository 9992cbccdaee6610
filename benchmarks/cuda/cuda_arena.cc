#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "benchmarks/cuda/cuda_case.h"

namespace semkv {
namespace {

// 8 MiB of them, bfloat16.
const std::vector<uint16_t>& NormalNumbers() {
  static const std::vector<uint16_t> numbers = [] {
    std::mt19937 rng(1);
    std::normal_distribution<float> normal;
    std::vector<uint16_t> made(4 << 20);
    for (uint16_t& number : made) {
      const float x = normal(rng);
      uint32_t bits;
      std::memcpy(&bits, &x, sizeof(bits));
      number = static_cast<uint16_t>(bits >> 16);
    }
    return made;
  }();
  return numbers;
}

}  // namespace

CudaArena::~CudaArena() {
  for (void* data : device_) cudaFree(data);
  for (void* data : host_) cudaFreeHost(data);
}

bool CudaArena::Note(cudaError_t error) {
  if (error_ == cudaSuccess) error_ = error;
  return error_ == cudaSuccess;
}

void* CudaArena::Bytes(size_t bytes) {
  void* data = nullptr;
  if (error_ != cudaSuccess || !Note(cudaMalloc(&data, std::max<size_t>(bytes, 1)))) return nullptr;
  device_.push_back(data);
  return data;
}

void* CudaArena::Zeros(size_t bytes) {
  void* data = Bytes(bytes);
  if (data != nullptr) Note(cudaMemset(data, 0, bytes));
  return data;
}

void* CudaArena::CopyBytes(const void* host, size_t bytes) {
  void* data = Bytes(bytes);
  if (data != nullptr) Note(cudaMemcpy(data, host, bytes, cudaMemcpyHostToDevice));
  return data;
}

void* CudaArena::Normal(size_t bytes) {
  const std::vector<uint16_t>& numbers = NormalNumbers();
  char* data = static_cast<char*>(Bytes(bytes));
  if (data == nullptr) return nullptr;
  const size_t piece = std::min(bytes, numbers.size() * sizeof(uint16_t));
  if (!Note(cudaMemcpy(data, numbers.data(), piece, cudaMemcpyHostToDevice))) return nullptr;
  for (size_t done = piece; done < bytes;) {
    const size_t more = std::min(done, bytes - done);
    if (!Note(cudaMemcpy(data + done, data, more, cudaMemcpyDeviceToDevice))) return nullptr;
    done += more;
  }
  return data;
}

void* CudaArena::Mapped(size_t bytes) {
  void *host = nullptr, *device = nullptr;
  if (error_ != cudaSuccess || !Note(cudaHostAlloc(&host, bytes, cudaHostAllocMapped))) {
    return nullptr;
  }
  host_.push_back(host);
  std::memset(host, 1, bytes);
  Note(cudaHostGetDevicePointer(&device, host, 0));
  return device;
}

}  // namespace semkv
