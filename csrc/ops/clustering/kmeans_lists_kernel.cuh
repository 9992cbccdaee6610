// k-means on the GPU, what walks the lists: moving centroids, restarting lists without members, and
// the objective.

#ifndef SEMKV_OPS_CLUSTERING_KMEANS_LISTS_KERNEL_CUH_
#define SEMKV_OPS_CLUSTERING_KMEANS_LISTS_KERNEL_CUH_

#include <cstdint>

#include "csrc/ops/clustering/kmeans_task.cuh"
#include "csrc/ops/cuda/shared_memory.cuh"

namespace semkv::cuda {

constexpr int32_t kListsWarps = 4;
constexpr int32_t kListsThreads = kListsWarps * kWarpSize;
constexpr int32_t kListsAhead = 4;     // rows that a lane has in flight
constexpr int32_t kListsBlock = 32;    // rows of a lane whose sum joins the total as one number
constexpr int32_t kMaxRowsAtOnce = 4;  // of a warp

struct ListsShared {
  // What each group of lanes has summed, [warp][row of the warp][channel].
  float sums[kListsWarps][kMaxRowsAtOnce * 64];
  float objectives[kListsWarps];
};
static_assert(kMaxRowsAtOnce * 64 == kWarpSize * kKMeansUnit);

// A lane's part in reading a list: a warp reads as many rows at once as it has lanes for.
struct ListsLane {
  int32_t lanes_of_row, rows_of_warp;
  int32_t row, channel;
  bool is_idle;

  __device__ ListsLane(int32_t head_dim, int32_t lane)
      : lanes_of_row(head_dim / kKMeansUnit), rows_of_warp(kWarpSize / lanes_of_row) {
    row = lane / lanes_of_row;
    channel = lane % lanes_of_row * kKMeansUnit;
    is_idle = row >= rows_of_warp;
  }
};

// Per lane: f(point, x) of its rows of places [begin, end) of the sorted points, in their order.
template <DType kDType, typename F>
__device__ inline void ForEachMember(const KMeansTask& task, const ListsLane& lane, int32_t warp,
                                     int32_t begin, int32_t end, const F& f) {
  const int32_t step = kListsWarps * lane.rows_of_warp;
  if (lane.is_idle) return;
  for (int32_t place = begin + warp * lane.rows_of_warp + lane.row; place < end;
       place += kListsAhead * step) {
    Vec16 units[kListsAhead];
    int32_t points[kListsAhead];
    for (int32_t a = 0; a < kListsAhead; ++a) {
      const int32_t at = place + a * step;
      points[a] = at < end ? LoadId(task, task.members, at) : -1;
    }
    for (int32_t a = 0; a < kListsAhead; ++a) {
      if (points[a] < 0) continue;
      units[a] = LoadStreaming(task.points + points[a] * task.stride + lane.channel);
    }
    for (int32_t a = 0; a < kListsAhead; ++a) {
      if (points[a] < 0) continue;
      float x[kKMeansUnit];
      UnpackUnit<kDType>(units[a], x);
      f(points[a], x);
    }
  }
}

// grid = (max_lists, problems); moves one centroid to the mean of its members. Points have 8 or 11
// digits of the 24 of their sums: a block's sum is as a rule exact, whatever offset a channel has.
template <DType kDType>
__global__ void __launch_bounds__(kListsThreads)
    KMeansMoveKernel(const __grid_constant__ KMeansLaunch launch) {
  const KMeansTask task = GetKMeansTask(launch, static_cast<int32_t>(blockIdx.y));
  const int32_t list = static_cast<int32_t>(blockIdx.x);
  if (list >= task.num_lists || task.state->is_done != 0) return;
  const int32_t begin = LoadId(task, task.offsets, list);
  const int32_t end = LoadId(task, task.offsets, list + 1);
  if (begin == end) return;
  ListsShared& shared = SharedMemory<ListsShared>();
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t warp = thread / kWarpSize;
  const ListsLane lane(task.head_dim, thread % kWarpSize);
  float total[kKMeansUnit] = {}, block[kKMeansUnit] = {};
  int32_t in_block = 0;
  ForEachMember<kDType>(task, lane, warp, begin, end, [&](int32_t, const float(&x)[kKMeansUnit]) {
    for (int32_t i = 0; i < kKMeansUnit; ++i) block[i] += x[i];
    if (++in_block < kListsBlock) return;
    in_block = 0;
    for (int32_t i = 0; i < kKMeansUnit; ++i) {
      total[i] += block[i];
      block[i] = 0.0f;
    }
  });
  for (int32_t i = 0; i < kKMeansUnit; ++i) total[i] += block[i];
  if (!lane.is_idle) {
    StoreRow(shared.sums[warp] + lane.row * task.head_dim, lane.channel, total);
  }
  __syncthreads();
  if (warp != 0) return;
  const int32_t channel = thread * kKMeansUnit;
  float center[kKMeansUnit];
  LoadRow(task, task.center, channel, center);
  float mean[kKMeansUnit] = {};
  for (int32_t w = 0; w < kListsWarps; ++w) {
    for (int32_t row = 0; row < lane.rows_of_warp; ++row) {
      float x[kKMeansUnit];
      LoadRow(task, shared.sums[w] + row * task.head_dim, channel, x);
      for (int32_t i = 0; i < kKMeansUnit; ++i) mean[i] += x[i];
    }
  }
  const float scale = 1.0f / static_cast<float>(end - begin);
  const bool cosine = task.metric == KMeansMetric::kCosine;
  for (int32_t i = 0; i < kKMeansUnit; ++i) mean[i] = mean[i] * scale - (cosine ? 0.0f : center[i]);
  WriteCentroid<kDType>(task, list, channel, center, mean);
}

// grid = (max_lists, problems); a list's part of the objective.
template <DType kDType>
__global__ void __launch_bounds__(kListsThreads)
    KMeansMeasureKernel(const __grid_constant__ KMeansLaunch launch) {
  const int32_t problem = static_cast<int32_t>(blockIdx.y);
  const KMeansTask task = GetKMeansTask(launch, problem);
  const int32_t list = static_cast<int32_t>(blockIdx.x);
  if (list >= task.num_lists) return;
  ListsShared& shared = SharedMemory<ListsShared>();
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t warp = thread / kWarpSize;
  const ListsLane lane(task.head_dim, thread % kWarpSize);
  const bool cosine = task.metric == KMeansMetric::kCosine;
  float centroid[kKMeansUnit];
  LoadRow(task, task.centroids + int64_t{list} * task.head_dim, lane.channel, centroid);
  float sum = 0.0f;
  ForEachMember<kDType>(task, lane, warp, LoadId(task, task.offsets, list),
                        LoadId(task, task.offsets, list + 1),
                        [&](int32_t point, const float(&x)[kKMeansUnit]) {
                          float part = 0.0f;
                          for (int32_t i = 0; i < kKMeansUnit; ++i) {
                            const float y = cosine ? centroid[i] : x[i] - centroid[i];
                            part = fmaf(cosine ? x[i] : y, y, part);
                          }
                          if (cosine) {
                            part *= -2.0f * task.inverse_norms[point];
                            if (lane.channel == 0) part += 2.0f;
                          }
                          sum += part;
                        });
  sum = WarpSum(sum);
  if (thread % kWarpSize == 0) shared.objectives[warp] = sum;
  __syncthreads();
  if (thread != 0) return;
  float total = 0.0f;
  for (int32_t w = 0; w < kListsWarps; ++w) total += shared.objectives[w];
  launch.workspace.list_objectives[int64_t{problem} * launch.op.max_lists + list] = total;
}

// grid = problems; one warp.
__global__ void __launch_bounds__(kWarpSize)
    KMeansObjectiveKernel(const __grid_constant__ KMeansLaunch launch) {
  const int32_t problem = static_cast<int32_t>(blockIdx.x);
  const int32_t lane = static_cast<int32_t>(threadIdx.x);
  const int32_t num_lists = launch.op.problems[problem].num_lists;
  const float* parts = launch.workspace.list_objectives + int64_t{problem} * launch.op.max_lists;
  float sum = 0.0f;
  for (int32_t list = lane; list < num_lists; list += kWarpSize) sum += parts[list];
  sum = WarpSum(sum);
  if (lane == 0) launch.op.objectives[problem] = sum;
}

// ------------------------------ lists without members

constexpr int32_t kRestartWarps = 16;
constexpr int32_t kRestartThreads = kRestartWarps * kWarpSize;

struct RestartShared {
  float distance[kRestartWarps];
  int32_t point[kRestartWarps];
  float square_norm[kRestartWarps];  // greatest of the warp's points
};

// The farthest point that a warp or CTA has seen; the lowest of equals.
struct Farthest {
  float distance;
  int32_t point;

  __device__ void Add(float other_distance, int32_t other_point) {
    if (other_distance < distance) return;
    if (other_distance == distance && other_point > point) return;
    distance = other_distance;
    point = other_point;
  }
};

// Per CTA: joins what its warps have found.
__device__ inline Farthest JoinWarps(const Farthest& mine, int32_t warp, int32_t lane,
                                     RestartShared& shared) {
  __syncthreads();
  if (lane == 0) {
    shared.distance[warp] = mine.distance;
    shared.point[warp] = mine.point;
  }
  __syncthreads();
  Farthest all = {shared.distance[0], shared.point[0]};
  for (int32_t w = 1; w < kRestartWarps; ++w) all.Add(shared.distance[w], shared.point[w]);
  return all;
}

// Per warp: distances of its ordinary points to their centroids as moved.
template <DType kDType>
__device__ inline Farthest MeasurePoints(const KMeansTask& task, int32_t warp, int32_t lane,
                                         const float (&center)[kKMeansUnit],
                                         RestartShared& shared) {
  const int32_t channel = lane * kKMeansUnit;
  const bool cosine = task.metric == KMeansMetric::kCosine;
  Farthest farthest = {-1.0f, task.num_points};
  float greatest = 0.0f;
  for (int32_t point = warp; point < task.num_points; point += kRestartWarps) {
    const int32_t label = task.labels[point];
    if (label >= task.num_lists) continue;
    float x[kKMeansUnit], centroid[kKMeansUnit];
    LoadCentredPoint<kDType>(task, point, channel, center, x);
    LoadRow(task, task.centroids + int64_t{label} * task.head_dim, channel, centroid);
    for (int32_t i = 0; i < kKMeansUnit; ++i) centroid[i] -= cosine ? 0.0f : center[i];
    greatest = fmaxf(greatest, WarpDot(x, x));
    const float distance = SquaredDistance(x, centroid);
    if (lane == 0) task.distances[point] = distance;
    farthest.Add(distance, point);
  }
  if (lane == 0) shared.square_norm[warp] = greatest;
  return farthest;
}

// Per warp: takes into account that there is a centroid at y.
template <DType kDType>
__device__ inline Farthest AddCentroid(const KMeansTask& task, int32_t warp, int32_t lane,
                                       const float (&center)[kKMeansUnit],
                                       const float (&y)[kKMeansUnit]) {
  Farthest farthest = {-1.0f, task.num_points};
  for (int32_t point = warp; point < task.num_points; point += kRestartWarps) {
    if (task.labels[point] >= task.num_lists) continue;
    float x[kKMeansUnit];
    LoadCentredPoint<kDType>(task, point, lane * kKMeansUnit, center, x);
    float distance = SquaredDistance(x, y);
    if (lane == 0) {
      distance = fminf(distance, task.distances[point]);
      task.distances[point] = distance;
    }
    farthest.Add(__shfl_sync(kAllLanes, distance, 0), point);
  }
  return farthest;
}

// grid = problems; for the few that have lists without members.
template <DType kDType>
__global__ void __launch_bounds__(kRestartThreads)
    KMeansRestartKernel(const __grid_constant__ KMeansLaunch launch) {
  const KMeansTask task = GetKMeansTask(launch, static_cast<int32_t>(blockIdx.x));
  if (task.state->is_done != 0 || task.state->num_empty == 0) return;
  RestartShared& shared = SharedMemory<RestartShared>();
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t warp = thread / kWarpSize, lane = thread % kWarpSize;
  const int32_t channel = lane * kKMeansUnit;
  float center[kKMeansUnit];
  LoadRow(task, task.center, channel, center);
  Farthest farthest = MeasurePoints<kDType>(task, warp, lane, center, shared);
  farthest = JoinWarps(farthest, warp, lane, shared);
  float greatest = 0.0f;
  for (int32_t w = 0; w < kRestartWarps; ++w) greatest = fmaxf(greatest, shared.square_norm[w]);
  // What roundings of float32 make of a squared distance of 0 (faiss_index/kmeans.cc).
  const float slack = 8.0f * 6e-8f * sqrtf(static_cast<float>(task.head_dim)) * greatest;
  const int32_t num_used = task.state->num_used;
  for (int32_t list = 0; list < num_used; ++list) {
    if (LoadId(task, task.offsets, list) != LoadId(task, task.offsets, list + 1)) continue;
    if (!(farthest.distance > slack)) return;
    float y[kKMeansUnit], row[kKMeansUnit];
    LoadCentredPoint<kDType>(task, farthest.point, channel, center, y);
    for (int32_t i = 0; i < kKMeansUnit; ++i) row[i] = y[i];
    if (warp == 0) WriteCentroid<kDType>(task, list, channel, center, row);
    farthest = JoinWarps(AddCentroid<kDType>(task, warp, lane, center, y), warp, lane, shared);
  }
}

}  // namespace semkv::cuda

#endif  // SEMKV_OPS_CLUSTERING_KMEANS_LISTS_KERNEL_CUH_
