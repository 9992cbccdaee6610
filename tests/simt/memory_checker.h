// The memory that a launch may touch: its global buffers, its CTA's shared memory and its threads'
// stacks. Judges every access that the hooks report and counts what goes to global memory.

#ifndef SEMKV_TESTS_SIMT_MEMORY_CHECKER_H_
#define SEMKV_TESTS_SIMT_MEMORY_CHECKER_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tests/simt/launch.h"
#include "tests/simt/race_shadow.h"

namespace semkv::simt {

// Shared memory that a CTA of sm_90 may have.
constexpr int64_t kMaxStaticSharedBytes = 48 * 1024;
constexpr int64_t kMaxSharedBytes = 227 * 1024;

struct MemoryAccess {
  const void* address;
  int64_t bytes;
  AccessKind kind;
  const void* instruction;  // where in the kernel's code
};

// Of an access: "" when all is well. A fatal one must not happen: it would leave the memory that
// the kernel may touch.
struct Verdict {
  std::string message;
  bool fatal = false;
};

class MemoryChecker {
 public:
  MemoryChecker(const LaunchOptions& options, uint32_t dynamic_shared_bytes);
  ~MemoryChecker();

  // Poisons shared memory for the next CTA.
  void BeginCta();

  std::byte* dynamic_shared() { return arena_; }
  // Null when shared memory is used up.
  std::byte* StaticShared(const void* key, size_t bytes, size_t alignment);
  int64_t static_shared_bytes() const { return static_shared_bytes_; }
  bool IsShared(const void* address, int64_t bytes) const;

  // has_waited: the thread may touch global memory (csrc/ops/cuda/dependent_launch.cuh).
  Verdict Check(const MemoryAccess& access, const ThreadClock& now, const std::byte* stack,
                bool has_waited);
  std::map<std::string, Traffic> TakeTraffic();

 private:
  struct BufferState {
    explicit BufferState(const Buffer& buffer) : buffer(buffer) {}

    Buffer buffer;
    Traffic traffic;
    RaceShadow shadow{RaceShadow::Scope::kGrid};
  };
  struct Range {
    int64_t begin, end;  // offsets into arena_
  };
  struct BroadcastKey {
    const void* instruction;
    const void* address;
    uint32_t warp;
    bool operator==(const BroadcastKey&) const = default;
  };
  // How often each lane has made an access, and the most often of any.
  struct BroadcastVisits {
    uint32_t most = 0;
    uint32_t by_lane[kWarpSize] = {};
  };
  struct HashBroadcastKey {
    size_t operator()(const BroadcastKey& key) const;
  };

  Verdict CheckGlobal(BufferState& state, const MemoryAccess& access, const ThreadClock& now);
  void Count(BufferState& state, const MemoryAccess& access, const ThreadClock& now);
  bool IsBroadcast(const MemoryAccess& access, const ThreadClock& now);
  bool IsReadable(const void* address) const;
  std::string NearestBuffer(const void* address) const;

  std::vector<BufferState> buffers_;
  std::byte* arena_;  // of shared memory; dynamic first
  int64_t dynamic_shared_bytes_;
  int64_t arena_used_;
  int64_t static_shared_bytes_ = 0;
  std::vector<Range> shared_ranges_;
  std::map<std::pair<const void*, size_t>, std::byte*> static_objects_;
  RaceShadow shared_shadow_{RaceShadow::Scope::kCta};
  std::unordered_map<BroadcastKey, BroadcastVisits, HashBroadcastKey> broadcasts_;  // of the CTA
  std::pair<const std::byte*, const std::byte*> host_stack_;
};

}  // namespace semkv::simt

#endif  // SEMKV_TESTS_SIMT_MEMORY_CHECKER_H_
