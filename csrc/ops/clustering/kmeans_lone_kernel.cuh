// k-means on the GPU, lone points: the points farthest from their centroids leave their lists.
//
// One kernel measures, with a warp per point. Then one CTA per problem finds the distance of the
// last point that leaves, as a radix selection over the bits of the distances (floats that are not
// negative compare like their bits), and numbers the points that leave in their order.

#ifndef SEMKV_OPS_CLUSTERING_KMEANS_LONE_KERNEL_CUH_
#define SEMKV_OPS_CLUSTERING_KMEANS_LONE_KERNEL_CUH_

#include <cstdint>

#include "csrc/ops/clustering/kmeans_task.cuh"
#include "csrc/ops/cuda/block_scan.cuh"
#include "csrc/ops/cuda/shared_memory.cuh"

namespace semkv::cuda {

constexpr int32_t kDistancesWarps = 8;
constexpr int32_t kDistancesThreads = kDistancesWarps * kWarpSize;

// Per warp: the squared distance of an ordinary point to its centroid; 0 where it never leaves.
// Points as they are and not less the center: what the numbers hold exactly stays exact.
template <DType kDType>
__device__ inline float DistanceOffCentroid(const KMeansTask& task, int32_t point, int32_t label,
                                            int32_t channel) {
  const float inverse_norm = task.inverse_norms[point];
  const bool cosine = task.metric == KMeansMetric::kCosine;
  float x[kKMeansUnit], centroid[kKMeansUnit];
  LoadPoint<kDType>(task, point, channel, x);
  LoadRow(task, task.centroids + int64_t{label} * task.head_dim, channel, centroid);
  if (cosine) {
    for (int32_t i = 0; i < kKMeansUnit; ++i) x[i] *= inverse_norm;
  }
  const float distance = SquaredDistance(x, centroid);
  const float of_square = cosine ? distance : distance * inverse_norm * inverse_norm;
  return of_square > kKMeansRoundingSquared ? distance : 0.0f;
}

// grid = (parts, problems); task.distances of a part's points, 0 of those that are not ordinary.
template <DType kDType>
__global__ void __launch_bounds__(kDistancesThreads)
    KMeansDistancesKernel(const __grid_constant__ KMeansLaunch launch) {
  const KMeansTask task = GetKMeansTask(launch, static_cast<int32_t>(blockIdx.y));
  const int32_t begin = static_cast<int32_t>(blockIdx.x) * kKMeansPartPoints;
  if (task.num_lone == 0 || begin >= task.num_points) return;
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t lane = thread % kWarpSize;
  const int32_t end =
      begin + kKMeansPartPoints < task.num_points ? begin + kKMeansPartPoints : task.num_points;
  for (int32_t point = begin + thread / kWarpSize; point < end; point += kDistancesWarps) {
    const int32_t label = task.labels[point];
    float distance = 0.0f;
    if (label < task.num_lists) {
      distance = DistanceOffCentroid<kDType>(task, point, label, lane * kKMeansUnit);
    }
    if (lane == 0) task.distances[point] = distance;
  }
}

constexpr int32_t kLoneWarps = 32;
constexpr int32_t kLoneThreads = kLoneWarps * kWarpSize;
constexpr int32_t kLoneBits = 11;  // of a distance, in one pass over them
constexpr int32_t kLoneBins = 1 << kLoneBits;
static_assert(kLoneBins == 2 * kLoneThreads);

// Points leave whose distance has greater bits, and the first num_equal of those that have these.
struct LoneCut {
  uint32_t bits;
  int32_t num_equal;
};

struct LoneShared {
  int32_t bins[kLoneBins];
  BlockScratch scratch;
  LoneCut cut;
  int32_t num_farther[kLoneWarps], num_equal[kLoneWarps];  // of a warp's points
};

// Per CTA: finds bits [shift, above) of the cut, whose higher bits are there, by counting the
// distances that share those. Before, num_equal is how many of these leave.
__device__ inline void NarrowCut(const KMeansTask& task, int32_t above, int32_t shift,
                                 LoneShared& shared) {
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const LoneCut cut = shared.cut;
  for (int32_t bin = thread; bin < kLoneBins; bin += kLoneThreads) shared.bins[bin] = 0;
  __syncthreads();
  for (int32_t point = thread; point < task.num_points; point += kLoneThreads) {
    const uint32_t bits = FloatBits(task.distances[point]);
    if (bits == 0 || bits >> above != cut.bits >> above) continue;
    atomicAdd(&shared.bins[(bits >> shift) % kLoneBins], 1);
  }
  __syncthreads();
  // Two bins of each thread, the greatest distances in the first thread's.
  const int32_t upper_bin = kLoneBins - 1 - 2 * thread;
  const int32_t upper = shared.bins[upper_bin], own = upper + shared.bins[upper_bin - 1];
  const BlockSum sum = SumOverBlock<kLoneWarps>(own, thread, shared.scratch);
  const int32_t wanted = cut.num_equal - sum.below;  // of this thread's and nearer ones
  if (0 < wanted && wanted <= own) {
    const bool is_upper = wanted <= upper;
    const int32_t bin = is_upper ? upper_bin : upper_bin - 1;
    shared.cut.bits = cut.bits | static_cast<uint32_t>(bin) << shift;
    shared.cut.num_equal = is_upper ? wanted : wanted - upper;
  }
  // Fewer than may leave: then all do that have a distance.
  if (thread == 0 && sum.total < cut.num_equal) shared.cut = LoneCut{0, 0};
  __syncthreads();
}

// Per warp: counts its points, [begin, end), beyond the cut and at it.
__device__ inline void CountBeyondCut(const KMeansTask& task, int32_t begin, int32_t end,
                                      LoneShared& shared) {
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t warp = thread / kWarpSize, lane = thread % kWarpSize;
  const LoneCut cut = shared.cut;
  int32_t num_farther = 0, num_equal = 0;
  for (int32_t point = begin + lane; point < end; point += kWarpSize) {
    const uint32_t bits = FloatBits(task.distances[point]);
    num_farther += bits > cut.bits ? 1 : 0;
    num_equal += bits == cut.bits ? 1 : 0;
  }
  num_farther = WarpSum(num_farther);
  num_equal = WarpSum(num_equal);
  if (lane != 0) return;
  shared.num_farther[warp] = num_farther;
  shared.num_equal[warp] = num_equal;
}

// Per warp: final labels of its points, [begin, end). Of the points before them, `equal` are at the
// cut and `lone` leave.
__device__ inline void LabelLonePoints(const KMeansTask& task, const LoneCut& cut, int32_t begin,
                                       int32_t end, int32_t equal, int32_t lone) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % kWarpSize;
  const uint32_t lanes_below = (1u << lane) - 1;
  for (int32_t first = begin; first < end; first += kWarpSize) {
    const int32_t point = first + lane;
    const bool is_point = point < end;
    const uint32_t bits = is_point ? FloatBits(task.distances[point]) : 0;
    const int32_t label = is_point ? task.labels[point] : 0;
    const uint32_t equals = __ballot_sync(kAllLanes, bits == cut.bits);
    const bool is_first = bits == cut.bits && equal + __popc(equals & lanes_below) < cut.num_equal;
    const bool leaves = bits > cut.bits || is_first;
    const uint32_t leaving = __ballot_sync(kAllLanes, leaves);
    if (leaves) {
      const int32_t list = task.num_lists + lone + __popc(leaving & lanes_below);
      task.labels[point] = static_cast<uint16_t>(list);
    } else if (label >= task.num_lists) {
      task.labels[point] = static_cast<uint16_t>(label + task.num_lone);
    }
    equal += __popc(equals);
    lone += __popc(leaving);
  }
}

// grid = problems.
__global__ void __launch_bounds__(kLoneThreads)
    KMeansLoneKernel(const __grid_constant__ KMeansLaunch launch) {
  const KMeansTask task = GetKMeansTask(launch, static_cast<int32_t>(blockIdx.x));
  if (task.num_lone == 0) return;
  LoneShared& shared = SharedMemory<LoneShared>();
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t warp = thread / kWarpSize;
  if (thread == 0) shared.cut = LoneCut{0, task.num_lone};
  __syncthreads();
  for (int32_t above = 31; above > 0;) {  // the sign is 0
    const int32_t shift = above > kLoneBits ? above - kLoneBits : 0;
    NarrowCut(task, above, shift, shared);
    above = shift;
  }
  const int32_t begin = static_cast<int32_t>(int64_t{task.num_points} * warp / kLoneWarps);
  const int32_t end = static_cast<int32_t>(int64_t{task.num_points} * (warp + 1) / kLoneWarps);
  CountBeyondCut(task, begin, end, shared);
  __syncthreads();
  const LoneCut cut = shared.cut;
  int32_t farther = 0, equal = 0;  // points of the warps before
  for (int32_t w = 0; w < warp; ++w) {
    farther += shared.num_farther[w];
    equal += shared.num_equal[w];
  }
  const int32_t lone = farther + (equal < cut.num_equal ? equal : cut.num_equal);
  LabelLonePoints(task, cut, begin, end, equal, lone);
}

}  // namespace semkv::cuda

#endif  // SEMKV_OPS_CLUSTERING_KMEANS_LONE_KERNEL_CUH_
