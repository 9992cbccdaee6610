// Measurements on the GPU: what a launch does and the least bytes that it must move. A case is
// launched over many layers, each in memory of its own, so that no cache holds what it reads.

#ifndef SEMKV_BENCHMARKS_CUDA_CUDA_CASE_H_
#define SEMKV_BENCHMARKS_CUDA_CUDA_CASE_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "semkv/types.h"

namespace semkv {

// Memory of one case; freed with it. The first error sticks, later calls do nothing.
class CudaArena {
 public:
  struct Block {
    void* device;
    size_t bytes;
    void* mapped;  // where it is in the host's memory; null for memory of the device
  };

  CudaArena() = default;
  ~CudaArena();
  CudaArena(const CudaArena&) = delete;
  CudaArena& operator=(const CudaArena&) = delete;

  cudaError_t error() const { return error_; }
  const std::vector<Block>& blocks() const { return blocks_; }

  // Device memory: not initialised, zeros, a copy, or numbers of a normal distribution, bfloat16 or
  // e4m3.
  void* Bytes(size_t bytes);
  void* Zeros(size_t bytes);
  void* CopyBytes(const void* host, size_t bytes);
  void* Normal(size_t bytes, DType dtype = DType::kBFloat16);
  // Page-locked host memory, by the device's address, with the same numbers.
  void* Mapped(size_t bytes);

  // All of a block, after what was enqueued to the null stream.
  void Read(const Block& block, void* host);

  template <typename T>
  T* Array(size_t n) {
    return static_cast<T*>(Bytes(n * sizeof(T)));
  }
  template <typename T>
  T* Copy(const std::vector<T>& host) {
    return static_cast<T*>(CopyBytes(host.data(), host.size() * sizeof(T)));
  }

 private:
  bool Note(cudaError_t error);

  cudaError_t error_ = cudaSuccess;
  std::vector<Block> blocks_;
};

class CudaTwin;

// What is timed, and checked.
struct CudaLaunch {
  CudaLaunch() = default;
  template <typename F, typename = std::enable_if_t<std::is_invocable_v<F, int32_t, cudaStream_t>>>
  CudaLaunch(F f) : enqueue(std::move(f)) {}  // from a lambda

  std::function<cudaError_t(int32_t layer, cudaStream_t stream)> enqueue;  // of one layer
  // Before the launches of all layers, not timed; may be null.
  std::function<cudaError_t(cudaStream_t stream)> before_replay;
  // Runs the reference of layer 0 on memory as it was before and compares what came out; says what
  // differs, or nothing.
  std::function<std::string(const CudaTwin& before, const CudaTwin& after)> check;
};

enum class CudaYardstick { kMemory, kBus };

struct CudaCase {
  std::string name;
  int64_t floor_bytes = 0;  // of one launch, through the GPU's memory or over the bus
  CudaYardstick yardstick = CudaYardstick::kMemory;
  int64_t layer_bytes = 0;  // of memory that a layer takes; 0: as floor_bytes
  // Makes the memory of `num_layers` layers.
  std::function<CudaLaunch(CudaArena& arena, int32_t num_layers)> prepare;
};

// All of them. Sizes are divided by `shrink`: kCheckShrink where results are checked, by references
// in plain loops and also where kernels are emulated.
constexpr int32_t kCheckShrink = 64;
std::vector<CudaCase> AllCudaCases(int32_t shrink);

void AddAttentionCases(int32_t shrink, std::vector<CudaCase>& cases);
void AddRetrievalCases(int32_t shrink, std::vector<CudaCase>& cases);
void AddMovementCases(int32_t shrink, std::vector<CudaCase>& cases);
void AddListsCases(int32_t shrink, std::vector<CudaCase>& cases);
void AddStepCases(int32_t shrink, std::vector<CudaCase>& cases);

}  // namespace semkv

#endif  // SEMKV_BENCHMARKS_CUDA_CUDA_CASE_H_
