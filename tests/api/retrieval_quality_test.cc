// How much attention mass the policies capture on generator S1 (checks A16-A18 through the
// library's own index and selection), and that int8 vectors select as float ones do.

#include <gtest/gtest.h>

#include <cstdio>
#include <string>
#include <vector>

#include "tests/api/index_fixture.h"
#include "tests/testing/generator_s1.h"

namespace semkv {
namespace {

using testing::CapturedMass;
using testing::GenerateS1;
using testing::IndexFixture;
using testing::OracleMass;
using testing::S1Data;
using testing::S1Options;
using testing::SoftmaxMass;

struct Share {
  double mean = 0.0;
  double worst = 1.0;
};

// Captured mass of the oracle's, over the queries of one data set.
double CapturedShare(const S1Data& data, const semkv_policy& policy, int32_t num_queries) {
  IndexFixture fixture(1, data.options.head_dim, data.keys, data.values, policy);
  fixture.Index(data.options.num_tokens, data.closes.data());
  double captured = 0.0, oracle = 0.0;
  for (int32_t i = 0; i < num_queries; ++i) {
    const std::vector<double> mass = SoftmaxMass(data, i);
    const std::vector<int32_t> taken =
        fixture.Select(data.query(i), 1, 0, data.options.num_tokens, 0);
    EXPECT_EQ(static_cast<int32_t>(taken.size()), policy.budget);
    captured += CapturedMass(mass, taken);
    oracle += OracleMass(mass, policy.budget);
  }
  return captured / oracle;
}

semkv_policy Policy(int32_t kind, int32_t budget) {
  semkv_policy policy = DefaultPolicy(kind);
  policy.budget = budget;
  policy.sinks = 16;
  return policy;
}

struct QualityCase {
  const char* name;
  int32_t kind;
  int32_t budget;
  bool outliers;
  double least_mean, least_worst;
};

class RetrievalQualityTest : public ::testing::TestWithParam<QualityCase> {};

TEST_P(RetrievalQualityTest, CapturesNearlyTheOraclesMass) {
  const QualityCase& c = GetParam();
  constexpr int kSeeds = 16;
  Share share;
  for (int i = 0; i < kSeeds; ++i) {
    S1Options options;
    options.seed = testing::TestSeed(1000) + i;
    options.outlier_channels = c.outliers ? 4 : 0;
    options.num_queries = 24;
    const double captured =
        CapturedShare(GenerateS1(options), Policy(c.kind, c.budget), options.num_queries);
    std::printf("%s seed %llu: %.4f\n", c.name, static_cast<unsigned long long>(options.seed),
                captured);
    share.mean += captured / kSeeds;
    share.worst = std::min(share.worst, captured);
  }
  std::printf("%s: mean %.4f, worst %.4f\n", c.name, share.mean, share.worst);
  EXPECT_GE(share.mean, c.least_mean);
  EXPECT_GE(share.worst, c.least_worst);
}

INSTANTIATE_TEST_SUITE_P(
    S1, RetrievalQualityTest,
    ::testing::Values(
        QualityCase{"hybrid_256", SEMKV_POLICY_HYBRID, 256, false, 0.995, 0.985},
        QualityCase{"hybrid_1024", SEMKV_POLICY_HYBRID, 1024, false, 0.995, 0.985},
        QualityCase{"hybrid_256_outliers", SEMKV_POLICY_HYBRID, 256, true, 0.995, 0.985},
        QualityCase{"hybrid_1024_outliers", SEMKV_POLICY_HYBRID, 1024, true, 0.995, 0.985},
        QualityCase{"cluster_256", SEMKV_POLICY_CLUSTER, 256, false, 0.995, 0.985},
        QualityCase{"cluster_1024", SEMKV_POLICY_CLUSTER, 1024, false, 0.995, 0.985},
        QualityCase{"cluster_256_outliers", SEMKV_POLICY_CLUSTER, 256, true, 0.995, 0.985},
        QualityCase{"cluster_1024_outliers", SEMKV_POLICY_CLUSTER, 1024, true, 0.995, 0.985},
        QualityCase{"sentence_256", SEMKV_POLICY_SENTENCE, 256, false, 0.99, 0.98},
        QualityCase{"sentence_1024", SEMKV_POLICY_SENTENCE, 1024, false, 0.99, 0.98},
        QualityCase{"sentence_256_outliers", SEMKV_POLICY_SENTENCE, 256, true, 0.99, 0.98},
        QualityCase{"sentence_1024_outliers", SEMKV_POLICY_SENTENCE, 1024, true, 0.99, 0.98}),
    [](const auto& info) { return std::string(info.param.name); });

// Four segments whose keys have different means: codes are relative to each segment's own center.
TEST(RetrievalQualityTest, Int8VectorsSelectAsFloatOnesDo) {
  for (int i = 0; i < 2; ++i) {
    S1Options options;
    options.seed = testing::TestSeed(2000) + i;
    SEMKV_TRACE_SEED(options.seed);
    options.num_tokens = 32768;
    options.segment_tokens = 8192;
    options.segment_mean = 1.0f;
    options.num_queries = 16;
    const S1Data data = GenerateS1(options);
    semkv_policy policy = Policy(SEMKV_POLICY_HYBRID, 1024);
    const double int8 = CapturedShare(data, policy, options.num_queries);
    policy.centroid_form = SEMKV_CENTROID_F32;
    const double float32 = CapturedShare(data, policy, options.num_queries);
    policy.centroid_form = SEMKV_CENTROID_BF16;
    const double bfloat16 = CapturedShare(data, policy, options.num_queries);
    std::printf("seed %llu: int8 %.5f, bf16 %.5f, float %.5f\n",
                static_cast<unsigned long long>(options.seed), int8, bfloat16, float32);
    EXPECT_NEAR(int8, float32, 0.002);
    EXPECT_NEAR(bfloat16, float32, 0.002);
  }
}

}  // namespace
}  // namespace semkv
