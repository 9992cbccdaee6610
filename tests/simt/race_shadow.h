// Who touched each byte last, and whether two accesses had anything between them that orders them:
// a CTA barrier, or __syncwarp for lanes of one warp (vector clocks within the warp; nothing but a
// barrier orders threads of different warps).

#ifndef SEMKV_TESTS_SIMT_RACE_SHADOW_H_
#define SEMKV_TESTS_SIMT_RACE_SHADOW_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "csrc/ops/cuda/launch_shape.h"

namespace semkv::simt {

enum class AccessKind { kRead, kWrite, kAtomic };

// A CUDA thread's view of time. `epoch` counts the barriers of all CTAs so far, so that it differs
// between CTAs too; lane_clock[own lane] counts the thread's __syncwarp calls, and lane_clock[l] is
// the last such count of lane l that the thread is ordered behind.
struct ThreadClock {
  uint64_t epoch = 0;
  uint32_t cta = 0;
  uint32_t thread = 0;
  uint32_t lane_clock[kWarpSize] = {};
};

class RaceShadow {
 public:
  // Conflicts between CTAs count only where CTAs share the memory.
  enum class Scope { kCta, kGrid };

  struct Race {
    uint32_t cta, thread;  // of the earlier access
    AccessKind kind;
  };

  explicit RaceShadow(Scope scope) : scope_(scope) {}

  // Notes an access and returns an earlier one that races with it. Reads of kGrid memory are not
  // followed: one CTA may read what another wrote behind a fence and an atomic.
  std::optional<Race> Note(int64_t offset, int64_t size, AccessKind kind, const ThreadClock& now);

 private:
  struct Past {
    uint64_t epoch = 0;  // 0: none
    uint32_t cta = 0, thread = 0, clock = 0;
  };
  // Of one epoch since the last write. Those of the first reader's warp; of other warps the last:
  // it and the first race with every write there may be, whichever warp that comes from.
  struct Readers {
    std::vector<Past> first_warp;
    std::optional<Past> other_warp;
  };
  struct Byte {
    Past write;
    bool write_is_atomic = false;
    std::unique_ptr<Readers> readers;
  };

  bool Ordered(const Past& past, const ThreadClock& now) const;
  std::optional<Race> NoteRead(Byte& byte, const Past& past, const ThreadClock& now);
  std::optional<Race> NoteWrite(Byte& byte, const Past& past, AccessKind kind,
                                const ThreadClock& now);

  Scope scope_;
  std::vector<Byte> bytes_;  // up to the last one touched
};

}  // namespace semkv::simt

#endif  // SEMKV_TESTS_SIMT_RACE_SHADOW_H_
