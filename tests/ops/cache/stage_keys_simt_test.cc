// The CUDA form of stage_keys, executed by the SIMT harness over the cases of every form.

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "csrc/ops/cache/stage_keys_kernel.cuh"
#include "tests/ops/cache/stage_keys_cases.h"
#include "tests/simt/launch.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using testing::KeyLayout;
using testing::StageKeysCase;
using testing::StageKeysProblem;

simt::LaunchReport LaunchOver(const StageKeysParams& params,
                              const std::vector<simt::Buffer>& buffers, uint64_t seed) {
  simt::LaunchOptions options;
  options.seed = seed;
  options.buffers = buffers;
  EXPECT_TRUE(cuda::StageKeysIsServed(params));
  return cuda::DispatchStageKeys(params, [&](auto* kernel, const LaunchShape& shape) {
    return simt::Launch(shape, options, [&] { kernel(params); });
  });
}

// The buffers end where the outputs and the table's used entries end: what is behind is outside.
simt::LaunchReport StageKeysSimt(StageKeysProblem& problem, uint64_t seed) {
  const StageKeysParams& p = problem.params;
  const int32_t first_page = p.first / p.page_tokens;
  std::vector<simt::Buffer> buffers = {
      {"layers", p.layers, p.num_layers * static_cast<int64_t>(sizeof(KvView)),
       simt::Access::kRead},
      {"pages", p.pages + first_page, 4 * int64_t{problem.NumPages()}, simt::Access::kRead},
      {"keys", p.keys, problem.KeyBytes(), simt::Access::kReadWrite}};
  for (const std::vector<uint8_t>& pool : problem.pools) {
    buffers.push_back({"pool " + std::to_string(buffers.size() - 3), pool.data(),
                       static_cast<int64_t>(pool.size()), simt::Access::kRead});
  }
  if (problem.finds_nonfinite) {
    buffers.push_back(
        {"counts", p.num_nonfinite, 4 * problem.NumCells(), simt::Access::kReadWrite});
    buffers.push_back({"nonfinite", p.nonfinite, 2 * problem.NumRows(), simt::Access::kReadWrite});
  }
  return LaunchOver(p, buffers, seed);
}

// Bytes that any form must move: keys read and written, four numbers of each layer (of e4m3 five),
// the used entries of the table, and what is found, with a count read and written.
int64_t FloorBytes(const StageKeysProblem& problem) {
  const bool is_scaled = problem.params.pool_dtype == DType::kFloat8E4M3;
  int64_t bytes = problem.PoolKeyBytes() + problem.KeyBytes() +
                  (is_scaled ? 36 : 32) * int64_t{problem.params.num_layers} +
                  4 * int64_t{problem.NumPages()};
  if (!problem.finds_nonfinite) return bytes;
  for (const std::vector<uint16_t>& found : problem.found) {
    if (!found.empty()) bytes += 8 + 2 * static_cast<int64_t>(found.size());
  }
  return bytes;
}

void ExpectTraffic(const StageKeysProblem& problem, const simt::LaunchReport& report) {
  if (!simt::kMemoryHooks) return;
  int64_t key_bytes = 0;
  for (const auto& [name, traffic] : report.traffic) {
    if (name != "keys" && !name.starts_with("pool")) continue;
    key_bytes += traffic.read_bytes + traffic.written_bytes;
    for (const auto& [width, count] : traffic.accesses) EXPECT_EQ(width, 16) << name;
  }
  EXPECT_EQ(key_bytes, problem.PoolKeyBytes() + problem.KeyBytes());
  // A single key does not outweigh what each warp reads to find it.
  if (problem.params.num_tokens < 16) return;
  EXPECT_LE(report.Bytes(), 1.1 * FloorBytes(problem));
}

void ExpectSimtEqualsReference(const StageKeysCase& c, std::mt19937_64& rng) {
  StageKeysProblem problem(c, rng);
  StageKeysReference(problem.params);
  const std::vector<uint8_t> keys = problem.keys;
  const std::vector<uint16_t> nonfinite = problem.nonfinite;
  const std::vector<int32_t> num_nonfinite = problem.num_nonfinite;
  for (int schedule = 0; schedule < 2; ++schedule) {
    problem.ResetOutputs();
    const simt::LaunchReport report = StageKeysSimt(problem, rng());
    EXPECT_EQ(report.Errors(), "");
    problem.SortNonfinite();
    EXPECT_TRUE(problem.keys == keys);
    EXPECT_TRUE(problem.num_nonfinite == num_nonfinite);
    EXPECT_TRUE(problem.nonfinite == nonfinite);
    ExpectTraffic(problem, report);
  }
}

TEST(StageKeysSimtTest, EqualsTheReferenceBitForBit) {
  const uint64_t seed = testing::TestSeed(71);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (const StageKeysCase& c : testing::StageKeysCases()) {
    SCOPED_TRACE(Name(c));
    ExpectSimtEqualsReference(c, rng);
  }
}

TEST(StageKeysSimtTest, RandomCasesEqualTheReference) {
  const uint64_t seed = testing::TestSeed(72);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (int round = 0; round < 30 * testing::SoakFactor(); ++round) {
    const StageKeysCase c = testing::RandomStageKeysCase(rng);
    SCOPED_TRACE(Name(c));
    ExpectSimtEqualsReference(c, rng);
    if (HasFailure()) return;
  }
}

// Two layers of 8 heads of 128, a window of 320 tokens.
TEST(StageKeysSimtTest, LittleMoreThanTheKeysIsMoved) {
  std::mt19937_64 rng(74);
  for (DType dtype : {DType::kBFloat16, DType::kFloat8E4M3}) {
    StageKeysProblem problem({dtype, 128, 16, KeyLayout::kHeadsInside, 2, 8, 0, 320, 0, false},
                             rng);
    const simt::LaunchReport report = StageKeysSimt(problem, 1);
    EXPECT_EQ(report.Errors(), "");
    if (!simt::kMemoryHooks) return;
    EXPECT_LE(report.Bytes(), 1.012 * FloorBytes(problem));
  }
}

// 6 GiB of which only what is touched is real; null where there is no room.
class SparseMemory {
 public:
  static constexpr size_t kBytes = size_t{6} << 30;

  SparseMemory() {
    void* data = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data != MAP_FAILED) data_ = static_cast<uint16_t*>(data);
  }
  SparseMemory(const SparseMemory&) = delete;
  SparseMemory& operator=(const SparseMemory&) = delete;
  ~SparseMemory() {
    if (data_ != nullptr) munmap(data_, kBytes);
  }

  uint16_t* data() { return data_; }

 private:
  uint16_t* data_ = nullptr;
};

// A pool of more than 2^31 elements, of which pages, heads or tokens lie far apart.
TEST(StageKeysSimtTest, OffsetsBeyond32Bits) {
  constexpr int64_t kThird = (int64_t{1} << 30) - 8192;  // elements; 3 are near the end
  constexpr int32_t kDim = 64, kHeads = 4, kTokens = 8, kPageTokens = 4;
  SparseMemory pool;
  if (pool.data() == nullptr) GTEST_SKIP() << "no room for the pool";
  KvView layer;
  layer.k = pool.data();
  const int64_t strides[][3] = {{kThird, kDim, kHeads * kDim},  // of pages, heads and tokens
                                {kHeads * kDim * kPageTokens, kThird, kDim},
                                {kHeads * kDim * kPageTokens, kDim, kThird}};
  const std::vector<int32_t> pages = {3, 1};
  std::mt19937_64 rng(75);
  for (const auto& [page, head, token] : strides) {
    layer.k_page = page;
    layer.k_head = head;
    layer.k_token = token;
    std::vector<uint16_t> expected(kHeads * kTokens * kDim), keys(expected.size());
    for (uint16_t& bits : expected) bits = static_cast<uint16_t>(rng());
    for (int32_t row = 0; row < kHeads * kTokens; ++row) {
      const int32_t i = row % kTokens;
      std::memcpy(pool.data() + pages[i / kPageTokens] * page + row / kTokens * head +
                      i % kPageTokens * token,
                  expected.data() + row * kDim, kDim * 2);
    }
    StageKeysParams p;
    p.layers = &layer;
    p.num_layers = 1;
    p.num_kv_heads = kHeads;
    p.head_dim = kDim;
    p.pool_dtype = p.dtype = DType::kBFloat16;
    p.page_tokens = kPageTokens;
    p.pages = pages.data();
    p.num_tokens = kTokens;
    p.keys = keys.data();
    const simt::LaunchReport report = LaunchOver(
        p,
        {{"layers", &layer, sizeof(layer), simt::Access::kRead},
         {"pages", pages.data(), 8, simt::Access::kRead},
         {"pool", pool.data(), SparseMemory::kBytes, simt::Access::kRead},
         {"keys", keys.data(), static_cast<int64_t>(2 * keys.size()), simt::Access::kReadWrite}},
        1);
    EXPECT_EQ(report.Errors(), "");
    EXPECT_EQ(keys, expected);
  }
}

TEST(StageKeysSimtTest, WhatIsServed) {
  std::mt19937_64 rng(1);
  StageKeysProblem problem({DType::kFloat16, 64, 16, KeyLayout::kHeadsInside, 1, 1, 0, 1, 0}, rng);
  const auto is_served = [&](auto StageKeysParams::*member, auto value) {
    StageKeysParams params = problem.params;
    params.*member = value;
    return cuda::StageKeysIsServed(params);
  };
  for (int32_t head_dim : testing::kStagedHeadDims) {
    EXPECT_TRUE(is_served(&StageKeysParams::head_dim, head_dim));
  }
  for (int32_t head_dim : {0, 8, 72, 112, 512}) {
    EXPECT_FALSE(is_served(&StageKeysParams::head_dim, head_dim));
  }
  for (int32_t num_tokens : {0, kStageKeysMaxTokens}) {
    EXPECT_TRUE(is_served(&StageKeysParams::num_tokens, num_tokens));
  }
  for (int32_t num_tokens : {-1, kStageKeysMaxTokens + 1}) {
    EXPECT_FALSE(is_served(&StageKeysParams::num_tokens, num_tokens));
  }
  for (int32_t page_tokens : {1, 2, 1024}) {
    EXPECT_TRUE(is_served(&StageKeysParams::page_tokens, page_tokens));
  }
  for (int32_t page_tokens : {-16, 0, 12}) {
    EXPECT_FALSE(is_served(&StageKeysParams::page_tokens, page_tokens));
  }
  const auto takes = [&](DType pool_dtype, DType dtype) {
    StageKeysParams params = problem.params;
    params.pool_dtype = pool_dtype;
    params.dtype = dtype;
    return cuda::StageKeysIsServed(params);
  };
  constexpr DType kAll[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat8E4M3};
  for (DType pool : kAll) {
    for (DType staged : kAll) {
      EXPECT_EQ(takes(pool, staged),
                pool != DType::kFloat32 && staged == testing::StagedDType(pool))
          << static_cast<int>(pool) << " as " << static_cast<int>(staged);
    }
  }
}

}  // namespace
}  // namespace semkv
