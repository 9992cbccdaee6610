// ListMeansCuda on the machine's GPU over the cases of every form; without a GPU only that it says
// so.

#include "csrc/ops/cache/list_means_cuda.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "tests/cuda/device_copy.h"
#include "tests/cuda/run_captured.h"
#include "tests/ops/cache/list_means_cases.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using testing::DeviceCopy;
using testing::HasDevice;
using testing::ListMeansProblem;

void ExpectCudaEqualsReference(ListMeansProblem& problem) {
  DeviceCopy keys(problem.keys), offsets(problem.offsets), members(problem.members);
  DeviceCopy means(problem.means), variances(problem.variances);
  ListMeansReference(problem.params);
  ListMeansParams params = problem.params;
  params.keys = static_cast<const float*>(keys.data());
  params.offsets = static_cast<const uint16_t*>(offsets.data());
  if (params.members != nullptr) params.members = static_cast<const uint16_t*>(members.data());
  params.means = static_cast<float*>(means.data());
  params.variances = static_cast<float*>(variances.data());
  testing::RunCaptured(1, [&](cudaStream_t stream) { return ListMeansCuda(params, stream); });
  const std::vector<float> mean = means.Read<float>(), variance = variances.Read<float>();
  for (size_t i = 0; i < mean.size(); ++i) {
    ASSERT_NEAR(mean[i], problem.means[i], 1e-5 * (1 + std::abs(problem.means[i]))) << i;
  }
  for (size_t i = 0; i < variance.size(); ++i) {
    ASSERT_NEAR(variance[i], problem.variances[i], 1e-4 * std::abs(problem.variances[i]) + 1e-6)
        << i;
  }
}

TEST(ListMeansCudaTest, EqualsTheReference) {
  if (!HasDevice()) GTEST_SKIP() << "no GPU";
  const uint64_t seed = testing::TestSeed(31);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  testing::ForEachListMeansCase(rng, ExpectCudaEqualsReference);
  testing::ForEachNonFiniteCase(rng, ExpectCudaEqualsReference);
}

TEST(ListMeansCudaTest, ALaunchWithoutADeviceReturnsItsError) {
  if (HasDevice()) GTEST_SKIP() << "there is a GPU";
  std::mt19937_64 rng(1);
  ListMeansProblem problem(64, {3}, testing::ListLayout::kRanges, rng);
  EXPECT_NE(ListMeansCuda(problem.params, nullptr), cudaSuccess);
}

TEST(ListMeansCudaTest, NoListsIsASuccessAndATooWideHeadIsRefused) {
  ListMeansParams params;
  params.head_dim = 512;
  EXPECT_EQ(ListMeansCuda(params, nullptr), cudaSuccess);
  params.head_dim = 513;
  EXPECT_EQ(ListMeansCuda(params, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace semkv
