// select_lists on the GPU: one CTA per (row, selection), whose latency is what counts, since a
// batch has few of them. Keys come to lie in shared memory; a histogram of their ranks, weighted
// by size, gives the best lists that have twice the open budget's members; those are put into the
// order of the specification member by member, the first of each token is found by a table, and
// as many as there is room for are marked in a bitmap, which is written out as slots. Whatever
// this leaves open (larger budgets, lists whose tokens were taken before) is done again from the
// next best list on.

#ifndef SEMKV_OPS_RETRIEVAL_SELECT_LISTS_KERNEL_CUH_
#define SEMKV_OPS_RETRIEVAL_SELECT_LISTS_KERNEL_CUH_

#include <cstddef>
#include <cstdint>

#include "csrc/ops/cuda/dependent_launch.cuh"
#include "csrc/ops/cuda/launch_shape.h"
#include "csrc/ops/cuda/shared_memory.cuh"
#include "csrc/ops/retrieval/score_lists_keys.cuh"
#include "csrc/ops/retrieval/select_lists.h"
#include "csrc/ops/retrieval/select_lists_batch.cuh"
#include "csrc/ops/retrieval/select_lists_pages.cuh"
#include "csrc/ops/retrieval/select_lists_plan.h"
#include "csrc/ops/retrieval/select_lists_window.cuh"

namespace semkv::cuda {

// Takes lists of the batch in order; returns what is left of `room`, 0 when the mass target is
// reached or pages ran out.
template <bool kPages>
__device__ inline int32_t TakeBatch(const SelectListsParams& p, int64_t task,
                                    const SelectBatch& batch, int32_t room, int32_t thread,
                                    const SelectMemory& memory, SelectShared& shared) {
  const RetrievalRow& row = p.rows[task / p.num_selections];
  const int32_t num_tokens = row.num_tokens;
  const TrimKeep trim = row.trim;
  const float target = row.mass_target;
  int32_t window = kSelectWindow;
  for (int32_t base = 0; base < batch.members && room > 0; base += window) {
    const int32_t left = batch.members - base;
    if constexpr (kPages) window = WindowOfPages(left, p.list_page_tokens, trim);
    const int32_t count = left < window ? left : window;
    BeginWindow(base, thread, memory, shared);
    SelectMembers members = LoadMembers(base, count, num_tokens, trim, thread, memory);
    FlagNew(thread, memory, shared, members);
    int32_t limit = count;
    bool is_target_reached = false;
    if (target > 0.0f) {
      if (thread == 0) WalkMass(base, count, p.heads_per_selection, target, memory, shared);
      __syncthreads();
      limit = shared.limit;
      is_target_reached = shared.is_target_reached != 0;
    }
    if constexpr (kPages) {
      room = TakeNewOfPages(p, task, members, base, limit, room, trim, thread, memory, shared);
    } else {
      room -= TakeNew(members, limit, room, thread, memory.taken, shared);
    }
    if (is_target_reached) return 0;
  }
  return room;
}

// Per CTA: selects for one (row, selection). keys is as in LoadLists; what it needs
// of shared memory may lie where memory.bins is.
template <bool kPages, typename Keys>
__device__ inline void SelectTask(const SelectListsKernelParams& p, int64_t task, const Keys& keys,
                                  SelectCounts counts, int32_t thread, const SelectMemory& memory,
                                  SelectShared& shared) {
  const RetrievalRow& row = p.op.rows[task / p.op.num_selections];
  const int32_t num_tokens = row.num_tokens;
  const int32_t ends = TakeEnds(p.op, task, counts.views, thread, memory.taken, shared);
  int32_t room = row.budget - ends;
  if constexpr (kPages) BeginPages(num_tokens, thread, memory, shared);
  uint64_t origin = LoadLists(keys, counts, thread, memory, shared);
  if (p.op.always != nullptr) room = TakeAlways(p.op.always[task], room, thread, memory, shared);
  if (thread == 0) {
    shared.mass = 0.0;
    shared.open_list_tokens = 0;
    shared.is_target_reached = 0;
  }
  __syncthreads();
  while (room > 0 && origin < kSelectEndOfRanks) {
    const int32_t wanted = room < kSelectWindow ? 2 * room : 2 * kSelectWindow;
    const SelectBatch batch = ChooseBatch(origin, wanted, counts.lists, thread, memory, shared);
    PlaceCandidates(batch, counts, thread, memory, shared);
    room = TakeBatch<kPages>(p.op, task, batch, room, thread, memory, shared);
    if (room <= 0) break;
    origin = BestRankFrom(batch.End(), counts.lists, thread, memory, shared);
  }
  __syncthreads();
  if (shared.has_excluded != 0) {
    MarkExcluded(p.op, task, counts.views, num_tokens, Excluded::kClear, thread, memory.taken,
                 shared);
    __syncthreads();
  }
  if constexpr (kPages) EndPages(p.op, task, num_tokens, thread, memory, shared);
  WriteSlots(p, task, thread, memory, shared);
}

struct KeysInMemory {
  static constexpr int32_t kBatch = 4;  // more would spill

  const float* keys;

  __device__ float operator()(int32_t list, int32_t) const { return keys[list]; }
};

// grid = tasks. kPages: list pages are wanted.
template <bool kPages>
__global__ void __launch_bounds__(kSelectThreads, 1)
    SelectListsKernel(const __grid_constant__ SelectListsKernelParams p) {
  WaitForPreviousKernel();
  SelectShared& shared = SharedMemory<SelectShared>();
  const int64_t task = blockIdx.x;
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const SelectMemory memory = SelectMemoryAt(DynamicSharedMemory(), p, task);
  const SelectCounts counts = LoadViews<kPages>(p.op, task, thread, memory, shared);
  const KeysInMemory keys = {p.op.keys + task * p.op.keys_stride};
  SelectTask<kPages>(p, task, keys, counts, thread, memory, shared);
}

// What RetrieveKernel gets: of score_lists, the workspace that its first launch filled.
struct RetrieveKernelParams {
  SelectListsKernelParams select;
  ScoreWorkspace scores;
  float* keys = nullptr;  // out: as ScoreListsParams::keys; may be null
  int64_t keys_stride = 0;
  int32_t max_tiles = 0;
};

struct KeysOfScores {
  static constexpr int32_t kBatch = 1;  // more would spill

  const float* scores;
  int64_t stride;
  int32_t heads;
  GroupRank rank;
  const KeyShared& shared;
  float* keys;

  __device__ float operator()(int32_t list, int32_t partition) const {
    const float key =
        KeyOf(scores + list, stride, heads, rank, shared.max, shared.weight_of_exp[partition]);
    if (keys != nullptr) keys[list] = key;
    return key;
  }
};

// grid = tasks. score_lists' second launch and select_lists in one: keys stay on the chip.
template <bool kPages>
__global__ void __launch_bounds__(kSelectThreads, 1)
    RetrieveKernel(const __grid_constant__ RetrieveKernelParams p) {
  WaitForPreviousKernel();
  SelectShared& shared = SharedMemory<SelectShared>();
  KeyShared& key_shared = SharedMemory<KeyShared>();
  const int64_t task = blockIdx.x;
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t heads = p.select.op.heads_per_selection;
  const SelectMemory memory = SelectMemoryAt(DynamicSharedMemory(), p.select, task);
  const SelectCounts counts = LoadViews<kPages>(p.select.op, task, thread, memory, shared);
  int32_t* partitions = memory.bins;
  LoadPartitions<kSelectThreads>(p.scores.tiles + task * p.max_tiles, p.max_tiles, thread,
                                 partitions, key_shared);
  const RetrievalRow& row = p.select.op.rows[task / p.select.op.num_selections];
  MergeHeads<kSelectThreads>(p.scores, p.max_tiles, task, heads, row, thread, partitions,
                             key_shared);
  const KeysOfScores keys = {p.scores.scores + task * heads * p.scores.stride,
                             p.scores.stride,
                             heads,
                             row.rank,
                             key_shared,
                             p.keys != nullptr ? p.keys + task * p.keys_stride : nullptr};
  SelectTask<kPages>(p.select, task, keys, counts, thread, memory, shared);
}

// What the kernels refuse: other geometry than the plan's, or more than they have room for.
inline bool ServesWanted(const SelectListsParams& p, const SelectListsPlan& plan) {
  return plan.wants_pages && p.wanted_counts != nullptr && p.wanted_stride >= 0 &&
         p.list_page_tokens > 0 && p.list_page_tokens <= kMaxListPageTokens &&
         (p.list_page_tokens & (p.list_page_tokens - 1)) == 0;
}

inline bool SelectListsCudaServes(const SelectListsParams& p, const SelectListsPlan& plan) {
  return p.num_rows == plan.num_rows && p.num_selections == plan.num_selections &&
         p.num_selections > 0 && p.heads_per_selection > 0 && p.page_tokens > 0 &&
         (p.page_tokens & (p.page_tokens - 1)) == 0 && plan.max_row_tokens >= 0 &&
         plan.max_row_tokens <= kSelectMaxRowTokens && plan.max_lists >= 0 &&
         plan.max_lists <= kSelectMaxLists && plan.max_views >= 0 &&
         plan.max_views <= kSelectMaxViews && (p.wanted == nullptr || ServesWanted(p, plan)) &&
         LayOutSelectShared(plan).bytes <= plan.shared_bytes;
}

inline SelectListsKernelParams MakeSelectListsKernelParams(const SelectListsParams& params,
                                                           const SelectListsPlan& plan,
                                                           void* workspace) {
  SelectListsKernelParams p;
  p.op = params;
  p.layout = LayOutSelectShared(plan);
  p.workspace = plan.lists_in_shared ? nullptr : static_cast<uint32_t*>(workspace);
  p.list_stride = plan.lists_in_shared ? plan.max_lists : SelectListsStride(plan);
  while (1 << p.page_shift < params.page_tokens) ++p.page_shift;
  return p;
}

// Besides what score_lists refuses.
inline bool RetrieveCudaServes(const ScoreListsParams& score, const SelectListsParams& select,
                               const RetrievePlan& plan) {
  return score.num_rows == select.num_rows && score.num_selections == select.num_selections &&
         score.num_heads == select.num_selections * select.heads_per_selection &&
         plan.score.max_tiles <= kSelectMarks && SelectListsCudaServes(select, plan.select);
}

inline RetrieveKernelParams MakeRetrieveKernelParams(const ScoreListsParams& score,
                                                     const SelectListsParams& select,
                                                     const RetrievePlan& plan, void* workspace) {
  RetrieveKernelParams p;
  size_t score_bytes = 0;
  p.scores = LayOutScoreWorkspace(plan.score, workspace, &score_bytes);
  p.select = MakeSelectListsKernelParams(select, plan.select,
                                         static_cast<std::byte*>(workspace) + score_bytes);
  p.keys = score.keys;
  p.keys_stride = score.keys_stride;
  p.max_tiles = plan.score.max_tiles;
  return p;
}

// Of both kernels.
inline LaunchShape SelectListsShape(const SelectListsPlan& plan) {
  LaunchShape shape;
  shape.grid_x = static_cast<uint32_t>(int64_t{plan.num_rows} * plan.num_selections);
  shape.threads = kSelectThreads;
  shape.overlaps_previous = true;
  shape.dynamic_shared_bytes = static_cast<uint32_t>(LayOutSelectShared(plan).bytes);
  return shape;
}

}  // namespace semkv::cuda

#endif  // SEMKV_OPS_RETRIEVAL_SELECT_LISTS_KERNEL_CUH_
