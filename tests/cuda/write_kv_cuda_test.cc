// WriteKvCuda on the machine's GPU over the cases of every form; without a GPU only that it says
// so.

#include "csrc/ops/cache/write_kv_cuda.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <vector>

#include "tests/cuda/device_copy.h"
#include "tests/cuda/run_captured.h"
#include "tests/ops/cache/write_kv_cases.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using testing::DeviceCopy;
using testing::HasDevice;

void ExpectCudaEqualsReference(const testing::WriteKvCase& c, std::mt19937_64& rng) {
  testing::WriteKvProblem problem(c, rng);
  problem.ResetPools();
  DeviceCopy k(problem.k), v(problem.v), slots(problem.slots);
  DeviceCopy key_pool(problem.key_pool), value_pool(problem.value_pool);
  WriteKvReference(problem.params);
  WriteKvParams params = problem.params;
  params.k = k.data();
  params.v = v.data();
  params.slots = static_cast<const int32_t*>(slots.data());
  params.view.k = key_pool.data();
  params.view.v = value_pool.data();
  testing::RunCaptured(1, [&](cudaStream_t stream) { return WriteKvCuda(params, stream); });
  EXPECT_TRUE(key_pool.Read() == problem.key_pool);
  EXPECT_TRUE(value_pool.Read() == problem.value_pool);
}

TEST(WriteKvCudaTest, EqualsTheReferenceBitForBit) {
  if (!HasDevice()) GTEST_SKIP() << "no GPU";
  const uint64_t seed = testing::TestSeed(21);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  std::vector<testing::WriteKvCase> cases = testing::WriteKvCases(testing::kDevicePoolDTypes);
  for (int i = 0; i < 40; ++i)
    cases.push_back(testing::RandomWriteKvCase(rng, testing::kDevicePoolDTypes));
  for (const testing::WriteKvCase& c : cases) {
    SCOPED_TRACE(Name(c));
    ExpectCudaEqualsReference(c, rng);
  }
}

TEST(WriteKvCudaTest, ALaunchWithoutADeviceReturnsItsError) {
  if (HasDevice()) GTEST_SKIP() << "there is a GPU";
  std::mt19937_64 rng(1);
  testing::WriteKvProblem problem({DType::kFloat16, DType::kFloat16, 4, 2, 64, 16, 0}, rng);
  problem.ResetPools();
  EXPECT_NE(WriteKvCuda(problem.params, nullptr), cudaSuccess);
}

TEST(WriteKvCudaTest, KeysAndValuesOfE4M3AreRefused) {
  WriteKvParams params;
  params.dtype = DType::kFloat8E4M3;
  EXPECT_EQ(WriteKvCuda(params, nullptr), cudaErrorInvalidValue);
}

TEST(WriteKvCudaTest, NoTokensIsASuccessWithoutALaunch) {
  EXPECT_EQ(WriteKvCuda(WriteKvParams{}, nullptr), cudaSuccess);
}

}  // namespace
}  // namespace semkv
