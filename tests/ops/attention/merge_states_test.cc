#include "csrc/ops/attention/merge_states.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "csrc/ops/parallel/thread_pool.h"
#include "tests/ops/attention/merge_states_cases.h"
#include "tests/testing/random.h"
#include "tests/testing/simd_targets.h"

namespace semkv {
namespace {

using testing::MergeStatesCase;
using testing::MergeStatesProblem;

void ExpectHostEqualsReference(const MergeStatesCase& c, std::mt19937_64& rng) {
  MergeStatesProblem problem(c, rng);
  MergeStatesProblem expected = problem;
  expected.Reset();
  MergeStatesReference(expected.params);
  testing::ForEachSimdTarget([&] {
    for (int num_threads : {1, 3}) {
      ThreadPool pool(num_threads);
      problem.Reset();
      MergeStatesHost(problem.params, pool);
      testing::ExpectMerged(expected, problem.out, problem.out_lse);
    }
  });
}

TEST(MergeStatesTest, EqualsTheReference) {
  const uint64_t seed = testing::TestSeed(51);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (const MergeStatesCase& c : testing::MergeStatesCases()) {
    SCOPED_TRACE(Name(c));
    ExpectHostEqualsReference(c, rng);
  }
  ExpectHostEqualsReference({DType::kBFloat16, DType::kFloat16, 3, 2, 3, 7, 1}, rng);
}

TEST(MergeStatesTest, RandomCasesEqualTheReference) {
  const uint64_t seed = testing::TestSeed(52);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (int round = 0; round < 40 * testing::SoakFactor(); ++round) {
    const MergeStatesCase c = testing::RandomMergeStatesCase(rng);
    SCOPED_TRACE(Name(c));
    ExpectHostEqualsReference(c, rng);
    if (HasFailure()) return;
  }
}

// The definition itself: softmax over tokens in one piece is that over two sets of them, merged.
TEST(MergeStatesTest, TheReferenceMergesSoftmaxOfTwoSetsOfTokens) {
  const double scores[] = {0.5, 3.0, -1.0, 2.0, 7.0};
  const double values[] = {1.0, -2.0, 5.0, 0.25, 3.0};
  const auto attend = [&](int begin, int end, float* o, float* lse) {
    double sum = 0.0, out = 0.0;
    for (int t = begin; t < end; ++t) {
      sum += std::exp(scores[t]);
      out += std::exp(scores[t]) * values[t];
    }
    *o = static_cast<float>(out / sum);
    *lse = static_cast<float>(std::log(sum));
  };
  float o[2], lse[2], whole, whole_lse, out, out_lse;
  attend(0, 3, o, lse);
  attend(3, 5, o + 1, lse + 1);
  attend(0, 5, &whole, &whole_lse);
  MergeStatesParams params;
  params.o = o;
  params.lse = lse;
  params.out = &out;
  params.out_lse = &out_lse;
  params.out_row = params.out_head = 1;
  params.num_states = 2;
  params.num_rows = params.num_heads = params.head_dim = 1;
  MergeStatesReference(params);
  EXPECT_NEAR(out, whole, 1e-6);
  EXPECT_NEAR(out_lse, whole_lse, 1e-6);
}

TEST(MergeStatesTest, WhatTheCudaFormDoesNotTakeIsNamed) {
  std::mt19937_64 rng(1);
  MergeStatesProblem problem({DType::kFloat32, DType::kFloat16, 2, 2, 2, 64, 0}, rng);
  const MergeStatesParams good = problem.params;
  EXPECT_EQ(MergeStatesCudaUnsupported(good), nullptr);
  const auto refused = [&](auto change) {
    MergeStatesParams params = good;
    change(params);
    return MergeStatesCudaUnsupported(params) != nullptr;
  };
  EXPECT_TRUE(refused([](MergeStatesParams& p) { p.dtype = DType::kBFloat16; }));
  EXPECT_TRUE(refused([](MergeStatesParams& p) { p.head_dim = 60; }));
  EXPECT_TRUE(refused([](MergeStatesParams& p) { p.head_dim = 0; }));
  EXPECT_TRUE(refused([](MergeStatesParams& p) { p.num_states = -1; }));
  EXPECT_TRUE(refused([](MergeStatesParams& p) { p.num_rows = p.num_heads = 1 << 20; }));
  EXPECT_TRUE(refused([](MergeStatesParams& p) { p.o = static_cast<const char*>(p.o) + 4; }));
  EXPECT_TRUE(refused([](MergeStatesParams& p) { p.out = static_cast<char*>(p.out) + 8; }));
  EXPECT_TRUE(refused([](MergeStatesParams& p) { p.out_head = 68; }));
  EXPECT_TRUE(refused([](MergeStatesParams& p) { p.out_row = 132; }));
}

}  // namespace
}  // namespace semkv
