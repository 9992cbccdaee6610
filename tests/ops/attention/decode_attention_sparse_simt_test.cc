// The CUDA form of decode attention in the SIMT harness: rows given by slot lists.

#include <gtest/gtest.h>

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
using testing::ExpectSimtEqualsReference;
using testing::kInfinity;
using testing::PlanFor;
using testing::PoolLayout;
using testing::RandomQueries;
using testing::RandomTokens;
using testing::ResultsNear;
using testing::RunSimt;
using testing::Slice;
using testing::SlotList;
using testing::TokenRows;

TEST(DecodeAttentionSparseSimtTest, ListingEveryTokenEqualsTheDenseRowBitForBit) {
  std::mt19937_64 rng(testing::TestSeed(11));
  for (DType dtype : testing::kCudaDTypes) {
    const AttentionShape shape{8, 2, 96, 500, dtype};
    const TokenRows tokens = RandomTokens(rng, shape);
    const std::vector<float> q = RandomQueries(rng, shape, 1);
    DecodeProblem dense(shape, 1, q);
    dense.SetDense(rng, {tokens}, PoolLayout::kRowPairs, 16);
    const DecodeAttentionPlan plan = PlanFor(dense.params, 500, 4);
    const AttentionResult expected = RunSimt(dense, plan, 1).result;
    EXPECT_TRUE(ResultsNear(expected, dense.RunReference(), dtype));
    DecodeProblem sparse(shape, 1, q);
    sparse.MakePools(PoolLayout::kTokenMajor, dtype, dtype, 600, 32);
    const SlotList slots = Slice(testing::Permutation(rng, 600), 0, 500);
    testing::WriteBoth(sparse, tokens, slots);
    for (size_t cut : {0, 77, 128, 500}) {
      const SlotList list = Slice(slots, 0, cut), position = Slice(slots, cut, 500);
      sparse.SetSlots(2, {position, position}, {list, list});
      EXPECT_EQ(RunSimt(sparse, plan, 1).result, expected) << cut;
    }
  }
}

// Both pools' shares end around tiles and warps' tokens.
TEST(DecodeAttentionSparseSimtTest, CountsAtEveryBorderOfBothPools) {
  std::mt19937_64 rng(testing::TestSeed(44));
  const AttentionShape shape{4, 2, 64, 300, DType::kBFloat16};
  for (size_t num_list : {0, 1, 15, 16, 17, 63, 64, 65, 128}) {
    for (size_t num_position : {0, 1, 47, 48, 49, 129}) {
      SCOPED_TRACE(num_list * 1000 + num_position);
      DecodeProblem problem = testing::TwoPoolsProblem(rng, shape, num_list, num_position);
      ExpectSimtEqualsReference(problem, 300, 8);
    }
  }
}

TEST(DecodeAttentionSparseSimtTest, EveryQueryHeadMayHaveItsOwnSelection) {
  std::mt19937_64 rng(testing::TestSeed(13));
  for (DType dtype : testing::kCudaDTypes) {
    DecodeProblem problem = testing::SelectionPerHeadProblem(rng, dtype);
    ExpectSimtEqualsReference(problem, 100, 1);
  }
}

TEST(DecodeAttentionSparseSimtTest, EmptyRowsGiveZeroAndMinusInfinity) {
  std::mt19937_64 rng(testing::TestSeed(14));
  const AttentionShape shape{8, 2, 64, 5, DType::kFloat16};
  DecodeProblem sparse(shape, 1, RandomQueries(rng, shape, 1));
  sparse.MakePools(PoolLayout::kRowPairs, shape.dtype, shape.dtype, 16, 16);
  sparse.SetSlots(2, {{}, {}}, {{}, {}});
  DecodeProblem dense(shape, 1, RandomQueries(rng, shape, 1));
  dense.SetDense(rng, {TokenRows{}}, PoolLayout::kRowPairs, 16);
  for (DecodeProblem* problem : {&sparse, &dense}) {
    const AttentionResult result = RunSimt(*problem, PlanFor(problem->params, 200, 16), 1).result;
    for (float x : result.out) EXPECT_EQ(x, 0.0f);
    for (float x : result.lse) EXPECT_EQ(x, -kInfinity);
  }
}

// Rows that are cut and rows that are not, empty ones included.
TEST(DecodeAttentionSparseSimtTest, MergingTheRestEqualsReadingIt) {
  std::mt19937_64 rng(testing::TestSeed(15));
  testing::ExpectRestMerges(rng, /*is_e4m3=*/false, {0, 1, 100, 399, 400});
}

TEST(DecodeAttentionSparseSimtTest, DenseRowsHaveNoRest) {
  std::mt19937_64 rng(testing::TestSeed(45));
  const AttentionShape shape{4, 1, 64, 70, DType::kFloat16};
  DecodeProblem problem = testing::DenseProblem(rng, shape);
  const DecodeAttentionPlan plan = PlanFor(problem.params, 70, 1);
  const AttentionResult expected = RunSimt(problem, plan, 1).result;
  const std::vector<float> rest_out(4 * 64, 3.0f), rest_lse(4, 5.0f);
  problem.params.rest_out = rest_out.data();
  problem.params.rest_lse = rest_lse.data();
  EXPECT_EQ(RunSimt(problem, plan, 1).result, expected);
}

TEST(DecodeAttentionSparseSimtTest, RandomBatchesOfDenseAndSparseRowsFollowTheReference) {
  const uint64_t seed = testing::TestSeed(16);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (int round = 0; round < 16 * testing::SoakFactor(); ++round) {
    SCOPED_TRACE(round);
    testing::BatchLimits limits{150, 150};
    limits.num_layouts = 2;  // rows of the third are not aligned
    limits.num_dtypes = 2;
    limits.max_rows = 3;
    limits.max_kv_heads = 2;
    DecodeProblem problem = testing::RandomBatch(rng, limits, round % 3 == 0);
    ExpectSimtEqualsReference(problem, 150, 1 + round * 2);
  }
}

}  // namespace
}  // namespace semkv
