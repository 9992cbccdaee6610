// The CUDA form of decode attention, executed by the SIMT harness over the cases of every form:
// dense rows, traffic and schedules.

#include "tests/ops/attention/decode_attention_simt.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "tests/testing/random.h"

namespace semkv {
namespace {

using testing::AttentionResult;
using testing::AttentionShape;
using testing::DecodeProblem;
using testing::DenseProblem;
using testing::ExpectSimtEqualsReference;
using testing::kCudaDTypes;
using testing::PlanFor;
using testing::PoolLayout;
using testing::RandomQueries;
using testing::RandomTokens;
using testing::ResultsNear;
using testing::RunSimt;
using testing::TokenRows;

class DecodeAttentionSimtShapeTest : public ::testing::TestWithParam<DType> {};

// The harness takes long for long rows: some are left out.
bool IsExecuted(const AttentionShape& shape) {
  const bool is_half = shape.dtype == DType::kFloat16;
  if (shape.num_tokens == 1000) return shape.num_heads == 16 || (is_half && shape.head_dim == 64);
  return shape.num_tokens < 1000 || (!is_half && shape.head_dim == 128);
}

TEST_P(DecodeAttentionSimtShapeTest, EqualsTheReference) {
  const uint64_t seed = testing::TestSeed(1);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (const AttentionShape& shape : testing::AttentionShapes()) {
    if (shape.dtype != GetParam() || !IsExecuted(shape)) continue;
    SCOPED_TRACE(testing::ShapeName(shape));
    DecodeProblem problem = DenseProblem(rng, shape);
    ExpectSimtEqualsReference(problem, shape.num_tokens, 1 + shape.num_tokens / 100);
  }
}

INSTANTIATE_TEST_SUITE_P(DTypes, DecodeAttentionSimtShapeTest, ::testing::ValuesIn(kCudaDTypes),
                         [](const auto& info) { return testing::DTypeName(info.param); });

// A ragged batch with every length at the borders of a warp's tokens, a tile and a part; with few
// parts and with as many as there can be.
TEST(DecodeAttentionSimtTest, LengthsAtEveryBorder) {
  std::mt19937_64 rng(testing::TestSeed(41));
  DecodeProblem problem = testing::BordersProblem(rng, {2, 1, 64, 0, DType::kFloat16},
                                                  {0, 16, 32, 48, 64, 80, 128, 192, 256, 320, 384});
  for (int32_t multiprocessors : {1, 10 * problem.params.num_rows}) {
    const DecodeAttentionPlan plan = PlanFor(problem.params, 385, multiprocessors);
    EXPECT_EQ(plan.max_splits, multiprocessors == 1 ? 1 : 3);
    ExpectSimtEqualsReference(problem, 385, multiprocessors);
  }
}

TEST(DecodeAttentionSimtTest, PageSizeAndLayoutDoNotChangeABit) {
  std::mt19937_64 rng(testing::TestSeed(2));
  for (DType dtype : kCudaDTypes) {
    const AttentionShape shape{8, 2, 128, 150, dtype};
    const std::vector<float> q = RandomQueries(rng, shape, 1);
    const TokenRows tokens = RandomTokens(rng, shape);
    std::vector<AttentionResult> results;
    for (PoolLayout layout : {PoolLayout::kRowPairs, PoolLayout::kTokenMajor}) {
      for (int32_t page_tokens : {1, 16, 32, 64, 1024}) {
        DecodeProblem problem(shape, 1, q);
        problem.SetDense(rng, {tokens}, layout, page_tokens);
        results.push_back(RunSimt(problem, PlanFor(problem.params, 150, 2), 1).result);
        EXPECT_EQ(results.back(), results.front()) << page_tokens;
        EXPECT_TRUE(ResultsNear(results.back(), problem.RunReference(), dtype));
      }
    }
  }
}

TEST(DecodeAttentionSimtTest, TheScheduleDoesNotChangeABit) {
  std::mt19937_64 rng(testing::TestSeed(3));
  DecodeProblem problem = DenseProblem(rng, {8, 2, 64, 600, DType::kFloat16});
  const DecodeAttentionPlan plan = PlanFor(problem.params, 600, 16);
  EXPECT_EQ(plan.max_splits, 5);
  const AttentionResult expected = RunSimt(problem, plan, 1).result;
  EXPECT_TRUE(ResultsNear(expected, problem.RunReference(), DType::kFloat16));
  for (uint64_t seed = 2; seed <= 8; ++seed) {
    EXPECT_EQ(RunSimt(problem, plan, seed).result, expected) << seed;
  }
}

// A row that is longer than the plan was made for is still attended to, in longer parts.
TEST(DecodeAttentionSimtTest, ARowBeyondThePlansBoundIsServed) {
  std::mt19937_64 rng(testing::TestSeed(42));
  DecodeProblem problem = DenseProblem(rng, {4, 1, 64, 700, DType::kFloat16});
  const DecodeAttentionPlan plan = PlanFor(problem.params, 300, 4);
  EXPECT_EQ(plan.max_splits, 2);
  EXPECT_TRUE(
      ResultsNear(RunSimt(problem, plan, 1).result, problem.RunReference(), DType::kFloat16));
}

TEST(DecodeAttentionSimtTest, SoftCapFollowsTheReference) {
  std::mt19937_64 rng(testing::TestSeed(5));
  for (DType dtype : kCudaDTypes) {
    for (float cap : {0.5f, 30.0f, 50.0f}) {
      DecodeProblem problem = testing::SoftCapProblem(rng, dtype, cap);
      ExpectSimtEqualsReference(problem, 300, 2);
    }
  }
}

TEST(DecodeAttentionSimtTest, QueriesAndOutputsMayBeStrided) {
  std::mt19937_64 rng(testing::TestSeed(6));
  DecodeProblem problem = DenseProblem(rng, {8, 2, 80, 100, DType::kFloat16});
  const DecodeAttentionPlan plan = PlanFor(problem.params, 100, 2);
  const AttentionResult expected = RunSimt(problem, plan, 1).result;
  constexpr int64_t kStride = 80 + 8;
  std::vector<uint16_t> q(8 * kStride), out(8 * kStride, 0x1234);
  for (int64_t h = 0; h < 8; ++h) {
    std::copy_n(static_cast<const uint16_t*>(problem.params.q) + h * 80, 80, &q[h * kStride]);
  }
  problem.params.q = q.data();
  problem.params.q_head = kStride;
  problem.params.out = out.data();
  problem.params.out_head = kStride;
  testing::LaunchSimt(problem, plan, 1,
                      {{"strided q", q.data(), 2 * 8 * kStride, false},
                       {"strided out", out.data(), 2 * 8 * kStride, true}});
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

TEST(DecodeAttentionSimtTest, NanInAKeyReachesOnlyTheHeadsThatReadIt) {
  for (DType dtype : kCudaDTypes) {
    for (int32_t bad : {0, 3, 69}) {
      DecodeProblem problem = testing::NanKeyProblem(dtype, bad);
      ExpectSimtEqualsReference(problem, 70, 1);
    }
  }
}

TEST(DecodeAttentionSimtTest, ScoresOfMinusInfinityWeighNothing) {
  for (DType dtype : kCudaDTypes) {
    for (int32_t masked : {1, 64, 200, 300}) {
      DecodeProblem problem = testing::MinusInfinityProblem(dtype, masked);
      ExpectSimtEqualsReference(problem, 300, 1);
      ExpectSimtEqualsReference(problem, 300, 8);
    }
  }
}

TEST(DecodeAttentionSimtTest, InfiniteValuesStayInTheirChannel) {
  for (DType dtype : kCudaDTypes) {
    DecodeProblem problem = testing::InfiniteValuesProblem(dtype, PoolLayout::kTokenMajor);
    ExpectSimtEqualsReference(problem, 67, 1);
  }
}

TEST(DecodeAttentionSimtTest, SubnormalAndLargeStoredNumbersAreExact) {
  DecodeProblem problem = testing::EdgesOfFloat16Problem();
  const AttentionResult expected = problem.RunReference();
  EXPECT_EQ(RunSimt(problem, PlanFor(problem.params, 1, 1), 1).result.out, expected.out);
}

// ------------------------------ bytes

// Of rows that are cut into as many parts as the plan ever makes.
TEST(DecodeAttentionSimtTest, MovesAtMostATenthMoreThanItMustIn16Bytes) {
  std::mt19937_64 rng(testing::TestSeed(43));
  for (const AttentionShape& shape : {AttentionShape{1, 1, 128, 1024, DType::kFloat16},
                                      {4, 1, 64, 1024, DType::kBFloat16},
                                      {4, 1, 128, 1000, DType::kFloat16},
                                      {16, 1, 128, 1024, DType::kBFloat16},
                                      {8, 1, 256, 512, DType::kFloat16}}) {
    SCOPED_TRACE(testing::ShapeName(shape));
    const int32_t tiles = CeilDiv(shape.num_tokens, 64);
    const int32_t splits = tiles / std::max(2, shape.num_heads / 2);
    testing::ExpectFloors(rng, shape, splits);
  }
}

}  // namespace
}  // namespace semkv
