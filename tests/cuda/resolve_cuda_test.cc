// ResolveCuda on the machine's GPU over the cases of every form; without a GPU only that it says
// so.

#include "csrc/ops/residency/resolve_cuda.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <vector>

#include "tests/cuda/device_copy.h"
#include "tests/cuda/run_captured.h"
#include "tests/ops/residency/resolve_cases.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using testing::DeviceCopy;
using testing::HasDevice;
using testing::ResolveCase;
using testing::ResolveState;
using testing::ResolveStep;

template <typename T>
void ReadInto(const DeviceCopy& copy, std::vector<T>& data) {
  data = copy.Read<T>();
}

// DeviceCopy's memory is what cudaMalloc gives, and so aligned.
void ResolveOnDevice(const ResolveShape& shape, const ResolveStep& step, ResolveState& state) {
  DeviceCopy wanted(step.wanted), wanted_counts(step.wanted_counts), now(step.step);
  DeviceCopy hot_of_home(state.hot_of_home), home_of_hot(state.home_of_hot), stamps(state.stamps);
  DeviceCopy hand(state.hand), num_unplaced(state.num_unplaced), misses(state.misses);
  DeviceCopy num_misses(state.num_misses), slots(state.slots), slot_counts(state.slot_counts);
  const std::vector<uint8_t> zeros(ResolveCudaWorkspaceBytes(PlanResolve(shape)));
  DeviceCopy workspace(zeros);
  const auto ints = [](DeviceCopy& copy) { return static_cast<int32_t*>(copy.data()); };
  ResolveParams params;
  params.shape = shape;
  params.wanted = static_cast<const WantedPage*>(wanted.data());
  params.wanted_counts = ints(wanted_counts);
  params.step = ints(now);
  params.residency = {ints(hot_of_home), ints(home_of_hot), ints(stamps), ints(hand)};
  params.misses = static_cast<PagePair*>(misses.data());
  params.num_misses = ints(num_misses);
  params.num_unplaced = ints(num_unplaced);
  params.slots = ints(slots);
  params.slot_counts = ints(slot_counts);
  testing::RunCaptured(1, [&](cudaStream_t stream) {
    return ResolveCuda(params, workspace.data(), zeros.size(), stream);
  });
  ReadInto(hot_of_home, state.hot_of_home);
  ReadInto(home_of_hot, state.home_of_hot);
  ReadInto(stamps, state.stamps);
  ReadInto(hand, state.hand);
  ReadInto(num_unplaced, state.num_unplaced);
  ReadInto(misses, state.misses);
  ReadInto(num_misses, state.num_misses);
  ReadInto(slots, state.slots);
  ReadInto(slot_counts, state.slot_counts);
}

TEST(ResolveCudaTest, EqualsTheReference) {
  if (!HasDevice()) GTEST_SKIP() << "no GPU";
  const uint64_t seed = testing::TestSeed(71);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  std::vector<ResolveCase> cases = testing::ResolveCases();
  for (int i = 0; i < (testing::kIsEmulated ? 6 : 60); ++i)
    cases.push_back(testing::RandomResolveCase(rng));
  for (const ResolveCase& c : cases) {
    if (ResolveUnsupported(c.shape) != nullptr || c.shape.num_rows == 0) continue;
    SCOPED_TRACE(Name(c));
    testing::ExpectEqualsReference(c, rng, [&](const ResolveStep& step, ResolveState& state) {
      ResolveOnDevice(c.shape, step, state);
    });
  }
}

TEST(ResolveCudaTest, ALaunchWithoutADeviceReturnsItsError) {
  if (HasDevice()) GTEST_SKIP() << "there is a GPU";
  ResolveParams params;
  params.shape = {1, 1, 4, 64, 16, 0, 4, 4};
  alignas(64) uint8_t workspace[kResolveCounterBytes] = {};
  const cudaError_t error = ResolveCuda(params, workspace, sizeof(workspace), nullptr);
  EXPECT_NE(error, cudaSuccess);
  EXPECT_NE(error, cudaErrorInvalidValue);
}

TEST(ResolveCudaTest, BadParamsAndASmallWorkspaceAreRefused) {
  ResolveParams params;
  params.shape = {1, 1, 4, 64, 16, 0, 4, 4};
  EXPECT_EQ(ResolveCuda(params, nullptr, kResolveCounterBytes - 1, nullptr), cudaErrorInvalidValue);
  params.shape.num_hot_pages = 0;
  EXPECT_EQ(ResolveCuda(params, nullptr, kResolveCounterBytes, nullptr), cudaErrorInvalidValue);
  params.shape.num_hot_pages = 4;
  alignas(16) int32_t stamps[8] = {};
  params.residency.stamps = stamps + 1;
  EXPECT_EQ(ResolveCuda(params, nullptr, kResolveCounterBytes, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace semkv
