// The cases of batched k-means, which every form runs, and what any result must be.

#ifndef SEMKV_TESTS_OPS_CLUSTERING_KMEANS_CASES_H_
#define SEMKV_TESTS_OPS_CLUSTERING_KMEANS_CASES_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "csrc/ops/clustering/kmeans.h"
#include "csrc/ops/numeric/float_convert.h"
#include "tests/testing/random.h"

namespace semkv::testing {

inline constexpr uint16_t kLabelGuard = 0xabcd;
inline constexpr float kFloatGuard = -12345.0f;

enum class KMeansData {
  kNormal,
  kBlobs,     // around places that lie a few deviations apart, off the origin
  kIntegers,  // small ones, x and -x in turn: mean 0, so that every product is exact
};

struct KMeansCase {
  struct Size {
    int32_t num_points, num_lists, num_lone = 0;
  };
  int32_t head_dim = 64;
  DType dtype = DType::kBFloat16;
  KMeansMetric metric = KMeansMetric::kCenteredL2;
  KMeansData data = KMeansData::kBlobs;
  int32_t iterations = 4;
  bool draws = true;
  int32_t more_points = 3;  // max_points beyond the largest problem's
  std::vector<Size> sizes = {{100, 8}};
};

// Points of a case, and room for a result. Rows are every other row of memory, as those of a KV
// head are; what lies between is NaN.
struct KMeansInput {
  KMeansInput(const KMeansCase& c, std::mt19937_64& rng) {
    params.num_problems = static_cast<int32_t>(c.sizes.size());
    params.head_dim = c.head_dim;
    params.dtype = c.dtype;
    params.metric = c.metric;
    params.iterations = c.iterations;
    for (const KMeansCase::Size& size : c.sizes) {
      params.max_points = std::max(params.max_points, size.num_points + c.more_points);
      params.max_lists = std::max(params.max_lists, size.num_lists);
      params.max_lone = std::max(params.max_lone, size.num_lone);
      points.push_back(Encode(c, MakePoints(c, size.num_points, rng)));
      problems.push_back({nullptr, 2 * c.head_dim, size.num_points, size.num_lists, size.num_lone});
    }
    for (size_t i = 0; i < problems.size(); ++i) problems[i].points = points[i].data();
    if (c.draws) {
      for (int32_t i = 0; i < params.max_lists; ++i) draws.push_back(rng());
    }
    Reset();
  }
  KMeansInput(const KMeansInput&) = delete;
  KMeansInput& operator=(const KMeansInput&) = delete;

  // Guards in every output.
  void Reset() {
    const int64_t num = params.num_problems;
    labels.assign(num * params.max_points, kLabelGuard);
    const int64_t id_bytes = KMeansIsNarrow(params.max_points) ? 2 : 4;
    offsets.assign(num * KMeansMaxOffsets(params) * id_bytes, 0xcd);
    members.assign(num * params.max_points * id_bytes, 0xcd);
    centroids.assign(num * params.max_lists * params.head_dim, kFloatGuard);
    objectives.assign(num, kFloatGuard);
    iterations_done.assign(num, -1);
    params.problems = problems.data();
    params.draws = draws.empty() ? nullptr : draws.data();
    params.labels = labels.data();
    params.offsets = offsets.data();
    params.members = members.data();
    params.centroids = centroids.data();
    params.objectives = objectives.data();
    params.iterations_done = iterations_done.data();
  }

  static std::vector<float> MakePoints(const KMeansCase& c, int32_t n, std::mt19937_64& rng) {
    const int64_t d = c.head_dim;
    std::vector<float> x = RandomNormal(rng, n * d, c.data == KMeansData::kBlobs ? 0.5f : 1.0f);
    const int32_t num_places = 1 + n / 16;
    const std::vector<float> places = RandomNormal(rng, num_places * d), off = RandomNormal(rng, d);
    for (int64_t i = 0; i < n; ++i) {
      const float* place = places.data() + static_cast<int64_t>(rng() % num_places) * d;
      for (int64_t j = 0; j < d; ++j) {
        float& value = x[i * d + j];
        if (c.data == KMeansData::kBlobs) value += place[j] + 3.0f * off[j];
        if (c.data != KMeansData::kIntegers) continue;
        value = std::round(value * 1.5f);
        if (i % 2 == 1) value = -x[(i - 1) * d + j];
        if (i % 2 == 0 && i + 1 == n) value = 0.0f;
      }
    }
    return x;
  }

  static std::vector<uint8_t> Encode(const KMeansCase& c, const std::vector<float>& x) {
    const int64_t d = c.head_dim, n = static_cast<int64_t>(x.size()) / d;
    std::vector<uint8_t> rows(std::max<int64_t>(2 * n - 1, 0) * d * DTypeBytes(c.dtype), 0xff);
    for (int64_t i = 0; i < n * d; ++i) {
      StoreFromFloat(rows.data(), c.dtype, i / d * 2 * d + i % d, x[i]);
    }
    return rows;
  }

  float Get(int32_t problem, int64_t point, int32_t d) const {
    return LoadAsFloat(points[problem].data(), params.dtype, point * 2 * params.head_dim + d);
  }
  void Set(int32_t problem, int64_t point, int32_t d, float x) {
    StoreFromFloat(points[problem].data(), params.dtype, point * 2 * params.head_dim + d, x);
  }
  void SetAll(int32_t problem, int64_t point, float x) {
    for (int32_t d = 0; d < params.head_dim; ++d) Set(problem, point, d, x);
  }
  void CopyPoint(int32_t problem, int64_t from, int64_t to) {
    for (int32_t d = 0; d < params.head_dim; ++d) Set(problem, to, d, Get(problem, from, d));
  }

  uint16_t Label(int32_t problem, int64_t point) const {
    return labels[int64_t{problem} * params.max_points + point];
  }
  uint32_t Id(const std::vector<uint8_t>& ids, int64_t i) const {
    uint16_t narrow;
    uint32_t wide;
    std::memcpy(&narrow, ids.data() + 2 * (KMeansIsNarrow(params.max_points) ? i : 0), 2);
    if (KMeansIsNarrow(params.max_points)) return narrow;
    std::memcpy(&wide, ids.data() + 4 * i, 4);
    return wide;
  }
  uint32_t Offset(int32_t problem, int32_t list) const {
    return Id(offsets, int64_t{problem} * KMeansMaxOffsets(params) + list);
  }
  uint32_t Member(int32_t problem, int64_t place) const {
    return Id(members, int64_t{problem} * params.max_points + place);
  }
  const float* Centroid(int32_t problem, int32_t list) const {
    return centroids.data() + (int64_t{problem} * params.max_lists + list) * params.head_dim;
  }

  KMeansParams params;
  std::vector<KMeansProblem> problems;
  std::vector<std::vector<uint8_t>> points;
  std::vector<uint64_t> draws;
  std::vector<uint16_t> labels;
  std::vector<uint8_t> offsets, members;
  std::vector<float> centroids, objectives;
  std::vector<int32_t> iterations_done;
};

// ------------------------------ what any result must be

// Lists are the points by label, ascending; what lies behind a problem's own numbers is untouched.
inline void ExpectLists(const KMeansInput& input, int32_t problem) {
  const KMeansProblem& p = input.problems[problem];
  const uint32_t guard = KMeansIsNarrow(input.params.max_points) ? 0xcdcdu : 0xcdcdcdcdu;
  const int32_t num_labels = p.num_lists + p.num_lone + 2;
  std::vector<uint32_t> members;
  for (int32_t list = 0; list < num_labels; ++list) {
    ASSERT_EQ(input.Offset(problem, list), members.size()) << "list " << list;
    for (int32_t i = 0; i < p.num_points; ++i) {
      if (input.Label(problem, i) == list) members.push_back(static_cast<uint32_t>(i));
    }
  }
  ASSERT_EQ(members.size(), static_cast<size_t>(p.num_points)) << "a label is out of range";
  ASSERT_EQ(input.Offset(problem, num_labels), members.size());
  for (int32_t i = 0; i < p.num_points; ++i) ASSERT_EQ(input.Member(problem, i), members[i]) << i;
  for (int32_t i = p.num_points; i < input.params.max_points; ++i) {
    ASSERT_EQ(input.Member(problem, i), guard);
    ASSERT_EQ(input.Label(problem, i), kLabelGuard);
  }
  for (int32_t i = num_labels + 1; i < KMeansMaxOffsets(input.params); ++i) {
    ASSERT_EQ(input.Offset(problem, i), guard);
  }
  for (int32_t i = p.num_lists; i < input.params.max_lists; ++i) {
    ASSERT_EQ(input.Centroid(problem, i)[0], kFloatGuard);
  }
}

// The points of a problem as the metric sees them: less their mean, or of unit length.
struct SeenPoints {
  SeenPoints(const KMeansInput& input, int32_t problem) {
    const KMeansProblem& p = input.problems[problem];
    const int32_t head_dim = input.params.head_dim;
    mean.assign(head_dim, 0.0);
    for (int32_t i = 0; i < p.num_points; ++i) {
      std::vector<double> x(head_dim);
      double squared = 0.0;
      for (int32_t d = 0; d < head_dim; ++d) {
        x[d] = input.Get(problem, i, d);
        squared += x[d] * x[d];
      }
      const bool is_zero = squared <= kKMeansZeroNormSquared;
      const bool is_finite = squared <= std::numeric_limits<float>::max();
      const int32_t zeros = p.num_lists + p.num_lone;
      kinds.push_back(is_zero ? zeros : is_finite ? 0 : zeros + 1);
      num_ordinary += kinds.back() == 0;
      if (input.params.metric == KMeansMetric::kCosine) {
        for (double& value : x) value /= std::sqrt(squared);
      } else if (kinds.back() == 0) {
        for (int32_t d = 0; d < head_dim; ++d) mean[d] += x[d];
      }
      points.push_back(std::move(x));
    }
    for (double& m : mean) m /= std::max(num_ordinary, 1);
  }

  std::vector<std::vector<double>> points;
  std::vector<int32_t> kinds;  // 0: ordinary; else the label
  std::vector<double> mean;
  int32_t num_ordinary = 0;
};

inline double SquaredDistance(const std::vector<double>& x, const float* y) {
  double squared = 0.0;
  for (size_t d = 0; d < x.size(); ++d) squared += (x[d] - y[d]) * (x[d] - y[d]);
  return squared;
}

// How much farther than the nearest centroid a point's own may be. Assignment rounds centroids
// (less the mean) to the points' dtype: each then lies at most u |c - mean| off, so it is at most
// 2 u max |c - mean| (triangle inequality; u is half of the distance of numbers next to 1).
inline double NearestSlack(const KMeansInput& input, int32_t problem, const SeenPoints& seen) {
  const bool cosine = input.params.metric == KMeansMetric::kCosine;
  double greatest = 0.0;
  for (int32_t c = 0; c < std::min(input.problems[problem].num_lists, seen.num_ordinary); ++c) {
    greatest = std::max(greatest, SquaredDistance(seen.mean, input.Centroid(problem, c)));
  }
  const double u = input.params.dtype == DType::kBFloat16 ? 0x1p-8 : 0x1p-11;
  return 2.0 * u * (cosine ? 2.0 : std::sqrt(greatest)) + 1e-5;
}

// Squared, of an ordinary point.
inline double NearestDistance(const KMeansInput& input, int32_t problem, const SeenPoints& seen,
                              int32_t point) {
  double best = std::numeric_limits<double>::infinity();
  for (int32_t c = 0; c < std::min(input.problems[problem].num_lists, seen.num_ordinary); ++c) {
    best = std::min(best, SquaredDistance(seen.points[point], input.Centroid(problem, c)));
  }
  return best;
}

// Labels are the nearest of the centroids that came out, and the objective is theirs: all points
// together lose far less than one may. Which list a lone point has left is not to be seen.
inline void ExpectNearest(const KMeansInput& input, int32_t problem, const SeenPoints& seen) {
  const KMeansProblem& p = input.problems[problem];
  const int32_t num_used = std::min(p.num_lists, seen.num_ordinary);
  const double slack = NearestSlack(input, problem, seen);
  double objective = 0.0, least = 0.0, norms = 0.0;
  for (int32_t i = 0; i < p.num_points; ++i) {
    const int32_t label = input.Label(problem, i);
    if (seen.kinds[i] != 0) {
      ASSERT_EQ(label, seen.kinds[i]) << "point " << i;
      continue;
    }
    const bool is_lone = label >= p.num_lists && label < p.num_lists + p.num_lone;
    ASSERT_TRUE(is_lone || label < num_used) << "point " << i << ", label " << label;
    const double best = NearestDistance(input, problem, seen, i);
    const double own =
        is_lone ? best : SquaredDistance(seen.points[i], input.Centroid(problem, label));
    ASSERT_LE(std::sqrt(own), std::sqrt(best) + slack) << "point " << i;
    objective += own;
    least += best;
    for (double x : seen.points[i]) norms += x * x;
  }
  EXPECT_LE(objective, least * 1.001 + 1e-6 * norms);
  EXPECT_NEAR(input.objectives[problem], objective,
              (p.num_lone > 0 ? 1e-3 : 1e-4) * objective + 1e-5 * norms);
}

// Lone points have lists in their order, none that stayed is farther from its centroid, and they
// are as many as asked for, or all those off their centroids.
inline void ExpectLonePoints(const KMeansInput& input, int32_t problem, const SeenPoints& seen) {
  const KMeansProblem& p = input.problems[problem];
  int32_t num_lone = 0, num_off = 0;
  double nearest_lone = std::numeric_limits<double>::infinity(), farthest = 0.0;
  for (int32_t i = 0; i < p.num_points; ++i) {
    if (seen.kinds[i] != 0) continue;
    const int32_t label = input.Label(problem, i);
    if (label >= p.num_lists) {
      ASSERT_EQ(label, p.num_lists + num_lone++) << "point " << i;
      nearest_lone = std::min(nearest_lone, NearestDistance(input, problem, seen, i));
      continue;
    }
    const double own = SquaredDistance(seen.points[i], input.Centroid(problem, label));
    const double square = std::inner_product(seen.points[i].begin(), seen.points[i].end(),
                                             seen.points[i].begin(), 0.0);
    num_off += own > 1.01 * kKMeansRoundingSquared * square;
    farthest = std::max(farthest, own);
  }
  EXPECT_LE(num_lone, p.num_lone);
  EXPECT_TRUE(num_lone == p.num_lone || num_off == 0) << num_lone << " of " << p.num_lone;
  const double slack = NearestSlack(input, problem, seen);
  EXPECT_GE((std::sqrt(nearest_lone) + slack) * 1.0001, std::sqrt(farthest));
}

// The points that left the lists of `trained_labels`, which a run without lone points gave, are
// those farthest from their centroids as far as float32 can tell; all others are where they were.
inline void ExpectFarthestLeft(const KMeansInput& input,
                               const std::vector<uint16_t>& trained_labels) {
  for (int32_t problem = 0; problem < input.params.num_problems; ++problem) {
    SCOPED_TRACE("problem " + std::to_string(problem));
    const KMeansProblem& p = input.problems[problem];
    const SeenPoints seen(input, problem);
    double nearest_lone = std::numeric_limits<double>::infinity(), farthest = 0.0;
    for (int32_t i = 0; i < p.num_points; ++i) {
      const int32_t label = input.Label(problem, i);
      const int32_t trained = trained_labels[int64_t{problem} * input.params.max_points + i];
      if (trained >= p.num_lists) {
        ASSERT_EQ(label, trained + p.num_lone) << "point " << i;
        continue;
      }
      const double own = SquaredDistance(seen.points[i], input.Centroid(problem, trained));
      if (label >= p.num_lists) {
        nearest_lone = std::min(nearest_lone, own);
      } else {
        ASSERT_EQ(label, trained) << "point " << i;
        farthest = std::max(farthest, own);
      }
    }
    EXPECT_GE(nearest_lone * 1.0001, farthest);
  }
}

inline void ExpectResult(const KMeansInput& input) {
  for (int32_t problem = 0; problem < input.params.num_problems; ++problem) {
    SCOPED_TRACE("problem " + std::to_string(problem));
    ExpectLists(input, problem);
    const SeenPoints seen(input, problem);
    ExpectNearest(input, problem, seen);
    ExpectLonePoints(input, problem, seen);
    EXPECT_GE(input.iterations_done[problem], 0);
    EXPECT_LE(input.iterations_done[problem], input.params.iterations);
  }
}

// ------------------------------ cases

inline constexpr int32_t kKMeansHeadDims[] = {64, 80, 96, 128, 256};

// One problem of each odd size: k > n, k = 1, n and k at and around tiles, no points at all.
inline std::vector<KMeansCase::Size> OddSizes() {
  return {{5, 9}, {1, 1}, {0, 3}, {33, 1}, {255, 16}, {256, 17}, {257, 64}, {300, 65}, {64, 64}};
}

// Distances are exact (with iterations 0 centroids are points) and many of them equal. Problems
// without lone points, with some, with more than there are points off their centroids.
inline KMeansCase ExactLoneCase(int32_t head_dim, DType dtype) {
  KMeansCase c;
  c.head_dim = head_dim;
  c.dtype = dtype;
  c.data = KMeansData::kIntegers;
  c.iterations = 0;
  c.sizes = {{300, 20, 0}, {1500, 40, 110}, {40, 33, 20}, {64, 8, 1}, {2, 1, 2}, {0, 3, 4}};
  return c;
}

// Points that are not ordinary, in twos that are opposite: the mean stays 0.
inline void AddExtraordinaryPairs(KMeansInput& input) {
  for (int32_t problem = 0; problem < input.params.num_problems; ++problem) {
    for (int32_t i = 0; i < input.problems[problem].num_points / 2 * 2; ++i) {
      if (i / 2 % 11 == 3) input.SetAll(problem, i, 0.0f);
      if (i / 2 % 13 == 4) input.Set(problem, i, 5, std::numeric_limits<float>::infinity());
    }
  }
}

inline KMeansCase RandomKMeansCase(std::mt19937_64& rng) {
  KMeansCase c;
  c.head_dim = kKMeansHeadDims[rng() % 5];
  c.dtype = rng() % 2 == 0 ? DType::kBFloat16 : DType::kFloat16;
  c.metric = rng() % 3 == 0 ? KMeansMetric::kCosine : KMeansMetric::kCenteredL2;
  c.data = rng() % 3 == 0 ? KMeansData::kNormal : KMeansData::kBlobs;
  c.iterations = static_cast<int32_t>(rng() % 5);
  c.draws = rng() % 2 == 0;
  c.sizes.clear();
  for (uint64_t i = 1 + rng() % 3; i > 0; --i) {
    const int32_t n = static_cast<int32_t>(rng() % 400);
    const int32_t num_lists = 1 + static_cast<int32_t>(rng() % (1 + n / 4));
    const int32_t num_lone = rng() % 2 == 0 ? 0 : static_cast<int32_t>(rng() % (2 + n / 4));
    c.sizes.push_back({n, num_lists, num_lone});
  }
  return c;
}

// Some points that are zero, not finite, or too large to square.
inline void AddExtraordinaryPoints(KMeansInput& input, std::mt19937_64& rng) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (int32_t problem = 0; problem < input.params.num_problems; ++problem) {
    const int32_t n = input.problems[problem].num_points;
    for (int32_t i = 0; i < n; ++i) {
      const int32_t d = static_cast<int32_t>(rng() % input.params.head_dim);
      const uint64_t kind = rng() % 40;
      if (kind == 0) input.SetAll(problem, i, 0.0f);
      if (kind == 1) input.Set(problem, i, d, std::numeric_limits<float>::quiet_NaN());
      if (kind == 2) input.Set(problem, i, d, rng() % 2 == 0 ? infinity : -infinity);
      if (kind == 3) input.SetAll(problem, i, 3e38f);
    }
  }
}

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_OPS_CLUSTERING_KMEANS_CASES_H_
