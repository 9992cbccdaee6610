// Host copies of a case's memory on the GPU: what a reference is run on and compared with.

#ifndef SEMKV_BENCHMARKS_CUDA_CUDA_TWIN_H_
#define SEMKV_BENCHMARKS_CUDA_CUDA_TWIN_H_

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "benchmarks/cuda/cuda_case.h"
#include "semkv/types.h"

namespace semkv {

// The arena's memory, as it is when the twin is made; the copies may be written.
class CudaTwin {
 public:
  // Waits for the null stream. An error is the arena's.
  explicit CudaTwin(CudaArena& arena);

  // The copy of what is at a device address; null of null, or of an address that is not the
  // arena's.
  template <typename T>
  T* At(T* device) const {
    return static_cast<T*>(Find(device));
  }

  // The same for a number of pointers at once, which then point to the copies.
  template <typename... T>
  void Move(T*&... device) const {
    ((device = At(device)), ...);
  }

 private:
  struct Copy {
    const char* device;
    size_t bytes;
    std::unique_ptr<char[]> host;
  };

  void* Find(const void* device) const;

  std::vector<Copy> copies_;
};

// Empty where `actual` is `expected`, else what is farthest from it by how much. A number may be
// off by `absolute` + `relative` times itself; NaN is NaN, and infinities are equal to themselves.
std::string Differs(const std::string& what, DType dtype, const void* actual, const void* expected,
                    int64_t n, double absolute, double relative);

// The same for bytes that must be equal.
std::string BytesDiffer(const std::string& what, const void* actual, const void* expected,
                        size_t bytes);

// The first that is not empty.
std::string FirstOf(std::initializer_list<std::string> wrongs);

}  // namespace semkv

#endif  // SEMKV_BENCHMARKS_CUDA_CUDA_TWIN_H_
