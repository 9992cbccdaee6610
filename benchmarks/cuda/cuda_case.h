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

namespace semkv {

// Memory of one case; freed with it. The first error sticks, later calls do nothing.
class CudaArena {
 public:
  CudaArena() = default;
  ~CudaArena();
  CudaArena(const CudaArena&) = delete;
  CudaArena& operator=(const CudaArena&) = delete;

  cudaError_t error() const { return error_; }

  // Device memory: not initialised, zeros, a copy, or bfloat16 numbers of a normal distribution.
  void* Bytes(size_t bytes);
  void* Zeros(size_t bytes);
  void* CopyBytes(const void* host, size_t bytes);
  void* Normal(size_t bytes);
  // Page-locked host memory, by the device's address.
  void* Mapped(size_t bytes);

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
  std::vector<void*> device_, host_;
};

// What is timed.
struct CudaLaunch {
  CudaLaunch() = default;
  template <typename F, typename = std::enable_if_t<std::is_invocable_v<F, int32_t, cudaStream_t>>>
  CudaLaunch(F f) : enqueue(std::move(f)) {}  // from a lambda

  std::function<cudaError_t(int32_t layer, cudaStream_t stream)> enqueue;  // of one layer
  // Before the launches of all layers, not timed; may be null.
  std::function<cudaError_t(cudaStream_t stream)> before_replay;
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

// Sizes are divided by `shrink`, so that the cases can be tried where kernels are emulated.
void AddAttentionCases(int32_t shrink, std::vector<CudaCase>& cases);
void AddRetrievalCases(int32_t shrink, std::vector<CudaCase>& cases);
void AddMovementCases(int32_t shrink, std::vector<CudaCase>& cases);
void AddStepCases(int32_t shrink, std::vector<CudaCase>& cases);

}  // namespace semkv

#endif  // SEMKV_BENCHMARKS_CUDA_CUDA_CASE_H_
