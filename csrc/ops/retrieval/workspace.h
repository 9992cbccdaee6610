// Pieces of a caller's workspace, one share per thread.

#ifndef SEMKV_OPS_RETRIEVAL_WORKSPACE_H_
#define SEMKV_OPS_RETRIEVAL_WORKSPACE_H_

#include <cassert>
#include <cstddef>
#include <cstdint>

namespace semkv {

// A cache line, and the widest vector.
constexpr size_t kWorkspaceAlignment = 64;

// Hands out aligned pieces of one thread's share, front to back. Of a Workspace without memory only
// used_bytes() may be asked: the same layout code measures and carves.
class Workspace {
 public:
  Workspace() = default;
  // The share of `thread` in `bytes` at `data`, divided among `num_threads`.
  Workspace(void* data, size_t bytes, int num_threads, int thread) {
    const uintptr_t begin = RoundUp(reinterpret_cast<uintptr_t>(data));
    const uintptr_t end = reinterpret_cast<uintptr_t>(data) + bytes;
    share_bytes_ = end < begin ? 0 : (end - begin) / num_threads & ~(kWorkspaceAlignment - 1);
    begin_ = begin + static_cast<uintptr_t>(thread) * share_bytes_;
  }

  // REQUIRES: the share holds what ...WorkspaceBytes of the operation asked for.
  template <typename T>
  T* Take(int64_t count) {
    T* const piece = reinterpret_cast<T*>(begin_ + used_bytes_);
    used_bytes_ += RoundUp(count * sizeof(T));
    assert(begin_ == 0 || used_bytes_ <= share_bytes_);
    return piece;
  }

  size_t used_bytes() const { return used_bytes_; }

  // What to ask of the caller so that every thread's share holds `used_bytes`.
  static size_t TotalBytes(size_t used_bytes, int num_threads) {
    return kWorkspaceAlignment + used_bytes * num_threads;
  }

 private:
  static constexpr uintptr_t RoundUp(uintptr_t x) {
    return (x + kWorkspaceAlignment - 1) & ~uintptr_t{kWorkspaceAlignment - 1};
  }

  uintptr_t begin_ = 0;
  size_t share_bytes_ = 0;
  size_t used_bytes_ = 0;
};

}  // namespace semkv

#endif  // SEMKV_OPS_RETRIEVAL_WORKSPACE_H_
