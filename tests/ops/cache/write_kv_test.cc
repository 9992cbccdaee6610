#include "csrc/ops/cache/write_kv.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <utility>
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
  for (const WriteKvCase& c : testing::WriteKvCases(kDTypes)) {
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
    const WriteKvCase c = testing::RandomWriteKvCase(rng, kDTypes);
    SCOPED_TRACE(Name(c));
    ExpectHostEqualsReference(c, rng);
    if (HasFailure()) return;
  }
}

// What the reference is compared with: every e4m3 number times the scale comes back, what lies
// between two is the nearer, beyond them saturates, and NaN stays.
TEST(WriteKvTest, TheReferenceDividesByTheScaleAndSaturates) {
  constexpr float kScale = 0.0371f;
  std::vector<float> x;
  std::vector<uint8_t> expected;
  for (uint32_t code = 0; code < 256; ++code) {
    x.push_back(FloatFromE4M3(static_cast<uint8_t>(code)) * kScale);
    expected.push_back(static_cast<uint8_t>(code == 0xff ? 0x7f : code));
  }
  const std::pair<float, uint8_t> more[] = {{448.1f * kScale, 0x7e}, {-1e9f, 0xfe},
                                            {INFINITY, 0x7e},        {-INFINITY, 0xfe},
                                            {1.07f * kScale, 0x39},  {1.05f * kScale, 0x38}};
  for (const auto& [number, code] : more) x.push_back(number), expected.push_back(code);
  std::vector<uint8_t> keys(x.size()), values(x.size());
  const int32_t slot = 0;
  WriteKvParams params;
  params.k = params.v = x.data();
  params.num_tokens = params.num_kv_heads = 1;
  params.head_dim = static_cast<int32_t>(x.size());
  params.slots = &slot;
  params.view.k = keys.data();
  params.view.v = values.data();
  params.view.page_tokens = params.view.num_pages = 1;
  params.view.dtype = DType::kFloat8E4M3;
  params.view.k_scale = kScale;
  params.view.v_scale = 1e30f;
  WriteKvReference(params);
  EXPECT_EQ(keys, expected);
  // The values have a scale of their own.
  EXPECT_TRUE(std::all_of(values.begin(), values.end(), [&](const uint8_t& code) {
    return !std::isfinite(x[&code - values.data()]) || (code & 0x7f) == 0;
  }));
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
