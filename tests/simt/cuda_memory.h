// Memory of the emulated CUDA runtime: which address is whose, and who may touch it when.

#ifndef SEMKV_TESTS_SIMT_CUDA_MEMORY_H_
#define SEMKV_TESTS_SIMT_CUDA_MEMORY_H_

#include <cstddef>
#include <map>
#include <vector>

#include "tests/simt/launch.h"

namespace semkv::simt {

// Whose a range of memory is. Memory that the runtime knows nothing of is the host's own.
enum class Owner { kNobody, kDevice, kPinned, kPageable };

class CudaMemory {
 public:
  // Filled with 0xff bytes: fresh memory holds no zeros on a GPU either. Null when there is none,
  // or FailAllocation asked for that.
  void* Allocate(size_t bytes, Owner owner);
  void FailAllocation(int which) { failing_ = which; }
  // Whether cudaFree (kDevice) or cudaFreeHost (kPinned) may be called with `data`.
  bool CanFree(const void* data, Owner owner) const;
  // Nothing else ever gets the address, so that whoever still uses it is found out.
  void Free(void* data);

  // Memory that is allocated and freed in the order of a stream: its address is known before device
  // work may touch it, and cannot be freed again once its end has been asked for.
  void SetReachable(void* data, bool reachable);
  void NoteFreeAsked(void* data);

  // kNobody: a range that leaves its allocation, or device memory that is not reachable now.
  Owner Find(const void* data, size_t bytes) const;
  // As Find, but counting what will be reachable once the streams have come there.
  Owner FindEventually(const void* data, size_t bytes) const;

  // What a kernel may touch now.
  std::vector<Buffer> ReachableBuffers() const;

  // While open, the process may touch device memory as the device does.
  void Open();
  void Close();

 private:
  struct Allocation {
    size_t bytes;        // as asked for
    size_t whole_pages;  // of memory, in bytes; a guard page follows
    Owner owner;
    bool is_reachable;
    bool is_free_asked;
  };
  using Allocations = std::map<const void*, Allocation>;

  Allocations::const_iterator FindAllocation(const void* data) const;
  void Protect(int protection);

  Allocations allocations_;
  int failing_ = 0;
};

}  // namespace semkv::simt

#endif  // SEMKV_TESTS_SIMT_CUDA_MEMORY_H_
