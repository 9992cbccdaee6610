// The CUDA form of resolve, executed by the SIMT harness over the cases of every form.

#include "tests/ops/residency/resolve_simt.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <vector>

#include "tests/testing/random.h"

namespace semkv {
namespace {

using testing::ResolveCase;
using testing::ResolveState;
using testing::ResolveStep;

void ExpectSimtEqualsReference(const ResolveCase& c, std::mt19937_64& rng) {
  testing::ExpectEqualsReference(c, rng, [&](const ResolveStep& step, ResolveState& state) {
    const size_t num_launches = PlanResolve(c.shape).num_ctas == 1 ? 1 : 2;
    EXPECT_EQ(testing::ResolveSimt(c.shape, step, state, rng()).size(), num_launches);
  });
}

TEST(ResolveSimtTest, EqualsTheReference) {
  const uint64_t seed = testing::TestSeed(71);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (const ResolveCase& c : testing::ResolveCases()) {
    SCOPED_TRACE(Name(c));
    ExpectSimtEqualsReference(c, rng);
  }
}

TEST(ResolveSimtTest, RandomCasesEqualTheReference) {
  const uint64_t seed = testing::TestSeed(72);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (int round = 0; round < 15 * testing::SoakFactor(); ++round) {
    const ResolveCase c = testing::RandomResolveCase(rng);
    SCOPED_TRACE(Name(c));
    ExpectSimtEqualsReference(c, rng);
    if (HasFailure()) return;
  }
}

// All rows want the same pages: every page has many that want it, in several CTAs, and one owner.
TEST(ResolveSimtTest, EverySchedulePlacesASharedPageOnceAndLeavesTheSameBits) {
  const ResolveShape shape = {12, 2, 256, 256 * 16, 16, 0, 4096, 1024};
  ResolveStep step;
  for (int32_t i = 0; i < 12 * 2 * 256; ++i) step.wanted.push_back({(i % 512) * 7, 0xffff});
  step.wanted_counts.assign(24, 256);
  step.step = {1};
  ResolveState expected(shape);
  ResolveReference(step.Params(shape, expected));
  EXPECT_EQ(expected.num_misses[0], 512);
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    ResolveState state(shape);
    testing::ResolveSimt(shape, step, state, seed);
    EXPECT_TRUE(state == expected) << "seed " << seed;
  }
}

}  // namespace
}  // namespace semkv
