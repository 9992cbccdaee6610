// The pieces of select_lists on the GPU that work on lists: loading them, and choosing the next
// batch of the best ones by a histogram of their ranks that is weighted by size. All per CTA.

#ifndef SEMKV_OPS_RETRIEVAL_SELECT_LISTS_BATCH_CUH_
#define SEMKV_OPS_RETRIEVAL_SELECT_LISTS_BATCH_CUH_

#include <cstddef>
#include <cstdint>

#include "csrc/ops/cuda/block_scan.cuh"
#include "csrc/ops/cuda/launch_shape.h"
#include "csrc/ops/numeric/float_convert.h"
#include "csrc/ops/retrieval/select_lists.h"
#include "csrc/ops/retrieval/select_lists_plan.h"

namespace semkv::cuda {

constexpr int32_t kSelectWarps = kSelectThreads / kWarpSize;
constexpr int32_t kSelectThreadMembers = 4;  // of a window
constexpr int32_t kSelectFlagWords = kSelectThreads * kSelectThreadMembers / 32;

// A list's order is its key upside down, so that better lists have lower numbers; its rank is order
// and list id: ranks differ, and ascend in the order of the specification.
constexpr uint32_t kSelectWorstOrder = 0x7fffffffu;  // of key 0
constexpr uint32_t kSelectNever = 0xffffffffu;       // the order of lists that are never taken
constexpr uint64_t kSelectEndOfRanks = (uint64_t{kSelectWorstOrder} + 1) << kSelectListBits;
// A histogram has 2,048 bins from the best rank on. The first has 128 to an octave of the key, so
// that it reaches 16 octaves down; each that follows divides a bin of the one before.
constexpr int32_t kSelectBinBits = 11;
constexpr int32_t kSelectFirstShift = 16 + kSelectListBits;
constexpr uint16_t kSelectNone = 0xffff;

// What the kernels get. All pointers are device pointers, those within `op` too.
struct SelectListsKernelParams {
  SelectListsParams op;
  SelectLayout layout;
  uint32_t* workspace = nullptr;  // [tasks, 2, list_stride]; null: lists lie in shared memory
  int64_t list_stride = 0;
  int32_t page_shift = 0;
};

// Static shared memory.
struct SelectShared {
  BlockScratch scratch;
  double mass;            // of the lists taken
  uint32_t has_excluded;  // not 0: some token is
  int32_t num_candidates;
  int32_t bins_that_fit;  // a window
  int32_t bins_wanted;
  int32_t open_list_tokens;  // new tokens of a list that the window before did not end
  int32_t limit;             // members of the window that may be taken
  uint32_t is_target_reached;
  int32_t end;                       // behind the last member of the window that is taken
  int32_t num_pages;                 // wanted so far
  uint32_t flags[kSelectFlagWords];  // a bit per member of the window: would be taken
  int32_t flags_before[kSelectFlagWords];
};

struct SelectMemory {
  uint32_t* taken;
  uint32_t* in_pages;  // of those taken, the ones that have a bit of a page and no slot
  SelectView* views;
  int32_t* bins;         // members of lists in it, then of lists in the bins before
  int32_t* heads;        // a candidate of each bin, or -1
  uint32_t* marks;       // in the same place as bins and heads
  int32_t* sums;         // likewise
  uint32_t* candidates;  // view << kSelectListBits | list id
  uint16_t* next;        // the next candidate of the same bin, or kSelectNone
  uint16_t* first;       // a candidate's first member among those of the batch
  uint16_t* owners;      // candidate of each member of the window
  uint32_t* orders;      // of each list
  uint32_t* ranges;      // size << 16 | offset of its first member
};

__device__ inline SelectMemory SelectMemoryAt(std::byte* base, const SelectListsKernelParams& p,
                                              int64_t task) {
  const SelectLayout& s = p.layout;
  SelectMemory m;
  m.taken = reinterpret_cast<uint32_t*>(base + s.taken);
  m.in_pages = reinterpret_cast<uint32_t*>(base + s.in_pages);
  m.views = reinterpret_cast<SelectView*>(base + s.views);
  m.bins = m.sums = reinterpret_cast<int32_t*>(base + s.scratch);
  m.heads = m.bins + kSelectBins;
  m.marks = reinterpret_cast<uint32_t*>(base + s.scratch);
  m.candidates = reinterpret_cast<uint32_t*>(base + s.candidates);
  m.next = reinterpret_cast<uint16_t*>(m.candidates + kSelectWindow);
  m.first = m.next + kSelectWindow;
  m.owners = reinterpret_cast<uint16_t*>(base + s.owners);
  m.orders = p.workspace != nullptr ? p.workspace + task * 2 * p.list_stride
                                    : reinterpret_cast<uint32_t*>(base + s.lists);
  m.ranges = m.orders + p.list_stride;
  return m;
}

__device__ inline uint32_t OrderOf(float key) {
  // -0 is 0; false for NaN.
  return key >= 0.0f ? kSelectWorstOrder - (FloatBits(key) & 0x7fffffffu) : kSelectNever;
}

__device__ inline float KeyOfOrder(uint32_t order) {
  return FloatFromBits(kSelectWorstOrder - order);
}

__device__ inline uint64_t RankOf(uint32_t order, int32_t list) {
  return uint64_t{order} << kSelectListBits | static_cast<uint32_t>(list);
}

struct SelectCounts {
  int32_t views, lists;
};

template <bool kPages>
__device__ inline SelectCounts LoadViews(const SelectListsParams& p, int64_t task, int32_t thread,
                                         const SelectMemory& memory, SelectShared& shared) {
  const int32_t begin = p.view_begin[task];
  SelectCounts counts = {p.view_begin[task + 1] - begin, 0};
  for (int32_t block = 0; block < counts.views; block += kSelectThreads) {
    const int32_t v = block + thread;
    const bool inside = v < counts.views;
    const ListsView* view = p.views + begin + v;
    if (block > 0) __syncthreads();
    const BlockSum lists =
        SumOverBlock<kSelectWarps>(inside ? view->nlist : 0, thread, shared.scratch);
    if (inside) {
      memory.views[v] = {view->offsets,        view->members,
                         view->first_position, counts.lists + lists.below,
                         view->partition,      kPages && view->first_page != nullptr};
    }
    counts.lists += lists.total;
  }
  if (thread == 0) memory.views[counts.views].first_list = counts.lists;
  __syncthreads();
  return counts;
}

// Per thread: the view of a list that exists.
__device__ inline int32_t FindView(const SelectView* views, int32_t num_views, int32_t list) {
  int32_t low = 0, high = num_views;
  while (high - low > 1) {
    const int32_t middle = (low + high) / 2;
    if (views[middle].first_list <= list) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// Per thread: the view that its list lies in, in registers; a thread's lists ascend.
struct ViewCursor {
  int32_t view, first_list, end, partition;
  const uint16_t* offsets;

  __device__ void Enter(const SelectView* views, int32_t v) {
    view = v;
    first_list = views[v].first_list;
    end = views[v + 1].first_list;
    partition = views[v].partition;
    offsets = views[v].offsets;
  }

  __device__ void Advance(const SelectView* views, int32_t list) {
    if (list < end) return;
    int32_t v = view + 1;
    while (list >= views[v + 1].first_list) ++v;
    Enter(views, v);
  }
};

// Loads orders and ranges of all lists and returns the best rank. keys(list, partition) is the key
// of a list. A warp has consecutive lists, of which it asks for Keys::kBatch x 32 at once.
template <typename Keys>
__device__ inline uint64_t LoadLists(const Keys& keys, SelectCounts counts, int32_t thread,
                                     const SelectMemory& memory, SelectShared& shared) {
  constexpr int32_t kBatch = Keys::kBatch;
  const int32_t warp = thread / kWarpSize, lane = thread % kWarpSize;
  const int32_t warp_lists = CeilDiv(counts.lists, kSelectThreads) * kWarpSize;
  const int32_t begin = warp * warp_lists;
  const int32_t end = begin + warp_lists < counts.lists ? begin + warp_lists : counts.lists;
  uint64_t best = kSelectEndOfRanks;
  ViewCursor cursor = {};
  if (begin + lane < end) {
    cursor.Enter(memory.views, FindView(memory.views, counts.views, begin + lane));
  }
  for (int32_t block = begin; block < end; block += kBatch * kWarpSize) {
    float key[kBatch];
    int32_t offset[kBatch], behind[kBatch];  // -1: the next lane has it
    for (int32_t b = 0; b < kBatch; ++b) {
      const int32_t i = block + b * kWarpSize + lane;
      key[b] = -1.0f;
      offset[b] = behind[b] = -1;
      if (i >= end) continue;
      cursor.Advance(memory.views, i);
      const uint16_t* at = cursor.offsets + (i - cursor.first_list);
      offset[b] = at[0];
      if (i + 1 == end || i + 1 == cursor.end || lane == kWarpSize - 1) behind[b] = at[1];
      key[b] = keys(i, cursor.partition);
    }
    for (int32_t b = 0; b < kBatch; ++b) {
      const int32_t i = block + b * kWarpSize + lane;
      const int32_t next = __shfl_down_sync(kAllLanes, offset[b], 1);
      if (i >= end) continue;
      const int32_t size = (behind[b] >= 0 ? behind[b] : next) - offset[b];
      const uint32_t order = size > 0 ? OrderOf(key[b]) : kSelectNever;
      memory.orders[i] = order;
      memory.ranges[i] = static_cast<uint32_t>(size) << 16 | static_cast<uint32_t>(offset[b]);
      const uint64_t rank = RankOf(order, i);
      best = rank < best ? rank : best;
    }
  }
  return MinOverBlock<kSelectWarps>(best, thread, shared.scratch);
}

// The best rank from `bound` on, or kSelectEndOfRanks.
__device__ inline uint64_t BestRankFrom(uint64_t bound, int32_t lists, int32_t thread,
                                        const SelectMemory& memory, SelectShared& shared) {
  uint64_t best = kSelectEndOfRanks;
  for (int32_t i = thread; i < lists; i += kSelectThreads) {
    const uint64_t rank = RankOf(memory.orders[i], i);
    if (rank >= bound && rank < best) best = rank;
  }
  return MinOverBlock<kSelectWarps>(best, thread, shared.scratch);
}

// Lists whose rank is in the first bins from `origin` on.
struct SelectBatch {
  uint64_t origin;
  int32_t shift;  // of a rank's distance from the origin, to its bin
  int32_t bins;
  int32_t members;  // of all its lists

  // Lists before the origin, and those that are never taken, lie beyond every bin.
  __device__ uint64_t Bin(uint32_t order, int32_t list) const {
    return (RankOf(order, list) - origin) >> shift;
  }

  // The least rank beyond.
  __device__ uint64_t End() const { return origin + (static_cast<uint64_t>(bins) << shift); }
};

// Per thread: looks whether the bin whose lists have `members`, after `before`, is the one.
__device__ inline void NoteBin(int32_t bin, int32_t before, int32_t members, int32_t wanted,
                               SelectShared& shared) {
  const int32_t sum = before + members;
  if (before <= kSelectWindow && sum > kSelectWindow) shared.bins_that_fit = bin;
  if (before < wanted && sum >= wanted) shared.bins_wanted = bin + 1;
}

// The fewest bins of the best lists that have `wanted` members together, as far as they fit a
// window; at least one list, which may be greater. memory.bins is left for PlaceCandidates.
__device__ inline SelectBatch ChooseBatch(uint64_t origin, int32_t wanted, int32_t lists,
                                          int32_t thread, const SelectMemory& memory,
                                          SelectShared& shared) {
  SelectBatch batch = {origin, kSelectFirstShift, 0, 0};
  for (;;) {
    for (int32_t i = thread; i < kSelectBins; i += kSelectThreads) {
      memory.bins[i] = 0;
      memory.heads[i] = -1;
    }
    if (thread == 0) {
      shared.bins_that_fit = shared.bins_wanted = kSelectBins;
      shared.num_candidates = 0;
    }
    __syncthreads();
    for (int32_t i = thread; i < lists; i += kSelectThreads) {
      const uint64_t bin = batch.Bin(memory.orders[i], i);
      if (bin < kSelectBins) {
        atomicAdd(memory.bins + bin, static_cast<int32_t>(memory.ranges[i] >> 16));
      }
    }
    __syncthreads();
    int32_t* mine = memory.bins + 2 * thread;
    const int32_t first = mine[0], second = mine[1];
    const BlockSum sum = SumOverBlock<kSelectWarps>(first + second, thread, shared.scratch);
    mine[0] = sum.below;
    mine[1] = sum.below + first;
    NoteBin(2 * thread, sum.below, first, wanted, shared);
    NoteBin(2 * thread + 1, sum.below + first, second, wanted, shared);
    __syncthreads();
    const int32_t fit = shared.bins_that_fit, enough = shared.bins_wanted;
    if (fit > 0 || batch.shift == 0) {
      batch.bins = fit < enough ? (fit > 0 ? fit : 1) : enough;
      batch.members = batch.bins < kSelectBins ? memory.bins[batch.bins] : sum.total;
      return batch;
    }
    batch.shift = batch.shift > kSelectBinBits ? batch.shift - kSelectBinBits : 0;
    __syncthreads();
  }
}

// Collects the lists of the batch as candidates and gives each its place among the batch's members,
// in the order of ranks: behind the bins before its own, and behind better lists of its bin.
__device__ inline void PlaceCandidates(const SelectBatch& batch, SelectCounts counts,
                                       int32_t thread, const SelectMemory& memory,
                                       SelectShared& shared) {
  const uint64_t last = batch.End() - 1;
  const uint32_t last_order = static_cast<uint32_t>(last >> kSelectListBits);
  for (int32_t i = thread; i < counts.lists; i += kSelectThreads) {
    const uint32_t order = memory.orders[i];
    if (order > last_order) continue;  // most lists
    const uint64_t bin = batch.Bin(order, i);
    if (bin >= static_cast<uint32_t>(batch.bins)) continue;
    const int32_t c = atomicAdd(&shared.num_candidates, 1);
    const int32_t view = FindView(memory.views, counts.views, i);
    memory.candidates[c] = static_cast<uint32_t>(view) << kSelectListBits | i;
    memory.next[c] = static_cast<uint16_t>(atomicExch(memory.heads + bin, c));
  }
  __syncthreads();
  for (int32_t c = thread; c < shared.num_candidates; c += kSelectThreads) {
    const int32_t list = memory.candidates[c] & (kSelectMaxLists - 1);
    const uint64_t rank = RankOf(memory.orders[list], list);
    const uint64_t bin = (rank - batch.origin) >> batch.shift;
    int32_t first = memory.bins[bin];
    uint16_t other = static_cast<uint16_t>(memory.heads[bin]);
    for (; other != kSelectNone; other = memory.next[other]) {
      const int32_t other_list = memory.candidates[other] & (kSelectMaxLists - 1);
      if (RankOf(memory.orders[other_list], other_list) < rank) {
        first += static_cast<int32_t>(memory.ranges[other_list] >> 16);
      }
    }
    memory.first[c] = static_cast<uint16_t>(first);
  }
  __syncthreads();
}

}  // namespace semkv::cuda

#endif  // SEMKV_OPS_RETRIEVAL_SELECT_LISTS_BATCH_CUH_
