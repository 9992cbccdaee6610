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
#include "csrc/ops/retrieval/inverted_lists.h"
#include "tests/ops/cache/list_means_cases.h"
#include "tests/testing/random.h"
#include "tests/testing/simd_targets.h"

namespace semkv {
namespace {

using testing::kGuard;
using testing::kInfinity;
using testing::kNaN;
using testing::ListLayout;
using testing::ListMeansProblem;

void ExpectHostEqualsReference(ListMeansProblem& problem) {
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
  testing::ForEachListMeansCase(rng, ExpectHostEqualsReference);
}

TEST(ListMeansTest, VariancesMayBeNull) {
  std::mt19937_64 rng(1);
  ListMeansProblem problem(64, {5, 9}, ListLayout::kRanges, rng);
  ListMeansHost(problem.params);
  const std::vector<float> means = problem.means;
  problem.params.variances = nullptr;
  std::fill(problem.means.begin(), problem.means.end(), kGuard);
  ListMeansHost(problem.params);
  EXPECT_EQ(problem.means, means);
}

TEST(ListMeansTest, AnOffsetChannelKeepsMeanAndVarianceExact) {
  const uint64_t seed = testing::TestSeed(32);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (float offset : {20.0f, -20.0f, 2000.0f}) {
    ListMeansProblem problem = testing::OffsetChannelCase(offset, rng);
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
  testing::ForEachNonFiniteCase(rng, [](ListMeansProblem& problem) {
    ExpectHostEqualsReference(problem);
    const int32_t head_dim = problem.params.head_dim;
    for (int32_t d = 0; d < head_dim; ++d) EXPECT_EQ(problem.means[3 * head_dim + d], 0.0f);
    EXPECT_EQ(problem.variances[3], 0.0f);
  });
}

// The least and greatest finite member lie within the bounds, and no closer bf16 number would do.
TEST(ListBoundsTest, BoundEveryFiniteMemberAndNoWiderThanBFloat16Asks) {
  const uint64_t seed = testing::TestSeed(34);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (int32_t head_dim : {7, 64, 128, 300}) {
    ListMeansProblem problem(head_dim, {1, 33, 0, 100, 2}, ListLayout::kMembers, rng);
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

TEST(EncodeInt4Test, RoundTripIsWithinHalfAScale) {
  const uint64_t seed = testing::TestSeed(37);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  constexpr int32_t kLists = 50;
  for (int32_t head_dim : {16, 32, 64, 72, 80, 96, 256}) {
    const int32_t row_bytes = CentroidRowBytes(CentroidForm::kInt4, head_dim);
    std::vector<float> means = testing::RandomNormal(rng, kLists * head_dim, 3.0f);
    const std::vector<float> center = testing::RandomNormal(rng, head_dim, 20.0f);
    std::copy(center.begin(), center.end(), means.begin());  // list 0: scale and codes are 0
    testing::ForEachSimdTarget([&] {
      std::vector<uint8_t> codes(kLists * row_bytes + 1, 0xa5);
      std::vector<float> scales(kLists + 1, kGuard);
      EncodeInt4(means.data(), center.data(), kLists, head_dim, codes.data(), scales.data());
      EXPECT_EQ(codes.back(), 0xa5);
      EXPECT_EQ(scales.back(), kGuard);
      EXPECT_EQ(scales[0], 0.0f);
      for (int32_t i = 0; i < kLists; ++i) {
        int greatest = 0;
        for (int32_t d = 0; d < head_dim; ++d) {
          const int32_t code = Int4Code(codes[i * row_bytes + Int4Byte(d)], d);
          EXPECT_NEAR(code * scales[i], means[i * head_dim + d] - center[d], scales[i] * 0.5001f);
          greatest = std::max(greatest, std::abs(code));
        }
        EXPECT_EQ(greatest, i == 0 ? 0 : 7);
        for (int32_t d = head_dim; d < Int4Channels(head_dim); ++d) {
          EXPECT_EQ(Int4Code(codes[i * row_bytes + Int4Byte(d)], d), 0);
        }
      }
    });
  }
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
