// The CUDA form of append_lists, executed by the SIMT harness over the cases of every form.

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "csrc/ops/cache/append_lists_kernel.cuh"
#include "tests/ops/cache/append_lists_cases.h"
#include "tests/simt/launch.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using testing::AppendCase;
using testing::AppendInput;
using testing::AppendStore;

// What a form does not read or write is no buffer.
simt::LaunchReport RunSimt(AppendInput& input, uint64_t seed) {
  input.Reset();
  const AppendListsParams& p = input.params;
  simt::LaunchOptions options;
  options.seed = seed;
  const auto add = [&](const std::string& name, const auto& x, simt::Access access) {
    options.buffers.push_back(
        {name, x.data(), static_cast<int64_t>(x.size() * sizeof(x[0])), access});
  };
  add("keys", input.keys, simt::Access::kRead);
  add("offsets", input.offsets, simt::Access::kRead);
  if (p.members != nullptr) add("members", input.members, simt::Access::kRead);
  if (HasCenter(p.form)) {
    add("centers", input.centers, simt::Access::kRead);
  }
  AppendStore& store = input.store;
  add("centroids", store.centroids, simt::Access::kReadWrite);
  if (HasScales(p.form)) add("scales", store.scales, simt::Access::kReadWrite);
  if (p.form != CentroidForm::kBounds) add("variances", store.variances, simt::Access::kReadWrite);
  add("list_offsets", store.offsets, simt::Access::kReadWrite);
  add("list_members", store.members, simt::Access::kReadWrite);
  return cuda::DispatchAppendLists(p, [&](auto* kernel, const LaunchShape& shape) {
    return simt::Launch(shape, options, [&] { kernel(p); });
  });
}

// Every key once, in accesses of 16 bytes; again where some are not finite.
void ExpectKeyTraffic(const AppendCase& c, const AppendInput& input,
                      const simt::LaunchReport& report) {
  if (!simt::kMemoryHooks) return;
  const simt::Traffic& keys = report.traffic.at("keys");
  for (const auto& [width, count] : keys.accesses) EXPECT_EQ(width, 16) << count;
  const int64_t once = int64_t{c.num_cells} * input.num_members * c.head_dim * 2;
  EXPECT_GE(keys.read_bytes, once);
  EXPECT_LE(keys.read_bytes, c.not_finite ? 2 * once : once);
}

void ExpectSimtEqualsReference(const AppendCase& c, std::mt19937_64& rng) {
  AppendInput input(c, rng);
  ASSERT_EQ(AppendListsCudaUnsupported(input.params), nullptr);
  AppendListsReference(input.params);
  const AppendStore expected = input.store;
  const simt::LaunchReport report = RunSimt(input, rng());
  ASSERT_EQ(report.Errors(), "");
  testing::ExpectStore(input, expected);
  ExpectKeyTraffic(c, input, report);
}

TEST(AppendListsSimtTest, EqualsTheReference) {
  const uint64_t seed = testing::TestSeed(41);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (const AppendCase& c : testing::AppendCases(rng)) ExpectSimtEqualsReference(c, rng);
}

TEST(AppendListsSimtTest, RandomCases) {
  const uint64_t seed = testing::TestSeed(42);
  for (int round = 0; round < 20 * testing::SoakFactor(); ++round) {
    SEMKV_TRACE_SEED(seed + round);
    std::mt19937_64 rng(seed + round);
    ExpectSimtEqualsReference(testing::RandomAppendCase(rng), rng);
  }
}

TEST(AppendListsSimtTest, OffsetChannelsLongListsAndTinyKeys) {
  std::mt19937_64 rng(43);
  for (CentroidForm form : testing::kAppendForms) {
    for (float offset : {20.0f, -2000.0f}) {
      ExpectSimtEqualsReference(testing::OffsetAppendCase(form, offset), rng);
    }
  }
  ExpectSimtEqualsReference(testing::CenterCase(8192), rng);
  ExpectSimtEqualsReference(testing::TinyAppendCase(), rng);
}

// A list as long as its members' numbers allow.
TEST(AppendListsSimtTest, AListOfAllTokensOfALongSegment) {
  std::mt19937_64 rng(44);
  AppendCase c = testing::CenterCase(65520);
  c.head_dim = 64;
  ExpectSimtEqualsReference(c, rng);
}

TEST(AppendListsSimtTest, TwoSchedulesGiveTheSameBits) {
  std::mt19937_64 rng(45);
  for (CentroidForm form : testing::kAppendForms) {
    AppendCase c;
    c.head_dim = 96;
    c.form = form;
    c.sizes = {40, 300, 2, 0, 100};
    c.not_finite = true;
    AppendInput input(c, rng);
    EXPECT_EQ(RunSimt(input, 1).Errors(), "");
    const AppendStore first = input.store;
    EXPECT_EQ(RunSimt(input, 2).Errors(), "");
    EXPECT_EQ(input.store, first);
  }
}

TEST(AppendListsSimtTest, WhatIsNullIsNotWritten) {
  std::mt19937_64 rng(46);
  AppendInput input(AppendCase(), rng);
  const auto run = [&](const AppendListsParams& p) {
    return cuda::DispatchAppendLists(p, [&](auto* kernel, const LaunchShape& shape) {
      simt::LaunchOptions options;
      const auto add = [&](const void* data, size_t bytes, simt::Access access) {
        options.buffers.push_back({"x", data, static_cast<int64_t>(bytes), access});
      };
      add(input.keys.data(), input.keys.size(), simt::Access::kRead);
      add(input.offsets.data(), 2 * input.offsets.size(), simt::Access::kRead);
      add(input.members.data(), 2 * input.members.size(), simt::Access::kRead);
      add(input.store.centroids.data(), input.store.centroids.size(), simt::Access::kReadWrite);
      add(input.store.scales.data(), 4 * input.store.scales.size(), simt::Access::kReadWrite);
      return simt::Launch(shape, options, [&] { kernel(p); }).Errors();
    });
  };
  AppendListsParams p = input.params;
  p.centers = nullptr;
  p.variances = nullptr;
  p.list_offsets = p.list_members = nullptr;
  AppendListsReference(p);
  const std::vector<float> scales = input.store.scales;
  input.Reset();
  EXPECT_EQ(run(p), "");
  for (size_t i = 0; i < scales.size(); ++i) {
    EXPECT_NEAR(input.store.scales[i], scales[i], 1e-6f * std::abs(scales[i]));
  }
  p.nlist = 0;
  EXPECT_EQ(run(p), "");
}

// Bytes that any form must move: keys, places and centers once, and what comes out.
int64_t FloorBytes(const AppendInput& input) {
  const AppendListsParams& p = input.params;
  const bool is_centred = HasCenter(p.form);
  int64_t bytes = int64_t{input.num_members} * p.head_dim * 2;       // keys
  bytes += 2 * (input.num_members + p.nlist + 1);                    // list_*
  bytes += 2 * (p.members != nullptr ? input.num_members : 0);       // members
  bytes += 2 * (p.nlist + 1);                                        // offsets
  bytes += is_centred && p.centers != nullptr ? 4 * p.head_dim : 0;  // centers
  bytes += p.nlist * testing::CentroidBytes(p);                      // centroids
  bytes += HasScales(p.form) ? 4 * p.nlist : 0;                      // scales
  bytes += p.form != CentroidForm::kBounds ? 4 * p.nlist : 0;        // variances
  return p.num_cells * bytes;
}

TEST(AppendListsSimtTest, MovesLittleMoreThanItMust) {
  if (!simt::kMemoryHooks) GTEST_SKIP() << "bytes are not counted in this build";
  std::mt19937_64 rng(47);
  for (int32_t head_dim : testing::kAppendHeadDims) {
    std::printf("head_dim %d, of the floor:", head_dim);
    for (CentroidForm form : testing::kAppendForms) {
      for (int32_t size : {16, 32, 64}) {
        AppendCase c;
        c.num_cells = 2;
        c.head_dim = head_dim;
        c.form = form;
        c.sizes.assign(8, size);
        AppendInput input(c, rng);
        const simt::LaunchReport report = RunSimt(input, 1);
        EXPECT_EQ(report.Errors(), "");
        ExpectKeyTraffic(c, input, report);
        const double of_floor =
            static_cast<double>(report.Bytes()) / static_cast<double>(FloorBytes(input));
        EXPECT_LE(of_floor, size >= 32 ? 1.1 : 1.15);
        std::printf("  %.3f", of_floor);
      }
    }
    std::printf("\n");
  }
}

}  // namespace
}  // namespace semkv
