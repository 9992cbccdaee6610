// k-means over the keys of a segment. Lloyd's iterations with an exact assignment that skips what
// cannot change (csrc/ops/clustering/kmeans_assign.h), and faiss::Clustering behind the same
// options as the oracle of tests and benchmark.
//
// What it does not do: keys that are zero or not finite are kept away by the caller
// (cluster_partitioner.cc).
//
// Thread safety: functions; each call runs in the calling thread alone.
//
// Source: Lloyd, "Least squares quantization in PCM", IEEE Trans. Inf. Theory 28(2), 1982; the
// cosine variant is ClusterKV, section III-B (assignment by cosine, centroids are means of raw
// keys).

#ifndef SEMKV_FAISS_INDEX_KMEANS_H_
#define SEMKV_FAISS_INDEX_KMEANS_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"

namespace semkv {

enum class ClusterMetric : int32_t {
  kCenteredL2 = 0,  // squared distance; computed after subtracting the mean key, which changes no
                    // distance and keeps float32 from cancelling on channels with a large mean
  kCosine = 1,      // 1 - cosine of the raw keys (ClusterKV); centroids are means of raw members
};

enum class KMeansInit : int32_t {
  kStratified = 0,  // one point from each of nlist equal stretches of the text, drawn by `seed`:
                    // neighbours in a text are alike, so this covers it better than drawing freely
  kStrided = 1,     // the first point of each stretch; a text of that period would defeat it
};

struct KMeansOptions {
  int32_t nlist = 0;  // clamped to num_points
  ClusterMetric metric = ClusterMetric::kCenteredL2;
  KMeansInit init = KMeansInit::kStratified;
  int32_t iterations = 10;  // at most; each moves the centroids once
  uint64_t seed = 1;
};

struct KMeansResult {
  int32_t nlist = 0;
  int32_t iterations = 0;        // done; fewer than asked for if fewer than 0.1 % of labels changed
  std::vector<float> centroids;  // [nlist, head_dim]: means of raw keys; kCosine: unit vectors
  std::vector<int32_t> labels;   // [num_points]: the nearest of `centroids`, for every point
  std::vector<int32_t> sizes;    // [nlist]; 0 only where fewer than nlist points differ
  double objective = 0.0;        // sum over points of the squared distance (of 2 - 2 cos) to it
  int64_t num_tests = 0;         // (tile, group) pairs tested, see kmeans_assign.h,
  int64_t num_pairs = 0;         // of so many
};

// keys: [num_points, head_dim], finite. Clusters that run empty restart at the point farthest from
// its centroid. Same input, options and instruction set give the same bits.
//
// Errors: INVALID_ARGUMENT if num_points, head_dim or nlist is below 1, iterations below 0, nlist
// above 8,192.
absl::StatusOr<KMeansResult> TrainKMeans(const float* keys, int32_t num_points, int32_t head_dim,
                                         const KMeansOptions& options);

// The same by faiss::Clustering and IndexFlat: FAISS's own initialisation, no early stop.
//
// Errors: as TrainKMeans; INTERNAL if FAISS fails.
absl::StatusOr<KMeansResult> TrainWithFaiss(const float* keys, int32_t num_points, int32_t head_dim,
                                            const KMeansOptions& options);

}  // namespace semkv

#endif  // SEMKV_FAISS_INDEX_KMEANS_H_
