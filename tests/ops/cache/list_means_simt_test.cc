// The CUDA form of list_means, executed by the SIMT harness over the cases of every form.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "csrc/ops/cache/list_means_kernel.cuh"
#include "tests/ops/cache/list_means_cases.h"
#include "tests/simt/launch.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using testing::ListMeansProblem;

// The buffers end where the outputs end: the guards behind them are outside.
simt::LaunchReport ListMeansSimt(const ListMeansProblem& problem, uint64_t seed) {
  const ListMeansParams& p = problem.params;
  const auto buffer = [](const std::string& name, const auto* data, int64_t n,
                         simt::Access access) {
    return simt::Buffer{name, data, n * static_cast<int64_t>(sizeof(*data)), access};
  };
  simt::LaunchOptions options;
  options.seed = seed;
  options.buffers = {
      buffer("keys", p.keys, static_cast<int64_t>(problem.keys.size()), simt::Access::kRead),
      buffer("offsets", p.offsets, p.nlist + 1, simt::Access::kRead),
      buffer("means", p.means, int64_t{p.nlist} * p.head_dim, simt::Access::kReadWrite)};
  if (p.members != nullptr) {
    options.buffers.push_back(buffer(
        "members", p.members, static_cast<int64_t>(problem.members.size()), simt::Access::kRead));
  }
  if (p.variances != nullptr) {
    options.buffers.push_back(buffer("variances", p.variances, p.nlist, simt::Access::kReadWrite));
  }
  return cuda::DispatchListMeans(p, [&](auto* kernel, const LaunchShape& shape) {
    return simt::Launch(shape, options, [&] { kernel(p); });
  });
}

// Bytes that any form must move: keys once, members, offsets, and what comes out.
int64_t FloorBytes(const ListMeansProblem& problem) {
  const ListMeansParams& p = problem.params;
  const int64_t num_tokens = p.offsets[p.nlist];
  return num_tokens * (int64_t{p.head_dim} * 4 + (p.members != nullptr ? 2 : 0)) +
         2 * (int64_t{p.nlist} + 1) + 4 * int64_t{p.nlist} * (p.head_dim + 1);
}

void ExpectTraffic(const ListMeansProblem& problem, const simt::LaunchReport& report) {
  if (!simt::kMemoryHooks || !cuda::ListMeansTakesVectors(problem.params)) return;
  for (const auto& [width, accesses] : report.traffic.at("keys").accesses) EXPECT_EQ(width, 16);
  // Below 64 channels the offsets, which each warp of a CTA reads, weigh more than a tenth.
  if (problem.params.head_dim < 64) return;
  EXPECT_LE(report.Bytes(), 1.1 * FloorBytes(problem));
}

void ExpectSimtEqualsReference(ListMeansProblem& problem) {
  ListMeansReference(problem.params);
  const std::vector<float> means = problem.means, variances = problem.variances;
  std::fill(problem.means.begin(), problem.means.end(), testing::kGuard);
  std::fill(problem.variances.begin(), problem.variances.end(), testing::kGuard);
  const simt::LaunchReport report = ListMeansSimt(problem, problem.keys.size());
  ASSERT_EQ(report.Errors(), "");
  for (size_t i = 0; i < means.size(); ++i) {
    ASSERT_NEAR(problem.means[i], means[i], 1e-5 * (1 + std::abs(means[i]))) << "mean " << i;
  }
  for (size_t i = 0; i < variances.size(); ++i) {
    ASSERT_NEAR(problem.variances[i], variances[i], 1e-4 * std::abs(variances[i]) + 1e-6)
        << "variance " << i;
  }
  ExpectTraffic(problem, report);
}

TEST(ListMeansSimtTest, EqualsTheReference) {
  const uint64_t seed = testing::TestSeed(31);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  testing::ForEachListMeansCase(rng, ExpectSimtEqualsReference);
  // The widest instance, and one vector more than a warp has lanes.
  for (int32_t head_dim : {512, 132}) {
    ListMeansProblem problem(head_dim, {9, 32}, testing::ListLayout::kMembers, rng);
    ExpectSimtEqualsReference(problem);
  }
}

TEST(ListMeansSimtTest, MembersThatAreNotFiniteAreLeftOut) {
  std::mt19937_64 rng(33);
  testing::ForEachNonFiniteCase(rng, [](ListMeansProblem& problem) {
    ExpectSimtEqualsReference(problem);
    const int32_t head_dim = problem.params.head_dim;
    for (int32_t d = 0; d < head_dim; ++d) EXPECT_EQ(problem.means[3 * head_dim + d], 0.0f);
    EXPECT_EQ(problem.variances[3], 0.0f);
  });
}

TEST(ListMeansSimtTest, AnOffsetChannelKeepsMeanAndVarianceExact) {
  const uint64_t seed = testing::TestSeed(32);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (float offset : {20.0f, -20.0f, 2000.0f}) {
    ListMeansProblem problem = testing::OffsetChannelCase(offset, rng);
    ListMeansReference(problem.params);
    const std::vector<float> means = problem.means;
    const float variance = problem.variances[0];
    EXPECT_EQ(ListMeansSimt(problem, 1).Errors(), "");
    for (int32_t d = 0; d < 128; ++d) {
      EXPECT_NEAR(problem.means[d], means[d], 1e-6 * std::abs(means[d]) + 1e-6) << d;
    }
    EXPECT_NEAR(problem.variances[0], variance, 1e-5 * variance);
  }
}

TEST(ListMeansSimtTest, VariancesMayBeNullAndThereMayBeNoLists) {
  std::mt19937_64 rng(1);
  ListMeansProblem problem(64, {5, 9}, testing::ListLayout::kRanges, rng);
  EXPECT_EQ(ListMeansSimt(problem, 1).Errors(), "");
  const std::vector<float> means = problem.means;
  problem.params.variances = nullptr;
  std::fill(problem.means.begin(), problem.means.end(), testing::kGuard);
  EXPECT_EQ(ListMeansSimt(problem, 1).Errors(), "");
  EXPECT_EQ(problem.means, means);
  problem.params.nlist = 0;
  EXPECT_EQ(ListMeansSimt(problem, 1).Errors(), "");
}

}  // namespace
}  // namespace semkv
