#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "csrc/ops/clustering/kmeans_assign.h"
#include "faiss_index/kmeans.h"
#include "faiss_index/partition_input.h"
#include "faiss_index/partitioner.h"

namespace semkv {
namespace {

// A key shorter than this has no direction to speak of.
constexpr float kZeroNormSquared = 1e-12f;
// A key nearer to its centroid than this share of its length, squared, is the centroid but for
// rounding.
constexpr float kRoundingSquared = 1e-8f;

struct Tokens {
  std::vector<uint16_t> ordinary, zero, nonfinite;  // ascending
};

Tokens SortByKind(const PartitionInput& input) {
  Tokens tokens;
  tokens.ordinary.reserve(input.num_tokens);
  for (int32_t token = 0; token < input.num_tokens; ++token) {
    const float* key = input.keys + int64_t{token} * input.head_dim;
    float squared = 0.0f;
    // Keys so large that their squares overflow cannot be clustered either.
    for (int32_t d = 0; d < input.head_dim; ++d) squared += key[d] * key[d];
    auto& kind = !std::isfinite(squared)       ? tokens.nonfinite
                 : squared <= kZeroNormSquared ? tokens.zero
                                               : tokens.ordinary;
    kind.push_back(static_cast<uint16_t>(token));
  }
  return tokens;
}

struct LonePoint {
  float squared_distance;
  int32_t index;
};

// The points off their centroids, with their distances: of unit keys where the metric is cosine.
std::vector<LonePoint> PointsOffCentroids(const float* keys, int32_t head_dim, ClusterMetric metric,
                                          const KMeansResult& result) {
  std::vector<LonePoint> points;
  points.reserve(result.labels.size());
  for (int32_t i = 0; i < static_cast<int32_t>(result.labels.size()); ++i) {
    const float* key = keys + int64_t{i} * head_dim;
    const float* centroid = &result.centroids[int64_t{result.labels[i]} * head_dim];
    const float norm = std::inner_product(key, key + head_dim, key, 0.0f);
    const float scale = metric == ClusterMetric::kCosine ? 1.0f / std::sqrt(norm) : 1.0f;
    float squared = 0.0f;
    for (int32_t d = 0; d < head_dim; ++d) {
      const float x = scale * key[d] - centroid[d];
      squared += x * x;
    }
    if (squared > kRoundingSquared * scale * scale * norm) points.push_back({squared, i});
  }
  return points;
}

// Gives the `count` points farthest from their centroids (of equals the earlier) a cluster each;
// fewer if fewer lie off theirs. Centroids of `result` stay what they were.
void SetLonePointsApart(const float* keys, int32_t head_dim, ClusterMetric metric, int32_t count,
                        KMeansResult* result) {
  std::vector<LonePoint> points = PointsOffCentroids(keys, head_dim, metric, *result);
  count = std::min(count, static_cast<int32_t>(points.size()));
  const auto is_farther = [](const LonePoint& a, const LonePoint& b) {
    return a.squared_distance > b.squared_distance ||
           (a.squared_distance == b.squared_distance && a.index < b.index);
  };
  std::partial_sort(points.begin(), points.begin() + count, points.end(), is_farther);
  for (int32_t i = 0; i < count; ++i) {
    int32_t& label = result->labels[points[i].index];
    --result->sizes[label];
    label = result->nlist++;
    result->sizes.push_back(1);
  }
}

class ClusterPartitioner final : public Partitioner {
 public:
  explicit ClusterPartitioner(const ClusterOptions& options) : options_(options) {}
  bool uses_keys() const override { return true; }
  bool uses_boundaries() const override { return false; }

  absl::Status Partition(const PartitionInput& input, Lists* lists) const override {
    if (absl::Status status = CheckPartitionInput(input, *this); !status.ok()) return status;
    lists->members.clear();
    lists->num_nonfinite = 0;
    lists->offsets.assign(1, 0);
    if (input.num_tokens == 0) return absl::OkStatus();
    Tokens tokens = SortByKind(input);
    if (!tokens.ordinary.empty()) {
      if (Room(input, tokens) < 1) JoinZeroKeys(&tokens);
      if (absl::Status status = AppendClusters(input, tokens, lists); !status.ok()) return status;
    }
    AppendList(tokens.zero, lists);
    AppendList(tokens.nonfinite, lists);
    lists->num_nonfinite = static_cast<int32_t>(tokens.nonfinite.size());
    return absl::OkStatus();
  }

 private:
  int32_t Wanted(size_t num_tokens) const {
    return NumClusters(options_, static_cast<int32_t>(num_tokens));
  }

  // How many clusters fit: the caller made room for Wanted(num_tokens) lists and one.
  int32_t Room(const PartitionInput& input, const Tokens& tokens) const {
    return Wanted(input.num_tokens) + 1 - (tokens.zero.empty() ? 0 : 1) -
           (tokens.nonfinite.empty() ? 0 : 1);
  }

  absl::Status AppendClusters(const PartitionInput& input, const Tokens& tokens,
                              Lists* lists) const {
    const int32_t num_points = static_cast<int32_t>(tokens.ordinary.size());
    const float* keys = input.keys;
    std::vector<float> gathered;
    if (num_points < input.num_tokens) {
      gathered.reserve(int64_t{num_points} * input.head_dim);
      for (uint16_t token : tokens.ordinary) {
        const float* key = input.keys + int64_t{token} * input.head_dim;
        gathered.insert(gathered.end(), key, key + input.head_dim);
      }
      keys = gathered.data();
    }
    KMeansOptions options;
    const int32_t nlist =
        std::min({Wanted(tokens.ordinary.size()), Room(input, tokens), num_points});
    const int32_t num_lone = static_cast<int32_t>(options_.lone_share * static_cast<float>(nlist));
    options.nlist = nlist - num_lone;
    options.metric = options_.metric;
    options.init = options_.init;
    options.iterations = options_.iterations;
    options.seed = options_.seed;
    absl::StatusOr<KMeansResult> result =
        options_.backend == ClusterBackend::kFaiss
            ? TrainWithFaiss(keys, num_points, input.head_dim, options)
            : TrainKMeans(keys, num_points, input.head_dim, options);
    if (!result.ok()) return result.status();
    if (num_lone > 0) {
      SetLonePointsApart(keys, input.head_dim, options_.metric, num_lone, &*result);
    }
    AppendByLabel(tokens.ordinary, *result, lists);
    return absl::OkStatus();
  }

  // A stable counting sort, so members ascend; clusters without members leave no list.
  static void AppendByLabel(const std::vector<uint16_t>& tokens, const KMeansResult& result,
                            Lists* lists) {
    std::vector<int32_t> next(result.nlist, 0);
    for (int32_t c = 0, end = 0; c < result.nlist; ++c) {
      next[c] = end;
      if (result.sizes[c] == 0) continue;
      end += result.sizes[c];
      lists->offsets.push_back(static_cast<uint16_t>(end));
    }
    lists->members.resize(tokens.size());
    for (size_t i = 0; i < tokens.size(); ++i) {
      lists->members[next[result.labels[i]]++] = tokens[i];
    }
  }

  // Two lists for three kinds of keys.
  static void JoinZeroKeys(Tokens* tokens) {
    const auto middle = static_cast<std::ptrdiff_t>(tokens->ordinary.size());
    tokens->ordinary.insert(tokens->ordinary.end(), tokens->zero.begin(), tokens->zero.end());
    std::inplace_merge(tokens->ordinary.begin(), tokens->ordinary.begin() + middle,
                       tokens->ordinary.end());
    tokens->zero.clear();
  }

  static void AppendList(const std::vector<uint16_t>& tokens, Lists* lists) {
    if (tokens.empty()) return;
    lists->members.insert(lists->members.end(), tokens.begin(), tokens.end());
    lists->offsets.push_back(static_cast<uint16_t>(lists->members.size()));
  }

  const ClusterOptions options_;
};

}  // namespace

int32_t NumClusters(const ClusterOptions& options, int32_t num_tokens) {
  if (options.nlist > 0) return options.nlist;
  const int32_t by_size = num_tokens / options.mean_size;
  const int32_t finest = num_tokens / std::max(1, options.mean_size / 2);
  return std::max({1, by_size, std::min(finest, options.min_nlist)});
}

absl::StatusOr<std::unique_ptr<Partitioner>> MakeClusterPartitioner(const ClusterOptions& options) {
  if (options.mean_size < 1 || options.nlist < 0 || options.nlist > kMaxCentroids ||
      options.min_nlist < 0 || options.min_nlist > kMaxCentroids || options.iterations < 0 ||
      !(options.lone_share >= 0.0f && options.lone_share < 1.0f)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "clusters: mean_size ", options.mean_size, " (at least 1), nlist ", options.nlist,
        " and min_nlist ", options.min_nlist, " (0 to ", kMaxCentroids, "), iterations ",
        options.iterations, " (at least 0), lone_share ", options.lone_share, " (in [0, 1))"));
  }
  return std::make_unique<ClusterPartitioner>(options);
}

}  // namespace semkv
