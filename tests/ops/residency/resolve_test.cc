#include "csrc/ops/residency/resolve.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <vector>

#include "csrc/ops/parallel/thread_pool.h"
#include "csrc/ops/residency/resolve_plan.h"
#include "tests/ops/residency/resolve_cases.h"
#include "tests/testing/count_allocations.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using testing::ResolveCase;
using testing::ResolveState;
using testing::ResolveStep;

void ExpectHostEqualsReference(const ResolveCase& c, std::mt19937_64& rng) {
  ThreadPool pool(2);
  testing::ExpectEqualsReference(c, rng, [&](const ResolveStep& step, ResolveState& state) {
    ResolveHost(step.Params(c.shape, state), pool);
  });
}

TEST(ResolveTest, EqualsTheReference) {
  const uint64_t seed = testing::TestSeed(71);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (const ResolveCase& c : testing::ResolveCases()) {
    SCOPED_TRACE(Name(c));
    ExpectHostEqualsReference(c, rng);
  }
}

TEST(ResolveTest, RandomCasesEqualTheReference) {
  const uint64_t seed = testing::TestSeed(72);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (int round = 0; round < 60 * testing::SoakFactor(); ++round) {
    const ResolveCase c = testing::RandomResolveCase(rng);
    SCOPED_TRACE(Name(c));
    ExpectHostEqualsReference(c, rng);
    if (HasFailure()) return;
  }
}

TEST(ResolveTest, AllocatesNothing) {
  std::mt19937_64 rng(73);
  const ResolveCase c = {{3, 2, 20, 20 * 16, 16, 2, 400, 360}};
  ResolveState state(c.shape);
  testing::ResolveSteps steps(c, rng);
  ThreadPool pool(2);
  for (int i = 0; i < 3; ++i) {
    const ResolveParams params = steps.Next().Params(c.shape, state);
    const int64_t before = testing::NumAllocations();
    ResolveHost(params, pool);
    EXPECT_EQ(testing::NumAllocations(), before);
  }
}

// By hand: one selection, pages of 4 tokens, a pool of 4.
TEST(ResolveTest, TheReferenceDoesWhatTheHeaderSays) {
  const ResolveShape shape = {1, 1, 4, 16, 4, 0, 10, 4};
  ResolveState state(shape);
  ResolveStep step;
  const auto resolve = [&](std::vector<WantedPage> wanted, int32_t now) {
    step.wanted_counts = {static_cast<int32_t>(wanted.size())};
    wanted.resize(4);
    step.wanted = wanted;
    step.step = {now};
    state.ClearOutputs(shape);
    ResolveReference(step.Params(shape, state));
    state.slots.resize(state.slot_counts[0]);
    return state.slots;
  };
  // Hot pages 0, 1 and 2 in the order of the list; two tokens of page 7, then all of page 3.
  EXPECT_EQ(resolve({{7, 0b0110}, {3, 0b1111}, {5, 0b0000}}, 1),
            (std::vector<int32_t>{1, 2, 4, 5, 6, 7}));
  EXPECT_EQ(state.num_misses[0], 3);
  // Page 3 is a hit. The clock goes on from its group of 4: page 0 may go, page 1 is kept.
  EXPECT_EQ(resolve({{3, 0b0001}, {8, 0b0001}, {9, 0b1000}, {8, 0b0010}}, 2),
            (std::vector<int32_t>{4, 0, 11, 1}));
  EXPECT_EQ(state.num_misses[0], 2);
  EXPECT_EQ(state.home_of_hot, (std::vector<int32_t>{8, 3, 9, kNotResident, testing::kUnwritten}));
  EXPECT_EQ(state.hot_of_home[7], kNotResident);
  EXPECT_EQ(state.num_unplaced[0], 0);
}

// Between R + 1 steps every page stays; with one more step it may go.
TEST(ResolveTest, APageIsKeptForTheStepsThatWereAskedFor) {
  const ResolveShape shape = {1, 1, 4, 16, 1, 2, 100, 12};
  ResolveState state(shape);
  for (int32_t now = 0; now < 20; ++now) {
    ResolveStep step;
    for (int32_t i = 0; i < 4; ++i) step.wanted.push_back({now * 4 + i, 1});
    step.wanted_counts = {4};
    step.step = {now};
    ResolveReference(step.Params(shape, state));
    for (int32_t page = 0; page < 80; ++page) {
      const bool is_kept = page / 4 <= now && page / 4 >= now - 2;
      EXPECT_EQ(state.hot_of_home[page] != kNotResident, is_kept) << now << ", " << page;
    }
  }
  EXPECT_EQ(state.num_unplaced[0], 0);
}

TEST(ResolvePlanTest, APoolBelowTheWorkingSetIsRefused) {
  ResolveShape shape = {2, 8, 128, 2048, 16, 1, 100000, 4096};
  EXPECT_EQ(NeededHotPages(shape), 4096);
  EXPECT_EQ(ResolveUnsupported(shape), nullptr);
  shape.num_hot_pages -= 4;
  EXPECT_NE(ResolveUnsupported(shape), nullptr);
  shape.num_home_pages = 4091;  // no more than there is
  EXPECT_EQ(NeededHotPages(shape), 4092);
  EXPECT_EQ(ResolveUnsupported(shape), nullptr);
  shape.keep_steps = INT32_MAX;
  EXPECT_EQ(NeededHotPages(shape), 4092);
}

TEST(ResolvePlanTest, WhatIsNotTakenIsNamed) {
  const ResolveShape good = {2, 8, 128, 2048, 16, 1, 100000, 4096};
  const auto refused = [&](auto change) {
    ResolveShape shape = good;
    change(shape);
    return ResolveUnsupported(shape) != nullptr;
  };
  EXPECT_FALSE(refused([](ResolveShape&) {}));
  EXPECT_TRUE(refused([](ResolveShape& s) { s.max_wanted = 126; }));
  EXPECT_TRUE(refused([](ResolveShape& s) { s.max_wanted = 0; }));
  EXPECT_TRUE(refused([](ResolveShape& s) { s.max_wanted = 2052; }));
  EXPECT_TRUE(refused([](ResolveShape& s) { s.page_tokens = 12; }));
  EXPECT_TRUE(refused([](ResolveShape& s) { s.page_tokens = 64; }));
  EXPECT_TRUE(refused([](ResolveShape& s) { s.num_rows = -1; }));
  EXPECT_TRUE(refused([](ResolveShape& s) { s.keep_steps = -1; }));
  EXPECT_TRUE(refused([](ResolveShape& s) { s.num_hot_pages = 4098; }));
  EXPECT_TRUE(refused([](ResolveShape& s) { s.num_hot_pages = 0, s.num_home_pages = 0; }));
  EXPECT_TRUE(refused([](ResolveShape& s) { s.num_hot_pages = 1 << 28; }));
  EXPECT_TRUE(refused([](ResolveShape& s) { s.max_slots = 1 << 30; }));
  EXPECT_TRUE(refused([](ResolveShape& s) { s.num_rows = 1025, s.num_home_pages = 4; }));
  EXPECT_FALSE(refused([](ResolveShape& s) { s.num_rows = 1024, s.num_home_pages = 4; }));
}

TEST(ResolvePlanTest, OneCtaHasABatchOfOneAndEveryPairLiesInOneCta) {
  EXPECT_EQ(PlanResolve({1, 8, 128, 2048, 16, 1, 8192, 2048}).num_ctas, 1);
  EXPECT_EQ(PlanResolve({1, 8, 256, 2048, 16, 1, 8192, 2048}).num_ctas, 1);
  EXPECT_EQ(PlanResolve({1, 8, 260, 2048, 16, 1, 8192, 2048}).num_ctas, 2);
  EXPECT_EQ(PlanResolve({64, 8, 128, 2048, 16, 1, 8192, 2048}).num_ctas, 32);
  EXPECT_EQ(PlanResolve({0, 8, 128, 2048, 16, 1, 8192, 2048}).num_ctas, 1);
  const ResolvePlan plan = PlanResolve({64, 8, 128, 2048, 16, 1, 8192, 2048});
  EXPECT_EQ(ResolveCudaWorkspaceBytes(plan), 64u + 128 + 32 * 2048 * 8);
}

}  // namespace
}  // namespace semkv
