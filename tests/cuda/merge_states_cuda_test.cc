// MergeStatesCuda on the machine's GPU over the cases of every form; without a GPU only that it
// says so.

#include "csrc/ops/attention/merge_states_cuda.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <vector>

#include "tests/cuda/device_copy.h"
#include "tests/cuda/run_captured.h"
#include "tests/ops/attention/merge_states_cases.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using testing::DeviceCopy;
using testing::HasDevice;
using testing::MergeStatesProblem;

void ExpectCudaEqualsReference(const testing::MergeStatesCase& c, std::mt19937_64& rng) {
  MergeStatesProblem problem(c, rng);
  DeviceCopy o(problem.o), lse(problem.lse), out(problem.out), out_lse(problem.out_lse);
  MergeStatesReference(problem.params);
  MergeStatesParams params = problem.params;
  params.o = o.data();
  params.lse = static_cast<const float*>(lse.data());
  params.out = out.data();
  params.out_lse = static_cast<float*>(out_lse.data());
  testing::RunCaptured(1, [&](cudaStream_t stream) { return MergeStatesCuda(params, stream); });
  testing::ExpectMerged(problem, out.Read(), out_lse.Read<float>());
}

TEST(MergeStatesCudaTest, EqualsTheReference) {
  if (!HasDevice()) GTEST_SKIP() << "no GPU";
  const uint64_t seed = testing::TestSeed(51);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  std::vector<testing::MergeStatesCase> cases = testing::MergeStatesCases();
  for (int i = 0; i < (testing::kIsEmulated ? 8 : 40); ++i)
    cases.push_back(testing::RandomMergeStatesCase(rng));
  for (const testing::MergeStatesCase& c : cases) {
    SCOPED_TRACE(Name(c));
    ExpectCudaEqualsReference(c, rng);
  }
}

TEST(MergeStatesCudaTest, ALaunchWithoutADeviceReturnsItsError) {
  if (HasDevice()) GTEST_SKIP() << "there is a GPU";
  std::mt19937_64 rng(1);
  MergeStatesProblem problem({DType::kFloat32, DType::kFloat16, 2, 2, 2, 64, 0}, rng);
  EXPECT_NE(MergeStatesCuda(problem.params, nullptr), cudaSuccess);
}

TEST(MergeStatesCudaTest, NoRowsIsASuccessAndAnUnsupportedShapeIsRefused) {
  MergeStatesParams params;
  params.head_dim = 64;
  EXPECT_EQ(MergeStatesCuda(params, nullptr), cudaSuccess);
  params.head_dim = 60;
  EXPECT_EQ(MergeStatesCuda(params, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace semkv
