// The pieces of select_lists on the GPU that work on tokens: the bitmap of those taken, windows of
// candidates for it in the order of the specification, and writing it out as slots. All per CTA.

#ifndef SEMKV_OPS_RETRIEVAL_SELECT_LISTS_WINDOW_CUH_
#define SEMKV_OPS_RETRIEVAL_SELECT_LISTS_WINDOW_CUH_

#include <cstdint>

#include "csrc/ops/cuda/block_scan.cuh"
#include "csrc/ops/cuda/launch_shape.h"
#include "csrc/ops/cuda/vector_access.cuh"
#include "csrc/ops/retrieval/select_lists.h"
#include "csrc/ops/retrieval/select_lists_batch.cuh"
#include "csrc/ops/retrieval/select_lists_plan.h"

namespace semkv::cuda {

constexpr int32_t kSelectMarkBits = 13;
static_assert(1 << kSelectMarkBits == kSelectMarks && kSelectMarks >= 2 * kSelectWindow);

// The bits of word `w` of a bitmap that lie in [begin, end).
__device__ inline uint32_t BitsOfRange(int32_t w, int32_t begin, int32_t end) {
  const int32_t low = begin > 32 * w ? begin - 32 * w : 0;
  const int32_t high = end < 32 * w + 32 ? end - 32 * w : 32;
  return high > low ? 0xffffffffu >> (32 - (high - low)) << low : 0;
}

enum class Excluded { kTake, kClear };

__device__ inline void MarkExcluded(const SelectListsParams& p, int64_t task, int32_t num_views,
                                    int32_t num_tokens, Excluded what, int32_t thread,
                                    uint32_t* taken, SelectShared& shared) {
  const int32_t lane = thread % kWarpSize;
  for (int32_t v = thread / kWarpSize; v < num_views; v += kSelectWarps) {
    const ListsView& view = p.views[p.view_begin[task] + v];
    const bool is_first_look = what == Excluded::kTake;
    if (is_first_look && view.num_excluded > 0 && lane == 0) atomicOr(&shared.has_excluded, 1u);
    for (int32_t i = lane; i < view.num_excluded; i += kWarpSize) {
      const int32_t position = view.first_position + view.excluded[i];
      if (position >= num_tokens) continue;
      const uint32_t bit = 1u << (position % 32);
      if (is_first_look) {
        atomicOr(taken + position / 32, bit);
      } else {
        atomicAnd(taken + position / 32, ~bit);
      }
    }
  }
}

// Takes sinks and recent tokens; returns their number. What must not be taken counts as taken until
// the end.
__device__ inline int32_t TakeEnds(const SelectListsParams& p, int64_t task, int32_t num_views,
                                   int32_t thread, uint32_t* taken, SelectShared& shared) {
  const RetrievalRow& row = p.rows[task / p.num_selections];
  const int32_t tokens = row.num_tokens;
  const int32_t recent = tokens > row.num_recent ? tokens - row.num_recent : 0;
  const int32_t sinks = row.num_sinks < tokens ? row.num_sinks : tokens;
  const int32_t words = CeilDiv(tokens, 32);
  for (int32_t i = thread; i < CeilDiv(words, 4); i += kSelectThreads) {
    Store(taken + 4 * i, Vec16{});
  }
  if (thread == 0) shared.has_excluded = 0;
  __syncthreads();
  MarkExcluded(p, task, num_views, tokens, Excluded::kTake, thread, taken, shared);
  __syncthreads();
  const int32_t sink_words = CeilDiv(sinks, 32);
  const int32_t recent_word = recent / 32 > sink_words ? recent / 32 : sink_words;
  int32_t count = 0;
  for (int32_t i = thread; i < sink_words + words - recent_word; i += kSelectThreads) {
    const int32_t w = i < sink_words ? i : i - sink_words + recent_word;
    const uint32_t bits = BitsOfRange(w, 0, sinks) | BitsOfRange(w, recent, tokens);
    count += __popc(bits & ~taken[w]);
    taken[w] |= bits;
  }
  return SumOverBlock<kSelectWarps>(count, thread, shared.scratch).total;
}

// A thread's members of the window, numbers thread + kSelectThreads * k: their positions, -1 where
// there is none.
struct SelectMembers {
  int32_t positions[kSelectThreadMembers];
  bool is_new[kSelectThreadMembers];
};

__device__ inline int32_t WindowMember(int32_t k, int32_t thread) {
  return k * kSelectThreads + thread;
}

__device__ inline void ClearMarks(int32_t thread, uint32_t* marks) {
  for (int32_t i = thread; i < kSelectMarks / 4; i += kSelectThreads) Store(marks + 4 * i, Vec16{});
}

__device__ inline uint32_t FirstMark(int32_t position) {
  return static_cast<uint32_t>(position) * 0x9e3779b1u >> (32 - kSelectMarkBits);
}

// Sums of a window's flags before each word, by the first warp.
__device__ inline void SumFlags(const uint32_t* flags, int32_t* flags_before, int32_t thread) {
  if (thread >= kWarpSize) return;
  constexpr int32_t kWords = kSelectFlagWords / kWarpSize;
  int32_t before[kWords + 1] = {};
  for (int32_t j = 0; j < kWords; ++j) {
    before[j + 1] = before[j] + __popc(flags[kWords * thread + j]);
  }
  const int32_t below = WarpSumBelow(before[kWords], thread);
  for (int32_t j = 0; j < kWords; ++j) flags_before[kWords * thread + j] = below + before[j];
}

// How many of the window's first `member` members have a flag.
__device__ inline int32_t FlagsBelow(int32_t member, const uint32_t* flags,
                                     const int32_t* flags_before) {
  const uint32_t below = (1u << (member % 32)) - 1;
  return flags_before[member / 32] + __popc(flags[member / 32] & below);
}

// Finds which members of the window would be taken: of tokens that are not taken yet, the first
// member each. A mark is a position and, upside down, the least member that has it; never 0.
// REQUIRES: marks are clear, behind a barrier.
__device__ inline void FlagNew(int32_t thread, const SelectMemory& memory, SelectShared& shared,
                               SelectMembers& members) {
  constexpr int32_t kLast = (1 << kSelectWindowBits) - 1;
  uint32_t marks[kSelectThreadMembers];
  for (int32_t k = 0; k < kSelectThreadMembers; ++k) {
    const int32_t position = members.positions[k];
    members.is_new[k] = position >= 0 && (memory.taken[position / 32] >> (position % 32) & 1) == 0;
    if (!members.is_new[k]) continue;
    const uint32_t member = static_cast<uint32_t>(kLast - WindowMember(k, thread));
    marks[k] = static_cast<uint32_t>(position) << kSelectWindowBits | member;
    for (uint32_t at = FirstMark(position);; at = (at + 1) % kSelectMarks) {
      const uint32_t old = atomicCAS(memory.marks + at, 0u, marks[k]);
      if (old == 0) break;
      if (old >> kSelectWindowBits != static_cast<uint32_t>(position)) continue;
      atomicMax(memory.marks + at, marks[k]);
      break;
    }
  }
  __syncthreads();
  for (int32_t k = 0; k < kSelectThreadMembers; ++k) {
    if (members.is_new[k]) {
      uint32_t at = FirstMark(members.positions[k]);
      while ((memory.marks[at] ^ marks[k]) >> kSelectWindowBits != 0) at = (at + 1) % kSelectMarks;
      members.is_new[k] = memory.marks[at] == marks[k];
    }
    const uint32_t flags = __ballot_sync(kAllLanes, members.is_new[k]);
    if (thread % kWarpSize == 0) shared.flags[WindowMember(k, thread) / 32] = flags;
  }
  __syncthreads();
  SumFlags(shared.flags, shared.flags_before, thread);
  __syncthreads();
}

// How many of the window's first `member` members are new.
__device__ inline int32_t NewBelow(int32_t member, const SelectShared& shared) {
  return FlagsBelow(member, shared.flags, shared.flags_before);
}

// Takes the new ones of the window's first `limit` members, `room` at most; returns how many.
__device__ inline int32_t TakeNew(const SelectMembers& members, int32_t limit, int32_t room,
                                  int32_t thread, uint32_t* taken, const SelectShared& shared) {
  for (int32_t k = 0; k < kSelectThreadMembers; ++k) {
    const int32_t member = WindowMember(k, thread);
    if (!members.is_new[k] || member >= limit || NewBelow(member, shared) >= room) continue;
    atomicOr(taken + members.positions[k] / 32, 1u << (members.positions[k] % 32));
  }
  const int32_t count = NewBelow(limit, shared);
  return count < room ? count : room;
}

// Of tokens that are taken before lists; returns what is left of `room`.
__device__ inline int32_t TakeAlways(AlwaysTaken always, int32_t room, int32_t thread,
                                     const SelectMemory& memory, SelectShared& shared) {
  for (int32_t base = 0; base < always.count && room > 0; base += kSelectWindow) {
    const int32_t left = always.count - base;
    const int32_t count = left < kSelectWindow ? left : kSelectWindow;
    __syncthreads();
    ClearMarks(thread, memory.marks);
    SelectMembers members;
    for (int32_t k = 0; k < kSelectThreadMembers; ++k) {
      const int32_t m = WindowMember(k, thread);
      members.positions[k] = m < count ? always.positions[base + m] : -1;
    }
    __syncthreads();
    FlagNew(thread, memory, shared, members);
    room -= TakeNew(members, count, room, thread, memory.taken, shared);
  }
  return room;
}

// Finds the candidate of every member of the window [base, base + kSelectWindow) of the batch, and
// clears marks.
__device__ inline void BeginWindow(int32_t base, int32_t thread, const SelectMemory& memory,
                                   const SelectShared& shared) {
  ClearMarks(thread, memory.marks);
  const int32_t lane = thread % kWarpSize;
  for (int32_t c = thread / kWarpSize; c < shared.num_candidates; c += kSelectWarps) {
    const int32_t list = memory.candidates[c] & (kSelectMaxLists - 1);
    const int32_t first = memory.first[c] - base;
    const int32_t behind = first + static_cast<int32_t>(memory.ranges[list] >> 16);
    const int32_t end = behind < kSelectWindow ? behind : kSelectWindow;
    for (int32_t m = (first > 0 ? first : 0) + lane; m < end; m += kWarpSize) {
      memory.owners[m] = static_cast<uint16_t>(c);
    }
  }
  __syncthreads();
}

// Positions of a thread's members of the window.
__device__ inline SelectMembers LoadMembers(int32_t base, int32_t count, int32_t num_tokens,
                                            TrimKeep trim, int32_t thread,
                                            const SelectMemory& memory) {
  SelectMembers members;
  for (int32_t k = 0; k < kSelectThreadMembers; ++k) {
    members.positions[k] = -1;
    const int32_t m = WindowMember(k, thread);
    if (m >= count) continue;
    const int32_t c = memory.owners[m];
    const uint32_t candidate = memory.candidates[c];
    const uint32_t range = memory.ranges[candidate & (kSelectMaxLists - 1)];
    const SelectView& view = memory.views[candidate >> kSelectListBits];
    const int32_t size = static_cast<int32_t>(range >> 16);
    const int32_t i = base + m - memory.first[c];
    const int32_t at =
        static_cast<int32_t>(range & 0xffff) + (trim == TrimKeep::kMostRecent ? size - 1 - i : i);
    const int32_t member = view.members != nullptr ? view.members[at] : at;
    const int32_t position = view.first_position + member;
    if (position < num_tokens) members.positions[k] = position;
  }
  return members;
}

// By one thread: walks the window's lists in order, as the specification sums their mass, until the
// target is reached; says so and up to which member.
__device__ inline void WalkMass(int32_t base, int32_t count, int32_t heads, float target,
                                const SelectMemory& memory, SelectShared& shared) {
  shared.limit = count;
  for (int32_t m = 0; m < count;) {
    const int32_t c = memory.owners[m];
    const int32_t list = memory.candidates[c] & (kSelectMaxLists - 1);
    const int32_t end = memory.first[c] - base + static_cast<int32_t>(memory.ranges[list] >> 16);
    const int32_t inside = end < count ? end : count;
    shared.open_list_tokens += NewBelow(inside, shared) - NewBelow(m, shared);
    if (end > count) return;
    shared.mass += double{KeyOfOrder(memory.orders[list])} * shared.open_list_tokens / heads;
    shared.open_list_tokens = 0;
    m = end;
    if (shared.mass >= double{target}) {
      shared.limit = end;
      shared.is_target_reached = 1;
      return;
    }
  }
}

// Per thread: the place of the n-th bit that is set, counted from 0.
__device__ inline int32_t FindBit(uint32_t bits, int32_t n) {
  int32_t place = 0;
  for (int32_t width = 16; width > 0; width /= 2) {
    const int32_t below = __popc(bits & ((1u << width) - 1));
    const bool above = n >= below;
    n -= above ? below : 0;
    bits = above ? bits >> width : bits;
    place += above ? width : 0;
  }
  return place;
}

// A thread writes every kSelectThreads-th token, found by the sums of tokens taken up to each of
// kSelectThreads groups of words: writes are dense and even, wherever the tokens lie.
__device__ inline void WriteSlots(const SelectListsKernelParams& p, int64_t task, int32_t thread,
                                  const SelectMemory& memory, SelectShared& shared) {
  const RetrievalRow& row = p.op.rows[task / p.op.num_selections];
  const int32_t words = CeilDiv(row.num_tokens, 32);
  const int32_t group_words = CeilDiv(words, kSelectThreads);
  int32_t tokens = 0;
  for (int32_t i = 0; i < group_words; ++i) {
    const int32_t w = thread * group_words + i;
    if (w < words) tokens += __popc(memory.taken[w]);
  }
  const BlockSum sum = SumOverBlock<kSelectWarps>(tokens, thread, shared.scratch);
  memory.sums[thread] = sum.below;
  if (thread == 0) p.op.counts[task] = sum.total;
  __syncthreads();
  const int32_t* table = row.block_table;
  int32_t* slots = p.op.slots + task * p.op.slots_stride;
  int32_t* positions =
      p.op.positions != nullptr ? p.op.positions + task * p.op.slots_stride : nullptr;
  for (int32_t n = thread; n < sum.total; n += kSelectThreads) {
    int32_t group = 0;  // the last that begins at or before n
    for (int32_t step = kSelectThreads / 2; step > 0; step /= 2) {
      if (memory.sums[group + step] <= n) group += step;
    }
    int32_t rest = n - memory.sums[group];
    int32_t w = group * group_words;
    for (; __popc(memory.taken[w]) <= rest; ++w) rest -= __popc(memory.taken[w]);
    const int32_t position = 32 * w + FindBit(memory.taken[w], rest);
    const int32_t page = position >> p.page_shift;
    slots[n] = (table[page] << p.page_shift) + (position - (page << p.page_shift));
    if (positions != nullptr) positions[n] = position;
  }
}

}  // namespace semkv::cuda

#endif  // SEMKV_OPS_RETRIEVAL_SELECT_LISTS_WINDOW_CUH_
