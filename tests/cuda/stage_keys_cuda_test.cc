// StageKeysCuda on the machine's GPU over the cases of every form; without a GPU only that it says
// so.

#include "csrc/ops/cache/stage_keys_cuda.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <deque>
#include <random>
#include <vector>

#include "tests/cuda/device_copy.h"
#include "tests/cuda/run_captured.h"
#include "tests/ops/cache/stage_keys_cases.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using testing::DeviceCopy;
using testing::HasDevice;
using testing::StageKeysCase;
using testing::StageKeysProblem;

void ExpectCudaEqualsReference(const StageKeysCase& c, std::mt19937_64& rng) {
  StageKeysProblem problem(c, rng);
  std::deque<DeviceCopy> pools;
  std::vector<KvView> device_layers = problem.layers;
  for (size_t i = 0; i < device_layers.size(); ++i) {
    device_layers[i].k = pools.emplace_back(problem.pools[i]).data();
  }
  DeviceCopy layers(device_layers), pages(problem.pages), keys(problem.keys);
  DeviceCopy num_nonfinite(problem.num_nonfinite), nonfinite(problem.nonfinite);
  StageKeysParams params = problem.params;
  params.layers = static_cast<const KvView*>(layers.data());
  params.pages = static_cast<const int32_t*>(pages.data());
  params.keys = keys.data();
  if (problem.finds_nonfinite) {
    params.num_nonfinite = static_cast<int32_t*>(num_nonfinite.data());
    params.nonfinite = static_cast<uint16_t*>(nonfinite.data());
  }
  testing::RunCaptured(1, [&](cudaStream_t stream) { return StageKeysCuda(params, stream); });
  StageKeysReference(problem.params);
  const std::vector<uint16_t> expected = problem.nonfinite;
  problem.MakeNansEqual();
  const std::vector<uint8_t> expected_keys = problem.keys;
  problem.keys = keys.Read();
  problem.MakeNansEqual();
  EXPECT_TRUE(problem.keys == expected_keys);
  EXPECT_TRUE(num_nonfinite.Read<int32_t>() == problem.num_nonfinite);
  problem.nonfinite = nonfinite.Read<uint16_t>();
  problem.SortNonfinite();
  EXPECT_TRUE(problem.nonfinite == expected);
}

TEST(StageKeysCudaTest, EqualsTheReferenceBitForBit) {
  if (!HasDevice()) GTEST_SKIP() << "no GPU";
  const uint64_t seed = testing::TestSeed(71);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  std::vector<StageKeysCase> cases = testing::StageKeysCases();
  for (int i = 0; i < 40; ++i) cases.push_back(testing::RandomStageKeysCase(rng));
  if (!testing::kIsEmulated) {
    cases.push_back({DType::kBFloat16, 128, 16, testing::KeyLayout::kHeadsInside, 2, 8, 5,
                     kStageKeysMaxTokens, 0});
  }
  for (const StageKeysCase& c : testing::Thinned(cases)) {
    SCOPED_TRACE(Name(c));
    ExpectCudaEqualsReference(c, rng);
  }
}

TEST(StageKeysCudaTest, ALaunchWithoutADeviceReturnsItsError) {
  if (HasDevice()) GTEST_SKIP() << "there is a GPU";
  std::mt19937_64 rng(1);
  StageKeysProblem problem(
      {DType::kFloat16, 64, 16, testing::KeyLayout::kHeadsInside, 1, 2, 0, 4, 0}, rng);
  EXPECT_NE(StageKeysCuda(problem.params, nullptr), cudaSuccess);
}

TEST(StageKeysCudaTest, WhatIsNotServedIsRefusedAndNothingToDoIsASuccess) {
  StageKeysParams params;
  params.pool_dtype = params.dtype = DType::kBFloat16;
  params.head_dim = 128;
  params.page_tokens = 16;
  params.num_layers = params.num_kv_heads = 2;
  EXPECT_EQ(StageKeysCuda(params, nullptr), cudaSuccess);
  params.num_layers = 0;
  params.num_tokens = 5;
  EXPECT_EQ(StageKeysCuda(params, nullptr), cudaSuccess);
  const auto expect_refused = [&](auto StageKeysParams::*member, auto value) {
    StageKeysParams refused = params;
    refused.*member = value;
    EXPECT_EQ(StageKeysCuda(refused, nullptr), cudaErrorInvalidValue);
  };
  expect_refused(&StageKeysParams::dtype, DType::kFloat32);
  expect_refused(&StageKeysParams::pool_dtype, DType::kFloat16);
  expect_refused(&StageKeysParams::head_dim, 72);
  expect_refused(&StageKeysParams::num_tokens, -1);
  expect_refused(&StageKeysParams::num_tokens, kStageKeysMaxTokens + 1);
  expect_refused(&StageKeysParams::page_tokens, 12);
}

}  // namespace
}  // namespace semkv
