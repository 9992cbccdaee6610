#include "integration/reference/sampler.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>

namespace semkv::reference {
namespace {

constexpr int kDraws = 20000;

std::array<double, 4> Frequencies(SamplerOptions options, const std::vector<float>& logits) {
  Sampler sampler(options, 4);
  std::array<double, 4> counts = {};
  for (int i = 0; i < kDraws; ++i) counts[sampler.Sample(logits)] += 1.0 / kDraws;
  return counts;
}

TEST(SamplerTest, GreedyTakesTheFirstOfTheLargest) {
  Sampler sampler(SamplerOptions(), 4);
  EXPECT_EQ(sampler.Sample({0.0f, 2.0f, 2.0f, 1.0f}), 1);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(sampler.Sample({nan, -5.0f, nan, -4.0f}), 3);
  EXPECT_EQ(sampler.Sample({nan, nan, nan, nan}), 0);
}

TEST(SamplerTest, DrawsWithTheProbabilitiesOfTheSoftmax) {
  SamplerOptions options;
  options.temperature = 0.5f;  // the probabilities are then 1 : 4 : 16 of the whole
  const float step = std::log(2.0f);
  const auto counts = Frequencies(options, {0.0f, step, 2 * step, -100.0f});
  EXPECT_NEAR(counts[0], 1.0 / 21, 0.02);
  EXPECT_NEAR(counts[1], 4.0 / 21, 0.02);
  EXPECT_NEAR(counts[2], 16.0 / 21, 0.02);
  EXPECT_EQ(counts[3], 0.0);
}

TEST(SamplerTest, TopKAndTopPKeepTheMostLikely) {
  const std::vector<float> logits = {std::log(0.1f), std::log(0.5f), std::log(0.3f),
                                     std::log(0.1f)};
  SamplerOptions options;
  options.temperature = 1.0f;
  options.top_k = 2;
  auto counts = Frequencies(options, logits);
  EXPECT_NEAR(counts[1], 0.625, 0.02);
  EXPECT_EQ(counts[0] + counts[3], 0.0);
  options.top_k = 0;
  options.top_p = 0.7f;  // the first alone has 0.5
  counts = Frequencies(options, logits);
  EXPECT_NEAR(counts[1], 0.625, 0.02);
  EXPECT_EQ(counts[0] + counts[3], 0.0);
  options.top_p = 1e-6f;
  EXPECT_NEAR(Frequencies(options, logits)[1], 1.0, 1e-9);
}

TEST(SamplerTest, EqualSeedsDrawEqually) {
  SamplerOptions options;
  options.temperature = 1.0f;
  options.seed = 3;
  Sampler a(options, 4), b(options, 4);
  options.seed = 4;
  Sampler c(options, 4);
  int different = 0;
  for (int i = 0; i < 100; ++i) {
    const int32_t id = a.Sample({0.0f, 0.0f, 0.0f, 0.0f});
    EXPECT_EQ(id, b.Sample({0.0f, 0.0f, 0.0f, 0.0f}));
    if (id != c.Sample({0.0f, 0.0f, 0.0f, 0.0f})) ++different;
  }
  EXPECT_GT(different, 0);
}

TEST(SamplerTest, SurvivesInfiniteLogits) {
  const float inf = std::numeric_limits<float>::infinity();
  SamplerOptions options;
  options.temperature = 1.0f;
  Sampler sampler(options, 4);
  EXPECT_EQ(sampler.Sample({-inf, 1.0f, -inf, -inf}), 1);
  EXPECT_EQ(sampler.Sample({0.0f, 1.0f, inf, 0.0f}), 2);
  EXPECT_EQ(sampler.Sample({-inf, -inf, -inf, -inf}), 0);
}

TEST(SamplerTest, NamesOptionsOutOfRange) {
  SamplerOptions options;
  options.temperature = -1.0f;
  EXPECT_EQ(options.Validate().message(), "temperature is -1, not a finite number >= 0");
  options = SamplerOptions();
  options.top_k = -2;
  EXPECT_EQ(options.Validate().message(), "top_k is -2, not >= 0");
  options = SamplerOptions();
  options.top_p = 0.0f;
  EXPECT_EQ(options.Validate().message(), "top_p is 0, not in (0, 1]");
  EXPECT_TRUE(SamplerOptions().Validate().ok());
}

}  // namespace
}  // namespace semkv::reference
