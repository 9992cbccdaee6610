#include "csrc/ops/clustering/kmeans.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "csrc/ops/numeric/float_convert.h"

namespace semkv {
namespace {

using Row = std::vector<double>;

double Dot(const Row& x, const Row& y) {
  return std::inner_product(x.begin(), x.end(), y.begin(), 0.0);
}

double SquaredDistance(const Row& x, const Row& y) {
  double squared = 0.0;
  for (size_t d = 0; d < x.size(); ++d) squared += (x[d] - y[d]) * (x[d] - y[d]);
  return squared;
}

// A vector shorter than 1e-6 keeps its direction and stays short.
Row Unit(Row x) {
  const double scale = 1.0 / std::sqrt(std::max<double>(Dot(x, x), kKMeansZeroNormSquared));
  for (double& value : x) value *= scale;
  return x;
}

class Trainer {
 public:
  Trainer(const KMeansParams& params, int64_t problem)
      : params_(params), problem_(params.problems[problem]), index_(problem) {}

  void Train();

 private:
  bool cosine() const { return params_.metric == KMeansMetric::kCosine; }
  void LoadPoints();
  void ChooseCentroids();
  int64_t Assign();
  void Move();
  void Restart();
  void StoreTrained(int32_t iterations) const;
  void SetLonePointsApart();
  template <typename Id>
  void StoreLists() const;

  const KMeansParams& params_;
  const KMeansProblem& problem_;
  const int64_t index_;
  std::vector<int32_t> labels_;    // [num_points]
  std::vector<int32_t> ordinary_;  // points
  std::vector<Row> keys_;          // of the ordinary points
  std::vector<Row> points_;        // with cosine of unit length
  std::vector<Row> centroids_;
  std::vector<int32_t> sizes_;
};

void Trainer::LoadPoints() {
  labels_.assign(problem_.num_points, 0);
  for (int32_t i = 0; i < problem_.num_points; ++i) {
    Row key(params_.head_dim);
    float squared = 0.0f;
    for (int32_t d = 0; d < params_.head_dim; ++d) {
      const float x = LoadAsFloat(problem_.points, params_.dtype, i * problem_.point_stride + d);
      squared += x * x;
      key[d] = x;
    }
    if (squared <= kKMeansZeroNormSquared) {
      labels_[i] = problem_.num_lists;
    } else if (!std::isfinite(squared)) {
      labels_[i] = problem_.num_lists + 1;
    } else {
      ordinary_.push_back(i);
      points_.push_back(cosine() ? Unit(key) : key);
      keys_.push_back(std::move(key));
    }
  }
}

void Trainer::ChooseCentroids() {
  const int64_t m = static_cast<int64_t>(ordinary_.size());
  const int64_t k = std::min<int64_t>(problem_.num_lists, m);
  for (int64_t c = 0; c < k; ++c) {
    const int64_t first = c * m / k, end = (c + 1) * m / k;
    uint64_t chosen = static_cast<uint64_t>(first);
    if (params_.draws != nullptr) chosen += params_.draws[c] % static_cast<uint64_t>(end - first);
    centroids_.push_back(points_[chosen]);
  }
  sizes_.assign(k, 0);
}

// Returns how many labels changed.
int64_t Trainer::Assign() {
  std::vector<double> offsets;
  for (const Row& centroid : centroids_) {
    offsets.push_back(cosine() ? 0.0 : 0.5 * Dot(centroid, centroid));
  }
  int64_t changes = 0;
  std::fill(sizes_.begin(), sizes_.end(), 0);
  for (size_t i = 0; i < points_.size(); ++i) {
    int32_t label = 0;
    double best = -std::numeric_limits<double>::infinity();
    for (size_t c = 0; c < centroids_.size(); ++c) {
      const double score = Dot(points_[i], centroids_[c]) - offsets[c];
      if (score > best) {
        best = score;
        label = static_cast<int32_t>(c);
      }
    }
    changes += labels_[ordinary_[i]] != label;
    labels_[ordinary_[i]] = label;
    ++sizes_[label];
  }
  return changes;
}

void Trainer::Move() {
  for (size_t c = 0; c < centroids_.size(); ++c) {
    if (sizes_[c] > 0) centroids_[c].assign(params_.head_dim, 0.0);
  }
  for (size_t i = 0; i < keys_.size(); ++i) {
    Row& sum = centroids_[labels_[ordinary_[i]]];
    for (int32_t d = 0; d < params_.head_dim; ++d) sum[d] += keys_[i][d];
  }
  for (size_t c = 0; c < centroids_.size(); ++c) {
    if (sizes_[c] == 0) continue;
    for (double& x : centroids_[c]) x /= sizes_[c];
    if (cosine()) centroids_[c] = Unit(centroids_[c]);
  }
  Restart();
}

void Trainer::Restart() {
  if (std::find(sizes_.begin(), sizes_.end(), 0) == sizes_.end()) return;
  Row mean(params_.head_dim, 0.0);
  if (!cosine()) {
    for (const Row& x : points_) {
      for (int32_t d = 0; d < params_.head_dim; ++d) mean[d] += x[d] / points_.size();
    }
  }
  double greatest = 0.0;
  std::vector<double> distances;
  for (size_t i = 0; i < points_.size(); ++i) {
    greatest = std::max(greatest, SquaredDistance(points_[i], mean));
    distances.push_back(SquaredDistance(points_[i], centroids_[labels_[ordinary_[i]]]));
  }
  // What roundings of float32 make of a squared distance of 0.
  const double slack = 8.0 * 6e-8 * std::sqrt(params_.head_dim) * greatest;
  for (size_t c = 0; c < centroids_.size(); ++c) {
    if (sizes_[c] != 0) continue;
    const size_t far = std::max_element(distances.begin(), distances.end()) - distances.begin();
    if (distances[far] <= slack) return;
    centroids_[c] = points_[far];
    for (size_t i = 0; i < points_.size(); ++i) {
      distances[i] = std::min(distances[i], SquaredDistance(points_[i], points_[far]));
    }
  }
}

void Trainer::StoreTrained(int32_t iterations) const {
  float* centroid = params_.centroids + index_ * params_.max_lists * params_.head_dim;
  std::fill_n(centroid, int64_t{problem_.num_lists} * params_.head_dim, 0.0f);
  for (const Row& row : centroids_) {
    for (double x : row) *centroid++ = static_cast<float>(x);
  }
  double objective = 0.0;
  for (size_t i = 0; i < points_.size(); ++i) {
    const Row& nearest = centroids_[labels_[ordinary_[i]]];
    objective +=
        cosine() ? 2.0 - 2.0 * Dot(points_[i], nearest) : SquaredDistance(points_[i], nearest);
  }
  params_.objectives[index_] = static_cast<float>(objective);
  params_.iterations_done[index_] = iterations;
}

void Trainer::SetLonePointsApart() {
  std::vector<std::pair<double, int32_t>> farthest;  // -distance, point
  for (size_t i = 0; i < points_.size(); ++i) {
    const double distance = SquaredDistance(points_[i], centroids_[labels_[ordinary_[i]]]);
    if (distance <= kKMeansRoundingSquared * Dot(points_[i], points_[i])) continue;
    farthest.emplace_back(-distance, ordinary_[i]);
  }
  std::sort(farthest.begin(), farthest.end());
  farthest.resize(std::min<size_t>(farthest.size(), problem_.num_lone));
  std::vector<bool> leaves(labels_.size(), false);
  for (const auto& [distance, point] : farthest) leaves[point] = true;
  int32_t lone = problem_.num_lists;
  for (size_t i = 0; i < labels_.size(); ++i) {
    if (leaves[i]) {
      labels_[i] = lone++;
    } else if (labels_[i] >= problem_.num_lists) {
      labels_[i] += problem_.num_lone;
    }
  }
}

template <typename Id>
void Trainer::StoreLists() const {
  const int32_t num_labels = problem_.num_lists + problem_.num_lone + 2;
  Id* offsets = static_cast<Id*>(params_.offsets) + index_ * KMeansMaxOffsets(params_);
  Id* members = static_cast<Id*>(params_.members) + index_ * params_.max_points;
  int32_t end = 0;
  for (int32_t label = 0; label < num_labels; ++label) {
    offsets[label] = static_cast<Id>(end);
    for (int32_t i = 0; i < problem_.num_points; ++i) {
      if (labels_[i] == label) members[end++] = static_cast<Id>(i);
    }
  }
  offsets[num_labels] = static_cast<Id>(end);
}

void Trainer::Train() {
  LoadPoints();
  ChooseCentroids();
  Assign();
  int32_t iterations = 0;
  while (iterations < params_.iterations && !points_.empty()) {
    Move();
    ++iterations;
    if (Assign() * 1000 < static_cast<int64_t>(points_.size())) break;
  }
  StoreTrained(iterations);
  SetLonePointsApart();
  std::copy(labels_.begin(), labels_.end(), params_.labels + index_ * params_.max_points);
  if (KMeansIsNarrow(params_.max_points)) {
    StoreLists<uint16_t>();
  } else {
    StoreLists<uint32_t>();
  }
}

}  // namespace

void KMeansReference(const KMeansParams& params) {
  for (int64_t problem = 0; problem < params.num_problems; ++problem) {
    Trainer(params, problem).Train();
  }
}

}  // namespace semkv
