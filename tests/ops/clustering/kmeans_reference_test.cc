// The specification of batched k-means against the partitioner's own k-means
// (faiss_index/kmeans.h), and what the plan refuses.

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <random>
#include <vector>

#include "csrc/ops/clustering/kmeans.h"
#include "csrc/ops/clustering/kmeans_plan.h"
#include "faiss_index/kmeans.h"
#include "tests/ops/clustering/kmeans_cases.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using testing::KMeansCase;
using testing::KMeansData;
using testing::KMeansInput;

// TrainKMeans puts its lists in another order: here they are numbered as points meet them.
template <typename Labels>
std::vector<int32_t> NumberByAppearance(const Labels& labels, int32_t n) {
  std::map<int32_t, int32_t> numbers;
  std::vector<int32_t> result;
  for (int32_t i = 0; i < n; ++i) {
    result.push_back(
        numbers.emplace(labels[i], static_cast<int32_t>(numbers.size())).first->second);
  }
  return result;
}

// The same algorithm: first centroids by the same draws, centring, restarts, when it ends.
TEST(KMeansReferenceTest, ReferenceEqualsThePartitionersKMeans) {
  for (int32_t round = 0; round < 12; ++round) {
    const uint64_t seed = testing::TestSeed(20) + round;
    SEMKV_TRACE_SEED(seed);
    std::mt19937_64 rng(seed);
    KMeansCase c;
    c.metric = round % 2 == 0 ? KMeansMetric::kCenteredL2 : KMeansMetric::kCosine;
    c.draws = round % 3 != 0;
    c.dtype = DType::kFloat32;
    c.iterations = 10;
    c.more_points = 0;
    c.sizes = {{500 + 37 * round, 4 + 2 * round}};
    KMeansInput input(c, rng);
    // Equal first centroids leave lists without members.
    for (int32_t i = 1; i < 40 * (round % 4); ++i) input.CopyPoint(0, 0, i);
    const int32_t n = c.sizes[0].num_points, nlist = c.sizes[0].num_lists;
    std::mt19937_64 partitioner_rng(seed);
    for (uint64_t& draw : input.draws) draw = partitioner_rng();
    KMeansReference(input.params);
    testing::ExpectResult(input);

    std::vector<float> keys;
    for (int32_t i = 0; i < n; ++i) {
      for (int32_t d = 0; d < c.head_dim; ++d) keys.push_back(input.Get(0, i, d));
    }
    KMeansOptions options;
    options.nlist = nlist;
    options.metric = round % 2 == 0 ? ClusterMetric::kCenteredL2 : ClusterMetric::kCosine;
    options.init = c.draws ? KMeansInit::kStratified : KMeansInit::kStrided;
    options.seed = seed;
    const auto expected = TrainKMeans(keys.data(), n, c.head_dim, options);
    ASSERT_TRUE(expected.ok());
    EXPECT_EQ(input.iterations_done[0], expected->iterations);
    EXPECT_NEAR(input.objectives[0], expected->objective, 1e-4 * expected->objective);
    EXPECT_EQ(NumberByAppearance(input.labels, n), NumberByAppearance(expected->labels, n));
  }
}

TEST(KMeansReferenceTest, PlanRefusesWhatTheKernelsDoNotServe) {
  EXPECT_EQ(KMeansCudaUnsupported(8, 128, 131072, 1024, 10), nullptr);
  EXPECT_NE(KMeansCudaUnsupported(8, 72, 8192, 256, 10), nullptr);
  EXPECT_NE(KMeansCudaUnsupported(8, 128, 0, 256, 10), nullptr);
  EXPECT_NE(KMeansCudaUnsupported(8, 128, (1 << 20) + 1, 256, 10), nullptr);
  EXPECT_NE(KMeansCudaUnsupported(8, 128, 8192, 0, 10), nullptr);
  EXPECT_NE(KMeansCudaUnsupported(8, 128, 8192, 8193, 10), nullptr);
  EXPECT_NE(KMeansCudaUnsupported(8, 128, 8192, 256, -1), nullptr);
  EXPECT_NE(KMeansCudaUnsupported(65536, 128, 8192, 256, 10), nullptr);
  EXPECT_NE(KMeansCudaUnsupported(-1, 128, 8192, 256, 10), nullptr);
}

TEST(KMeansReferenceTest, PlanServesItsOwnParamsOnly) {
  std::mt19937_64 rng(1);
  KMeansInput input(KMeansCase(), rng);
  KMeansParams& p = input.params;
  const KMeansPlan plan =
      PlanKMeans(p.num_problems, p.head_dim, p.max_points, p.max_lists, p.iterations);
  EXPECT_TRUE(KMeansPlanServes(plan, p));
  for (int32_t* field :
       {&p.num_problems, &p.head_dim, &p.max_points, &p.max_lists, &p.iterations}) {
    ++*field;
    EXPECT_FALSE(KMeansPlanServes(plan, p));
    --*field;
  }
  p.dtype = DType::kFloat32;
  EXPECT_FALSE(KMeansPlanServes(plan, p));
}

}  // namespace
}  // namespace semkv
