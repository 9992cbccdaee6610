#include "csrc/ops/cache/list_means.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "csrc/ops/numeric/float_convert.h"
#include "tests/testing/random.h"
#include "tests/testing/simd_targets.h"

namespace semkv {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kGuard = -12345.0f;

enum class Layout { kRanges, kMembers };

// Keys, lists of random sizes (empty ones too), and outputs with a guard behind them.
struct Problem {
  Problem(int32_t head_dim, std::vector<int32_t> sizes, Layout layout, std::mt19937_64& rng) {
    offsets.push_back(0);
    for (int32_t size : sizes) offsets.push_back(static_cast<uint16_t>(offsets.back() + size));
    const int32_t num_tokens = offsets.back();
    keys = testing::RandomNormal(rng, int64_t{num_tokens} * head_dim);
    members.resize(num_tokens);
    for (int32_t t = 0; t < num_tokens; ++t) members[t] = static_cast<uint16_t>(t);
    if (layout == Layout::kMembers) std::shuffle(members.begin(), members.end(), rng);
    params.head_dim = head_dim;
    params.nlist = static_cast<int32_t>(sizes.size());
    params.keys = keys.data();
    params.offsets = offsets.data();
    params.members = layout == Layout::kMembers ? members.data() : nullptr;
    means.assign(int64_t{params.nlist} * head_dim + 1, kGuard);
    variances.assign(params.nlist + 1, kGuard);
    params.means = means.data();
    params.variances = variances.data();
  }

  const float* Key(int32_t member) const { return keys.data() + members[member] * params.head_dim; }
  float* Key(int32_t member) { return keys.data() + members[member] * params.head_dim; }

  ListMeansParams params;
  std::vector<float> keys, means, variances;
  std::vector<uint16_t> offsets, members;
};

void ExpectHostEqualsReference(Problem& problem) {
  ListMeansReference(problem.params);
  const std::vector<float> means = problem.means, variances = problem.variances;
  testing::ForEachSimdTarget([&] {
    std::fill(problem.means.begin(), problem.means.end(), kGuard);
    std::fill(problem.variances.begin(), problem.variances.end(), kGuard);
    ListMeansHost(problem.params);
    for (size_t i = 0; i < means.size(); ++i) {
      ASSERT_NEAR(problem.means[i], means[i], 1e-5 * (1 + std::abs(means[i]))) << "mean " << i;
    }
    for (size_t i = 0; i < variances.size(); ++i) {
      ASSERT_NEAR(problem.variances[i], variances[i], 1e-4 * std::abs(variances[i]) + 1e-6)
          << "variance " << i;
    }
    EXPECT_EQ(problem.means.back(), kGuard);
    EXPECT_EQ(problem.variances.back(), kGuard);
  });
}

TEST(ListMeansTest, EqualsTheReference) {
  const uint64_t seed = testing::TestSeed(31);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (int32_t head_dim : {1, 7, 64, 80, 96, 128, 256, 300}) {
    for (Layout layout : {Layout::kRanges, Layout::kMembers}) {
      SCOPED_TRACE(head_dim);
      Problem problem(head_dim, {1, 0, 31, 32, 33, 64, 100, 0}, layout, rng);
      ExpectHostEqualsReference(problem);
    }
  }
  for (int round = 0; round < 30 * testing::SoakFactor(); ++round) {
    std::vector<int32_t> sizes(1 + rng() % 40);
    for (int32_t& size : sizes) size = static_cast<int32_t>(rng() % 120);
    Problem problem(1 + static_cast<int32_t>(rng() % 140), sizes,
                    rng() % 2 == 0 ? Layout::kRanges : Layout::kMembers, rng);
    SCOPED_TRACE("round " + std::to_string(round));
    ExpectHostEqualsReference(problem);
  }
}

TEST(ListMeansTest, VariancesMayBeNull) {
  std::mt19937_64 rng(1);
  Problem problem(64, {5, 9}, Layout::kRanges, rng);
  ListMeansHost(problem.params);
  const std::vector<float> means = problem.means;
  problem.params.variances = nullptr;
  std::fill(problem.means.begin(), problem.means.end(), kGuard);
  ListMeansHost(problem.params);
  EXPECT_EQ(problem.means, means);
}

// One list of 8,192 keys with a channel that stands 20 deviations off, as real keys have: neither
// the mean nor the variance (whose one-pass form would cancel) may lose its digits.
TEST(ListMeansTest, AnOffsetChannelKeepsMeanAndVarianceExact) {
  const uint64_t seed = testing::TestSeed(32);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (float offset : {20.0f, -20.0f, 2000.0f}) {
    Problem problem(128, {8192}, Layout::kMembers, rng);
    for (int32_t t = 0; t < 8192; ++t) {
      problem.keys[t * 128 + 3] += offset;
      problem.keys[t * 128 + 77] -= offset;
    }
    ListMeansReference(problem.params);
    const std::vector<float> means = problem.means;
    const float variance = problem.variances[0];
    testing::ForEachSimdTarget([&] {
      ListMeansHost(problem.params);
      double error = 0.0, square = 0.0;
      for (int32_t d = 0; d < 128; ++d) {
        error += std::pow(double{problem.means[d]} - means[d], 2);
        square += std::pow(means[d], 2);
        EXPECT_NEAR(problem.means[d], means[d], 1e-6 * std::abs(means[d]) + 1e-6) << d;
      }
      EXPECT_LE(std::sqrt(error / square), 1e-3);
      EXPECT_NEAR(problem.variances[0], variance, 1e-5 * variance);
    });
  }
}

TEST(ListMeansTest, MembersThatAreNotFiniteAreLeftOut) {
  std::mt19937_64 rng(33);
  for (int32_t head_dim : {5, 64, 80}) {
    for (Layout layout : {Layout::kRanges, Layout::kMembers}) {
      Problem problem(head_dim, {40, 3, 70, 2}, layout, rng);
      problem.Key(0)[0] = kNaN;
      problem.Key(39)[head_dim - 1] = -kInfinity;
      problem.Key(50)[1] = kInfinity;
      problem.Key(80)[1] = -kInfinity;                        // with the one above: inf - inf
      for (int32_t t : {113, 114}) problem.Key(t)[2] = kNaN;  // a list without finite members
      ExpectHostEqualsReference(problem);
      for (int32_t d = 0; d < head_dim; ++d) EXPECT_EQ(problem.means[3 * head_dim + d], 0.0f);
      EXPECT_EQ(problem.variances[3], 0.0f);
    }
  }
}

// The least and greatest finite member lie within the bounds, and no closer bf16 number would do.
TEST(ListBoundsTest, BoundEveryFiniteMemberAndNoWiderThanBFloat16Asks) {
  const uint64_t seed = testing::TestSeed(34);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (int32_t head_dim : {7, 64, 128, 300}) {
    Problem problem(head_dim, {1, 33, 0, 100, 2}, Layout::kMembers, rng);
    for (int32_t t = 1; t < 34; ++t) {
      problem.Key(t)[1] = -std::abs(problem.Key(t)[1]);
      problem.Key(t)[2] = std::abs(problem.Key(t)[2]);
    }
    problem.Key(5)[0] = kNaN;
    problem.Key(40)[3] = kInfinity;
    problem.Key(60)[4] = std::numeric_limits<float>::max();
    problem.Key(61)[4] = -std::numeric_limits<float>::denorm_min();
    problem.Key(134)[0] = problem.Key(135)[0] = 0.5f;  // exact in bf16: no widening
    testing::ForEachSimdTarget([&] {
      std::vector<uint16_t> bounds(problem.params.nlist * 2 * head_dim + 1, 0xa5a5);
      ListBounds(problem.params, bounds.data());
      EXPECT_EQ(bounds.back(), 0xa5a5);
      for (int32_t i = 0; i < problem.params.nlist; ++i) {
        for (int32_t d = 0; d < head_dim; ++d) {
          float least = kInfinity, greatest = -kInfinity;
          for (int32_t m = problem.offsets[i]; m < problem.offsets[i + 1]; ++m) {
            const float* key = problem.Key(m);
            if (!std::all_of(key, key + head_dim, [](float x) { return std::isfinite(x); }))
              continue;
            least = std::min(least, key[d]);
            greatest = std::max(greatest, key[d]);
          }
          if (least > greatest) least = greatest = 0.0f;
          const float low = FloatFromBFloat16(bounds[i * 2 * head_dim + d]);
          const float high = FloatFromBFloat16(bounds[(i * 2 + 1) * head_dim + d]);
          EXPECT_LE(low, least);
          EXPECT_GE(high, greatest);
          EXPECT_GE(low, least - std::abs(least) / 128 - 1e-38f);
          if (greatest < 1e38f) {
            EXPECT_LE(high, greatest + std::abs(greatest) / 128 + 1e-38f);
          }
          if (i == 4 && d == 0) {
            EXPECT_EQ(low, 0.5f);
            EXPECT_EQ(high, 0.5f);
          }
        }
      }
    });
  }
}

TEST(EncodeInt8Test, RoundTripIsWithinHalfAScale) {
  const uint64_t seed = testing::TestSeed(35);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  constexpr int32_t kLists = 50;
  for (int32_t head_dim : {3, 64, 80, 256}) {
    const std::vector<float> means = testing::RandomNormal(rng, kLists * head_dim, 3.0f);
    const std::vector<float> center = testing::RandomNormal(rng, head_dim, 20.0f);
    testing::ForEachSimdTarget([&] {
      std::vector<int8_t> codes(kLists * head_dim + 1, 77);
      std::vector<float> scales(kLists + 1, kGuard);
      EncodeInt8(means.data(), center.data(), kLists, head_dim, codes.data(), scales.data());
      EXPECT_EQ(codes.back(), 77);
      EXPECT_EQ(scales.back(), kGuard);
      for (int32_t i = 0; i < kLists; ++i) {
        int greatest = 0;
        for (int32_t d = 0; d < head_dim; ++d) {
          const int32_t at = i * head_dim + d;
          const float want = means[at] - center[d];
          EXPECT_NEAR(codes[at] * scales[i], want, scales[i] * 0.5001f);
          EXPECT_GE(codes[at], -127);
          greatest = std::max(greatest, std::abs(int{codes[at]}));
        }
        EXPECT_EQ(greatest, 127);
      }
    });
  }
}

TEST(EncodeInt8Test, AZeroVectorHasScaleAndCodesZero) {
  std::vector<float> means(2 * 64, 1.5f);
  means[64] = 1.5f + 0x1p-23f;
  const std::vector<float> center(64, 1.5f), tiny(64, 1e-40f);
  std::vector<int8_t> codes(2 * 64, 9);
  std::vector<float> scales(2, kGuard);
  EncodeInt8(means.data(), center.data(), 2, 64, codes.data(), scales.data());
  EXPECT_EQ(scales[0], 0.0f);
  EXPECT_TRUE(std::all_of(codes.begin(), codes.begin() + 64, [](int8_t c) { return c == 0; }));
  EXPECT_EQ(codes[64], 127);  // the smallest difference still counts
  EncodeInt8(tiny.data(), nullptr, 1, 64, codes.data(), scales.data());
  EXPECT_EQ(scales[0], 0.0f);
  EXPECT_EQ(codes[0], 0);
}

TEST(EncodeBFloat16Test, RoundsTheDifferenceToTheCenter) {
  std::mt19937_64 rng(36);
  constexpr int32_t kLists = 20;
  for (int32_t head_dim : {3, 64, 80}) {
    const std::vector<float> means = testing::RandomNormal(rng, kLists * head_dim, 3.0f);
    const std::vector<float> center = testing::RandomNormal(rng, head_dim, 3.0f);
    testing::ForEachSimdTarget([&] {
      for (const float* at_center : {center.data(), static_cast<const float*>(nullptr)}) {
        std::vector<uint16_t> codes(kLists * head_dim + 1, 0xa5a5);
        EncodeBFloat16(means.data(), at_center, kLists, head_dim, codes.data());
        EXPECT_EQ(codes.back(), 0xa5a5);
        for (int32_t i = 0; i < kLists * head_dim; ++i) {
          const float x = at_center != nullptr ? means[i] - at_center[i % head_dim] : means[i];
          EXPECT_EQ(codes[i], BFloat16FromFloat(x));
        }
      }
    });
  }
}

}  // namespace
}  // namespace semkv
