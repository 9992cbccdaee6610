// The CUDA form of write_kv, executed by the SIMT harness over the cases of every form.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "csrc/ops/cache/write_kv_kernel.cuh"
#include "tests/ops/cache/write_kv_cases.h"
#include "tests/simt/launch.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using testing::WriteKvCase;
using testing::WriteKvProblem;

simt::LaunchReport WriteKvSimt(WriteKvProblem& problem, uint64_t seed) {
  const auto buffer = [](const std::string& name, const auto& data, simt::Access access) {
    return simt::Buffer{name, data.data(), static_cast<int64_t>(data.size() * sizeof(data[0])),
                        access};
  };
  simt::LaunchOptions options;
  options.seed = seed;
  options.buffers = {buffer("k", problem.k, simt::Access::kRead),
                     buffer("v", problem.v, simt::Access::kRead),
                     buffer("slots", problem.slots, simt::Access::kRead),
                     buffer("key pool", problem.key_pool, simt::Access::kReadWrite),
                     buffer("value pool", problem.value_pool, simt::Access::kReadWrite)};
  return cuda::DispatchWriteKv(problem.params, [&](auto* kernel, const LaunchShape& shape) {
    return simt::Launch(shape, options, [&] { kernel(problem.params); });
  });
}

// Bytes that any form must move: the slots, and keys and values of the tokens that have one.
int64_t FloorBytes(const WriteKvProblem& problem) {
  const WriteKvParams& p = problem.params;
  const int64_t written = std::count_if(problem.slots.begin(), problem.slots.end(),
                                        [](int32_t slot) { return slot >= 0; });
  const int64_t row = DTypeBytes(p.dtype) + DTypeBytes(p.view.dtype);
  return 4 * int64_t{p.num_tokens} + 2 * written * p.num_kv_heads * p.head_dim * row;
}

bool OnlyWidth(const simt::LaunchReport& report, const std::string& buffer, int width) {
  const std::map<int, int64_t>& accesses = report.traffic.at(buffer).accesses;
  return std::all_of(accesses.begin(), accesses.end(),
                     [&](const auto& count) { return count.first == width; });
}

void ExpectTraffic(const WriteKvProblem& problem, const simt::LaunchReport& report) {
  if (!simt::kMemoryHooks) return;
  const int64_t floor = FloorBytes(problem);
  EXPECT_GE(report.Bytes(), floor);
  if (!cuda::WriteKvTakesVectors(problem.params)) return;
  EXPECT_LE(report.Bytes(), 1.1 * floor);
  for (const char* buffer : {"k", "v", "key pool", "value pool"}) {
    EXPECT_TRUE(OnlyWidth(report, buffer, 16)) << buffer;
  }
}

void ExpectSimtEqualsReference(const WriteKvCase& c, std::mt19937_64& rng) {
  WriteKvProblem problem(c, rng);
  problem.ResetPools();
  WriteKvReference(problem.params);
  const std::vector<uint8_t> keys = problem.key_pool, values = problem.value_pool;
  problem.ResetPools();
  const simt::LaunchReport report = WriteKvSimt(problem, rng());
  EXPECT_EQ(report.Errors(), "");
  EXPECT_TRUE(problem.key_pool == keys);
  EXPECT_TRUE(problem.value_pool == values);
  ExpectTraffic(problem, report);
}

TEST(WriteKvSimtTest, EqualsTheReferenceBitForBitForEveryPairOfDTypes) {
  const uint64_t seed = testing::TestSeed(21);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (const WriteKvCase& c : testing::WriteKvCases(testing::kDevicePoolDTypes)) {
    SCOPED_TRACE(Name(c));
    ExpectSimtEqualsReference(c, rng);
  }
}

TEST(WriteKvSimtTest, RandomCasesEqualTheReference) {
  const uint64_t seed = testing::TestSeed(22);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (int round = 0; round < 40 * testing::SoakFactor(); ++round) {
    const WriteKvCase c = testing::RandomWriteKvCase(rng, testing::kDevicePoolDTypes);
    SCOPED_TRACE(Name(c));
    ExpectSimtEqualsReference(c, rng);
    if (HasFailure()) return;
  }
}

// The shape of a decode step: 8 heads of 128, without padding.
TEST(WriteKvSimtTest, AlignedRowsAreMovedInVectorsOfEveryPairOfDTypes) {
  std::mt19937_64 rng(23);
  for (DType from : testing::kDTypes) {
    for (DType to : testing::kDevicePoolDTypes) {
      const WriteKvCase c = {from, to, 32, 8, 128, 16, 0};
      SCOPED_TRACE(Name(c));
      WriteKvProblem problem(c, rng);
      problem.ResetPools();
      EXPECT_TRUE(cuda::WriteKvTakesVectors(problem.params));
      ExpectSimtEqualsReference(c, rng);
    }
  }
}

// Any base or stride that is no multiple of 16 bytes, and a row that is no whole vector.
TEST(WriteKvSimtTest, VectorsAreTakenOnlyWhereEveryAddressAllowsThem) {
  std::mt19937_64 rng(24);
  WriteKvProblem problem({DType::kBFloat16, DType::kBFloat16, 8, 2, 64, 16, 0}, rng);
  problem.ResetPools();
  const WriteKvParams whole = problem.params;
  EXPECT_TRUE(cuda::WriteKvTakesVectors(whole));
  for (int64_t WriteKvParams::*stride : {&WriteKvParams::k_token, &WriteKvParams::k_head,
                                         &WriteKvParams::v_token, &WriteKvParams::v_head}) {
    WriteKvParams params = whole;
    params.*stride += 4;
    EXPECT_FALSE(cuda::WriteKvTakesVectors(params));
  }
  for (int64_t KvView::*stride : {&KvView::k_page, &KvView::k_head, &KvView::k_token,
                                  &KvView::v_page, &KvView::v_head, &KvView::v_token}) {
    WriteKvParams params = whole;
    params.view.*stride += 4;
    EXPECT_FALSE(cuda::WriteKvTakesVectors(params));
  }
  const auto moved = [](const void* p) { return static_cast<const char*>(p) + 8; };
  WriteKvParams params = whole;
  params.k = moved(whole.k);
  EXPECT_FALSE(cuda::WriteKvTakesVectors(params));
  params = whole;
  params.v = moved(whole.v);
  EXPECT_FALSE(cuda::WriteKvTakesVectors(params));
  params = whole;
  params.view.k = const_cast<char*>(moved(whole.view.k));
  EXPECT_FALSE(cuda::WriteKvTakesVectors(params));
  params = whole;
  params.view.v = const_cast<char*>(moved(whole.view.v));
  EXPECT_FALSE(cuda::WriteKvTakesVectors(params));
  params = whole;
  params.head_dim = 60;
  EXPECT_FALSE(cuda::WriteKvTakesVectors(params));
}

TEST(WriteKvSimtTest, NothingIsWrittenForNoTokensOrNegativeSlots) {
  std::mt19937_64 rng(1);
  WriteKvProblem problem({DType::kFloat32, DType::kFloat16, 40, 2, 64, 16, 0}, rng);
  std::fill(problem.slots.begin(), problem.slots.end(), kNoSlot);
  problem.ResetPools();
  const simt::LaunchReport skipped = WriteKvSimt(problem, 1);
  EXPECT_EQ(skipped.Errors(), "");
  ExpectTraffic(problem, skipped);
  problem.params.num_tokens = 0;
  EXPECT_EQ(WriteKvSimt(problem, 1).Errors(), "");
  const auto untouched = [](const std::vector<uint8_t>& bytes) {
    return std::all_of(bytes.begin(), bytes.end(), [](uint8_t b) { return b == testing::kGuard; });
  };
  EXPECT_TRUE(untouched(problem.key_pool));
  EXPECT_TRUE(untouched(problem.value_pool));
}

}  // namespace
}  // namespace semkv
