#include "faiss_index/kmeans.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "absl/strings/str_cat.h"
#include "csrc/ops/clustering/kmeans_assign.h"
#include "faiss_index/kmeans_input.h"
#include "semkv/types.h"

namespace semkv {

absl::Status CheckKMeans(int32_t num_points, int32_t head_dim, const KMeansOptions& options) {
  if (num_points < 1 || head_dim < 1) {
    return absl::InvalidArgumentError(absl::StrCat("k-means over ", num_points, " points of ",
                                                   head_dim, " channels; at least 1 of each"));
  }
  if (options.nlist < 1 || options.nlist > kMaxCentroids) {
    return absl::InvalidArgumentError(
        absl::StrCat("nlist is ", options.nlist, ", allowed are 1 to ", kMaxCentroids));
  }
  if (options.iterations < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("iterations is ", options.iterations, ", allowed are 0 and more"));
  }
  return absl::OkStatus();
}

float WriteUnit(const float* x, int64_t head_dim, float* out) {
  float squared = 0.0f;
  for (int64_t d = 0; d < head_dim; ++d) squared += x[d] * x[d];
  const float scale = 1.0f / std::sqrt(std::max(squared, 1e-12f));
  for (int64_t d = 0; d < head_dim; ++d) out[d] = x[d] * scale;
  return squared * scale * scale;
}

namespace {

float SquaredDistance(const float* x, const float* y, int64_t head_dim) {
  float squared = 0.0f;
  for (int64_t d = 0; d < head_dim; ++d) squared += (x[d] - y[d]) * (x[d] - y[d]);
  return squared;
}

float Dot(const float* x, const float* y, int64_t head_dim) {
  float dot = 0.0f;
  for (int64_t d = 0; d < head_dim; ++d) dot += x[d] * y[d];
  return dot;
}

constexpr size_t kLine = 64;  // bytes of a cache line

// `count` elements of `memory`, at a cache line.
template <typename T>
T* ResizeAtLine(size_t count, std::vector<T>* memory) {
  memory->resize(count + kLine / sizeof(T));
  T* at = memory->data();
  while (reinterpret_cast<uintptr_t>(at) % kLine != 0) ++at;
  return at;
}

class Trainer {
 public:
  Trainer(const float* keys, int32_t num_points, int32_t head_dim, const KMeansOptions& options)
      : options_(options),
        keys_(keys),
        num_points_(num_points),
        head_dim_(head_dim),
        nlist_(std::min(options.nlist, num_points)),
        num_groups_(CeilDiv(nlist_, kGroupCentroids)),
        num_tiles_(CeilDiv(num_points, kTilePoints)) {}

  KMeansResult Train();

 private:
  bool cosine() const { return options_.metric == ClusterMetric::kCosine; }
  void WritePoints();
  void ChooseCentroids();
  void OrderCentroids();
  void SortPoints();
  void PackTiles();
  void SetOffsets();
  KMeansCodes EncodeCentroids();
  void Assign(bool first);
  int32_t CountChanges();
  void Update();
  void Restart(const std::vector<int32_t>& empty);
  void Finish(KMeansResult* result);
  int64_t code_row() const { return 2 * KMeansCodePairs(static_cast<int32_t>(head_dim_)); }
  float* centroid(int64_t c) { return centroids_.data() + c * head_dim_; }
  const float* point(int64_t i) const { return points_.data() + i * head_dim_; }

  const KMeansOptions options_;
  const float* keys_;
  const int32_t num_points_;
  const int64_t head_dim_;
  const int32_t nlist_, num_groups_, num_tiles_;
  int64_t num_tests_ = 0, num_pairs_ = 0;

  std::vector<float> mean_;     // [head_dim], what was subtracted; 0 for cosine
  std::vector<float> points_;   // [num_points, head_dim]: keys - mean, or unit keys
  std::vector<int32_t> order_;  // [num_tiles, 32]: the point at each place of the tiles
  std::vector<float> memory_;   // of tiles_
  float* tiles_ = nullptr;      // [num_tiles, head_dim, 32], at a cache line
  const bool uses_codes_ = KMeansUsesCodes();
  std::vector<int16_t> code_memory_;               // of codes_
  int16_t* codes_ = nullptr;                       // [num_tiles, pairs, 32, 2], at a cache line
  std::vector<float> code_scales_;                 // [num_tiles, 32]
  std::vector<int16_t> centroid_codes_;            // [num_groups * 16, pairs, 2]
  std::vector<float> centroid_scales_;             // [num_groups * 16]
  std::vector<float> group_norms_, group_scales_;  // [num_groups]
  std::vector<float> norms_;                       // [num_tiles, 32]
  std::vector<float> centroids_;                   // [num_groups * 16, head_dim]; unit for cosine
  std::vector<float> offsets_;                     // [num_groups * 16]
  std::vector<float> moved_;                       // [num_groups]
  std::vector<int32_t> places_;  // [num_tiles, 32]: labels in the order of the tiles
  std::vector<float> lower_;     // [num_tiles, num_groups, 32]
  std::vector<int32_t> labels_;  // [num_points]
  std::vector<uint8_t> dirty_;   // [nlist]: members changed since the last update
  std::vector<int32_t> sizes_;   // [nlist]
  float slack_ = 0.0f;
};

void Trainer::WritePoints() {
  mean_.assign(head_dim_, 0.0f);
  points_.resize(num_points_ * head_dim_);
  if (cosine()) {
    for (int64_t i = 0; i < num_points_; ++i) {
      WriteUnit(keys_ + i * head_dim_, head_dim_, points_.data() + i * head_dim_);
    }
    return;
  }
  for (int64_t i = 0; i < num_points_; ++i) {
    for (int64_t d = 0; d < head_dim_; ++d) mean_[d] += keys_[i * head_dim_ + d];
  }
  for (float& m : mean_) m /= static_cast<float>(num_points_);
  for (int64_t i = 0; i < num_points_; ++i) {
    const float* key = keys_ + i * head_dim_;
    float* out = points_.data() + i * head_dim_;
    for (int64_t d = 0; d < head_dim_; ++d) out[d] = key[d] - mean_[d];
  }
}

void Trainer::ChooseCentroids() {
  std::vector<int64_t> chosen(nlist_);
  std::mt19937_64 rng(options_.seed);
  for (int64_t c = 0; c < nlist_; ++c) {
    const int64_t first = c * num_points_ / nlist_, end = (c + 1) * num_points_ / nlist_;
    chosen[c] = first;
    if (options_.init == KMeansInit::kStratified) {
      chosen[c] += static_cast<int64_t>(rng() % static_cast<uint64_t>(end - first));
    }
  }
  centroids_.assign(int64_t{num_groups_} * kGroupCentroids * head_dim_, 0.0f);
  for (int32_t c = 0; c < nlist_; ++c) {
    std::copy_n(point(chosen[c]), head_dim_, centroid(c));
  }
}

// Puts each group's centroids next to each other: the first not yet taken, and its nearest. One
// pass over what is left per group, a few percent of one assignment.
void Trainer::OrderCentroids() {
  std::vector<int32_t> left(nlist_);
  std::iota(left.begin(), left.end(), 0);
  std::vector<int32_t> rank;  // new place -> old centroid
  std::vector<std::pair<float, int32_t>> near;
  while (!left.empty()) {
    near.clear();
    const float* pivot = centroid(left[0]);
    for (int32_t c : left) {
      near.emplace_back(SquaredDistance(pivot, centroid(c), head_dim_), c);
    }
    const size_t size = std::min<size_t>(kGroupCentroids, near.size());
    std::partial_sort(near.begin(), near.begin() + size, near.end());
    for (size_t i = 0; i < size; ++i) rank.push_back(near[i].second);
    left.clear();
    for (size_t i = size; i < near.size(); ++i) left.push_back(near[i].second);
    std::sort(left.begin(), left.end());
  }
  std::vector<float> ordered(centroids_.size(), 0.0f);
  std::vector<int32_t> place(nlist_), sizes(nlist_);
  for (int32_t c = 0; c < nlist_; ++c) {
    std::copy_n(centroid(rank[c]), head_dim_, ordered.data() + c * head_dim_);
    place[rank[c]] = c;
    sizes[c] = sizes_[rank[c]];
  }
  centroids_.swap(ordered);
  sizes_.swap(sizes);
  for (int32_t& label : labels_) label = place[label];
}

// Tiles of points with the same label ask for the same few groups.
void Trainer::SortPoints() {
  std::vector<int32_t> next(nlist_ + 1, 0);
  for (int32_t label : labels_) ++next[label + 1];
  std::partial_sum(next.begin(), next.end(), next.begin());
  for (int32_t i = 0; i < num_points_; ++i) order_[next[labels_[i]]++] = i;
}

void Trainer::PackTiles() {
  for (int64_t at = num_points_; at < int64_t{num_tiles_} * kTilePoints; ++at) {
    order_[at] = order_[num_points_ - 1];
  }
  for (int64_t tile = 0; tile < num_tiles_; ++tile) {
    float* out = tiles_ + tile * head_dim_ * kTilePoints;
    const int32_t* order = order_.data() + tile * kTilePoints;
    // Eight channels at a time: the lines written stay in the first-level cache.
    for (int64_t first = 0; first < head_dim_; first += 8) {
      const int64_t end = std::min(first + 8, head_dim_);
      for (int32_t lane = 0; lane < kTilePoints; ++lane) {
        const float* x = point(order[lane]);
        for (int64_t d = first; d < end; ++d) out[d * kTilePoints + lane] = x[d];
      }
    }
    float* norms = norms_.data() + tile * kTilePoints;
    std::fill_n(norms, kTilePoints, 0.0f);
    for (int64_t d = 0; d < head_dim_; ++d) {
      for (int32_t lane = 0; lane < kTilePoints; ++lane) {
        norms[lane] += out[d * kTilePoints + lane] * out[d * kTilePoints + lane];
      }
    }
    if (uses_codes_) {
      KMeansEncodeTile(out, norms, static_cast<int32_t>(head_dim_),
                       codes_ + tile * kTilePoints * code_row(),
                       code_scales_.data() + tile * kTilePoints);
    }
  }
  for (int64_t at = 0; at < int64_t{num_tiles_} * kTilePoints; ++at) {
    places_[at] = labels_[order_[at]];
  }
}

void Trainer::SetOffsets() {
  float greatest = 0.0f;
  for (int64_t c = 0; c < int64_t{num_groups_} * kGroupCentroids; ++c) {
    float squared = 0.0f;
    for (int64_t d = 0; d < head_dim_; ++d) squared += centroid(c)[d] * centroid(c)[d];
    greatest = std::max(greatest, squared);
    offsets_[c] =
        c >= nlist_ ? std::numeric_limits<float>::infinity() : 0.5f * (cosine() ? 1.0f : squared);
  }
  greatest = std::max(greatest, *std::max_element(norms_.begin(), norms_.end()));
  // A float32 dot product of head_dim terms is off by sqrt(head_dim) roundings as a rule; four
  // times that, of the largest product there is.
  slack_ = 4.0f * 6e-8f * std::sqrt(static_cast<float>(head_dim_)) * 2.0f * greatest;
}

KMeansCodes Trainer::EncodeCentroids() {
  KMeansEncodeCentroids(centroids_.data(), num_groups_, static_cast<int32_t>(head_dim_),
                        centroid_codes_.data(), centroid_scales_.data(), group_norms_.data(),
                        group_scales_.data());
  return {codes_,
          code_scales_.data(),
          centroid_codes_.data(),
          centroid_scales_.data(),
          group_norms_.data(),
          group_scales_.data()};
}

void Trainer::Assign(bool first) {
  SetOffsets();
  KMeansAssignParams params;
  params.num_tiles = num_tiles_;
  params.num_groups = num_groups_;
  params.head_dim = static_cast<int32_t>(head_dim_);
  params.tiles = tiles_;
  params.norms = norms_.data();
  params.centroids = centroids_.data();
  params.offsets = offsets_.data();
  params.group_moved = first ? nullptr : moved_.data();
  params.slack = slack_;
  if (uses_codes_) params.codes = EncodeCentroids();
  params.labels = places_.data();
  params.lower = lower_.data();
  num_tests_ += KMeansAssignHost(params);
  num_pairs_ += int64_t{num_tiles_} * num_groups_;
}

// Takes over the labels of the tiles.
int32_t Trainer::CountChanges() {
  int32_t changes = 0;
  for (int64_t at = 0; at < num_points_; ++at) {
    int32_t& label = labels_[order_[at]];
    if (label == places_[at]) continue;
    dirty_[label] = dirty_[places_[at]] = 1;
    --sizes_[label];
    ++sizes_[places_[at]];
    label = places_[at];
    ++changes;
  }
  return changes;
}

// Empty clusters restart at the point that is farthest from its centroid, one after the other.
void Trainer::Restart(const std::vector<int32_t>& empty) {
  std::vector<float> distances(num_points_);
  for (int64_t i = 0; i < num_points_; ++i) {
    distances[i] = SquaredDistance(point(i), centroid(labels_[i]), head_dim_);
  }
  for (int32_t c : empty) {
    const int64_t far = std::max_element(distances.begin(), distances.end()) - distances.begin();
    if (distances[far] <= slack_) return;  // the points are all at their centroids
    std::copy_n(point(far), head_dim_, centroid(c));
    for (int64_t i = 0; i < num_points_; ++i) {
      distances[i] = std::min(distances[i], SquaredDistance(point(i), point(far), head_dim_));
    }
  }
}

// Moves the centroids of clusters whose members changed to the mean of their members, and notes how
// far the centroids of each group went at most.
void Trainer::Update() {
  const std::vector<float> old = centroids_;
  for (int64_t c = 0; c < nlist_; ++c) {
    if (dirty_[c] && sizes_[c] > 0) std::fill_n(centroid(c), head_dim_, 0.0f);
  }
  const float* rows = cosine() ? keys_ : points_.data();
  for (int64_t i = 0; i < num_points_; ++i) {
    if (!dirty_[labels_[i]]) continue;
    float* sum = centroid(labels_[i]);
    const float* x = rows + i * head_dim_;
    for (int64_t d = 0; d < head_dim_; ++d) sum[d] += x[d];
  }
  std::vector<int32_t> empty;
  for (int32_t c = 0; c < nlist_; ++c) {
    if (sizes_[c] == 0) empty.push_back(c);
    if (!dirty_[c] || sizes_[c] == 0) continue;
    const float scale = 1.0f / static_cast<float>(sizes_[c]);
    for (int64_t d = 0; d < head_dim_; ++d) centroid(c)[d] *= scale;
    if (cosine()) WriteUnit(centroid(c), head_dim_, centroid(c));
  }
  if (!empty.empty()) Restart(empty);
  std::fill(dirty_.begin(), dirty_.end(), 0);
  std::fill(moved_.begin(), moved_.end(), 0.0f);
  for (int64_t c = 0; c < nlist_; ++c) {
    float squared = 0.0f, norm = 0.0f;
    const float *before = old.data() + c * head_dim_, *after = centroid(c);
    for (int64_t d = 0; d < head_dim_; ++d) {
      squared += (after[d] - before[d]) * (after[d] - before[d]);
      norm += after[d] * after[d];
    }
    // Rounded up. A mean of cosine 0 to everything has no direction: its "distance" (cosine) then
    // jumps by up to 2 whatever it moved.
    float moved = std::sqrt(squared) * 1.0001f + 1e-7f * std::sqrt(norm);
    if (cosine() && norm < 0.5f) moved = 2.0f;
    float& greatest = moved_[c / kGroupCentroids];
    greatest = std::max(greatest, squared > 0.0f ? moved : 0.0f);
  }
}

void Trainer::Finish(KMeansResult* result) {
  result->nlist = nlist_;
  result->num_tests = num_tests_;
  result->num_pairs = num_pairs_;
  for (int64_t i = 0; i < num_points_; ++i) {
    const float* c = centroid(labels_[i]);
    result->objective += cosine() ? 2.0f - 2.0f * Dot(point(i), c, head_dim_)
                                  : SquaredDistance(point(i), c, head_dim_);
  }
  centroids_.resize(nlist_ * head_dim_);
  if (!cosine()) {
    for (int64_t c = 0; c < nlist_; ++c) {
      for (int64_t d = 0; d < head_dim_; ++d) centroid(c)[d] += mean_[d];
    }
  }
  result->centroids = std::move(centroids_);
  result->labels = std::move(labels_);
  result->sizes = std::move(sizes_);
}

KMeansResult Trainer::Train() {
  const int64_t places = int64_t{num_tiles_} * kTilePoints;
  WritePoints();
  order_.resize(places);
  std::iota(order_.begin(), order_.end(), 0);
  tiles_ = ResizeAtLine(places * head_dim_, &memory_);
  if (uses_codes_) {
    codes_ = ResizeAtLine(places * code_row(), &code_memory_);
    code_scales_.resize(places);
    centroid_codes_.resize(int64_t{num_groups_} * kGroupCentroids * code_row());
    centroid_scales_.resize(int64_t{num_groups_} * kGroupCentroids);
    group_norms_.resize(num_groups_);
    group_scales_.resize(num_groups_);
  }
  norms_.resize(places);
  places_.resize(places);
  lower_.resize(places * num_groups_);
  offsets_.resize(int64_t{num_groups_} * kGroupCentroids);
  moved_.resize(num_groups_);
  dirty_.assign(nlist_, 1);
  sizes_.assign(nlist_, 0);
  sizes_[0] = num_points_;
  labels_.assign(num_points_, 0);
  ChooseCentroids();
  PackTiles();
  Assign(true);
  CountChanges();
  std::fill(dirty_.begin(), dirty_.end(), 1);
  KMeansResult result;
  while (result.iterations < options_.iterations) {
    Update();
    // Once labels mean something, neighbours are put together; bounds start over.
    const bool reorder = result.iterations == 0;
    if (reorder) {
      OrderCentroids();
      SortPoints();
      PackTiles();
    }
    Assign(reorder);
    ++result.iterations;
    if (int64_t{CountChanges()} * 1000 < num_points_) break;
  }
  Finish(&result);
  return result;
}

}  // namespace

absl::StatusOr<KMeansResult> TrainKMeans(const float* keys, int32_t num_points, int32_t head_dim,
                                         const KMeansOptions& options) {
  if (absl::Status status = CheckKMeans(num_points, head_dim, options); !status.ok()) return status;
  return Trainer(keys, num_points, head_dim, options).Train();
}

}  // namespace semkv
