// k-means over many independent problems at once: one per (KV head, segment). What the partitioner
// of clusters asks for (faiss_index/kmeans.h), whole: sorting out of points that cannot be
// clustered, first centroids, Lloyd's iterations, lone points, inverted lists.
//
// Per problem, over its *ordinary* points (finite, |x|^2 finite in float32 and above 1e-12; m of
// them, in their order), with k = min(num_lists, m):
//
//   first centroids  centroid c is ordinary point number f + draws[c] % (e - f), f = c m / k,
//                    e = (c + 1) m / k; without draws number f
//   assign           label = argmin over c of |x - c|^2 (lowest c of equals);
//                    cosine: argmax of cos(x, c)
//   move             each centroid to the mean of its members; cosine: to its direction. Lists
//                    without members restart, one after the other, lowest first, at the point that
//                    is farthest from its centroid (lowest point of equals) as moved and from those
//                    restarted before, unless all points are at centroids
//
// assign, then at most `iterations` times (move, assign); a problem ends when fewer than 0.1 % of
// its labels changed. So labels are the nearest of the centroids that come out, and the result is
// inverted lists: members sorted by label, ascending within a list.
//
// Last, the num_lone ordinary points that are farthest from their centroids (the lower of equals)
// leave their lists for one each: ClusterOptions::lone_share. Points within rounding of their
// centroids stay, |x - c|^2 <= 1e-8 |x|^2, so it may be fewer. Distances are those of the
// objective, of unit points with cosine. Centroids stay what they were.
//
// Source: Lloyd, IEEE Trans. Inf. Theory 28(2), 1982; assignment without a matrix of distances and
// the sorted update as in flash-kmeans (arXiv 2603.09229); cosine is ClusterKV, section III-B.

#ifndef SEMKV_OPS_CLUSTERING_KMEANS_H_
#define SEMKV_OPS_CLUSTERING_KMEANS_H_

#include <cstdint>

#include "semkv/types.h"

namespace semkv {

constexpr float kKMeansZeroNormSquared = 1e-12f;
constexpr float kKMeansRoundingSquared = 1e-8f;  // of a point's square: it is at its centroid
constexpr int32_t kKMeansMaxHeadDim = 256;
constexpr int32_t kKMeansMaxLists = 8192;
constexpr int32_t kKMeansMaxPoints = 1 << 20;
// Up to so many points, offsets and members are 16-bit numbers, as in ListsView.
constexpr int32_t kKMeansMaxNarrowPoints = 65535;

enum class KMeansMetric : int32_t {
  kCenteredL2 = 0,
  kCosine = 1,  // centroids are unit vectors
};

struct KMeansProblem {
  const void* points = nullptr;  // [num_points] rows of head_dim channels
  int64_t point_stride = 0;      // elements from row to row
  int32_t num_points = 0;        // 0 to max_points
  int32_t num_lists = 0;         // 1 to max_lists
  int32_t num_lone = 0;          // points that get a list each, 0 to max_lone
};

// Lists, and labels, which are their numbers: [0, num_lists) are those of the centroids. One that
// no point could be found for is empty, its centroid 0 (or where it was); so are lists from k on.
// [num_lists, num_lists + num_lone) hold the lone points, one each, in the points' order; those
// beyond the points found are empty. Then comes a list of the points that are zero, and one of
// those that are not finite. Arrays of problems are padded; what lies behind a problem's own
// numbers is left alone.
struct KMeansParams {
  int32_t num_problems = 0;
  int32_t head_dim = 0;
  DType dtype = DType::kFloat32;  // of the points
  KMeansMetric metric = KMeansMetric::kCenteredL2;
  int32_t iterations = 10;  // at most
  int32_t max_points = 0;   // of any problem; what the arrays below have room for
  int32_t max_lists = 0;
  int32_t max_lone = 0;
  const KMeansProblem* problems = nullptr;  // [num_problems]
  const uint64_t* draws = nullptr;          // [max_lists], of every problem; may be null
  uint16_t* labels = nullptr;               // out: [num_problems, max_points]
  void* offsets = nullptr;                  // out: [num_problems, KMeansMaxOffsets], uint16;
  void* members = nullptr;                  // out: [num_problems, max_points]  uint32 above 65,535
  float* centroids = nullptr;               // out: [num_problems, max_lists, head_dim]
  float* objectives = nullptr;              // out: [num_problems]: sum over ordinary points of the
                                            // squared distance to their centroid (of 2 - 2 cos),
                                            // before lone points leave
  int32_t* iterations_done = nullptr;       // out: [num_problems]
};

SEMKV_HOST_DEVICE constexpr bool KMeansIsNarrow(int32_t max_points) {
  return max_points <= kKMeansMaxNarrowPoints;
}

// Of one problem: where its lists begin, and where the last ends.
SEMKV_HOST_DEVICE constexpr int32_t KMeansMaxOffsets(const KMeansParams& params) {
  return params.max_lists + params.max_lone + 3;
}

// In plain loops, distances and sums in float64: the specification. All pointers are host pointers.
void KMeansReference(const KMeansParams& params);

}  // namespace semkv

#endif  // SEMKV_OPS_CLUSTERING_KMEANS_H_
