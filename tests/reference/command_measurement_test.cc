#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "integration/reference/command/measurement.h"
#include "integration/reference/command/selection_map.h"

namespace semkv::command {
namespace {

TEST(CommandMeasurementTest, DivergenceOfKnownDistributions) {
  // p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2): KL = 1/2 ln 2 - 1/4 ln 2 = ln(2) / 4.
  const std::vector<float> p = {std::log(0.5f), std::log(0.25f), std::log(0.25f)};
  const std::vector<float> q = {std::log(0.25f), std::log(0.25f), std::log(0.5f)};
  EXPECT_NEAR(KlDivergence(p, q), std::log(2.0) / 4.0, 1e-7);
}

TEST(CommandMeasurementTest, DivergenceDoesNotDependOnAnOffset) {
  const std::vector<float> p = {1.0f, 3.0f, -2.0f};
  const std::vector<float> shifted = {65.0f, 67.0f, 62.0f};
  EXPECT_EQ(KlDivergence(p, p), 0.0);
  EXPECT_NEAR(KlDivergence(p, shifted), 0.0, 1e-12);
}

TEST(CommandMeasurementTest, DivergenceIsFiniteWhereProbabilitiesVanish) {
  // q gives p's certain token e^-2000 of the mass; the divergence is that distance.
  EXPECT_NEAR(
      KlDivergence(std::vector<float>{1000.0f, -1000.0f}, std::vector<float>{-1000.0f, 1000.0f}),
      2000.0, 1e-9);
}

TEST(CommandMeasurementTest, ArgMaxTakesTheFirstOfEquals) {
  EXPECT_EQ(ArgMax(std::vector<float>{0.0f, 2.0f, 2.0f, 1.0f}), 1);
}

TEST(CommandMeasurementTest, QuantilesInterpolateAsNumpyDoes) {
  const std::vector<double> values = {4.0, 1.0, 3.0, 2.0};
  EXPECT_DOUBLE_EQ(Quantile(values, 0.0), 1.0);
  EXPECT_DOUBLE_EQ(Quantile(values, 0.05), 1.15);
  EXPECT_DOUBLE_EQ(Quantile(values, 0.5), 2.5);
  EXPECT_DOUBLE_EQ(Quantile(values, 1.0), 4.0);
  EXPECT_DOUBLE_EQ(Quantile({}, 0.5), 0.0);
  EXPECT_DOUBLE_EQ(Mean(values), 2.5);
  EXPECT_DOUBLE_EQ(Mean({}), 0.0);
}

TEST(CommandMeasurementTest, CapturedMassIsAtMostOne) {
  EXPECT_NEAR(CapturedMass(std::log(0.25f), 0.0f), 0.25, 1e-7);
  EXPECT_EQ(CapturedMass(5.000001f, 5.0f), 1.0);
}

TEST(CommandMeasurementTest, ReadsCountDenseRowsWithTheirWholeContext) {
  const KvGeometry geometry = {/*num_layers=*/4, /*num_kv_heads=*/2, /*head_dim=*/64,
                               SEMKV_DTYPE_BF16};
  EXPECT_EQ(geometry.TokenBytes(), 2 * 2 * 4 * 2 * 64);
  semkv_stats before{}, after{};
  // Two tokens, contexts of 1,000 and 1,002; of 8 pairs, 6 sparse ones read 100 tokens per KV head.
  after.layer_rows[SEMKV_ROW_SPARSE] = 6;
  after.layer_rows[SEMKV_ROW_DENSE_LAYER] = 2;
  after.attended_tokens = 6 * 2 * 100;
  after.selections = 6 * 2;
  after.kv_bytes_read = 6 * 2 * 100 * 64 * 2 * 2;
  after.index_bytes_read = 5000;
  const ReadSummary reads = SummarizeReads(before, after, geometry, 2, 2002);
  EXPECT_DOUBLE_EQ(reads.attended_tokens_mean, 0.25 * 1001 + 0.75 * 100);
  EXPECT_DOUBLE_EQ(reads.dense_kv_bytes_per_token, 1001.0 * geometry.TokenBytes());
  EXPECT_DOUBLE_EQ(reads.kv_bytes_per_token,
                   (0.25 * 1001 + 0.75 * 100) * static_cast<double>(geometry.TokenBytes()));
  EXPECT_DOUBLE_EQ(reads.index_bytes_per_token, 2500.0);
  EXPECT_EQ(reads.fallbacks, (std::map<std::string, int64_t>{{"dense_layer", 2}}));
}

TEST(CommandMeasurementTest, DensePolicyAndOwnComparisonsAreNoFallbacks) {
  semkv_stats before{}, after{};
  before.layer_rows[SEMKV_ROW_DENSE_POLICY] = 7;
  after.layer_rows[SEMKV_ROW_DENSE_POLICY] = 15;
  after.layer_rows[SEMKV_ROW_REQUESTED] = 8;
  const ReadSummary reads = SummarizeReads(before, after, {4, 2, 64, SEMKV_DTYPE_F32}, 2, 100);
  EXPECT_TRUE(reads.fallbacks.empty());
  EXPECT_DOUBLE_EQ(reads.attended_tokens_mean, 50.0);
  EXPECT_DOUBLE_EQ(reads.kv_bytes_per_token, reads.dense_kv_bytes_per_token);
}

TEST(CommandSelectionMapTest, SharesAreOfTheBinsTokensAndSelections) {
  // 10 tokens in bins of 4: the last holds 2. Two selections a step, one layer.
  SelectionMap map(1, 2, 10, 4);
  ASSERT_EQ(map.num_bins(), 3);
  map.AddSelection(0, std::vector<int32_t>{0, 1, 2, 3, 9, 12});
  map.AddSelection(0, std::vector<int32_t>{0, 8, 9});
  map.AddSelection(0, std::vector<int32_t>{});
  map.AddSelection(0, std::vector<int32_t>{5});
  const std::vector<std::vector<float>> expected = {
      {5.0f / 8, 0.0f, 3.0f / 4, 0.0f, 1.0f / 8, 0.0f}};
  EXPECT_EQ(map.Shares(), expected);
}

}  // namespace
}  // namespace semkv::command
