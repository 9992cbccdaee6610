// The CUDA form of gather_pages and spill, executed by the SIMT harness over the cases of every
// form.

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "csrc/ops/residency/gather_pages_kernel.cuh"
#include "tests/ops/residency/gather_pages_cases.h"
#include "tests/simt/launch.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using cuda::PageDirection;
using testing::GatherPagesCase;
using testing::GatherPagesProblem;

template <PageDirection kDirection>
simt::LaunchReport CopySimt(const GatherPagesProblem& problem, int32_t num_ctas, uint64_t seed) {
  constexpr bool kGather = kDirection == PageDirection::kGather;
  // The guards behind the tiers are none of the kernel's buffers.
  const auto tier = [](const std::string& name, const std::vector<uint8_t>& bytes, bool is_from) {
    return simt::Buffer{name, bytes.data(),
                        static_cast<int64_t>(bytes.size() - GatherPagesProblem::kGuardBytes),
                        is_from ? simt::Access::kRead : simt::Access::kReadWrite};
  };
  simt::LaunchOptions options;
  options.seed = seed;
  options.buffers = {
      tier("home", problem.home, kGather),
      tier("hot", problem.hot, !kGather),
      {"pages", problem.pages.data(), static_cast<int64_t>(problem.pages.size() * sizeof(PagePair)),
       simt::Access::kRead},
      {"count", problem.num_pages.data(), 4, simt::Access::kRead}};
  EXPECT_EQ(PageCopyCudaUnsupported(problem.params), nullptr);
  return simt::Launch(cuda::PageCopyLaunchShape(problem.params, num_ctas), options,
                      [&] { cuda::CopyPagesKernel<kDirection>(problem.params); });
}

// Pages read and written once.
void ExpectTraffic(const GatherPagesProblem& problem, const simt::LaunchReport& report) {
  const int64_t page_bytes = problem.params.page_bytes;
  const int64_t floor = problem.NumCopied() * (2 * page_bytes + 8) + 4;
  if (!simt::kMemoryHooks || problem.params.max_pages == 0) return;
  for (const char* name : {"home", "hot"}) {
    const simt::Traffic& traffic = report.traffic.at(name);
    EXPECT_EQ(traffic.read_bytes + traffic.written_bytes, problem.NumCopied() * page_bytes);
    for (const auto& [width, count] : traffic.accesses) EXPECT_EQ(width, 16);
  }
  // Each warp reads the count: a few pages outweigh that.
  if (problem.NumCopied() * page_bytes >= 64 * 1024) {
    EXPECT_LE(report.Bytes(), 1.1 * floor);
  }
}

template <PageDirection kDirection>
void ExpectEqualsReference(const GatherPagesProblem& problem, int32_t num_ctas, uint64_t seed) {
  GatherPagesProblem expected = problem, actual = problem;
  expected.Bind();
  actual.Bind();
  if (kDirection == PageDirection::kGather) {
    GatherPagesReference(expected.params);
  } else {
    SpillPagesReference(expected.params);
  }
  const simt::LaunchReport report = CopySimt<kDirection>(actual, num_ctas, seed);
  EXPECT_EQ(report.Errors(), "");
  EXPECT_TRUE(actual.home == expected.home);
  EXPECT_TRUE(actual.hot == expected.hot);
  ExpectTraffic(actual, report);
}

void ExpectSimtEqualsReference(const GatherPagesCase& c, std::mt19937_64& rng) {
  GatherPagesProblem problem(c, rng);
  for (int32_t num_ctas : {1, 3, 8}) {
    ExpectEqualsReference<PageDirection::kGather>(problem, num_ctas, rng());
    ExpectEqualsReference<PageDirection::kSpill>(problem, num_ctas, rng());
    problem.AddForeignPages(rng);
  }
}

TEST(GatherPagesSimtTest, EqualsTheReferenceInBothDirections) {
  const uint64_t seed = testing::TestSeed(61);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (const GatherPagesCase& c : testing::GatherPagesCases()) {
    SCOPED_TRACE(Name(c));
    ExpectSimtEqualsReference(c, rng);
  }
}

TEST(GatherPagesSimtTest, RandomCasesEqualTheReference) {
  const uint64_t seed = testing::TestSeed(62);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (int round = 0; round < 20 * testing::SoakFactor(); ++round) {
    const GatherPagesCase c = testing::RandomGatherPagesCase(rng);
    SCOPED_TRACE(Name(c));
    ExpectSimtEqualsReference(c, rng);
    if (HasFailure()) return;
  }
}

// A tenth of a step's pages: 8 heads x 128 pages x 0.1, 8 KiB each.
TEST(GatherPagesSimtTest, TheMissesOfAStepMoveLittleMoreThanTheirBytes) {
  std::mt19937_64 rng(65);
  GatherPagesProblem problem({8192, 256, 256, 256, 102}, rng);
  const simt::LaunchReport report = CopySimt<PageDirection::kGather>(problem, 8, 1);
  EXPECT_EQ(report.Errors(), "");
  if (!simt::kMemoryHooks) return;
  EXPECT_LE(report.Bytes(), 1.01 * (102 * (2 * 8192 + 8) + 4));
}

TEST(GatherPagesSimtTest, NoMoreCtasThanPiecesAndNoneForNoPages) {
  std::mt19937_64 rng(66);
  const auto ctas = [&](const GatherPagesCase& c, int32_t num_ctas) {
    const GatherPagesProblem problem(c, rng);
    return cuda::PageCopyLaunchShape(problem.params, num_ctas).grid_x;
  };
  EXPECT_EQ(ctas({8192, 9, 9, 9, 9}, 8), 3u);
  EXPECT_EQ(ctas({8192, 99, 99, 99, 9}, 8), 8u);
  EXPECT_EQ(ctas({8192, 9, 9, 0, 9}, 8), 0u);
}

}  // namespace
}  // namespace semkv
