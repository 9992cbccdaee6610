// Rows given by slot lists: two pools, selections, merging with what was not read.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "csrc/ops/attention/decode_attention.h"
#include "csrc/ops/parallel/thread_pool.h"
#include "tests/ops/attention/decode_problem.h"
#include "tests/testing/count_allocations.h"

namespace semkv {
namespace {

using testing::AttentionResult;
using testing::AttentionShape;
using testing::DecodeProblem;
using testing::ForEachTarget;
using testing::PoolLayout;
using testing::RandomQueries;
using testing::RandomTokens;
using testing::ResultsNear;
using testing::TokenRows;
using SlotList = std::vector<int32_t>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Writes token t of `tokens` to slot slots[t] of both pools.
void WriteBoth(DecodeProblem& problem, const TokenRows& tokens, const SlotList& slots) {
  for (size_t t = 0; t < slots.size(); ++t) {
    problem.WriteToken(problem.position_pool(), slots[t], tokens, t);
    problem.WriteToken(problem.list_pool(), slots[t], tokens, t);
  }
}

SlotList Slice(const SlotList& slots, size_t begin, size_t end) {
  return SlotList(slots.begin() + begin, slots.begin() + end);
}

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
    ForEachTarget([&] {
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
      ForEachTarget(
          [&] { EXPECT_TRUE(ResultsNear(problem.RunHost(pool, 500), expected, DType::kFloat32)); });
    }
  }
}

TEST(DecodeAttentionSparseTest, EveryQueryHeadMayHaveItsOwnSelection) {
  std::mt19937_64 rng(testing::TestSeed(13));
  ThreadPool pool(3);
  const AttentionShape shape{8, 2, 128, 400, DType::kBFloat16};
  DecodeProblem problem(shape, 1, RandomQueries(rng, shape, 1));
  problem.MakePools(PoolLayout::kRowPairs, shape.dtype, shape.dtype, 400, 16);
  const SlotList slots = testing::Permutation(rng, 400);
  WriteBoth(problem, RandomTokens(rng, shape), slots);
  std::vector<SlotList> position, list;
  for (int32_t h = 0; h < 8; ++h) {
    position.push_back(Slice(slots, h, h + 20));
    list.push_back(Slice(slots, 40 * h, 40 * h + 37 + h));
  }
  problem.SetSlots(8, position, list);
  const AttentionResult expected = problem.RunReference();
  ForEachTarget(
      [&] { EXPECT_TRUE(ResultsNear(problem.RunHost(pool, 400), expected, shape.dtype)); });
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
  ForEachTarget([&] {
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
    ForEachTarget([&] {
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

// Rows of every kind and length in one call, as the batch of an engine is.
TEST(DecodeAttentionSparseTest, RandomBatchesOfDenseAndSparseRowsFollowTheReference) {
  const uint64_t seed = testing::TestSeed(16);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  const auto uniform = [&](int32_t low, int32_t high) {
    return std::uniform_int_distribution<int32_t>(low, high)(rng);
  };
  for (int round = 0; round < 12 * testing::SoakFactor(); ++round) {
    SCOPED_TRACE(round);
    constexpr int32_t kGroups[] = {1, 2, 3, 4, 7, 8, 16, 20};
    AttentionShape shape;
    shape.num_kv_heads = uniform(1, 4);
    shape.num_heads = shape.num_kv_heads * kGroups[uniform(0, 7)];
    shape.head_dim = testing::kAttentionHeadDims[uniform(0, 4)];
    shape.dtype = testing::kAttentionDTypes[uniform(0, 2)];
    const int32_t num_rows = uniform(1, 5);
    DecodeProblem problem(shape, num_rows, RandomQueries(rng, shape, num_rows));
    std::vector<TokenRows> rows;
    for (int32_t r = 0; r < num_rows; ++r) {
      shape.num_tokens = round % 4 == 0 ? uniform(1, 5000) : uniform(0, 300);
      rows.push_back(RandomTokens(rng, shape));
    }
    problem.SetDense(rng, rows, testing::kPoolLayouts[uniform(0, 2)], 1 << uniform(0, 7));
    const int32_t num_selections = round % 3 == 0 ? shape.num_heads : shape.num_kv_heads;
    // Sparse rows select among the slots of row 0.
    std::vector<SlotList> position;
    for (int32_t i = 0; i < num_rows * num_selections; ++i) {
      position.push_back(problem.DenseSlots(0, uniform(0, 2500)));
    }
    problem.SetSlots(num_selections, position, {});
    for (int32_t r = 0; r < num_rows; r += 2) problem.MakeSparse(r);
    const AttentionResult expected = problem.RunReference();
    ThreadPool pool(uniform(1, 3));
    ForEachTarget(
        [&] { EXPECT_TRUE(ResultsNear(problem.RunHost(pool, 5000), expected, shape.dtype)); });
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
