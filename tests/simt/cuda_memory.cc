#include "tests/simt/cuda_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>

namespace semkv::simt {
namespace {

size_t PageBytes() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

std::string Address(const void* data) {
  char text[32];
  std::snprintf(text, sizeof(text), "%p", data);
  return text;
}

}  // namespace

void* CudaMemory::Allocate(size_t bytes, Owner owner) {
  if (failing_ > 0 && --failing_ == 0) return nullptr;
  const size_t whole = (bytes + PageBytes() - 1) / PageBytes() * PageBytes();
  void* memory = mmap(nullptr, whole + PageBytes(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  mprotect(memory, whole, PROT_READ | PROT_WRITE);
  std::memset(memory, 0xff, whole);
  if (owner == Owner::kDevice) mprotect(memory, whole, PROT_NONE);
  allocations_[memory] = {bytes, whole, owner, true, false};
  return memory;
}

bool CudaMemory::CanFree(const void* data, Owner owner) const {
  const auto it = allocations_.find(data);
  return it != allocations_.end() && it->second.owner == owner && !it->second.is_free_asked;
}

void CudaMemory::Free(void* data) {
  const auto it = allocations_.find(data);
  // Keeps the addresses and gives the pages back. With the guard pages' flags, so that Linux makes
  // one mapping of all that lie side by side: it allows only so many.
  mmap(data, it->second.whole_pages, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  allocations_.erase(it);
}

void CudaMemory::SetReachable(void* data, bool reachable) {
  allocations_.at(data).is_reachable = reachable;
}

void CudaMemory::NoteFreeAsked(void* data) { allocations_.at(data).is_free_asked = true; }

CudaMemory::Allocations::const_iterator CudaMemory::FindAllocation(const void* data) const {
  auto it = allocations_.upper_bound(data);
  if (it == allocations_.begin()) return allocations_.end();
  --it;
  const char* begin = static_cast<const char*>(it->first);
  return static_cast<const char*>(data) < begin + it->second.bytes ? it : allocations_.end();
}

Owner CudaMemory::Find(const void* data, size_t bytes) const {
  const auto it = FindAllocation(data);
  if (it != allocations_.end() && !it->second.is_reachable) return Owner::kNobody;
  return FindEventually(data, bytes);
}

Owner CudaMemory::FindEventually(const void* data, size_t bytes) const {
  const auto it = FindAllocation(data);
  if (it == allocations_.end()) return Owner::kPageable;
  const char* end = static_cast<const char*>(it->first) + it->second.bytes;
  return static_cast<const char*>(data) + bytes <= end ? it->second.owner : Owner::kNobody;
}

std::vector<Buffer> CudaMemory::ReachableBuffers() const {
  std::vector<Buffer> buffers;
  for (const auto& [data, allocation] : allocations_) {
    if (!allocation.is_reachable) continue;
    const std::string name = std::string("the allocation of ") + std::to_string(allocation.bytes) +
                             " bytes at " + Address(data);
    buffers.push_back({name, data, static_cast<int64_t>(allocation.bytes), Access::kReadWrite});
  }
  return buffers;
}

void CudaMemory::Open() { Protect(PROT_READ | PROT_WRITE); }

void CudaMemory::Close() { Protect(PROT_NONE); }

void CudaMemory::Protect(int protection) {
  for (const auto& [data, allocation] : allocations_) {
    if (allocation.owner != Owner::kDevice) continue;
    mprotect(const_cast<void*>(data), allocation.whole_pages,
             allocation.is_reachable ? protection : PROT_NONE);
  }
}

}  // namespace semkv::simt
