// k-means on the GPU, sort: labels to inverted lists, and whether the problem is done. Once more at
// the end where points have left their lists.
//
// A stable counting sort by one CTA per problem. Each warp has a stretch of the points and counts
// its labels in shared memory; sums over labels, and within a label over warps, say where each
// warp's points of each label go; then each warp puts its points there, 32 at a time in their
// order.

#ifndef SEMKV_OPS_CLUSTERING_KMEANS_SORT_KERNEL_CUH_
#define SEMKV_OPS_CLUSTERING_KMEANS_SORT_KERNEL_CUH_

#include <cstdint>

#include "csrc/ops/clustering/kmeans_task.cuh"
#include "csrc/ops/cuda/shared_memory.cuh"

namespace semkv::cuda {

struct SortShared {
  int32_t warp_sums[kKMeansMaxSortWarps];
  int32_t num_empty;
};

// The thread's CTA: its counters are [num_warps][num_labels] in dynamic shared memory.
struct SortCta {
  int32_t thread, warp, lane, num_threads, num_warps;
  int32_t num_labels;
  int32_t begin, end;  // points of the warp
  int32_t* counts;
};

// Per CTA: f(label, points of smaller labels, points of the label) of every label, by one thread.
template <typename F>
__device__ inline void ForEachLabel(const SortCta& cta, SortShared& shared, const F& f) {
  const int32_t each = CeilDiv(cta.num_labels, cta.num_threads);
  const int32_t first = cta.thread * each;
  const int32_t last = first + each < cta.num_labels ? first + each : cta.num_labels;
  const auto size_of = [&](int32_t label) {
    int32_t size = 0;
    for (int32_t w = 0; w < cta.num_warps; ++w) size += cta.counts[w * cta.num_labels + label];
    return size;
  };
  int32_t own = 0;
  for (int32_t label = first; label < last; ++label) own += size_of(label);
  int32_t sum = own;
  for (int32_t delta = 1; delta < kWarpSize; delta *= 2) {
    const int32_t below = __shfl_up_sync(kAllLanes, sum, delta);
    if (cta.lane >= delta) sum += below;
  }
  if (cta.lane == kWarpSize - 1) shared.warp_sums[cta.warp] = sum;
  __syncthreads();
  int32_t before = sum - own;
  for (int32_t w = 0; w < cta.warp; ++w) before += shared.warp_sums[w];
  for (int32_t label = first; label < last; ++label) {
    const int32_t size = size_of(label);
    f(label, before, size);
    before += size;
  }
}

// Per warp: the lanes of `lanes` whose label is this lane's.
__device__ inline uint32_t LanesWithLabel(uint32_t lanes, int32_t label, int32_t num_labels) {
  for (int32_t bit = 1; bit < num_labels; bit *= 2) {
    const bool is_set = (label & bit) != 0;
    const uint32_t set = __ballot_sync(kAllLanes, is_set);
    lanes &= is_set ? set : ~set;
  }
  return lanes;
}

// Per warp: puts its points at the places its counters name.
__device__ inline void PlacePoints(const KMeansTask& task, const SortCta& cta) {
  int32_t* next = cta.counts + cta.warp * cta.num_labels;
  const uint32_t lanes_below = (1u << cta.lane) - 1;
  const auto label_of = [&](int32_t point) {
    return point < cta.end ? static_cast<int32_t>(task.labels[point]) : 0;
  };
  int32_t ahead = label_of(cta.begin + cta.lane);
  for (int32_t first = cta.begin; first < cta.end; first += kWarpSize) {
    const int32_t point = first + cta.lane;
    const bool is_point = point < cta.end;
    const int32_t label = ahead;
    ahead = label_of(point + kWarpSize);
    const uint32_t points = __ballot_sync(kAllLanes, is_point);
    const uint32_t alike = LanesWithLabel(points, label, cta.num_labels);
    const int32_t place = is_point ? next[label] : 0;
    __syncwarp();
    if (is_point) {
      const int32_t rank = __popc(alike & lanes_below);
      StoreId(task, task.members, place + rank, point);
      if (rank == 0) next[label] = place + __popc(alike);
    }
    __syncwarp();
  }
}

// By one thread: what the assignment has done to the problem.
__device__ inline void FinishIteration(const KMeansLaunch& launch, int32_t problem,
                                       int32_t num_empty, KMeansState& state) {
  state.num_empty = num_empty;
  const bool is_settled = int64_t{state.changes} * 1000 < state.num_ordinary;
  state.is_done = state.num_ordinary == 0 || (launch.iteration > 0 && is_settled) ? 1 : 0;
  state.changes = 0;
  launch.op.iterations_done[problem] = launch.iteration;
}

// Per CTA: the lists of the task's labels, [0, num_labels). Returns, in thread 0, how many of the
// first num_used are empty.
__device__ inline int32_t SortByLabel(const KMeansTask& task, int32_t num_warps, int32_t num_labels,
                                      int32_t num_used) {
  SortShared& shared = SharedMemory<SortShared>();
  SortCta cta;
  cta.thread = static_cast<int32_t>(threadIdx.x);
  cta.warp = cta.thread / kWarpSize;
  cta.lane = cta.thread % kWarpSize;
  cta.num_warps = num_warps;
  cta.num_threads = cta.num_warps * kWarpSize;
  cta.num_labels = num_labels;
  cta.begin = static_cast<int32_t>(int64_t{task.num_points} * cta.warp / cta.num_warps);
  cta.end = static_cast<int32_t>(int64_t{task.num_points} * (cta.warp + 1) / cta.num_warps);
  cta.counts = reinterpret_cast<int32_t*>(DynamicSharedMemory());
  for (int32_t i = cta.thread; i < cta.num_warps * cta.num_labels; i += cta.num_threads) {
    cta.counts[i] = 0;
  }
  if (cta.thread == 0) shared.num_empty = 0;
  __syncthreads();
  int32_t* own = cta.counts + cta.warp * cta.num_labels;
  for (int32_t point = cta.begin + cta.lane; point < cta.end; point += kWarpSize) {
    atomicAdd(&own[task.labels[point]], 1);
  }
  __syncthreads();
  ForEachLabel(cta, shared, [&](int32_t label, int32_t before, int32_t size) {
    StoreId(task, task.offsets, label, before);
    if (label < num_used && size == 0) atomicAdd(&shared.num_empty, 1);
    for (int32_t w = 0; w < cta.num_warps; ++w) {
      int32_t& count = cta.counts[w * cta.num_labels + label];
      const int32_t size_of_warp = count;
      count = before;
      before += size_of_warp;
    }
  });
  __syncthreads();
  PlacePoints(task, cta);
  if (cta.thread == 0) StoreId(task, task.offsets, cta.num_labels, task.num_points);
  return shared.num_empty;
}

// grid = problems; plan.sort_warps warps.
__global__ void __launch_bounds__(kKMeansMaxSortWarps* kWarpSize)
    KMeansSortKernel(const __grid_constant__ KMeansLaunch launch) {
  const int32_t problem = static_cast<int32_t>(blockIdx.x);
  const KMeansTask task = GetKMeansTask(launch, problem);
  if (task.state->is_done != 0) return;
  const int32_t num_empty =
      SortByLabel(task, launch.plan.sort_warps, task.num_lists + 2, task.state->num_used);
  if (threadIdx.x == 0) FinishIteration(launch, problem, num_empty, *task.state);
}

// grid = problems; plan.lone_sort_warps warps. The labels are those of KMeansLoneKernel.
__global__ void __launch_bounds__(kKMeansMaxSortWarps* kWarpSize)
    KMeansLoneSortKernel(const __grid_constant__ KMeansLaunch launch) {
  const KMeansTask task = GetKMeansTask(launch, static_cast<int32_t>(blockIdx.x));
  if (task.num_lone == 0) return;
  SortByLabel(task, launch.plan.lone_sort_warps, task.num_lists + task.num_lone + 2, 0);
}

}  // namespace semkv::cuda

#endif  // SEMKV_OPS_CLUSTERING_KMEANS_SORT_KERNEL_CUH_
