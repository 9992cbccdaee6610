// The CUDA form of decode attention over pools of float8 e4m3, executed by the SIMT harness.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "tests/ops/attention/decode_attention_simt.h"
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
using testing::RunSimt;
using testing::SimtNear;
using testing::TokenRows;

class DecodeAttentionE4M3ShapeTest : public ::testing::TestWithParam<DType> {};

// The harness takes long for long rows: some are left out.
bool IsExecuted(const AttentionShape& shape) {
  const bool is_half = shape.dtype == DType::kFloat16;
  if (shape.num_tokens == 1000) return shape.num_heads == 16 && is_half;
  return shape.num_tokens < 1000 || (!is_half && shape.head_dim == 80);
}

TEST_P(DecodeAttentionE4M3ShapeTest, EqualsTheReference) {
  const uint64_t seed = testing::TestSeed(51);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (const AttentionShape& shape : testing::AttentionShapes(/*is_e4m3=*/true)) {
    if (shape.dtype != GetParam() || !IsExecuted(shape)) continue;
    SCOPED_TRACE(testing::ShapeName(shape));
    DecodeProblem problem = DenseProblem(rng, shape);
    ExpectSimtEqualsReference(problem, shape.num_tokens, 1 + shape.num_tokens / 100);
  }
}

INSTANTIATE_TEST_SUITE_P(DTypes, DecodeAttentionE4M3ShapeTest, ::testing::ValuesIn(kCudaDTypes),
                         [](const auto& info) { return testing::DTypeName(info.param); });

// A NaN in a channel of one token's value must come out in that channel and in no other; so must
// each number. 256 channels of a single token have every code.
TEST(DecodeAttentionE4M3Test, EveryCodeOfAValueComesOutInItsChannel) {
  std::mt19937_64 rng(1);
  const AttentionShape shape{1, 1, 256, 1, DType::kBFloat16, true};
  TokenRows tokens = RandomTokens(rng, shape);
  DecodeProblem problem(shape, 1, RandomQueries(rng, shape, 1));
  problem.SetDense(rng, {tokens}, PoolLayout::kTokenMajor, 1);
  const int64_t first = ValueOffset(problem.params.position, problem.DenseSlots(0, 1)[0], 0);
  for (int32_t code = 0; code < 256; ++code) {
    static_cast<uint8_t*>(problem.params.position.v)[first + code] = static_cast<uint8_t>(code);
  }
  problem.params.position.v_scale = 0.5f;
  const AttentionResult result = RunSimt(problem, PlanFor(problem.params, 1, 1), 1).result;
  for (int32_t code = 0; code < 256; ++code) {
    const float expected = 0.5f * FloatFromE4M3(static_cast<uint8_t>(code));
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(result.out[code])) << code;
    } else {
      EXPECT_EQ(result.out[code], expected) << code;
    }
  }
}

// Query head h asks for channel h of a single key alone, whose score is then the log-sum-exp.
TEST(DecodeAttentionE4M3Test, EveryCodeOfAKeyMeetsItsChannelOfTheQuery) {
  std::mt19937_64 rng(2);
  for (DType dtype : kCudaDTypes) {
    const AttentionShape shape{256, 1, 256, 1, dtype, true};
    std::vector<float> q(256 * 256, 0.0f);
    for (int32_t h = 0; h < 256; ++h) q[h * 256 + h] = 1.0f + h % 4;
    DecodeProblem problem(shape, 1, q);
    problem.SetDense(rng, {RandomTokens(rng, shape)}, PoolLayout::kTokenMajor, 1);
    const int64_t first = KeyOffset(problem.params.position, problem.DenseSlots(0, 1)[0], 0);
    for (int32_t code = 0; code < 256; ++code) {
      // 0 * NaN is NaN in every head.
      const uint8_t stored = code % 128 == 127 ? 0x31 : static_cast<uint8_t>(code);
      static_cast<uint8_t*>(problem.params.position.k)[first + code] = stored;
    }
    problem.params.scale = 1.0f;
    const AttentionResult result = RunSimt(problem, PlanFor(problem.params, 1, 1), 1).result;
    for (int32_t h = 0; h < 256; ++h) {
      const uint8_t stored = h % 128 == 127 ? 0x31 : static_cast<uint8_t>(h);
      const float expected =
          FloatFromE4M3(stored) * (1.0f + h % 4) * problem.params.position.k_scale;
      EXPECT_NEAR(result.lse[h], expected, 1e-5f * std::max(1.0f, std::abs(expected))) << h;
    }
  }
}

TEST(DecodeAttentionE4M3Test, NanInAKeyReachesOnlyTheHeadsThatReadIt) {
  for (DType dtype : kCudaDTypes) {
    for (int32_t bad : {0, 3, 69}) {
      DecodeProblem problem = testing::NanKeyProblem(dtype, bad, /*is_e4m3=*/true);
      ExpectSimtEqualsReference(problem, 70, 1);
      for (int32_t h = 0; h < 8; ++h) EXPECT_EQ(std::isnan(problem.params.lse[h]), h >= 4);
    }
  }
}

TEST(DecodeAttentionE4M3Test, SoftCapFollowsTheReference) {
  std::mt19937_64 rng(testing::TestSeed(5));
  for (DType dtype : kCudaDTypes) {
    for (float cap : {0.5f, 30.0f}) {
      DecodeProblem problem = testing::SoftCapProblem(rng, dtype, cap, /*is_e4m3=*/true);
      ExpectSimtEqualsReference(problem, 300, 2);
    }
  }
}

// A ragged batch with lengths at the borders of a warp's tokens, a tile and a part.
TEST(DecodeAttentionE4M3Test, LengthsAtEveryBorder) {
  std::mt19937_64 rng(testing::TestSeed(41));
  DecodeProblem problem =
      testing::BordersProblem(rng, {2, 1, 80, 0, DType::kFloat16, true}, {0, 16, 64, 192, 384});
  for (int32_t multiprocessors : {1, 10 * problem.params.num_rows}) {
    const DecodeAttentionPlan plan = PlanFor(problem.params, 385, multiprocessors);
    EXPECT_EQ(plan.max_splits, multiprocessors == 1 ? 1 : 2);
    ExpectSimtEqualsReference(problem, 385, multiprocessors);
  }
}

TEST(DecodeAttentionE4M3Test, PageSizeLayoutAndScheduleDoNotChangeABit) {
  std::mt19937_64 rng(testing::TestSeed(2));
  const AttentionShape shape{8, 2, 128, 400, DType::kBFloat16, true};
  const std::vector<float> q = RandomQueries(rng, shape, 1);
  const TokenRows tokens = RandomTokens(rng, shape);
  std::vector<AttentionResult> results;
  uint64_t seed = 1;
  for (PoolLayout layout : {PoolLayout::kRowPairs, PoolLayout::kTokenMajor}) {
    for (int32_t page_tokens : {1, 16, 1024}) {
      DecodeProblem problem(shape, 1, q);
      problem.SetDense(rng, {tokens}, layout, page_tokens);
      const DecodeAttentionPlan plan = PlanFor(problem.params, 400, 8);
      EXPECT_EQ(plan.max_splits, 2);
      results.push_back(RunSimt(problem, plan, seed++).result);
      EXPECT_EQ(results.back(), results.front()) << page_tokens;
      EXPECT_TRUE(SimtNear(results.back(), problem.RunReference(), problem.params));
    }
  }
}

// ------------------------------ sparse rows

TEST(DecodeAttentionE4M3Test, CountsAtEveryBorderOfBothPools) {
  std::mt19937_64 rng(testing::TestSeed(44));
  const AttentionShape shape{4, 2, 96, 300, DType::kBFloat16, true};
  for (size_t num_list : {0, 1, 16, 17, 64, 128}) {
    for (size_t num_position : {0, 1, 47, 129}) {
      SCOPED_TRACE(num_list * 1000 + num_position);
      DecodeProblem problem = testing::TwoPoolsProblem(rng, shape, num_list, num_position);
      ExpectSimtEqualsReference(problem, 300, 8);
    }
  }
}

// The scales are those of the pool that there is.
TEST(DecodeAttentionE4M3Test, TheListPoolAlone) {
  std::mt19937_64 rng(testing::TestSeed(46));
  const AttentionShape shape{4, 2, 64, 200, DType::kFloat16, true};
  DecodeProblem problem = testing::TwoPoolsProblem(rng, shape, 130, 0);
  const AttentionResult expected = problem.RunReference();
  const int32_t page_tokens = problem.params.position.page_tokens;
  problem.params.position = KvView{};
  problem.params.position.page_tokens = page_tokens;
  EXPECT_TRUE(SimtNear(RunSimt(problem, PlanFor(problem.params, 130, 1), 1).result, expected,
                       problem.params));
}

TEST(DecodeAttentionE4M3Test, EveryQueryHeadMayHaveItsOwnSelection) {
  std::mt19937_64 rng(testing::TestSeed(13));
  for (DType dtype : kCudaDTypes) {
    DecodeProblem problem = testing::SelectionPerHeadProblem(rng, dtype, /*is_e4m3=*/true);
    ExpectSimtEqualsReference(problem, 100, 1);
  }
}

// The rest is of values, not of stored numbers: rows that are cut and rows that are not.
TEST(DecodeAttentionE4M3Test, MergingTheRestEqualsReadingIt) {
  std::mt19937_64 rng(testing::TestSeed(15));
  testing::ExpectRestMerges(rng, /*is_e4m3=*/true, {0, 100, 390, 400});
}

TEST(DecodeAttentionE4M3Test, RandomBatchesOfDenseAndSparseRowsFollowTheReference) {
  const uint64_t seed = testing::TestSeed(52);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (int round = 0; round < 12 * testing::SoakFactor(); ++round) {
    SCOPED_TRACE(round);
    testing::BatchLimits limits{150, 150};
    limits.num_layouts = 2;  // rows of the third are not aligned
    limits.num_dtypes = 2;
    limits.max_rows = 3;
    limits.max_kv_heads = 2;
    limits.is_e4m3 = true;
    DecodeProblem problem = testing::RandomBatch(rng, limits, round % 3 == 0);
    ExpectSimtEqualsReference(problem, 150, 1 + round * 2);
  }
}

// ------------------------------ bytes

TEST(DecodeAttentionE4M3Test, MovesAtMostATenthMoreThanItMustIn16Bytes) {
  std::mt19937_64 rng(testing::TestSeed(43));
  for (const AttentionShape& shape : {AttentionShape{1, 1, 128, 1024, DType::kFloat16, true},
                                      {4, 1, 64, 1024, DType::kBFloat16, true},
                                      {4, 1, 80, 1000, DType::kFloat16, true},
                                      {4, 1, 128, 1000, DType::kFloat16, true},
                                      {16, 1, 128, 1536, DType::kBFloat16, true},
                                      {8, 1, 256, 768, DType::kFloat16, true}}) {
    SCOPED_TRACE(testing::ShapeName(shape));
    const int32_t tiles = CeilDiv(shape.num_tokens, 64);
    const int32_t splits = tiles / std::max(3, CeilDiv(3 * shape.num_heads, 4));
    testing::ExpectFloors(rng, shape, splits);
  }
}

}  // namespace
}  // namespace semkv
