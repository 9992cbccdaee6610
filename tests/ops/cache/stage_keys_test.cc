#include "csrc/ops/cache/stage_keys.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "tests/ops/cache/stage_keys_cases.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using testing::StageKeysCase;
using testing::StageKeysProblem;

void ExpectReferenceFindsWhatWasPut(const StageKeysCase& c, std::mt19937_64& rng) {
  StageKeysProblem problem(c, rng);
  StageKeysReference(problem.params);
  problem.MakeNansEqual();
  EXPECT_TRUE(problem.keys == problem.ExpectedKeys());
  EXPECT_TRUE(problem.num_nonfinite == problem.ExpectedCounts());
  EXPECT_TRUE(problem.nonfinite == problem.ExpectedNonfinite());
}

TEST(StageKeysTest, TheReferenceFindsWhatWasPutIntoThePool) {
  const uint64_t seed = testing::TestSeed(71);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (const StageKeysCase& c : testing::StageKeysCases()) {
    SCOPED_TRACE(Name(c));
    ExpectReferenceFindsWhatWasPut(c, rng);
  }
}

TEST(StageKeysTest, RandomCases) {
  const uint64_t seed = testing::TestSeed(72);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (int round = 0; round < 100 * testing::SoakFactor(); ++round) {
    const StageKeysCase c = testing::RandomStageKeysCase(rng);
    SCOPED_TRACE(Name(c));
    ExpectReferenceFindsWhatWasPut(c, rng);
    if (HasFailure()) return;
  }
}

TEST(StageKeysTest, AsManyTokensAsThereMayBe) {
  std::mt19937_64 rng(73);
  ExpectReferenceFindsWhatWasPut(
      {DType::kBFloat16, 64, 16, testing::KeyLayout::kHeadsInside, 1, 4, 5, kStageKeysMaxTokens, 0},
      rng);
}

// Which only the reference takes.
TEST(StageKeysTest, Float32Keys) {
  constexpr int32_t kDim = 4, kTokens = 3;
  std::vector<float> pool(2 * kTokens * kDim, 1.0f);
  pool[kDim * 4 + 3] = -INFINITY;
  KvView layer;
  layer.k = pool.data();
  layer.k_token = kDim;
  layer.k_page = 4 * kDim;
  const std::vector<int32_t> pages = {0, 1};
  std::vector<float> keys(kTokens * kDim);
  std::vector<int32_t> num_nonfinite(1);
  std::vector<uint16_t> nonfinite(kTokens);
  StageKeysParams p;
  p.layers = &layer;
  p.num_layers = p.num_kv_heads = 1;
  p.head_dim = kDim;
  p.page_tokens = 4;
  p.pages = pages.data();
  p.first = 2;
  p.num_tokens = kTokens;
  p.keys = keys.data();
  p.num_nonfinite = num_nonfinite.data();
  p.nonfinite = nonfinite.data();
  StageKeysReference(p);
  EXPECT_EQ(keys, std::vector<float>(pool.begin() + 2 * kDim, pool.begin() + 5 * kDim));
  EXPECT_EQ(num_nonfinite[0], 1);
  EXPECT_EQ(nonfinite[0], 2);
}

}  // namespace
}  // namespace semkv
