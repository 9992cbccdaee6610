#include <faiss/Clustering.h>
#include <faiss/IndexFlat.h>

#include <cmath>
#include <cstring>

#include "faiss_index/faiss_status.h"
#include "faiss_index/kmeans.h"
#include "faiss_index/kmeans_input.h"

namespace semkv {
namespace {

// FAISS's spherical mode normalises centroids, not points: do that here.
std::vector<float> UnitRows(const float* keys, int64_t num_points, int64_t head_dim) {
  std::vector<float> unit(num_points * head_dim);
  for (int64_t i = 0; i < num_points; ++i) {
    WriteUnit(keys + i * head_dim, head_dim, unit.data() + i * head_dim);
  }
  return unit;
}

void Train(const float* points, int32_t num_points, int32_t head_dim, const KMeansOptions& options,
           KMeansResult* result) {
  faiss::ClusteringParameters parameters;
  parameters.niter = options.iterations;
  parameters.seed = static_cast<int>(options.seed);
  parameters.spherical = options.metric == ClusterMetric::kCosine;
  parameters.min_points_per_centroid = 1;  // no warning on standard error below 39
  faiss::Clustering clustering(head_dim, result->nlist, parameters);
  faiss::IndexFlatL2 index(head_dim);
  clustering.train(num_points, points, index);
  std::vector<faiss::Index::idx_t> labels(num_points);
  std::vector<float> distances(num_points);
  index.search(num_points, points, 1, distances.data(), labels.data());
  result->centroids = clustering.centroids;
  result->labels.assign(labels.begin(), labels.end());
  for (float distance : distances) result->objective += distance;
}

}  // namespace

absl::StatusOr<KMeansResult> TrainWithFaiss(const float* keys, int32_t num_points, int32_t head_dim,
                                            const KMeansOptions& options) {
  if (absl::Status status = CheckKMeans(num_points, head_dim, options); !status.ok()) return status;
  KMeansResult result;
  result.nlist = std::min(options.nlist, num_points);
  result.iterations = options.iterations;
  const bool cosine = options.metric == ClusterMetric::kCosine;
  std::vector<float> unit;
  if (cosine) unit = UnitRows(keys, num_points, head_dim);
  absl::Status status = CatchFaiss("faiss::Clustering", [&] {
    Train(cosine ? unit.data() : keys, num_points, head_dim, options, &result);
  });
  if (!status.ok()) return status;
  result.sizes.assign(result.nlist, 0);
  for (int32_t label : result.labels) ++result.sizes[label];
  return result;
}

}  // namespace semkv
