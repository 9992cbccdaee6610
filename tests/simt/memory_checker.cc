#include "tests/simt/memory_checker.h"

#include <pthread.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "semkv/types.h"
#include "tests/simt/fiber.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

// The linker's: the program's image up to its writable data holds code and constants.
extern "C" const char __executable_start, __data_start;

namespace semkv::simt {
namespace {

constexpr int64_t kArenaAlignment = 1024;
constexpr int64_t kArenaBytes = 256 * 1024;
constexpr int64_t kRedZone = 64;  // between objects of shared memory
constexpr unsigned char kPoison = 0xff;

#ifdef __SANITIZE_ADDRESS__
void ForbidRange(std::byte* p, int64_t bytes) { __asan_poison_memory_region(p, bytes); }
void AllowRange(std::byte* p, int64_t bytes) { __asan_unpoison_memory_region(p, bytes); }
#else
void ForbidRange(std::byte*, int64_t) {}
void AllowRange(std::byte*, int64_t) {}
#endif

bool Contains(const void* data, int64_t size, const void* address, int64_t bytes) {
  const std::byte* begin = static_cast<const std::byte*>(data);
  const std::byte* p = static_cast<const std::byte*>(address);
  return p >= begin && p + bytes <= begin + size;
}

std::pair<const std::byte*, const std::byte*> HostStack() {
  pthread_attr_t attributes;
  void* lowest = nullptr;
  size_t bytes = 0;
  if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
    pthread_attr_getstack(&attributes, &lowest, &bytes);
    pthread_attr_destroy(&attributes);
  }
  const std::byte* begin = static_cast<const std::byte*>(lowest);
  return {begin, begin + bytes};
}

const char* KindName(AccessKind kind) {
  switch (kind) {
    case AccessKind::kRead:
      return "read";
    case AccessKind::kWrite:
      return "write";
    case AccessKind::kAtomic:
      return "atomic";
  }
  return "";
}

std::string Describe(const MemoryAccess& access) {
  return std::string(KindName(access.kind)) + " of " + std::to_string(access.bytes) + " bytes";
}

std::string RaceMessage(const std::string& what, int64_t offset, const MemoryAccess& access,
                        const RaceShadow::Race& race) {
  return "race: " + Describe(access) + " at byte " + std::to_string(offset) + " of " + what +
         " and a " + KindName(race.kind) + " by thread " + std::to_string(race.thread) +
         " of CTA " + std::to_string(race.cta) + " with nothing between that orders them";
}

}  // namespace

MemoryChecker::MemoryChecker(const LaunchOptions& options, uint32_t dynamic_shared_bytes)
    : arena_(static_cast<std::byte*>(std::aligned_alloc(kArenaAlignment, kArenaBytes))),
      dynamic_shared_bytes_(dynamic_shared_bytes),
      arena_used_(dynamic_shared_bytes + kRedZone),
      host_stack_(HostStack()) {
  for (const Buffer& buffer : options.buffers) buffers_.emplace_back(buffer);
  shared_ranges_.push_back({0, dynamic_shared_bytes_});
  ForbidRange(arena_, kArenaBytes);
  AllowRange(arena_, dynamic_shared_bytes_);
}

MemoryChecker::~MemoryChecker() {
  AllowRange(arena_, kArenaBytes);
  std::free(arena_);
}

void MemoryChecker::BeginCta() {
  for (const Range& range : shared_ranges_) {
    std::memset(arena_ + range.begin, kPoison, range.end - range.begin);
  }
  broadcasts_.clear();
}

std::byte* MemoryChecker::StaticShared(const void* key, size_t bytes, size_t alignment) {
  std::byte*& object = static_objects_[{key, bytes}];
  if (object != nullptr) return object;
  const int64_t size = static_cast<int64_t>(bytes);
  const int64_t begin =
      CeilDiv(arena_used_, static_cast<int64_t>(alignment)) * static_cast<int64_t>(alignment);
  static_shared_bytes_ += size;
  if (static_shared_bytes_ > kMaxStaticSharedBytes || begin + size > kArenaBytes) return nullptr;
  object = arena_ + begin;
  arena_used_ = begin + size + kRedZone;
  shared_ranges_.push_back({begin, begin + size});
  AllowRange(object, size);
  std::memset(object, kPoison, bytes);
  return object;
}

bool MemoryChecker::IsShared(const void* address, int64_t bytes) const {
  return std::any_of(shared_ranges_.begin(), shared_ranges_.end(), [&](const Range& range) {
    return Contains(arena_ + range.begin, range.end - range.begin, address, bytes);
  });
}

size_t MemoryChecker::HashBroadcastKey::operator()(const BroadcastKey& key) const {
  const uint64_t address = reinterpret_cast<uintptr_t>(key.address);
  const uint64_t instruction = reinterpret_cast<uintptr_t>(key.instruction);
  return (address ^ (instruction << 20) ^ (uint64_t{key.warp} << 48)) * 0x9e3779b97f4a7c15u >> 16;
}

// True unless no lane of the warp has made this access as often: lanes run one after another, so
// the n-th time of one lane goes together with the n-th of the others.
bool MemoryChecker::IsBroadcast(const MemoryAccess& access, const ThreadClock& now) {
  BroadcastVisits& visits =
      broadcasts_[{access.instruction, access.address, now.thread / kWarpSize}];
  if (++visits.by_lane[now.thread % kWarpSize] <= visits.most) return true;
  ++visits.most;
  return false;
}

void MemoryChecker::Count(BufferState& state, const MemoryAccess& access, const ThreadClock& now) {
  if (access.kind == AccessKind::kRead && IsBroadcast(access, now)) return;
  Traffic& traffic = state.traffic;
  ++traffic.accesses[static_cast<int>(access.bytes)];
  if (access.kind != AccessKind::kWrite) traffic.read_bytes += access.bytes;
  if (access.kind != AccessKind::kRead) traffic.written_bytes += access.bytes;
}

Verdict MemoryChecker::CheckGlobal(BufferState& state, const MemoryAccess& access,
                                   const ThreadClock& now) {
  const Buffer& buffer = state.buffer;
  const int64_t offset =
      static_cast<const std::byte*>(access.address) - static_cast<const std::byte*>(buffer.data);
  Count(state, access, now);
  if (access.kind == AccessKind::kRead) return {};
  if (buffer.access == Access::kRead) {
    return {Describe(access) + " to the read-only buffer " + buffer.name + " at byte " +
                std::to_string(offset),
            true};
  }
  const auto race = state.shadow.Note(offset, access.bytes, access.kind, now);
  if (race.has_value()) return {RaceMessage(buffer.name, offset, access, *race), false};
  return {};
}

// Constants of the program, and the parameters of the kernel, which the launching function holds.
bool MemoryChecker::IsReadable(const void* address) const {
  const char* p = static_cast<const char*>(address);
  if (p >= &__executable_start && p < &__data_start) return true;
  const std::byte* q = static_cast<const std::byte*>(address);
  return q >= host_stack_.first && q < host_stack_.second;
}

Verdict MemoryChecker::Check(const MemoryAccess& access, const ThreadClock& now,
                             const std::byte* stack, bool has_waited) {
  if (Contains(stack, kStackBytes, access.address, access.bytes)) return {};
  const bool whole = (access.bytes & (access.bytes - 1)) == 0 && access.bytes <= 16;
  const bool aligned =
      whole &&
      reinterpret_cast<uintptr_t>(access.address) % static_cast<uint64_t>(access.bytes) == 0;
  for (BufferState& state : buffers_) {
    if (!Contains(state.buffer.data, state.buffer.bytes, access.address, access.bytes)) continue;
    if (!aligned) return {Describe(access) + " of " + state.buffer.name + ", not aligned", true};
    if (!has_waited) {
      return {
          Describe(access) + " of " + state.buffer.name + " before waiting for the previous kernel",
          true};
    }
    return CheckGlobal(state, access, now);
  }
  if (Contains(arena_, kArenaBytes, access.address, access.bytes)) {
    const int64_t offset = static_cast<const std::byte*>(access.address) - arena_;
    if (!IsShared(access.address, access.bytes)) {
      return {Describe(access) + " outside every object of shared memory", true};
    }
    if (!aligned) return {Describe(access) + " of shared memory, not aligned", true};
    const auto race = shared_shadow_.Note(offset, access.bytes, access.kind, now);
    if (race.has_value()) return {RaceMessage("shared memory", offset, access, *race), false};
    return {};
  }
  if (access.kind == AccessKind::kRead && IsReadable(access.address)) return {};
  return {Describe(access) + " outside every buffer" + NearestBuffer(access.address), true};
}

std::string MemoryChecker::NearestBuffer(const void* address) const {
  std::string nearest;
  int64_t least = int64_t{1} << 20;
  for (const BufferState& state : buffers_) {
    const int64_t behind = static_cast<const std::byte*>(address) -
                           static_cast<const std::byte*>(state.buffer.data) - state.buffer.bytes;
    if (std::abs(behind) >= least) continue;
    least = std::abs(behind);
    nearest = ", " + std::to_string(behind) + " bytes behind the end of " + state.buffer.name;
  }
  return nearest;
}

std::map<std::string, Traffic> MemoryChecker::TakeTraffic() {
  std::map<std::string, Traffic> traffic;
  for (BufferState& state : buffers_) traffic[state.buffer.name] = std::move(state.traffic);
  return traffic;
}

}  // namespace semkv::simt
