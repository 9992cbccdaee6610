// AppendListsCuda on the machine's GPU over the cases of every form; without a GPU only that it
// says so.

#include "csrc/ops/cache/append_lists_cuda.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <vector>

#include "tests/cuda/device_copy.h"
#include "tests/cuda/run_captured.h"
#include "tests/ops/cache/append_lists_cases.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using testing::AppendCase;
using testing::AppendInput;
using testing::AppendStore;
using testing::DeviceCopy;
using testing::HasDevice;

// Leaves the result in the input's store.
void RunCuda(AppendInput& input) {
  DeviceCopy keys(input.keys), offsets(input.offsets), members(input.members);
  DeviceCopy centers(input.centers);
  AppendStore& store = input.store;
  DeviceCopy centroids(store.centroids), scales(store.scales), variances(store.variances);
  DeviceCopy list_offsets(store.offsets), list_members(store.members);
  AppendListsParams p = input.params;
  p.keys = keys.data();
  p.offsets = static_cast<const uint16_t*>(offsets.data());
  if (p.members != nullptr) p.members = static_cast<const uint16_t*>(members.data());
  if (p.centers != nullptr) p.centers = static_cast<const float*>(centers.data());
  p.centroids = centroids.data();
  p.scales = static_cast<float*>(scales.data());
  p.variances = static_cast<float*>(variances.data());
  p.list_offsets = static_cast<uint16_t*>(list_offsets.data());
  p.list_members = static_cast<uint16_t*>(list_members.data());
  testing::RunCaptured(1, [&](cudaStream_t stream) { return AppendListsCuda(p, stream); });
  store.centroids = centroids.Read();
  store.scales = scales.Read<float>();
  store.variances = variances.Read<float>();
  store.offsets = list_offsets.Read<uint16_t>();
  store.members = list_members.Read<uint16_t>();
}

void ExpectCudaEqualsReference(const AppendCase& c, std::mt19937_64& rng) {
  AppendInput input(c, rng);
  AppendListsReference(input.params);
  const AppendStore expected = input.store;
  input.Reset();
  RunCuda(input);
  testing::ExpectStore(input, expected);
}

TEST(AppendListsCudaTest, EqualsTheReference) {
  if (!HasDevice()) GTEST_SKIP() << "no GPU";
  const uint64_t seed = testing::TestSeed(41);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (const AppendCase& c : testing::Thinned(testing::AppendCases(rng))) {
    ExpectCudaEqualsReference(c, rng);
  }
}

TEST(AppendListsCudaTest, RandomCases) {
  if (!HasDevice()) GTEST_SKIP() << "no GPU";
  const uint64_t seed = testing::TestSeed(42);
  for (int round = 0; round < (testing::kIsEmulated ? 4 : 40) * testing::SoakFactor(); ++round) {
    SEMKV_TRACE_SEED(seed + round);
    std::mt19937_64 rng(seed + round);
    ExpectCudaEqualsReference(testing::RandomAppendCase(rng), rng);
  }
}

TEST(AppendListsCudaTest, OffsetChannelsAndLongLists) {
  if (!HasDevice()) GTEST_SKIP() << "no GPU";
  std::mt19937_64 rng(43);
  for (CentroidForm form : testing::kAppendForms) {
    ExpectCudaEqualsReference(testing::OffsetAppendCase(form, -2000.0f), rng);
  }
  ExpectCudaEqualsReference(testing::CenterCase(testing::kIsEmulated ? 8192 : 65520), rng);
}

TEST(AppendListsCudaTest, ALaunchWithoutADeviceReturnsItsError) {
  if (HasDevice()) GTEST_SKIP() << "there is a GPU";
  std::mt19937_64 rng(1);
  AppendInput input(AppendCase(), rng);
  EXPECT_NE(AppendListsCuda(input.params, nullptr), cudaSuccess);
}

TEST(AppendListsCudaTest, NoListsIsASuccessAndWhatIsUnsupportedIsRefused) {
  AppendListsParams params;
  params.head_dim = 128;
  params.dtype = DType::kFloat16;
  EXPECT_EQ(AppendListsCuda(params, nullptr), cudaSuccess);
  params.num_cells = 3;
  EXPECT_EQ(AppendListsCuda(params, nullptr), cudaSuccess);
  params.head_dim = 72;
  EXPECT_EQ(AppendListsCuda(params, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace semkv
