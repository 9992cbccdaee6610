// What the kernels of k-means share: their argument, a CTA's problem, points and centroids in a
// warp's registers. A row of points is read by one access of 16 bytes of each of head_dim / 8
// lanes; `channel` is the first of a lane's 8, and lanes at or beyond head_dim hold zeros.

#ifndef SEMKV_OPS_CLUSTERING_KMEANS_TASK_CUH_
#define SEMKV_OPS_CLUSTERING_KMEANS_TASK_CUH_

#include <cstdint>

#include "csrc/ops/clustering/kmeans.h"
#include "csrc/ops/clustering/kmeans_plan.h"
#include "csrc/ops/cuda/element.cuh"
#include "csrc/ops/cuda/launch_shape.h"
#include "csrc/ops/cuda/mma.cuh"
#include "csrc/ops/cuda/vector_access.cuh"
#include "csrc/ops/cuda/warp_reduce.cuh"

namespace semkv::cuda {

constexpr int32_t kKMeansUnit = 8;  // elements of 16 bytes

// The argument of every kernel.
struct KMeansLaunch {
  KMeansParams op;
  KMeansPlan plan;
  KMeansWorkspace workspace;
  int32_t iteration = 0;  // 0: the assignment to the first centroids
};

// One problem, with pointers to its own part of every array.
struct KMeansTask {
  const uint16_t* points;
  int64_t stride;
  int32_t num_points, num_lists, num_lone, head_dim;
  KMeansMetric metric;
  bool is_narrow;
  KMeansState* state;
  uint16_t* labels;  // num_lists and the next: zero, not finite; behind the lone ones at the end
  void* offsets;
  void* members;
  float* centroids;
  float* center;
  float* inverse_norms;
  float* distances;
  uint16_t* rows;
  float* biases;
};

__device__ inline float NegativeInfinity() { return FloatFromBits(0xff800000u); }

__device__ inline KMeansTask GetKMeansTask(const KMeansLaunch& launch, int32_t problem) {
  const KMeansParams& p = launch.op;
  const KMeansPlan& plan = launch.plan;
  const KMeansWorkspace& w = launch.workspace;
  const int64_t i = problem;
  KMeansTask task;
  task.points = static_cast<const uint16_t*>(p.problems[i].points);
  task.stride = p.problems[i].point_stride;
  task.num_points = p.problems[i].num_points;
  task.num_lists = p.problems[i].num_lists;
  task.num_lone = p.problems[i].num_lone;
  task.head_dim = p.head_dim;
  task.metric = p.metric;
  task.is_narrow = KMeansIsNarrow(p.max_points);
  task.state = w.states + i;
  task.labels = p.labels + i * p.max_points;
  const int64_t size = task.is_narrow ? sizeof(uint16_t) : sizeof(uint32_t);
  task.offsets = static_cast<std::byte*>(p.offsets) + i * KMeansMaxOffsets(p) * size;
  task.members = static_cast<std::byte*>(p.members) + i * p.max_points * size;
  task.centroids = p.centroids + i * p.max_lists * p.head_dim;
  task.center = w.centers + i * p.head_dim;
  task.inverse_norms = w.inverse_norms + i * p.max_points;
  task.distances = w.distances + i * p.max_points;
  task.rows = w.rows + i * plan.padded_lists * KMeansRowChannels(p.head_dim);
  task.biases = w.biases + i * plan.padded_lists;
  return task;
}

// Of `offsets` and `members`.
__device__ inline int32_t LoadId(const KMeansTask& task, const void* ids, int32_t i) {
  if (task.is_narrow) return static_cast<const uint16_t*>(ids)[i];
  return static_cast<int32_t>(static_cast<const uint32_t*>(ids)[i]);
}

__device__ inline void StoreId(const KMeansTask& task, void* ids, int32_t i, int32_t id) {
  if (task.is_narrow) {
    static_cast<uint16_t*>(ids)[i] = static_cast<uint16_t>(id);
  } else {
    static_cast<uint32_t*>(ids)[i] = static_cast<uint32_t>(id);
  }
}

template <DType kDType>
__device__ inline void UnpackUnit(const Vec16& unit, float (&x)[kKMeansUnit]) {
  for (int32_t i = 0; i < kKMeansUnit; ++i) {
    x[i] = FloatFromElement<kDType>(static_cast<uint16_t>(unit.words[i / 2] >> (16 * (i % 2))));
  }
}

template <DType kDType>
__device__ inline void LoadPoint(const KMeansTask& task, int32_t point, int32_t channel,
                                 float (&x)[kKMeansUnit]) {
  Vec16 unit = {};
  if (channel < task.head_dim) {
    unit = LoadStreaming(task.points + point * task.stride + channel);
  }
  UnpackUnit<kDType>(unit, x);
}

// Of a row of head_dim floats: the lane's channels.
__device__ inline void LoadRow(const KMeansTask& task, const float* row, int32_t channel,
                               float (&x)[kKMeansUnit]) {
  for (int32_t i = 0; i < kKMeansUnit; i += 4) {
    Vec16 unit = {};
    if (channel < task.head_dim) unit = Load(row + channel + i);
    for (int32_t j = 0; j < 4; ++j) x[i + j] = FloatFromBits(unit.words[j]);
  }
}

__device__ inline void StoreRow(float* row, int32_t channel, const float (&x)[kKMeansUnit]) {
  for (int32_t i = 0; i < kKMeansUnit; i += 4) {
    Vec16 unit;
    for (int32_t j = 0; j < 4; ++j) unit.words[j] = FloatBits(x[i + j]);
    Store(row + channel + i, unit);
  }
}

// Per warp.
__device__ inline float WarpDot(const float (&x)[kKMeansUnit], const float (&y)[kKMeansUnit]) {
  float sum = 0.0f;
  for (int32_t i = 0; i < kKMeansUnit; ++i) sum = fmaf(x[i], y[i], sum);
  return WarpSum(sum);
}

// Per warp: |x - y|^2.
__device__ inline float SquaredDistance(const float (&x)[kKMeansUnit],
                                        const float (&y)[kKMeansUnit]) {
  float difference[kKMeansUnit];
  for (int32_t i = 0; i < kKMeansUnit; ++i) difference[i] = x[i] - y[i];
  return WarpDot(difference, difference);
}

__device__ inline float InverseNorm(float squared) {
  return 1.0f / sqrtf(fmaxf(squared, kKMeansZeroNormSquared));
}

// Per warp: what a point is to the mean of a list: its distance from the center (cosine: itself,
// and of unit length where the host's is).
template <DType kDType>
__device__ inline void LoadCentredPoint(const KMeansTask& task, int32_t point, int32_t channel,
                                        const float (&center)[kKMeansUnit],
                                        float (&x)[kKMeansUnit]) {
  LoadPoint<kDType>(task, point, channel, x);
  const bool cosine = task.metric == KMeansMetric::kCosine;
  const float scale = cosine ? task.inverse_norms[point] : 1.0f;
  for (int32_t i = 0; i < kKMeansUnit; ++i) x[i] = cosine ? x[i] * scale : x[i] - center[i];
}

// Rounded to the points' dtype, in which they are multiplied; float16 has no room for the distance
// of its two largest numbers.
template <DType kDType>
__device__ inline float RoundToPoints(float x) {
  constexpr float kMax = kDType == DType::kFloat16 ? 65504.0f : 3.3895e38f;
  return FloatFromElement<kDType>(ElementFromFloat<kDType>(fminf(fmaxf(x, -kMax), kMax)));
}

// Per warp: makes `x` (of a lane's channels) the c-th centroid: x is the mean's distance from the
// center, with cosine a vector of its direction.
//
// Assignment multiplies points as they are with row = round(centroid - center). It adds a bias such
// that the score is, but for a number that all centroids of a point share, that of the centroid
// center + row: only centroids are rounded, and none of the center's size is lost.
template <DType kDType>
__device__ inline void WriteCentroid(const KMeansTask& task, int32_t c, int32_t channel,
                                     const float (&center)[kKMeansUnit], float (&x)[kKMeansUnit]) {
  const bool cosine = task.metric == KMeansMetric::kCosine;
  float centroid[kKMeansUnit];
  const float scale = cosine ? InverseNorm(WarpDot(x, x)) : 1.0f;
  float bias = 0.0f;
  Vec16 row;
  for (int32_t i = 0; i < kKMeansUnit; i += 2) {
    float pair[2];
    for (int32_t j = 0; j < 2; ++j) {
      const float unit = x[i + j] * scale;
      centroid[i + j] = cosine ? unit : center[i + j] + unit;
      pair[j] = RoundToPoints<kDType>(cosine ? unit - center[i + j] : unit);
      bias -= pair[j] * fmaf(0.5f, pair[j], center[i + j]);
    }
    row.words[i / 2] = PackPair<kDType>(pair[0], pair[1]);
  }
  bias = WarpSum(bias);
  if (channel < task.head_dim) {
    StoreRow(task.centroids + int64_t{c} * task.head_dim, channel, centroid);
  }
  const int32_t width = KMeansRowChannels(task.head_dim);
  if (channel < width) Store(task.rows + int64_t{c} * width + channel, row);
  if (channel == 0) task.biases[c] = cosine ? 0.0f : bias;
}

}  // namespace semkv::cuda

#endif  // SEMKV_OPS_CLUSTERING_KMEANS_TASK_CUH_
