// Rows given by slot lists: two pools, selections, merging with what was not read.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "csrc/ops/attention/decode_attention.h"
#include "csrc/ops/parallel/thread_pool.h"
#include "tests/ops/attention/decode_cases.h"
#include "tests/testing/count_allocations.h"

namespace semkv {
namespace {

using testing::AttentionResult;
using testing::AttentionShape;
using testing::DecodeProblem;
using testing::ForEachDecodeTarget;
using testing::kInfinity;
using testing::PoolLayout;
using testing::RandomQueries;
using testing::RandomTokens;
using testing::ResultsNear;
using testing::Slice;
using testing::SlotList;
using testing::TokenRows;
using testing::WriteBoth;

// A sparse row that lists every token is the dense row.
TEST(DecodeAttentionSparseTest, ListingEveryTokenEqualsTheDenseRow) {
  std::mt19937_64 rng(testing::TestSeed(11));
  ThreadPool pool(2);
  for (DType dtype : testing::kAttentionDTypes) {
    const AttentionShape shape{8, 2, 96, 2500, dtype};
    const TokenRows tokens = RandomTokens(rng, shape);
    const std::vector<float> q = RandomQueries(rng, shape, 1);
    DecodeProblem dense(shape, 1, q);
    dense.SetDense(rng, {tokens}, PoolLayout::kRowPairs, 16);
    DecodeProblem sparse(shape, 1, q);
    sparse.MakePools(PoolLayout::kTokenMajor, dtype, dtype, 3000, 32);
    const SlotList slots = Slice(testing::Permutation(rng, 3000), 0, 2500);
    WriteBoth(sparse, tokens, slots);
    const AttentionResult expected = dense.RunReference();
    ForEachDecodeTarget([&] {
      sparse.SetSlots(2, {slots, slots}, {});
      EXPECT_TRUE(ResultsNear(sparse.RunHost(pool, 2500), expected, dtype));
      EXPECT_EQ(sparse.RunHost(pool, 2500), dense.RunHost(pool, 2500)) << "the order is the same";
      const SlotList head = Slice(slots, 0, 77), tail = Slice(slots, 77, 2500);
      sparse.SetSlots(2, {head, head}, {tail, tail});
      EXPECT_TRUE(ResultsNear(sparse.RunHost(pool, 2500), expected, dtype));
      sparse.SetSlots(2, {{}, {}}, {slots, slots});
      EXPECT_TRUE(ResultsNear(sparse.RunHost(pool, 2500), expected, dtype));
    });
  }
}

TEST(DecodeAttentionSparseTest, PoolsMayDifferInDtypeAndStrides) {
  std::mt19937_64 rng(testing::TestSeed(12));
  ThreadPool pool(2);
  for (DType position : testing::kAttentionDTypes) {
    for (DType list : testing::kAttentionDTypes) {
      AttentionShape shape{6, 2, 80, 500, DType::kFloat32};
      DecodeProblem problem(shape, 1, RandomQueries(rng, shape, 1));
      problem.MakePools(PoolLayout::kHeadMajor, position, list, 600, 8);
      const SlotList slots = Slice(testing::Permutation(rng, 600), 0, 500);
      WriteBoth(problem, RandomTokens(rng, shape), slots);
      problem.SetSlots(2, {Slice(slots, 0, 81), Slice(slots, 3, 5)},
                       {Slice(slots, 100, 489), Slice(slots, 200, 500)});
      const AttentionResult expected = problem.RunReference();
      ForEachDecodeTarget(
          [&] { EXPECT_TRUE(ResultsNear(problem.RunHost(pool, 500), expected, DType::kFloat32)); });
    }
  }
}

TEST(DecodeAttentionSparseTest, EveryQueryHeadMayHaveItsOwnSelection) {
  std::mt19937_64 rng(testing::TestSeed(13));
  ThreadPool pool(3);
  DecodeProblem problem = testing::SelectionPerHeadProblem(rng, DType::kBFloat16);
  const AttentionResult expected = problem.RunReference();
  ForEachDecodeTarget(
      [&] { EXPECT_TRUE(ResultsNear(problem.RunHost(pool, 400), expected, DType::kBFloat16)); });
}

TEST(DecodeAttentionSparseTest, EmptyRowsGiveZeroAndMinusInfinity) {
  std::mt19937_64 rng(testing::TestSeed(14));
  ThreadPool pool(2);
  const AttentionShape shape{8, 2, 64, 5, DType::kFloat32};
  DecodeProblem sparse(shape, 1, RandomQueries(rng, shape, 1));
  sparse.MakePools(PoolLayout::kRowPairs, shape.dtype, shape.dtype, 16, 16);
  sparse.SetSlots(2, {{}, {}}, {{}, {}});
  DecodeProblem dense(shape, 1, RandomQueries(rng, shape, 1));
  dense.SetDense(rng, {TokenRows{}}, PoolLayout::kRowPairs, 16);
  ForEachDecodeTarget([&] {
    for (DecodeProblem* problem : {&sparse, &dense}) {
      const AttentionResult result = problem->RunHost(pool, 1);
      EXPECT_EQ(result, problem->RunReference());
      for (float x : result.out) EXPECT_EQ(x, 0.0f);
      for (float x : result.lse) EXPECT_EQ(x, -kInfinity);
    }
  });
}

// Attention over A and B is attention over A with B's state as the rest.
TEST(DecodeAttentionSparseTest, MergingTheRestEqualsReadingIt) {
  std::mt19937_64 rng(testing::TestSeed(15));
  ThreadPool pool(2);
  const AttentionShape shape{8, 2, 128, 2600, DType::kFloat32};
  DecodeProblem problem(shape, 1, RandomQueries(rng, shape, 1));
  problem.MakePools(PoolLayout::kRowPairs, shape.dtype, shape.dtype, 2600, 16);
  const SlotList slots = testing::Permutation(rng, 2600);
  WriteBoth(problem, RandomTokens(rng, shape), slots);
  problem.SetSlots(2, {slots, slots}, {});
  const AttentionResult whole = problem.RunReference();
  for (size_t cut : {0, 1, 100, 2048, 2599, 2600}) {
    SCOPED_TRACE(cut);
    const SlotList a = Slice(slots, 0, cut), b = Slice(slots, cut, 2600);
    ForEachDecodeTarget([&] {
      problem.params.rest_out = problem.params.rest_lse = nullptr;
      problem.SetSlots(2, {b, b}, {});
      const AttentionResult rest = problem.RunHost(pool, 2600);
      problem.params.rest_out = rest.out.data();
      problem.params.rest_lse = rest.lse.data();
      problem.SetSlots(2, {a, a}, {});
      EXPECT_TRUE(ResultsNear(problem.RunHost(pool, 2600), whole, shape.dtype));
      EXPECT_TRUE(ResultsNear(problem.RunReference(), whole, shape.dtype));
    });
  }
}

TEST(DecodeAttentionSparseTest, RandomBatchesOfDenseAndSparseRowsFollowTheReference) {
  const uint64_t seed = testing::TestSeed(16);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (int round = 0; round < 12 * testing::SoakFactor(); ++round) {
    SCOPED_TRACE(round);
    DecodeProblem problem =
        testing::RandomBatch(rng, {round % 4 == 0 ? 5000 : 300, 2500}, round % 3 == 0);
    const AttentionResult expected = problem.RunReference();
    ThreadPool pool(1 + round % 3);
    ForEachDecodeTarget([&] {
      EXPECT_TRUE(ResultsNear(problem.RunHost(pool, 5000), expected, problem.params.q_dtype));
    });
  }
}

TEST(DecodeAttentionSparseTest, AllocatesNothing) {
  std::mt19937_64 rng(testing::TestSeed(17));
  const AttentionShape shape{8, 2, 64, 3000, DType::kBFloat16};
  DecodeProblem problem(shape, 1, RandomQueries(rng, shape, 1));
  problem.SetDense(rng, {RandomTokens(rng, shape)}, PoolLayout::kRowPairs, 16);
  ThreadPool pool(2);
  testing::AlignedBytes workspace(DecodeAttentionWorkspaceBytes(1, 8, 2, 64, 3000));
  const int64_t before = testing::NumAllocations();
  DecodeAttentionHost(problem.params, workspace.data(), workspace.size(), pool);
  EXPECT_EQ(testing::NumAllocations(), before);
}

}  // namespace
}  // namespace semkv
