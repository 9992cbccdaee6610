#include <algorithm>
#include <cstring>
#include <random>

#include "benchmarks/cuda/cuda_case.h"
#include "csrc/ops/numeric/float_convert.h"

namespace semkv {
namespace {

constexpr size_t kNormalNumbers = size_t{4} << 20;

// Of a dtype: bfloat16 or e4m3.
std::vector<char> MakeNormalNumbers(DType dtype) {
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  std::vector<char> made(kNormalNumbers * DTypeBytes(dtype));
  for (size_t i = 0; i < kNormalNumbers; ++i) {
    StoreFromFloat(made.data(), dtype, static_cast<int64_t>(i), normal(rng));
  }
  return made;
}

const std::vector<char>& NormalNumbers(DType dtype) {
  static const std::vector<char> bfloat16 = MakeNormalNumbers(DType::kBFloat16);
  static const std::vector<char> e4m3 = MakeNormalNumbers(DType::kFloat8E4M3);
  return dtype == DType::kFloat8E4M3 ? e4m3 : bfloat16;
}

}  // namespace

CudaArena::~CudaArena() {
  for (const Block& block : blocks_) {
    block.mapped != nullptr ? cudaFreeHost(block.mapped) : cudaFree(block.device);
  }
}

bool CudaArena::Note(cudaError_t error) {
  if (error_ == cudaSuccess) error_ = error;
  return error_ == cudaSuccess;
}

void* CudaArena::Bytes(size_t bytes) {
  void* data = nullptr;
  if (error_ != cudaSuccess || !Note(cudaMalloc(&data, std::max<size_t>(bytes, 1)))) return nullptr;
  blocks_.push_back({data, bytes, nullptr});
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

void* CudaArena::Normal(size_t bytes, DType dtype) {
  const std::vector<char>& numbers = NormalNumbers(dtype);
  // Every block begins with others, or queries would be keys.
  const size_t first = blocks_.size() * 100003 % (kNormalNumbers / 2) * DTypeBytes(dtype);
  char* data = static_cast<char*>(Bytes(bytes));
  if (data == nullptr) return nullptr;
  const size_t piece = std::min(bytes, numbers.size() - first);
  if (!Note(cudaMemcpy(data, numbers.data() + first, piece, cudaMemcpyHostToDevice))) {
    return nullptr;
  }
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
  const std::vector<char>& numbers = NormalNumbers(DType::kBFloat16);
  for (size_t at = 0; at < bytes; at += numbers.size()) {
    std::memcpy(static_cast<char*>(host) + at, numbers.data(),
                std::min(numbers.size(), bytes - at));
  }
  Note(cudaHostGetDevicePointer(&device, host, 0));
  blocks_.push_back({device, bytes, host});
  return device;
}

void CudaArena::Read(const Block& block, void* host) {
  if (error_ != cudaSuccess) return;
  if (block.mapped == nullptr) {
    Note(cudaMemcpy(host, block.device, block.bytes, cudaMemcpyDeviceToHost));
  } else if (Note(cudaStreamSynchronize(nullptr))) {
    std::memcpy(host, block.mapped, block.bytes);
  }
}

}  // namespace semkv
