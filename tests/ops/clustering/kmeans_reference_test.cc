// The specification of batched k-means against the partitioner's own k-means
// (faiss_index/kmeans.h), and against the partitioner where points get lists of their own; what the
// plan refuses.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "csrc/ops/clustering/kmeans.h"
#include "csrc/ops/clustering/kmeans_plan.h"
#include "faiss_index/kmeans.h"
#include "faiss_index/partitioner.h"
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

std::vector<float> Keys(const KMeansInput& input) {
  std::vector<float> keys;
  for (int32_t i = 0; i < input.problems[0].num_points; ++i) {
    for (int32_t d = 0; d < input.params.head_dim; ++d) keys.push_back(input.Get(0, i, d));
  }
  return keys;
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

    const std::vector<float> keys = Keys(input);
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

using ListSet = std::set<std::vector<uint32_t>>;

ListSet ListsOf(const KMeansInput& input) {
  ListSet lists;
  const KMeansProblem& p = input.problems[0];
  for (int32_t list = 0; list < p.num_lists + p.num_lone + 2; ++list) {
    std::vector<uint32_t> members;
    for (uint32_t i = input.Offset(0, list); i < input.Offset(0, list + 1); ++i) {
      members.push_back(input.Member(0, i));
    }
    if (!members.empty()) lists.insert(members);
  }
  return lists;
}

ListSet ListsOf(const Lists& partition) {
  ListSet lists;
  for (int32_t list = 0; list < partition.nlist(); ++list) {
    lists.emplace(partition.members.begin() + partition.offsets[list],
                  partition.members.begin() + partition.offsets[list + 1]);
  }
  return lists;
}

// Zero keys, keys that are not finite and keys at their centroids among them.
TEST(KMeansReferenceTest, ListsEqualThePartitionersWithLonePoints) {
  for (int32_t round = 0; round < 14; ++round) {
    const uint64_t seed = testing::TestSeed(60) + round;
    SEMKV_TRACE_SEED(seed);
    std::mt19937_64 rng(seed);
    const bool has_extraordinary = round % 3 == 1;
    const int32_t n = 300 + 31 * round, nlist = 12 + 5 * round;
    ClusterOptions options;
    options.nlist = nlist + (has_extraordinary ? 1 : 0);  // two kinds take the place of one cluster
    options.lone_share = 0.125f * static_cast<float>(1 + round % 7);
    options.metric = round % 2 == 0 ? ClusterMetric::kCenteredL2 : ClusterMetric::kCosine;
    options.init = round % 4 != 0 ? KMeansInit::kStratified : KMeansInit::kStrided;
    options.seed = seed;
    KMeansCase c;
    c.metric = round % 2 == 0 ? KMeansMetric::kCenteredL2 : KMeansMetric::kCosine;
    c.draws = round % 4 != 0;
    c.dtype = DType::kFloat32;
    c.iterations = options.iterations;
    const int32_t num_lone = static_cast<int32_t>(options.lone_share * static_cast<float>(nlist));
    c.sizes = {{n, nlist - num_lone, num_lone}};
    KMeansInput input(c, rng);
    // Fewer points are off their centroids than may leave.
    for (int32_t i = 7; i < n && round % 5 == 4; ++i) input.CopyPoint(0, i % 7, i);
    for (int32_t i = 11; i + 5 < n && has_extraordinary; i += 40) {
      input.SetAll(0, i, 0.0f);
      input.Set(0, i + 5, 3, std::nanf(""));
    }
    std::mt19937_64 partitioner_rng(seed);
    for (uint64_t& draw : input.draws) draw = partitioner_rng();
    KMeansReference(input.params);
    testing::ExpectResult(input);

    const std::vector<float> keys = Keys(input);
    const auto partitioner = MakeClusterPartitioner(options);
    ASSERT_TRUE(partitioner.ok());
    Lists expected;
    ASSERT_TRUE((*partitioner)->Partition({n, c.head_dim, keys.data(), nullptr}, &expected).ok());
    EXPECT_EQ(ListsOf(input), ListsOf(expected));
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
  EXPECT_EQ(KMeansCudaUnsupported(8, 128, 8192, 192, 10, 8000), nullptr);
  EXPECT_NE(KMeansCudaUnsupported(8, 128, 8192, 192, 10, 8001), nullptr);
  EXPECT_NE(KMeansCudaUnsupported(8, 128, 8192, 192, 10, -1), nullptr);
}

TEST(KMeansReferenceTest, PlanServesItsOwnParamsOnly) {
  std::mt19937_64 rng(1);
  KMeansInput input(KMeansCase(), rng);
  KMeansParams& p = input.params;
  const KMeansPlan plan =
      PlanKMeans(p.num_problems, p.head_dim, p.max_points, p.max_lists, p.iterations);
  EXPECT_TRUE(KMeansPlanServes(plan, p));
  for (int32_t* field :
       {&p.num_problems, &p.head_dim, &p.max_points, &p.max_lists, &p.iterations, &p.max_lone}) {
    ++*field;
    EXPECT_FALSE(KMeansPlanServes(plan, p));
    --*field;
  }
  p.dtype = DType::kFloat32;
  EXPECT_FALSE(KMeansPlanServes(plan, p));
}

}  // namespace
}  // namespace semkv
