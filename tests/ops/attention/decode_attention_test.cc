#include "csrc/ops/attention/decode_attention.h"

#include <gtest/gtest.h>

#include <cfenv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "csrc/ops/parallel/thread_pool.h"
#include "tests/ops/attention/decode_cases.h"

namespace semkv {
namespace {

using testing::AttentionResult;
using testing::AttentionShape;
using testing::DecodeProblem;
using testing::DenseProblem;
using testing::ForEachDecodeTarget;
using testing::kInfinity;
using testing::PoolLayout;
using testing::RandomQueries;
using testing::RandomTokens;
using testing::ResultsNear;
using testing::TokenRows;

class DecodeAttentionShapeTest : public ::testing::TestWithParam<DType> {};

TEST_P(DecodeAttentionShapeTest, EqualsTheReferenceOnEveryTarget) {
  const uint64_t seed = testing::TestSeed(1);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  ThreadPool pool(2);
  for (const AttentionShape& shape : testing::AttentionShapes()) {
    if (shape.dtype != GetParam()) continue;
    SCOPED_TRACE(testing::ShapeName(shape));
    DecodeProblem problem = DenseProblem(rng, shape);
    const AttentionResult expected = problem.RunReference();
    ForEachDecodeTarget([&] {
      EXPECT_TRUE(ResultsNear(problem.RunHost(pool, shape.num_tokens), expected, shape.dtype));
    });
  }
}

INSTANTIATE_TEST_SUITE_P(DTypes, DecodeAttentionShapeTest,
                         ::testing::ValuesIn(testing::kAttentionDTypes),
                         [](const auto& info) { return testing::DTypeName(info.param); });

// Pages and strides only say where a row is: the same tokens give the same bits.
TEST(DecodeAttentionTest, PageSizeAndLayoutDoNotChangeABit) {
  const uint64_t seed = testing::TestSeed(2);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  ThreadPool pool(2);
  for (DType dtype : testing::kAttentionDTypes) {
    const AttentionShape shape{8, 2, 128, 3000, dtype};
    const std::vector<float> q = RandomQueries(rng, shape, 1);
    const TokenRows tokens = RandomTokens(rng, shape);
    ForEachDecodeTarget([&] {
      DecodeProblem dense(shape, 1, q);
      dense.SetDense(rng, {tokens}, PoolLayout::kRowPairs, 1024);
      const AttentionResult expected = dense.RunHost(pool, shape.num_tokens);
      EXPECT_TRUE(ResultsNear(expected, dense.RunReference(), dtype));
      for (PoolLayout layout : testing::kPoolLayouts) {
        for (int32_t page_tokens : {1, 16, 32, 128}) {
          DecodeProblem paged(shape, 1, q);
          paged.SetDense(rng, {tokens}, layout, page_tokens);
          EXPECT_EQ(paged.RunHost(pool, shape.num_tokens), expected) << page_tokens;
        }
      }
    });
  }
}

TEST(DecodeAttentionTest, ResultDoesNotDependOnTheNumberOfThreads) {
  const uint64_t seed = testing::TestSeed(3);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (int32_t tokens : {2047, 2048, 2049, 4095, 4096, 4097, 6145}) {
    SCOPED_TRACE(tokens);
    const AttentionShape shape{8, 2, 64, tokens, DType::kBFloat16};
    DecodeProblem problem = DenseProblem(rng, shape);
    ThreadPool one(1);
    const AttentionResult expected = problem.RunHost(one, tokens);
    EXPECT_TRUE(ResultsNear(expected, problem.RunReference(), shape.dtype));
    for (int threads : {2, 3}) {
      ThreadPool pool(threads);
      for (int repeat = 0; repeat < 5; ++repeat) {
        EXPECT_EQ(problem.RunHost(pool, tokens), expected) << threads << " threads";
      }
    }
  }
}

// With V one-hot by position the output is the weight of every token.
TEST(DecodeAttentionTest, WeightsAreTheSoftmaxAndZeroOutsideTheSelection) {
  std::mt19937_64 rng(testing::TestSeed(4));
  ThreadPool pool(1);
  const AttentionShape shape{4, 1, 128, 128, DType::kFloat32};
  TokenRows tokens = RandomTokens(rng, shape);
  std::fill(tokens.v.begin(), tokens.v.end(), 0.0f);
  for (int32_t t = 0; t < 128; ++t) tokens.v[t * 128 + t] = 1.0f;
  const std::vector<float> q = RandomQueries(rng, shape, 1);
  DecodeProblem problem(shape, 1, q);
  problem.MakePools(PoolLayout::kTokenMajor, shape.dtype, shape.dtype, 128, 16);
  std::vector<int32_t> selected;
  for (int32_t t = 0; t < 128; ++t) {
    problem.WriteToken(problem.position_pool(), t, tokens, t);
    if (t % 3 == 1) selected.push_back(t);
  }
  problem.SetSlots(1, {selected}, {});
  ForEachDecodeTarget([&] {
    const AttentionResult result = problem.RunHost(pool, 128);
    for (int32_t h = 0; h < 4; ++h) {
      double total = 0.0;
      std::vector<double> weight(128, 0.0);
      for (int32_t t : selected) {
        double score = 0.0;
        for (int32_t c = 0; c < 128; ++c) score += double{q[h * 128 + c]} * tokens.k[t * 128 + c];
        total += weight[t] = std::exp(score * problem.params.scale);
      }
      for (int32_t t = 0; t < 128; ++t) {
        if (t % 3 == 1) {
          EXPECT_NEAR(result.out[h * 128 + t], weight[t] / total, 1e-5);
        } else {
          EXPECT_EQ(result.out[h * 128 + t], 0.0f);
        }
      }
    }
  });
}

TEST(DecodeAttentionTest, EqualScoresShareTheWeight) {
  const AttentionShape shape{1, 1, 64, 2, DType::kFloat32};
  std::mt19937_64 rng(1);
  TokenRows tokens = RandomTokens(rng, shape);
  std::copy_n(tokens.k.begin(), 64, tokens.k.begin() + 64);
  std::fill_n(tokens.v.begin(), 64, 0.0f);
  std::fill_n(tokens.v.begin() + 64, 64, 1.0f);
  DecodeProblem problem(shape, 1, RandomQueries(rng, shape, 1));
  problem.SetDense(rng, {tokens}, PoolLayout::kRowPairs, 16);
  ThreadPool pool(1);
  ForEachDecodeTarget([&] {
    for (float x : problem.RunHost(pool, 2).out) EXPECT_EQ(x, 0.5f);
  });
}

TEST(DecodeAttentionTest, SoftCapFollowsTheReference) {
  std::mt19937_64 rng(testing::TestSeed(5));
  ThreadPool pool(2);
  for (DType dtype : testing::kAttentionDTypes) {
    for (float cap : {0.5f, 30.0f, 50.0f}) {
      DecodeProblem problem = testing::SoftCapProblem(rng, dtype, cap);
      const AttentionResult expected = problem.RunReference();
      ForEachDecodeTarget(
          [&] { EXPECT_TRUE(ResultsNear(problem.RunHost(pool, 300), expected, dtype)); });
    }
  }
}

TEST(DecodeAttentionTest, QueriesAndOutputsMayBeStrided) {
  std::mt19937_64 rng(testing::TestSeed(6));
  ThreadPool pool(2);
  const AttentionShape shape{8, 2, 80, 100, DType::kFloat16};
  DecodeProblem problem = DenseProblem(rng, shape);
  const AttentionResult expected = problem.RunHost(pool, 100);
  constexpr int64_t kStride = 80 + 7;
  std::vector<uint16_t> q(8 * kStride), out(8 * kStride, 0x1234);
  for (int64_t h = 0; h < 8; ++h) {
    std::copy_n(static_cast<const uint16_t*>(problem.params.q) + h * 80, 80, &q[h * kStride]);
  }
  DecodeAttentionParams params = problem.params;
  params.q = q.data();
  params.out = out.data();
  params.q_head = params.out_head = kStride;
  testing::AlignedBytes workspace(DecodeAttentionWorkspaceBytes(1, 8, 2, 80, 100));
  DecodeAttentionHost(params, workspace.data(), workspace.size(), pool);
  for (int64_t i = 0; i < 8 * kStride; ++i) {
    const int64_t h = i / kStride, c = i % kStride;
    if (c >= 80) {
      EXPECT_EQ(out[i], 0x1234);
    } else {
      EXPECT_EQ(FloatFromFloat16(out[i]), expected.out[h * 80 + c]);
    }
  }
}

// ------------------------------ NaN and infinity

TEST(DecodeAttentionTest, NanInAKeyReachesOnlyTheHeadsThatReadIt) {
  ThreadPool pool(1);
  for (DType dtype : testing::kAttentionDTypes) {
    for (int32_t bad : {0, 3, 69}) {
      DecodeProblem problem = testing::NanKeyProblem(dtype, bad);
      const AttentionResult expected = problem.RunReference();
      ForEachDecodeTarget([&] {
        const AttentionResult result = problem.RunHost(pool, 70);
        EXPECT_TRUE(ResultsNear(result, expected, dtype));
        for (size_t i = 0; i < result.lse.size(); ++i) {
          EXPECT_EQ(std::isnan(result.lse[i]), i >= 4) << "head " << i;
        }
      });
    }
  }
}

// A score of -inf weighs nothing, even if it is all that the first tiles hold.
TEST(DecodeAttentionTest, ScoresOfMinusInfinityWeighNothing) {
  ThreadPool pool(1);
  for (DType dtype : testing::kAttentionDTypes) {
    for (int32_t masked : {1, 64, 200, 300}) {
      DecodeProblem problem = testing::MinusInfinityProblem(dtype, masked);
      const AttentionResult expected = problem.RunReference();
      EXPECT_EQ(std::isfinite(expected.lse[0]), masked < 300);
      ForEachDecodeTarget(
          [&] { EXPECT_TRUE(ResultsNear(problem.RunHost(pool, 300), expected, dtype)); });
    }
  }
}

// Weights far below the greatest vanish; as subnormal numbers each would cost a microcode assist.
TEST(DecodeAttentionTest, WideScoresMakeNoSubnormalNumbers) {
  ThreadPool pool(1);
  std::mt19937_64 rng(8);
  const AttentionShape shape{4, 1, 64, 2048, DType::kBFloat16};
  for (const float deviation : {8.0f, 40.0f, 1000.0f}) {
    std::vector<float> q = RandomQueries(rng, shape, 1);
    for (float& x : q) x *= deviation;
    DecodeProblem problem(shape, 1, q);
    problem.SetDense(rng, {RandomTokens(rng, shape)}, PoolLayout::kRowPairs, 16);
    ForEachDecodeTarget([&] {
      std::feclearexcept(FE_ALL_EXCEPT);
      problem.RunHost(pool, 2048);
      EXPECT_EQ(std::fetestexcept(FE_UNDERFLOW), 0) << "deviation " << deviation;
    });
  }
}

TEST(DecodeAttentionTest, InfiniteValuesStayInTheirChannel) {
  ThreadPool pool(1);
  for (DType dtype : testing::kAttentionDTypes) {
    DecodeProblem problem = testing::InfiniteValuesProblem(dtype, PoolLayout::kHeadMajor);
    const AttentionResult expected = problem.RunReference();
    EXPECT_EQ(expected.out[79], kInfinity);
    ForEachDecodeTarget(
        [&] { EXPECT_TRUE(ResultsNear(problem.RunHost(pool, 67), expected, dtype)); });
  }
}

TEST(DecodeAttentionTest, SubnormalAndLargeStoredNumbersAreExact) {
  ThreadPool pool(1);
  DecodeProblem problem = testing::EdgesOfFloat16Problem();
  const AttentionResult expected = problem.RunReference();
  ForEachDecodeTarget([&] { EXPECT_EQ(problem.RunHost(pool, 1).out, expected.out); });
}

TEST(DecodeAttentionTest, RefusesByName) {
  std::mt19937_64 rng(1);
  DecodeProblem problem = DenseProblem(rng, {8, 2, 64, 4, DType::kFloat32});
  EXPECT_EQ(DecodeAttentionUnsupported(problem.params), nullptr);
  const auto expect_refused = [&](auto change, const char* word) {
    DecodeAttentionParams params = problem.params;
    change(params);
    const char* reason = DecodeAttentionUnsupported(params);
    ASSERT_NE(reason, nullptr) << word;
    EXPECT_NE(std::string(reason).find(word), std::string::npos) << reason;
  };
  expect_refused([](auto& p) { p.head_dim = 72; }, "head_dim");
  expect_refused([](auto& p) { p.num_heads = 7; }, "num_heads");
  expect_refused([](auto& p) { p.num_kv_heads = 0; }, "num_kv_heads");
  expect_refused([](auto& p) { p.position.page_tokens = 24; }, "page_tokens");
  expect_refused([](auto& p) { p.q_dtype = static_cast<DType>(9); }, "dtype of q");
  expect_refused([](auto& p) { p.num_selections = 4; }, "num_selections");
  expect_refused([](auto& p) { p.q_dtype = DType::kFloat8E4M3; }, "dtype of q");
  expect_refused([](auto& p) { p.position.dtype = DType::kFloat8E4M3; }, "float8 e4m3");
  expect_refused(
      [](auto& p) {
        p.list = p.position;
        p.list.dtype = DType::kFloat8E4M3;
      },
      "float8 e4m3");
}

}  // namespace
}  // namespace semkv
