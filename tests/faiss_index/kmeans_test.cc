#include "faiss_index/kmeans.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <set>
#include <vector>

#include "tests/testing/generator_s1.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

// Squared distance, or 2 - 2 cos; in double.
double Distance(const float* x, const float* c, int32_t head_dim, ClusterMetric metric) {
  double squared = 0.0, xx = 0.0, cc = 0.0, xc = 0.0;
  for (int32_t d = 0; d < head_dim; ++d) {
    squared += (double{x[d]} - c[d]) * (double{x[d]} - c[d]);
    xx += double{x[d]} * x[d];
    cc += double{c[d]} * c[d];
    xc += double{x[d]} * c[d];
  }
  if (metric == ClusterMetric::kCenteredL2) return squared;
  return 2.0 - 2.0 * xc / std::sqrt(std::max(xx, 1e-12) * std::max(cc, 1e-12));
}

// A10: every label is the nearest centroid; centroids so near that float32 cannot tell are equal.
void ExpectNearest(const std::vector<float>& keys, int32_t head_dim, ClusterMetric metric,
                   const KMeansResult& result) {
  double objective = 0.0;
  for (size_t i = 0; i < result.labels.size(); ++i) {
    const float* x = keys.data() + i * head_dim;
    double least = std::numeric_limits<double>::infinity(), scale = 1.0;
    for (int32_t c = 0; c < result.nlist; ++c) {
      least =
          std::min(least, Distance(x, &result.centroids[int64_t{c} * head_dim], head_dim, metric));
    }
    for (int32_t d = 0; d < head_dim; ++d) scale += double{x[d]} * x[d];
    const double own =
        Distance(x, &result.centroids[int64_t{result.labels[i]} * head_dim], head_dim, metric);
    ASSERT_LE(own, least + 1e-5 * scale) << "point " << i << " label " << result.labels[i];
    objective += own;
  }
  EXPECT_NEAR(result.objective, objective, 1e-4 * objective + 1e-3 * result.labels.size());
}

struct Case {
  int32_t num_points, head_dim, nlist, iterations;
};

TEST(KMeansTest, EveryLabelIsTheNearestCentroid) {
  const std::vector<Case> cases = {{1, 1, 1, 10},       {2, 3, 5, 10},      {33, 7, 4, 0},
                                   {320, 64, 10, 10},   {1000, 128, 31, 1}, {1003, 80, 33, 7},
                                   {2048, 128, 64, 10}, {500, 256, 250, 10}};
  for (ClusterMetric metric : {ClusterMetric::kCenteredL2, ClusterMetric::kCosine}) {
    for (KMeansInit init : {KMeansInit::kStratified, KMeansInit::kStrided}) {
      for (const Case& c : cases) {
        SCOPED_TRACE(::testing::Message() << c.num_points << " points of " << c.head_dim);
        testing::S1Options s1;
        s1.num_tokens = c.num_points;
        s1.head_dim = c.head_dim;
        s1.num_queries = 0;
        s1.outlier_channels = c.head_dim >= 64 ? 4 : 0;
        const std::vector<float> keys = testing::GenerateS1(s1).keys;
        KMeansOptions options{c.nlist, metric, init, c.iterations, 1};
        const absl::StatusOr<KMeansResult> result =
            TrainKMeans(keys.data(), c.num_points, c.head_dim, options);
        ASSERT_TRUE(result.ok());
        EXPECT_EQ(result->nlist, std::min(c.nlist, c.num_points));
        ExpectNearest(keys, c.head_dim, metric, *result);
      }
    }
  }
}

TEST(KMeansTest, SkippingChangesNothing) {
  testing::S1Options s1;
  s1.num_tokens = 4096;
  const std::vector<float> keys = testing::GenerateS1(s1).keys;
  KMeansOptions options;
  options.nlist = 128;
  const KMeansResult result = *TrainKMeans(keys.data(), 4096, 128, options);
  EXPECT_LT(result.num_tests, result.num_pairs * 3 / 4);
  ExpectNearest(keys, 128, options.metric, result);
}

TEST(KMeansTest, ObjectiveNeverRisesWithMoreIterations) {
  testing::S1Options s1;
  s1.num_tokens = 2048;
  const std::vector<float> keys = testing::GenerateS1(s1).keys;
  double before = std::numeric_limits<double>::infinity();
  for (int32_t iterations = 0; iterations <= 8; ++iterations) {
    KMeansOptions options;
    options.nlist = 64;
    options.iterations = iterations;
    const double objective = TrainKMeans(keys.data(), 2048, 128, options)->objective;
    EXPECT_LE(objective, before * (1.0 + 1e-6));
    before = objective;
  }
}

// At the size of a segment. With fewer clusters than the data has places, either is a matter of
// luck.
TEST(KMeansTest, ObjectiveIsWithinOnePercentOfFaiss) {
  std::mt19937_64 rng(1);
  for (ClusterMetric metric : {ClusterMetric::kCenteredL2, ClusterMetric::kCosine}) {
    for (bool structured : {true, false}) {
      testing::S1Options s1;
      s1.num_tokens = 2048;
      const std::vector<float> keys =
          structured ? testing::GenerateS1(s1).keys : testing::RandomNormal(rng, 8192 * 128);
      double ours = 0.0, faiss = 0.0;
      for (uint64_t seed = 1; seed <= 2; ++seed) {
        KMeansOptions options;
        options.nlist = 256;
        options.metric = metric;
        options.seed = seed;
        ours += TrainKMeans(keys.data(), 8192, 128, options)->objective;
        faiss += TrainWithFaiss(keys.data(), 8192, 128, options)->objective;
      }
      EXPECT_LE(ours, 1.01 * faiss);
    }
  }
}

TEST(KMeansTest, SameSeedGivesTheSameBits) {
  const std::vector<float> keys = testing::GenerateS1({}).keys;
  KMeansOptions options;
  options.nlist = 256;
  const KMeansResult a = *TrainKMeans(keys.data(), 8192, 128, options);
  const KMeansResult b = *TrainKMeans(keys.data(), 8192, 128, options);
  EXPECT_EQ(a.centroids, b.centroids);
  EXPECT_EQ(a.labels, b.labels);
}

// Ten points far apart, thirty times each: as many clusters as points find them all.
TEST(KMeansTest, EmptyClustersRestartAtFarPoints) {
  std::mt19937_64 rng(2);
  const std::vector<float> places = testing::RandomNormal(rng, 10 * 16, 10.0f);
  std::vector<float> keys;
  for (int32_t i = 0; i < 300; ++i) {
    keys.insert(keys.end(), places.begin() + i % 10 * 16, places.begin() + (i % 10 + 1) * 16);
  }
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    KMeansOptions options;
    options.nlist = 10;
    options.seed = seed;
    const KMeansResult result = *TrainKMeans(keys.data(), 300, 16, options);
    EXPECT_EQ(std::set<int32_t>(result.labels.begin(), result.labels.end()).size(), 10u) << seed;
    EXPECT_NEAR(result.objective, 0.0, 0.5);
  }
}

TEST(KMeansTest, OppositeKeysWhoseMeanIsZeroAreNoTrapForCosine) {
  std::vector<float> keys;
  for (int32_t i = 0; i < 64; ++i) keys.insert(keys.end(), {i % 2 == 0 ? 1.0f : -1.0f, 0.0f});
  KMeansOptions options;
  options.nlist = 1;
  options.metric = ClusterMetric::kCosine;
  const KMeansResult result = *TrainKMeans(keys.data(), 64, 2, options);
  EXPECT_NEAR(result.objective, 128.0, 1e-3);
}

TEST(KMeansTest, RefusesBadArguments) {
  const float key = 1.0f;
  for (const KMeansOptions& options : {KMeansOptions{0}, KMeansOptions{8193}}) {
    EXPECT_EQ(TrainKMeans(&key, 1, 1, options).status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(TrainWithFaiss(&key, 1, 1, options).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(TrainKMeans(&key, 0, 1, KMeansOptions{1}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace semkv
