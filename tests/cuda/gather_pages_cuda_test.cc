// GatherPagesCuda and its neighbours on the machine's GPU over the cases of every form; without a
// GPU only that they say so.

#include "csrc/ops/residency/gather_pages_cuda.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <vector>

#include "tests/cuda/device_copy.h"
#include "tests/cuda/run_captured.h"
#include "tests/ops/residency/gather_pages_cases.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using testing::DeviceCopy;
using testing::GatherPagesCase;
using testing::GatherPagesProblem;
using testing::HasDevice;
using testing::MappedCopy;

template <typename Reference, typename Copy>
void ExpectEqual(const GatherPagesProblem& problem, Reference reference, Copy copy) {
  GatherPagesProblem expected = problem;
  expected.Bind();
  reference(expected.params);
  MappedCopy home(problem.home);
  DeviceCopy hot(problem.hot), pages(problem.pages), num_pages(problem.num_pages);
  PageCopyParams params = problem.params;
  params.home = home.device();
  params.hot = hot.data();
  params.pages = static_cast<const PagePair*>(pages.data());
  params.num_pages = static_cast<const int32_t*>(num_pages.data());
  copy(params);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_TRUE(home.Read() == expected.home);
  EXPECT_TRUE(hot.Read() == expected.hot);
}

// Runs of the list's pages, which the host knows.
std::vector<PageRun> Runs(const GatherPagesProblem& problem) {
  std::vector<PagePair> pages = problem.pages;
  pages.resize(problem.NumCopied());
  std::vector<PageRun> runs(pages.size());
  runs.resize(CoalescePages(pages.data(), static_cast<int32_t>(pages.size()), runs.data()));
  return runs;
}

void ExpectCudaEqualsReference(const GatherPagesCase& c, std::mt19937_64& rng) {
  GatherPagesProblem problem(c, rng);
  const std::vector<PageRun> runs = Runs(problem);
  const int32_t n = static_cast<int32_t>(runs.size());
  ExpectEqual(problem, GatherPagesReference, [&](const PageCopyParams& params) {
    EXPECT_EQ(GatherPageRunsCuda(params, runs.data(), n, nullptr), cudaSuccess);
  });
  ExpectEqual(problem, SpillPagesReference, [&](const PageCopyParams& params) {
    EXPECT_EQ(SpillPageRunsCuda(params, runs.data(), n, nullptr), cudaSuccess);
  });
  for (int32_t num_ctas : {1, kPageCopyCtas}) {
    ExpectEqual(problem, GatherPagesReference, [&](const PageCopyParams& params) {
      testing::RunCaptured(
          1, [&](cudaStream_t stream) { return GatherPagesCuda(params, num_ctas, stream); });
    });
    ExpectEqual(problem, SpillPagesReference, [&](const PageCopyParams& params) {
      testing::RunCaptured(
          1, [&](cudaStream_t stream) { return SpillPagesCuda(params, num_ctas, stream); });
    });
    problem.AddForeignPages(rng);
  }
}

TEST(GatherPagesCudaTest, EqualsTheReferenceInBothDirections) {
  if (!HasDevice()) GTEST_SKIP() << "no GPU";
  const uint64_t seed = testing::TestSeed(61);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  std::vector<GatherPagesCase> cases = testing::GatherPagesCases();
  for (int i = 0; i < (testing::kIsEmulated ? 4 : 20); ++i)
    cases.push_back(testing::RandomGatherPagesCase(rng));
  for (const GatherPagesCase& c : cases) {
    if (c.max_pages == 0) continue;  // there is no memory to copy
    SCOPED_TRACE(Name(c));
    ExpectCudaEqualsReference(c, rng);
  }
}

TEST(GatherPagesCudaTest, ALaunchWithoutADeviceReturnsItsError) {
  if (HasDevice()) GTEST_SKIP() << "there is a GPU";
  std::mt19937_64 rng(1);
  GatherPagesProblem problem({64, 4, 4, 4, 4}, rng);
  EXPECT_NE(GatherPagesCuda(problem.params, 8, nullptr), cudaSuccess);
  EXPECT_NE(SpillPagesCuda(problem.params, 8, nullptr), cudaSuccess);
  const PageRun run = {0, 0, 1};
  EXPECT_NE(GatherPageRunsCuda(problem.params, &run, 1, nullptr), cudaSuccess);
}

TEST(GatherPagesCudaTest, BadParamsAndForeignRunsAreRefusedAndNoPagesAreASuccess) {
  PageCopyParams params;
  params.page_bytes = 64;
  EXPECT_EQ(GatherPagesCuda(params, 8, nullptr), cudaSuccess);
  EXPECT_EQ(GatherPagesCuda(params, 0, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(GatherPageRunsCuda(params, nullptr, 0, nullptr), cudaSuccess);
  const PageRun foreign = {0, 0, 1};
  EXPECT_EQ(GatherPageRunsCuda(params, &foreign, 1, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(SpillPageRunsCuda(params, &foreign, 1, nullptr), cudaErrorInvalidValue);
  params.page_bytes = 72;
  EXPECT_EQ(SpillPagesCuda(params, 8, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace semkv
