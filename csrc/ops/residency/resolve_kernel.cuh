// resolve on the GPU: the kernels and their launch shapes.
//
// A CTA has all wanted pages of some (row, selection) pairs, four of each thread. Marking must be
// over everywhere before a victim is chosen, and claiming before a slot is written. Where one CTA
// has every page, both are barriers of that CTA, and there is one launch. Otherwise the CTA that
// comes last claims for all, and slots are a second launch: nothing ever waits for another CTA.
//
// No order of threads shows in the result. A missing page belongs to the lowest index that wants
// it (atomicMin on its entry of the map), and the m-th owner gets the m-th victim behind the hand:
// prefix sums over owners and over hot pages instead of a hand that atomics move.

#ifndef SEMKV_OPS_RESIDENCY_RESOLVE_KERNEL_CUH_
#define SEMKV_OPS_RESIDENCY_RESOLVE_KERNEL_CUH_

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "csrc/ops/cuda/block_scan.cuh"
#include "csrc/ops/cuda/dependent_launch.cuh"
#include "csrc/ops/cuda/last_cta.cuh"
#include "csrc/ops/cuda/launch_shape.h"
#include "csrc/ops/cuda/shared_memory.cuh"
#include "csrc/ops/cuda/vector_access.cuh"
#include "csrc/ops/residency/resolve.h"
#include "csrc/ops/residency/resolve_plan.h"

namespace semkv::cuda {

constexpr int32_t kResolveWarps = kResolveThreads / kWarpSize;
constexpr int32_t kNoPage = -1;
// In hot_of_home between mark and claim: kFirstOwner + index of the owner. Below kNotResident.
constexpr int32_t kFirstOwner = INT32_MIN;

// The kernels' one argument.
struct ResolveLaunch {
  ResolveParams params;
  ResolvePlan plan;
  uint32_t* counter;  // of the workspace
  int32_t* candidate_counts;
  ResolveCandidate* candidates;
};

// A hot page that is given away, and what it held.
struct ResolveVictim {
  int32_t hot_page, home_page;
};

struct ResolveShared {
  BlockScratch sum;
  ResolveVictim victims[kResolveCtaPages];
  int32_t first[kResolveThreads];  // of each pair, or of each CTA's candidates
  bool is_last;
};

// Per thread: its wanted pages, of one (row, selection); kNoPage where there is none.
struct ThreadPages {
  int32_t home_page[kThreadPages];
  uint32_t tokens[kThreadPages];
  int32_t hot_page[kThreadPages];  // below 0: not known to be resident
  int32_t selection;               // of all rows' selections; -1: the thread has none
  int32_t pair;                    // of the CTA's
  int32_t index;                   // of the first page in `wanted`
  bool is_first, is_last;          // threads of the pair
};

__device__ inline ThreadPages LoadWanted(const ResolveLaunch& launch, int32_t thread) {
  const ResolveParams& p = launch.params;
  const int32_t pair_threads = p.shape.max_wanted / kThreadPages;
  ThreadPages pages;
  for (int32_t i = 0; i < kThreadPages; ++i) {
    pages.home_page[i] = kNoPage;
    pages.tokens[i] = 0;
    pages.hot_page[i] = kNotResident;
  }
  pages.pair = thread / pair_threads;
  const int32_t in_pair = thread - pages.pair * pair_threads;
  pages.is_first = in_pair == 0;
  pages.is_last = in_pair == pair_threads - 1;
  pages.selection = static_cast<int32_t>(blockIdx.x) * launch.plan.cta_selections + pages.pair;
  pages.index = pages.selection * p.shape.max_wanted + in_pair * kThreadPages;
  if (pages.pair >= launch.plan.cta_selections ||
      pages.selection >= p.shape.num_rows * p.shape.num_selections) {
    pages.selection = -1;
    return pages;
  }
  // Read whether or not the count says that they are wanted: one way to memory instead of two.
  const int32_t count = p.wanted_counts[pages.selection];
  const Vec16 vectors[2] = {LoadStreaming(p.wanted + pages.index),
                            LoadStreaming(p.wanted + pages.index + 2)};
  WantedPage wanted[kThreadPages];
  std::memcpy(wanted, vectors, sizeof(vectors));
  const uint32_t page_mask = 0xffffffffu >> (32 - p.shape.page_tokens);
  for (int32_t i = 0; i < kThreadPages; ++i) {
    const int32_t page = wanted[i].home_page;
    if (in_pair * kThreadPages + i >= count) break;
    if (page < 0 || page >= p.shape.num_home_pages) continue;
    pages.home_page[i] = page;
    pages.tokens[i] = wanted[i].tokens & page_mask;
  }
  return pages;
}

// Looks up those pages that are not known to be resident.
__device__ inline void LookUp(const Residency& residency, ThreadPages& pages) {
  for (int32_t i = 0; i < kThreadPages; ++i) {
    if (pages.home_page[i] != kNoPage && pages.hot_page[i] < 0) {
      pages.hot_page[i] = residency.hot_of_home[pages.home_page[i]];
    }
  }
}

__device__ inline bool IsMissing(const ThreadPages& pages, int32_t i) {
  return pages.home_page[i] != kNoPage && pages.hot_page[i] < 0;
}

// Stamps what is resident, and makes the lowest index the owner of what is not.
__device__ inline void Mark(const ResolveParams& p, ThreadPages& pages) {
  LookUp(p.residency, pages);
  const int32_t step = *p.step;
  for (int32_t i = 0; i < kThreadPages; ++i) {
    if (pages.home_page[i] == kNoPage) continue;
    if (pages.hot_page[i] >= 0) {
      atomicMax(p.residency.stamps + pages.hot_page[i], step);
    } else {
      atomicMin(p.residency.hot_of_home + pages.home_page[i], kFirstOwner + pages.index + i);
    }
  }
}

// ------------------------------ claim

// Per thread: a group of hot pages, as the clock comes to them.
struct HotGroup {
  int32_t stamps[kClockGroup];
  int32_t home_pages[kClockGroup];
  int32_t first;  // hot page; -1: the clock is round
};

// The group that is `distance` groups behind the hand.
__device__ inline HotGroup LoadGroup(const ResolveParams& p, int32_t hand, int32_t distance) {
  HotGroup group;
  group.first = -1;
  const int32_t num_groups = p.shape.num_hot_pages / kClockGroup;
  if (distance >= num_groups) return group;
  int32_t i = hand / kClockGroup + distance;
  if (i >= num_groups) i -= num_groups;
  group.first = i * kClockGroup;
  const Vec16 stamps = Load(p.residency.stamps + group.first);
  const Vec16 home_pages = Load(p.residency.home_of_hot + group.first);
  std::memcpy(group.stamps, &stamps, sizeof(stamps));
  std::memcpy(group.home_pages, &home_pages, sizeof(home_pages));
  return group;
}

// What the claim has come to: the same in all threads.
struct ClaimState {
  int32_t hand;
  int32_t num_misses = 0, num_unplaced = 0;
};

// Per CTA: the next `wanted` victims behind the hand, into shared memory; returns how many there
// are. `ahead` is the thread's first group, whose loads run while the owners are counted.
__device__ inline int32_t FindVictims(const ResolveParams& p, int32_t hand, int32_t wanted,
                                      int32_t thread, HotGroup ahead, ResolveShared& shared) {
  const int32_t num_groups = p.shape.num_hot_pages / kClockGroup;
  const int32_t oldest_kept = *p.step - p.shape.keep_steps;
  int32_t found = 0;
  for (int32_t begin = 0; begin < num_groups && found < wanted; begin += kResolveThreads) {
    const HotGroup group = begin == 0 ? ahead : LoadGroup(p, hand, begin + thread);
    int32_t count = 0;
    for (int32_t i = 0; i < kClockGroup; ++i) {
      count += group.first >= 0 && group.stamps[i] < oldest_kept ? 1 : 0;
    }
    const BlockSum sum = SumOverBlockAndSync<kResolveWarps>(count, thread, shared.sum);
    int32_t rank = found + sum.below;
    for (int32_t i = 0; i < kClockGroup && count > 0; ++i) {
      if (group.stamps[i] >= oldest_kept) continue;
      if (rank < wanted) shared.victims[rank] = {group.first + i, group.home_pages[i]};
      ++rank;
    }
    found += sum.total;
  }
  __syncthreads();
  return found < wanted ? found : wanted;
}

// Puts a page in the place of a victim.
__device__ inline void Replace(const ResolveParams& p, const ResolveVictim& victim,
                               int32_t home_page, PagePair& miss) {
  const Residency& residency = p.residency;
  if (victim.home_page >= 0) residency.hot_of_home[victim.home_page] = kNotResident;
  residency.home_of_hot[victim.hot_page] = home_page;
  residency.stamps[victim.hot_page] = *p.step;
  // Other CTAs have been at this entry by atomics.
  atomicExch(residency.hot_of_home + home_page, victim.hot_page);
  miss = {home_page, victim.hot_page};
}

// Per CTA: claims hot pages for the threads' candidates, in the order of threads; kNoPage is none.
// An owner gets its page in `hot_pages` too, so that nobody waits to read it from the map.
__device__ inline void Claim(const ResolveParams& p,
                             const ResolveCandidate (&candidates)[kThreadPages], int32_t thread,
                             ResolveShared& shared, ClaimState& state,
                             int32_t (&hot_pages)[kThreadPages]) {
  const HotGroup ahead = LoadGroup(p, state.hand, thread);
  bool is_owner[kThreadPages];
  int32_t count = 0;
  for (int32_t i = 0; i < kThreadPages; ++i) {
    is_owner[i] =
        candidates[i].home_page != kNoPage &&
        p.residency.hot_of_home[candidates[i].home_page] == kFirstOwner + candidates[i].index;
    count += is_owner[i] ? 1 : 0;
  }
  const BlockSum owners = SumOverBlockAndSync<kResolveWarps>(count, thread, shared.sum);
  if (owners.total == 0) return;
  const int32_t found = FindVictims(p, state.hand, owners.total, thread, ahead, shared);
  int32_t rank = owners.below;
  for (int32_t i = 0; i < kThreadPages; ++i) {
    if (!is_owner[i]) continue;
    if (rank < found) {
      Replace(p, shared.victims[rank], candidates[i].home_page, p.misses[state.num_misses + rank]);
      hot_pages[i] = shared.victims[rank].hot_page;
    } else {
      atomicExch(p.residency.hot_of_home + candidates[i].home_page, kNotResident);
    }
    ++rank;
  }
  if (found > 0) state.hand = shared.victims[found - 1].hot_page / kClockGroup * kClockGroup;
  state.num_misses += found;
  state.num_unplaced += owners.total - found;
  __syncthreads();
}

__device__ inline void StoreState(const ResolveParams& p, int32_t thread, const ClaimState& state) {
  if (thread != 0) return;
  *p.residency.hand = state.hand;
  *p.num_misses = state.num_misses;
  if (state.num_unplaced > 0) *p.num_unplaced += state.num_unplaced;
}

// Per CTA: leaves its missing pages for the CTA that comes last, in their order.
__device__ inline void StoreCandidates(const ResolveLaunch& launch, int32_t thread,
                                       const ThreadPages& pages, ResolveShared& shared) {
  int32_t count = 0;
  for (int32_t i = 0; i < kThreadPages; ++i) count += IsMissing(pages, i) ? 1 : 0;
  const BlockSum sum = SumOverBlockAndSync<kResolveWarps>(count, thread, shared.sum);
  ResolveCandidate* to = launch.candidates + int64_t{blockIdx.x} * kResolveCtaPages + sum.below;
  for (int32_t i = 0; i < kThreadPages; ++i) {
    if (IsMissing(pages, i)) *to++ = {pages.index + i, pages.home_page[i]};
  }
  if (thread == 0) launch.candidate_counts[blockIdx.x] = sum.total;
}

// The k-th candidate of all CTAs, of which CTA i has those from shared.first[i] on.
__device__ inline ResolveCandidate LoadCandidate(const ResolveLaunch& launch, int32_t k,
                                                 const ResolveShared& shared) {
  int32_t cta = 0, end = launch.plan.num_ctas;
  while (end - cta > 1) {
    const int32_t middle = (cta + end) / 2;
    if (shared.first[middle] <= k) {
      cta = middle;
    } else {
      end = middle;
    }
  }
  return launch.candidates[int64_t{cta} * kResolveCtaPages + k - shared.first[cta]];
}

// Per CTA, the last: claims for all of them.
__device__ inline void ClaimForAll(const ResolveLaunch& launch, int32_t thread,
                                   ResolveShared& shared, ClaimState& state) {
  const int32_t count = thread < launch.plan.num_ctas ? launch.candidate_counts[thread] : 0;
  const BlockSum sum = SumOverBlockAndSync<kResolveWarps>(count, thread, shared.sum);
  shared.first[thread] = sum.below;
  __syncthreads();
  for (int32_t begin = 0; begin < sum.total; begin += kResolveCtaPages) {
    ResolveCandidate candidates[kThreadPages];
    int32_t hot_pages[kThreadPages];  // nobody's
    for (int32_t i = 0; i < kThreadPages; ++i) {
      const int32_t k = begin + thread * kThreadPages + i;
      candidates[i] = {0, kNoPage};
      if (k < sum.total) candidates[i] = LoadCandidate(launch, k, shared);
    }
    Claim(launch.params, candidates, thread, shared, state, hot_pages);
  }
}

// ------------------------------ slots

// The lowest `count` bits of `tokens`.
__device__ inline uint32_t KeepLowest(uint32_t tokens, int32_t count) {
  uint32_t kept = 0;
  for (; count > 0 && tokens != 0; --count) {
    kept |= tokens & (0u - tokens);
    tokens &= tokens - 1;
  }
  return kept;
}

// Per warp: writes the slots of one page of each lane, `tokens` of it from `to` on. So many lanes
// as a page has tokens write one page at a time, so that stores lie together.
__device__ inline void StorePageSlots(const ResolveParams& p, int32_t hot_page, uint32_t tokens,
                                      int32_t to, int32_t lane) {
  if (!__any_sync(kAllLanes, tokens != 0)) return;
  const int32_t shift = __ffs(p.shape.page_tokens) - 1;
  const int32_t token = lane & (p.shape.page_tokens - 1);
  for (int32_t first = 0; first < kWarpSize; first += kWarpSize >> shift) {
    const int32_t source = first + (lane >> shift);
    const int32_t page = __shfl_sync(kAllLanes, hot_page, source);
    const uint32_t taken = __shfl_sync(kAllLanes, tokens, source);
    const int32_t begin = __shfl_sync(kAllLanes, to, source);
    if ((taken >> token & 1) == 0) continue;
    p.slots[begin + __popc(taken & ((1u << token) - 1))] = (page << shift) + token;
  }
}

// Per CTA: writes the slots of its pages, which have been claimed.
__device__ inline void StoreSlots(const ResolveParams& p, int32_t thread, ThreadPages& pages,
                                  ResolveShared& shared) {
  LookUp(p.residency, pages);
  int32_t count = 0;
  for (int32_t i = 0; i < kThreadPages; ++i) {
    if (pages.hot_page[i] < 0) pages.tokens[i] = 0;
    count += __popc(pages.tokens[i]);
  }
  const BlockSum sum = SumOverBlockAndSync<kResolveWarps>(count, thread, shared.sum);
  if (pages.is_first) shared.first[pages.pair] = sum.below;
  __syncthreads();
  int32_t in_pair = sum.below - shared.first[pages.pair];
  for (int32_t i = 0; i < kThreadPages; ++i) {
    const int32_t room = p.shape.max_slots - in_pair;
    if (__popc(pages.tokens[i]) > room) pages.tokens[i] = KeepLowest(pages.tokens[i], room);
    StorePageSlots(p, pages.hot_page[i], pages.tokens[i],
                   pages.selection * p.shape.max_slots + in_pair, thread % kWarpSize);
    in_pair += __popc(pages.tokens[i]);
  }
  if (!pages.is_last || pages.selection < 0) return;
  p.slot_counts[pages.selection] = in_pair < p.shape.max_slots ? in_pair : p.shape.max_slots;
}

// ------------------------------ kernels

// grid = plan.num_ctas.
__global__ void __launch_bounds__(kResolveThreads)
    ResolveKernel(const __grid_constant__ ResolveLaunch launch) {
  WaitForPreviousKernel();
  const ResolveParams& p = launch.params;
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  ResolveShared& shared = SharedMemory<ResolveShared>();
  ClaimState state;
  state.hand = *p.residency.hand;
  ThreadPages pages = LoadWanted(launch, thread);
  Mark(p, pages);
  if (launch.plan.num_ctas == 1) {
    ResolveCandidate candidates[kThreadPages];
    for (int32_t i = 0; i < kThreadPages; ++i) {
      candidates[i] = {pages.index + i, IsMissing(pages, i) ? pages.home_page[i] : kNoPage};
    }
    __syncthreads();
    Claim(p, candidates, thread, shared, state, pages.hot_page);
    StoreState(p, thread, state);
    StoreSlots(p, thread, pages, shared);
    return;
  }
  StoreCandidates(launch, thread, pages, shared);
  const uint32_t num_ctas = static_cast<uint32_t>(launch.plan.num_ctas);
  if (!IsLastCta(launch.counter, num_ctas, thread, shared.is_last)) return;
  ClaimForAll(launch, thread, shared, state);
  StoreState(p, thread, state);
}

// grid = plan.num_ctas; after ResolveKernel where that had several.
__global__ void __launch_bounds__(kResolveThreads)
    ResolveSlotsKernel(const __grid_constant__ ResolveLaunch launch) {
  WaitForPreviousKernel();
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  ThreadPages pages = LoadWanted(launch, thread);
  StoreSlots(launch.params, thread, pages, SharedMemory<ResolveShared>());
}

inline LaunchShape ResolveLaunchShape(const ResolvePlan& plan) {
  LaunchShape shape;
  shape.grid_x = static_cast<uint32_t>(plan.num_ctas);
  shape.threads = kResolveThreads;
  shape.overlaps_previous = true;
  return shape;
}

// `workspace` holds ResolveCudaWorkspaceBytes.
inline ResolveLaunch MakeResolveLaunch(const ResolveParams& params, const ResolvePlan& plan,
                                       void* workspace) {
  std::byte* counts = static_cast<std::byte*>(workspace) + kResolveCounterBytes;
  std::byte* candidates = counts + ResolveCountsBytes(plan);
  return {params, plan, static_cast<uint32_t*>(workspace), reinterpret_cast<int32_t*>(counts),
          reinterpret_cast<ResolveCandidate*>(candidates)};
}

// Calls launch(kernel, shape) for the kernels that serve the plan, in their order, until one does
// not return `success`, and returns what the last did.
template <typename Result, typename Launch>
Result DispatchResolve(const ResolvePlan& plan, Result success, const Launch& launch) {
  const LaunchShape shape = ResolveLaunchShape(plan);
  const Result result = launch(&ResolveKernel, shape);
  if (result != success || plan.num_ctas == 1) return result;
  return launch(&ResolveSlotsKernel, shape);
}

}  // namespace semkv::cuda

#endif  // SEMKV_OPS_RESIDENCY_RESOLVE_KERNEL_CUH_
