// The pieces of select_lists on the GPU that want list pages: which tokens of which pages a window
// takes. All per CTA.
//
// The members of a page follow each other in a window, so that its tokens are 32 bits of the
// window's flags; the thread of a page's first member cuts them out, and prefix sums over such
// threads number the pages.

#ifndef SEMKV_OPS_RETRIEVAL_SELECT_LISTS_PAGES_CUH_
#define SEMKV_OPS_RETRIEVAL_SELECT_LISTS_PAGES_CUH_

#include <cstdint>

#include "csrc/ops/cuda/launch_shape.h"
#include "csrc/ops/cuda/vector_access.cuh"
#include "csrc/ops/retrieval/select_lists.h"
#include "csrc/ops/retrieval/select_lists_batch.cuh"
#include "csrc/ops/retrieval/select_lists_plan.h"
#include "csrc/ops/retrieval/select_lists_window.cuh"

namespace semkv::cuda {

static_assert(kSelectWindow % kMaxListPageTokens == 0, "pages and windows end together");

__device__ inline void BeginPages(int32_t num_tokens, int32_t thread, const SelectMemory& memory,
                                  SelectShared& shared) {
  const int32_t words = CeilDiv(num_tokens, 32);
  for (int32_t i = thread; i < CeilDiv(words, 4); i += kSelectThreads) {
    Store(memory.in_pages + 4 * i, Vec16{});
  }
  if (thread == 0) shared.num_pages = 0;
}

// Members of the next window of a batch of which there are `left`: no page lies in two windows. A
// batch of more than one window is one list, which from its end on begins with what its last page
// has.
__device__ inline int32_t WindowOfPages(int32_t left, int32_t page_tokens, TrimKeep trim) {
  if (left <= kSelectWindow) return left;
  return trim == TrimKeep::kMostRecent ? kSelectWindow - (-left & (page_tokens - 1))
                                       : kSelectWindow;
}

// Behind the last of the window's first `limit` members that there is room for.
__device__ inline int32_t EndOfRoom(int32_t limit, int32_t room, int32_t thread,
                                    SelectShared& shared) {
  if (thread == 0) shared.end = limit;
  __syncthreads();
  if (thread < kSelectFlagWords) {
    const uint32_t flags = shared.flags[thread];
    const int32_t left = room - shared.flags_before[thread];
    if (left > 0 && left <= __popc(flags)) {
      const int32_t end = 32 * thread + FindBit(flags, left - 1) + 1;
      if (end < limit) shared.end = end;
    }
  }
  __syncthreads();
  return shared.end;
}

// New members of the window from `m` on: bit i is member m + i.
__device__ inline uint32_t NewFrom(int32_t m, const SelectShared& shared) {
  const uint64_t low = shared.flags[m / 32], high = shared.flags[m / 32 + 1];
  return static_cast<uint32_t>((high << 32 | low) >> (m % 32));
}

struct SelectPage {
  uint32_t tokens;    // taken; 0: no page begins here, or nothing of it is taken
  int32_t candidate;  // whose list it is
  int32_t page;       // of the list
};

// The page that begins, in the order of the window, with member `m`; members from `end` on are not
// taken.
__device__ inline SelectPage PageAt(int32_t m, int32_t base, int32_t end, int32_t page_tokens,
                                    TrimKeep trim, const SelectMemory& memory,
                                    const SelectShared& shared) {
  constexpr SelectPage kNone = {0, 0, 0};
  if (m >= end) return kNone;
  const int32_t c = memory.owners[m];
  const uint32_t candidate = memory.candidates[c];
  if (memory.views[candidate >> kSelectListBits].has_pages == 0) return kNone;
  const int32_t size = static_cast<int32_t>(memory.ranges[candidate & (kSelectMaxLists - 1)] >> 16);
  const int32_t i = base + m - memory.first[c];
  const bool is_last_first = trim == TrimKeep::kMostRecent;
  const int32_t member = is_last_first ? size - 1 - i : i;
  const int32_t offset = member & (page_tokens - 1);
  if (is_last_first ? i > 0 && offset < page_tokens - 1 : offset > 0) return kNone;
  const int32_t in_page = is_last_first ? offset + 1 : page_tokens;
  const int32_t in_list = size - i < in_page ? size - i : in_page;
  const int32_t count = end - m < in_list ? end - m : in_list;
  const uint32_t bits = NewFrom(m, shared) & 0xffffffffu >> (32 - count);
  return {is_last_first ? __brev(bits) >> (31 - offset) : bits, c, (member - offset) / page_tokens};
}

// Where the scratch has flags of the members that begin a page of which something is taken, and
// their sums. Marks lie there until new members are known.
struct PageFlags {
  uint32_t* words;
  int32_t* before;

  __device__ explicit PageFlags(const SelectMemory& memory)
      : words(memory.marks), before(memory.sums + kSelectFlagWords) {}

  __device__ int32_t Below(int32_t member) const { return FlagsBelow(member, words, before); }
};

// Writes the pages of members below `end`; if there is no place for one, no member from its first
// on is taken. Returns behind the last member that is.
__device__ inline int32_t WritePages(const SelectListsParams& p, int64_t task, int32_t base,
                                     int32_t end, TrimKeep trim, int32_t thread,
                                     const SelectMemory& memory, SelectShared& shared) {
  const PageFlags flags(memory);
  for (int32_t k = 0; k < kSelectThreadMembers; ++k) {
    const int32_t m = WindowMember(k, thread);
    const SelectPage page = PageAt(m, base, end, p.list_page_tokens, trim, memory, shared);
    const uint32_t word = __ballot_sync(kAllLanes, page.tokens != 0);
    if (thread % kWarpSize == 0) flags.words[m / 32] = word;
  }
  __syncthreads();
  SumFlags(flags.words, flags.before, thread);
  __syncthreads();
  const int32_t first = shared.num_pages;
  for (int32_t k = 0; k < kSelectThreadMembers; ++k) {
    const int32_t m = WindowMember(k, thread);
    const SelectPage page = PageAt(m, base, end, p.list_page_tokens, trim, memory, shared);
    if (page.tokens == 0) continue;
    const int32_t n = first + flags.Below(m);
    if (n == p.wanted_stride) shared.end = m;
    if (n >= p.wanted_stride) continue;
    const uint32_t candidate = memory.candidates[page.candidate];
    const int32_t v = static_cast<int32_t>(candidate >> kSelectListBits);
    const int32_t list =
        static_cast<int32_t>(candidate & (kSelectMaxLists - 1)) - memory.views[v].first_list;
    const int32_t home_page = p.views[p.view_begin[task] + v].first_page[list] + page.page;
    p.wanted[task * p.wanted_stride + n] = {home_page, page.tokens};
  }
  __syncthreads();
  if (thread == 0) {
    const int32_t pages = first + flags.Below(kSelectWindow);
    shared.num_pages = pages < p.wanted_stride ? pages : p.wanted_stride;
  }
  return shared.end;
}

// As TakeNew, and writes the list pages of what is taken; returns what is left of `room`, 0 when
// pages ran out.
__device__ inline int32_t TakeNewOfPages(const SelectListsParams& p, int64_t task,
                                         const SelectMembers& members, int32_t base, int32_t limit,
                                         int32_t room, TrimKeep trim, int32_t thread,
                                         const SelectMemory& memory, SelectShared& shared) {
  const int32_t end_of_room = EndOfRoom(limit, room, thread, shared);
  const int32_t end = WritePages(p, task, base, end_of_room, trim, thread, memory, shared);
  for (int32_t k = 0; k < kSelectThreadMembers; ++k) {
    const int32_t m = WindowMember(k, thread);
    if (!members.is_new[k] || m >= end) continue;
    const int32_t position = members.positions[k];
    const uint32_t bit = 1u << (position % 32);
    atomicOr(memory.taken + position / 32, bit);
    const uint32_t candidate = memory.candidates[memory.owners[m]];
    if (memory.views[candidate >> kSelectListBits].has_pages == 0) continue;
    atomicOr(memory.in_pages + position / 32, bit);
  }
  const int32_t left = room - NewBelow(end, shared);
  __syncthreads();
  return end < end_of_room ? 0 : left;
}

// Leaves in memory.taken what gets a slot.
__device__ inline void EndPages(const SelectListsParams& p, int64_t task, int32_t num_tokens,
                                int32_t thread, const SelectMemory& memory,
                                const SelectShared& shared) {
  for (int32_t w = thread; w < CeilDiv(num_tokens, 32); w += kSelectThreads) {
    memory.taken[w] &= ~memory.in_pages[w];
  }
  if (thread == 0) p.wanted_counts[task] = shared.num_pages;
  __syncthreads();
}

}  // namespace semkv::cuda

#endif  // SEMKV_OPS_RETRIEVAL_SELECT_LISTS_PAGES_CUH_
