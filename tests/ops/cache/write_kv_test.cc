#include "csrc/ops/cache/write_kv.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "csrc/ops/numeric/float_convert.h"
#include "csrc/ops/parallel/thread_pool.h"
#include "tests/ops/cache/write_kv_cases.h"
#include "tests/testing/random.h"
#include "tests/testing/simd_targets.h"

namespace semkv {
namespace {

using testing::kDTypes;
using testing::kGuard;
using testing::RandomBytes;
using testing::WriteKvCase;
using testing::WriteKvProblem;

void ExpectHostEqualsReference(const WriteKvCase& c, std::mt19937_64& rng) {
  WriteKvProblem problem(c, rng);
  problem.ResetPools();
  WriteKvReference(problem.params);
  const std::vector<uint8_t> keys = problem.key_pool, values = problem.value_pool;
  testing::ForEachSimdTarget([&] {
    for (int num_threads : {1, 3}) {
      ThreadPool pool(num_threads);
      problem.ResetPools();
      WriteKvHost(problem.params, pool);
      EXPECT_TRUE(problem.key_pool == keys);
      EXPECT_TRUE(problem.value_pool == values);
    }
  });
}

TEST(WriteKvTest, EqualsTheReferenceBitForBitForEveryPairOfDTypes) {
  const uint64_t seed = testing::TestSeed(21);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (const WriteKvCase& c : testing::WriteKvCases()) {
    SCOPED_TRACE(Name(c));
    ExpectHostEqualsReference(c, rng);
  }
}

TEST(WriteKvTest, NothingIsWrittenForNoTokensOrNegativeSlots) {
  std::mt19937_64 rng(1);
  WriteKvProblem problem({DType::kFloat32, DType::kFloat16, 40, 2, 64, 16, 0}, rng);
  std::fill(problem.slots.begin(), problem.slots.end(), kNoSlot);
  ThreadPool pool(2);
  problem.ResetPools();
  WriteKvHost(problem.params, pool);
  problem.params.num_tokens = 0;
  WriteKvHost(problem.params, pool);
  const auto untouched = [](const std::vector<uint8_t>& bytes) {
    return std::all_of(bytes.begin(), bytes.end(), [](uint8_t b) { return b == kGuard; });
  };
  EXPECT_TRUE(untouched(problem.key_pool));
  EXPECT_TRUE(untouched(problem.value_pool));
}

TEST(WriteKvTest, RandomCasesEqualTheReference) {
  const uint64_t seed = testing::TestSeed(22);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (int round = 0; round < 40 * testing::SoakFactor(); ++round) {
    const WriteKvCase c = testing::RandomWriteKvCase(rng);
    SCOPED_TRACE(Name(c));
    ExpectHostEqualsReference(c, rng);
    if (HasFailure()) return;
  }
}

// Every 16-bit pattern and many 32-bit ones through the conversions, bit for bit.
TEST(WriteKvTest, GatheredRowsHaveTheBitsOfTheScalarConversion) {
  constexpr int32_t kDim = 72, kPageTokens = 16;
  for (DType dtype : kDTypes) {
    SCOPED_TRACE(static_cast<int>(dtype));
    std::mt19937_64 rng(9);
    const int32_t num_slots = 1024;
    KvView view;
    view.dtype = dtype;
    view.page_tokens = kPageTokens;
    view.num_pages = num_slots / kPageTokens;
    view.k_token = view.v_token = 2 * kDim;
    view.k_head = view.v_head = kDim;
    view.k_page = view.v_page = kPageTokens * view.k_token;
    const int64_t elements = view.num_pages * view.k_page;
    std::vector<uint8_t> keys = RandomBytes(rng, elements * DTypeBytes(dtype)), values = keys;
    if (dtype != DType::kFloat32) {
      for (int64_t i = 0; i < elements; ++i) {
        const uint16_t bits = static_cast<uint16_t>(i);
        std::memcpy(keys.data() + 2 * i, &bits, 2);
      }
    }
    view.k = keys.data();
    view.v = values.data();
    std::vector<int32_t> slots(num_slots);
    std::iota(slots.begin(), slots.end(), 0);
    std::shuffle(slots.begin(), slots.end(), rng);
    testing::ForEachSimdTarget([&] {
      for (int32_t head : {0, 1}) {
        std::vector<float> key_rows(num_slots * kDim), value_rows(num_slots * kDim);
        GatherKeys(view, head, kDim, slots.data(), num_slots, key_rows.data());
        GatherValues(view, head, kDim, slots.data(), num_slots, value_rows.data());
        for (int32_t i = 0; i < num_slots * kDim; ++i) {
          const int64_t offset = KeyOffset(view, slots[i / kDim], head) + i % kDim;
          ASSERT_EQ(FloatBits(key_rows[i]), FloatBits(LoadAsFloat(view.k, dtype, offset)));
          ASSERT_EQ(FloatBits(value_rows[i]), FloatBits(LoadAsFloat(view.v, dtype, offset)));
        }
      }
    });
  }
}

}  // namespace
}  // namespace semkv
