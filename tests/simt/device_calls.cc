#include "tests/simt/device_calls.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "tests/simt/execution.h"

namespace semkv::simt {
namespace {

constexpr unsigned char kPoison = 0xff;

// The address of the call stands for the instruction: harness code has none of the kernel's.
void NoteAccess(const void* address, size_t bytes, AccessKind kind) {
  if (!kMemoryHooks) return;
  Running()->CheckAccess({address, static_cast<int64_t>(bytes), kind, nullptr});
}

// The operand of the completed call that lane `lane` gave.
template <typename T>
T Operand(int lane) {
  T operand;
  std::memcpy(&operand, Running()->thread().operands->of_lane[lane].data(), sizeof(T));
  return operand;
}

// The lane that PTX shfl reads from, within segments of `width` lanes.
int SourceLane(ShuffleKind kind, int lane, int argument, int width) {
  const int first = lane & ~(width - 1);
  const int last = first + width - 1;
  switch (kind) {
    case ShuffleKind::kIndex:
      return first + (argument & (width - 1));
    case ShuffleKind::kUp:
      return lane - argument >= first ? lane - argument : lane;
    case ShuffleKind::kDown:
      return lane + argument <= last ? lane + argument : lane;
    case ShuffleKind::kXor:
      return (lane ^ argument) <= last ? lane ^ argument : lane;
  }
  return lane;
}

const char* Name(ShuffleKind kind) {
  switch (kind) {
    case ShuffleKind::kIndex:
      return "__shfl_sync";
    case ShuffleKind::kUp:
      return "__shfl_up_sync";
    case ShuffleKind::kDown:
      return "__shfl_down_sync";
    case ShuffleKind::kXor:
      return "__shfl_xor_sync";
  }
  return "";
}

}  // namespace

void WaitForPreviousKernel() {
  const InHarness harness;
  Running()->WaitForPreviousKernel();
}

void SyncThreads(Place place) {
  const InHarness harness;
  Running()->Barrier(place);
}

void SyncWarp(uint32_t mask, Place place) {
  const InHarness harness;
  Running()->JoinWarpCall({"__syncwarp", mask, nullptr, 0}, place);
}

uint32_t Ballot(uint32_t mask, bool predicate, Place place) {
  const InHarness harness;
  Running()->JoinWarpCall({"vote", mask, &predicate, sizeof(predicate)}, place);
  uint32_t result = 0;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if ((mask >> lane & 1) != 0 && Operand<bool>(lane)) result |= 1u << lane;
  }
  return result;
}

void Shuffle(ShuffleKind kind, uint32_t mask, const void* value, size_t bytes, int argument,
             int width, void* result, Place place) {
  const InHarness harness;
  Running()->JoinWarpCall({Name(kind), mask, value, bytes}, place);
  Thread& self = Running()->thread();
  const int source = SourceLane(kind, self.lane(), argument, width);
  if ((mask >> source & 1) == 0) {
    Running()->Fail(std::string(Name(kind)) + " from lane " + std::to_string(source) +
                    ", which its mask does not name");
  }
  if (self.operands->of_lane[source].size() != bytes) {
    Running()->Fail(std::string(Name(kind)) + " of different types in one warp");
  }
  std::memcpy(result, self.operands->of_lane[source].data(), bytes);
}

void* StaticShared(const void* key, size_t bytes, size_t alignment) {
  const InHarness harness;
  std::byte* object = Running()->memory().StaticShared(key, bytes, alignment);
  if (object == nullptr) Running()->Fail("more than 48 KiB of static shared memory");
  return object;
}

std::byte* DynamicShared() {
  const InHarness harness;
  return Running()->memory().dynamic_shared();
}

void BeginCopy(void* shared, const void* global, size_t bytes, size_t source_bytes, Place place) {
  const InHarness harness;
  Thread& self = Running()->thread();
  self.place = place;
  if (reinterpret_cast<uintptr_t>(shared) % bytes != 0 ||
      reinterpret_cast<uintptr_t>(global) % bytes != 0) {
    Running()->Fail("cp.async with an address that is not aligned");
  }
  if (!Running()->memory().IsShared(shared, static_cast<int64_t>(bytes))) {
    Running()->Fail("cp.async to an address outside shared memory");
  }
  if (source_bytes > 0) NoteAccess(global, source_bytes, AccessKind::kRead);
  NoteAccess(shared, bytes, AccessKind::kWrite);
  std::memset(shared, kPoison, bytes);
  self.copies.push_back({shared, global, bytes, source_bytes, self.copy_group});
}

void CommitCopies() {
  const InHarness harness;
  ++Running()->thread().copy_group;
}

void WaitForCopies(int groups) {
  const InHarness harness;
  Thread& self = Running()->thread();
  const int arrived = self.copy_group - groups;
  const auto end = std::stable_partition(self.copies.begin(), self.copies.end(),
                                         [&](const PendingCopy& c) { return c.group < arrived; });
  for (auto copy = self.copies.begin(); copy != end; ++copy) {
    NoteAccess(copy->shared, copy->bytes, AccessKind::kWrite);
    std::memset(copy->shared, 0, copy->bytes);
    std::memcpy(copy->shared, copy->global, copy->source_bytes);
  }
  self.copies.erase(self.copies.begin(), end);
}

template <typename T>
T Atomic(AtomicKind kind, T* p, T x, Place place) {
  const InHarness harness;
  Running()->thread().place = place;
  NoteAccess(p, sizeof(T), AccessKind::kAtomic);
  const T old = *p;
  switch (kind) {
    case AtomicKind::kAdd:
      *p = old + x;
      break;
    case AtomicKind::kMax:
      *p = std::max(old, x);
      break;
    case AtomicKind::kMin:
      *p = std::min(old, x);
      break;
    case AtomicKind::kOr:
      if constexpr (!std::is_floating_point_v<T>) *p = old | x;
      break;
    case AtomicKind::kAnd:
      if constexpr (!std::is_floating_point_v<T>) *p = old & x;
      break;
    case AtomicKind::kExchange:
      *p = x;
      break;
  }
  return old;
}

template <typename T>
T AtomicCompareAndSwap(T* p, T expected, T desired, Place place) {
  const InHarness harness;
  Running()->thread().place = place;
  NoteAccess(p, sizeof(T), AccessKind::kAtomic);
  const T old = *p;
  if (old == expected) *p = desired;
  return old;
}

template int Atomic(AtomicKind, int*, int, Place);
template unsigned Atomic(AtomicKind, unsigned*, unsigned, Place);
template float Atomic(AtomicKind, float*, float, Place);
template int AtomicCompareAndSwap(int*, int, int, Place);
template unsigned AtomicCompareAndSwap(unsigned*, unsigned, unsigned, Place);

}  // namespace semkv::simt
