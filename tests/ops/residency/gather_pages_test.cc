#include "csrc/ops/residency/gather_pages.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <tuple>
#include <vector>

#include "csrc/ops/parallel/thread_pool.h"
#include "tests/ops/residency/gather_pages_cases.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using testing::GatherPagesCase;
using testing::GatherPagesProblem;

template <typename Reference, typename Host>
void ExpectEqual(const GatherPagesProblem& problem, Reference reference, Host host) {
  GatherPagesProblem expected = problem;
  expected.Bind();
  reference(expected.params);
  for (int num_threads : {1, 3}) {
    ThreadPool pool(num_threads);
    GatherPagesProblem actual = problem;
    actual.Bind();
    host(actual.params, pool);
    EXPECT_TRUE(actual.home == expected.home);
    EXPECT_TRUE(actual.hot == expected.hot);
  }
}

void ExpectHostEqualsReference(const GatherPagesCase& c, std::mt19937_64& rng) {
  GatherPagesProblem problem(c, rng);
  ExpectEqual(problem, GatherPagesReference, GatherPagesHost);
  ExpectEqual(problem, SpillPagesReference, SpillPagesHost);
  problem.AddForeignPages(rng);
  ExpectEqual(problem, GatherPagesReference, GatherPagesHost);
  ExpectEqual(problem, SpillPagesReference, SpillPagesHost);
}

TEST(GatherPagesTest, EqualsTheReferenceInBothDirections) {
  const uint64_t seed = testing::TestSeed(61);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (const GatherPagesCase& c : testing::GatherPagesCases()) {
    SCOPED_TRACE(Name(c));
    ExpectHostEqualsReference(c, rng);
  }
}

TEST(GatherPagesTest, RandomCasesEqualTheReference) {
  const uint64_t seed = testing::TestSeed(62);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (int round = 0; round < 40 * testing::SoakFactor(); ++round) {
    const GatherPagesCase c = testing::RandomGatherPagesCase(rng);
    SCOPED_TRACE(Name(c));
    ExpectHostEqualsReference(c, rng);
    if (HasFailure()) return;
  }
}

TEST(GatherPagesTest, WhatIsSpilledComesBack) {
  std::mt19937_64 rng(63);
  GatherPagesProblem problem({8192, 40, 40, 40, 40}, rng);
  const std::vector<uint8_t> hot = problem.hot;
  ThreadPool pool(2);
  SpillPagesHost(problem.params, pool);
  std::fill(problem.hot.begin(), problem.hot.end() - GatherPagesProblem::kGuardBytes, 0);
  GatherPagesHost(problem.params, pool);
  EXPECT_TRUE(problem.hot == hot);
}

TEST(GatherPagesTest, WhatTheCudaFormDoesNotTakeIsNamed) {
  std::mt19937_64 rng(1);
  GatherPagesProblem problem({64, 4, 4, 4, 4}, rng);
  const PageCopyParams good = problem.params;
  EXPECT_EQ(PageCopyCudaUnsupported(good), nullptr);
  const auto refused = [&](auto change) {
    PageCopyParams params = good;
    change(params);
    return PageCopyCudaUnsupported(params) != nullptr;
  };
  EXPECT_TRUE(refused([](PageCopyParams& p) { p.page_bytes = 72; }));
  EXPECT_TRUE(refused([](PageCopyParams& p) { p.page_bytes = 0; }));
  EXPECT_TRUE(refused([](PageCopyParams& p) { p.max_pages = -1; }));
  EXPECT_TRUE(refused([](PageCopyParams& p) { p.num_hot_pages = -1; }));
  EXPECT_TRUE(refused([](PageCopyParams& p) { p.max_pages = 1 << 30, p.page_bytes = 1 << 20; }));
  EXPECT_TRUE(refused([](PageCopyParams& p) { p.home = static_cast<char*>(p.home) + 8; }));
  EXPECT_TRUE(refused([](PageCopyParams& p) { p.hot = static_cast<char*>(p.hot) + 8; }));
}

TEST(CoalescePagesTest, JoinsPagesThatAreNeighboursInBothTiers) {
  std::vector<PagePair> pages = {{9, 3}, {4, 8}, {5, 9}, {7, 1}, {6, 10}, {8, 2}, {10, 5}};
  std::vector<PageRun> runs(pages.size());
  ASSERT_EQ(CoalescePages(pages.data(), 7, runs.data()), 3);
  const auto is_run = [](const PageRun& run, int32_t home, int32_t hot, int32_t n) {
    return run.home_page == home && run.hot_page == hot && run.num_pages == n;
  };
  EXPECT_TRUE(is_run(runs[0], 4, 8, 3));
  EXPECT_TRUE(is_run(runs[1], 7, 1, 3));
  EXPECT_TRUE(is_run(runs[2], 10, 5, 1));
  EXPECT_EQ(CoalescePages(pages.data(), 0, runs.data()), 0);
}

// Runs hold exactly the pages of the list, and no two of them could be one.
TEST(CoalescePagesTest, RandomListsAreCutIntoTheirLongestRuns) {
  const uint64_t seed = testing::TestSeed(64);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (int round = 0; round < 200 * testing::SoakFactor(); ++round) {
    std::vector<PagePair> pages;
    for (int32_t home = 0, hot = 500; home < 60; ++home) {
      hot = rng() % 4 == 0 ? hot + 70 : hot + 1;
      if (rng() % 4 != 0) pages.push_back({home, hot});
    }
    std::vector<PagePair> listed = pages;
    std::shuffle(listed.begin(), listed.end(), rng);
    std::vector<PageRun> runs(pages.size());
    const int32_t n = static_cast<int32_t>(listed.size());
    const int32_t num_runs = CoalescePages(listed.data(), n, runs.data());
    std::vector<PagePair> copied;
    for (int32_t i = 0; i < num_runs; ++i) {
      for (int32_t j = 0; j < runs[i].num_pages; ++j) {
        copied.push_back({runs[i].home_page + j, runs[i].hot_page + j});
      }
      if (i == 0) continue;
      const PageRun& before = runs[i - 1];
      EXPECT_FALSE(before.home_page + before.num_pages == runs[i].home_page &&
                   before.hot_page + before.num_pages == runs[i].hot_page);
    }
    EXPECT_TRUE(std::equal(pages.begin(), pages.end(), copied.begin(), copied.end(),
                           [](const PagePair& a, const PagePair& b) {
                             return std::tie(a.home_page, a.hot_page) ==
                                    std::tie(b.home_page, b.hot_page);
                           }));
  }
}

TEST(CoalescePagesTest, ARunOutsideItsTierIsFound) {
  PageCopyParams params;
  params.num_home_pages = 10;
  params.num_hot_pages = 5;
  const auto fits = [&](PageRun run) { return PageRunsFit(params, &run, 1); };
  EXPECT_TRUE(fits({5, 0, 5}));
  EXPECT_FALSE(fits({6, 0, 5}));
  EXPECT_FALSE(fits({0, 1, 5}));
  EXPECT_FALSE(fits({-1, 0, 1}));
  EXPECT_FALSE(fits({0, -1, 1}));
  EXPECT_FALSE(fits({0, 0, -1}));
  EXPECT_FALSE(fits({INT32_MAX, 0, INT32_MAX}));
}

}  // namespace
}  // namespace semkv
