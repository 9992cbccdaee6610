// k-means on the GPU, what comes before the first assignment: which points are ordinary, their
// mean, the first centroids.

#ifndef SEMKV_OPS_CLUSTERING_KMEANS_BEGIN_KERNEL_CUH_
#define SEMKV_OPS_CLUSTERING_KMEANS_BEGIN_KERNEL_CUH_

#include <cstdint>

#include "csrc/ops/clustering/kmeans_task.cuh"
#include "csrc/ops/cuda/shared_memory.cuh"

namespace semkv::cuda {

constexpr int32_t kBeginWarps = 8;
constexpr int32_t kBeginThreads = kBeginWarps * kWarpSize;

struct PointsShared {
  float sums[kBeginWarps][kKMeansMaxHeadDim];
  int32_t counts[kBeginWarps];
};

// Per warp: labels a point and returns whether it is ordinary, which then has label 0. Points so
// large that their squares overflow cannot be clustered, like those that are not finite.
__device__ inline bool LabelPoint(const KMeansTask& task, int32_t point, int32_t lane,
                                  const float (&x)[kKMeansUnit]) {
  const float squared = WarpDot(x, x);
  const bool is_finite = squared * 0.0f == 0.0f;
  const bool is_zero = squared <= kKMeansZeroNormSquared;
  if (lane == 0) {
    const int32_t label = is_zero ? task.num_lists : !is_finite ? task.num_lists + 1 : 0;
    task.labels[point] = static_cast<uint16_t>(label);
    task.inverse_norms[point] = InverseNorm(squared);
  }
  return is_finite && !is_zero;
}

// grid = (parts, problems); a CTA sums the ordinary points of a part, always in the same order.
template <DType kDType>
__global__ void __launch_bounds__(kBeginThreads)
    KMeansPointsKernel(const __grid_constant__ KMeansLaunch launch) {
  const int32_t problem = static_cast<int32_t>(blockIdx.y);
  const KMeansTask task = GetKMeansTask(launch, problem);
  const int32_t part = static_cast<int32_t>(blockIdx.x);
  const int32_t begin = part * kKMeansPartPoints;
  if (begin >= task.num_points) return;
  PointsShared& shared = SharedMemory<PointsShared>();
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t warp = thread / kWarpSize, lane = thread % kWarpSize;
  const int32_t channel = lane * kKMeansUnit;
  const int32_t end =
      begin + kKMeansPartPoints < task.num_points ? begin + kKMeansPartPoints : task.num_points;
  float sum[kKMeansUnit] = {};
  int32_t count = 0;
  for (int32_t point = begin + warp; point < end; point += kBeginWarps) {
    float x[kKMeansUnit];
    LoadPoint<kDType>(task, point, channel, x);
    if (!LabelPoint(task, point, lane, x)) continue;
    for (int32_t i = 0; i < kKMeansUnit; ++i) sum[i] += x[i];
    ++count;
  }
  StoreRow(shared.sums[warp], channel, sum);
  if (lane == 0) shared.counts[warp] = count;
  __syncthreads();
  const int64_t index = int64_t{problem} * launch.plan.max_parts + part;
  if (thread < task.head_dim) {
    float total = 0.0f;
    for (int32_t w = 0; w < kBeginWarps; ++w) total += shared.sums[w][thread];
    launch.workspace.part_sums[index * task.head_dim + thread] = total;
  }
  if (thread != 0) return;
  int32_t total = 0;
  for (int32_t w = 0; w < kBeginWarps; ++w) total += shared.counts[w];
  launch.workspace.part_counts[index] = total;
}

struct MeanShared {
  float mean[kKMeansMaxHeadDim];
};

// grid = problems; the center, and the problem's state.
__global__ void __launch_bounds__(kBeginThreads)
    KMeansMeanKernel(const __grid_constant__ KMeansLaunch launch) {
  const int32_t problem = static_cast<int32_t>(blockIdx.x);
  const KMeansTask task = GetKMeansTask(launch, problem);
  MeanShared& shared = SharedMemory<MeanShared>();
  const int32_t channel = static_cast<int32_t>(threadIdx.x);
  const int32_t parts = CeilDiv(task.num_points, kKMeansPartPoints);
  const int64_t first = int64_t{problem} * launch.plan.max_parts;
  const float* sums = launch.workspace.part_sums + first * task.head_dim;
  int32_t count = 0;
  float mean = 0.0f;
  for (int32_t part = 0; part < parts; ++part) {
    count += launch.workspace.part_counts[first + part];
    if (channel < task.head_dim) mean += sums[int64_t{part} * task.head_dim + channel];
  }
  mean = count > 0 ? mean / static_cast<float>(count) : 0.0f;
  shared.mean[channel] = mean;
  __syncthreads();
  if (task.metric == KMeansMetric::kCosine) {
    float squared = 0.0f;
    for (int32_t i = 0; i < task.head_dim; ++i) {
      squared = fmaf(shared.mean[i], shared.mean[i], squared);
    }
    mean *= InverseNorm(squared);
  }
  if (channel < task.head_dim) task.center[channel] = mean;
  if (channel != 0) return;
  KMeansState& state = *task.state;
  state.num_ordinary = count;
  state.num_used = task.num_lists < count ? task.num_lists : count;
  state.num_empty = 0;
  state.changes = 0;
  state.is_done = 0;
  launch.op.iterations_done[problem] = 0;
}

// Per warp: the ordinary point number `rank`, which there is. `counts` are those of the parts.
__device__ inline int32_t FindOrdinary(const KMeansTask& task, const int32_t* counts, int32_t rank,
                                       int32_t lane) {
  const int32_t parts = CeilDiv(task.num_points, kKMeansPartPoints);
  int32_t before = 0, part = 0;
  for (; part < parts; part += kWarpSize) {
    const int32_t count = part + lane < parts ? counts[part + lane] : 0;
    int32_t sum = count;  // of this lane's part and those of the lanes below
    for (int32_t delta = 1; delta < kWarpSize; delta *= 2) {
      const int32_t below = __shfl_up_sync(kAllLanes, sum, delta);
      if (lane >= delta) sum += below;
    }
    const uint32_t beyond = __ballot_sync(kAllLanes, before + sum > rank);
    if (beyond != 0) {
      const int32_t found = __ffs(static_cast<int>(beyond)) - 1;
      before += __shfl_sync(kAllLanes, sum - count, found);
      part += found;
      break;
    }
    before += __shfl_sync(kAllLanes, sum, kWarpSize - 1);
  }
  const uint32_t lanes_below = (1u << lane) - 1;
  for (int32_t point = part * kKMeansPartPoints; point < task.num_points; point += kWarpSize) {
    const bool is_ordinary =
        point + lane < task.num_points && task.labels[point + lane] < task.num_lists;
    const uint32_t ordinary = __ballot_sync(kAllLanes, is_ordinary);
    const int32_t place = before + __popc(ordinary & lanes_below);
    const uint32_t found = __ballot_sync(kAllLanes, is_ordinary && place == rank);
    if (found != 0) return point + __ffs(static_cast<int>(found)) - 1;
    before += __popc(ordinary);
  }
  return 0;  // only if something else writes the labels meanwhile; a kernel must not hang on that
}

// grid = (padded lists / warps, problems); a warp has a list.
template <DType kDType>
__global__ void __launch_bounds__(kBeginThreads)
    KMeansInitKernel(const __grid_constant__ KMeansLaunch launch) {
  const int32_t problem = static_cast<int32_t>(blockIdx.y);
  const KMeansTask task = GetKMeansTask(launch, problem);
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t lane = thread % kWarpSize, channel = lane * kKMeansUnit;
  const int32_t c = static_cast<int32_t>(blockIdx.x) * kBeginWarps + thread / kWarpSize;
  const int64_t num_used = task.state->num_used;
  if (c >= num_used) {
    const float zeros[kKMeansUnit] = {};
    if (c < task.num_lists && channel < task.head_dim) {
      StoreRow(task.centroids + int64_t{c} * task.head_dim, channel, zeros);
    }
    if (lane == 0) task.biases[c] = NegativeInfinity();
    return;
  }
  const int64_t num_ordinary = task.state->num_ordinary;
  const int64_t begin = c * num_ordinary / num_used, end = (c + 1) * num_ordinary / num_used;
  uint64_t rank = static_cast<uint64_t>(begin);
  if (launch.op.draws != nullptr) rank += launch.op.draws[c] % static_cast<uint64_t>(end - begin);
  const int32_t* counts = launch.workspace.part_counts + int64_t{problem} * launch.plan.max_parts;
  const int32_t point = FindOrdinary(task, counts, static_cast<int32_t>(rank), lane);
  float center[kKMeansUnit], x[kKMeansUnit];
  LoadRow(task, task.center, channel, center);
  LoadCentredPoint<kDType>(task, point, channel, center, x);
  WriteCentroid<kDType>(task, c, channel, center, x);
}

}  // namespace semkv::cuda

#endif  // SEMKV_OPS_CLUSTERING_KMEANS_BEGIN_KERNEL_CUH_
