#include "csrc/ops/cache/write_kv.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "csrc/ops/numeric/float_convert.h"
#include "csrc/ops/parallel/thread_pool.h"
#include "tests/testing/random.h"
#include "tests/testing/simd_targets.h"

namespace semkv {
namespace {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
constexpr uint8_t kGuard = 0xa5;

struct Case {
  DType from, to;
  int32_t num_tokens, num_kv_heads, head_dim, page_tokens;
  int32_t padding;  // elements between heads, tokens and pages
};

std::string Name(const Case& c) {
  return "from " + std::to_string(static_cast<int>(c.from)) + " to " +
         std::to_string(static_cast<int>(c.to)) + " tokens " + std::to_string(c.num_tokens) +
         " dim " + std::to_string(c.head_dim) + " page " + std::to_string(c.page_tokens) +
         " padding " + std::to_string(c.padding);
}

// Any bits at all: NaNs with payloads, infinities and subnormals must arrive too.
std::vector<uint8_t> RandomBytes(std::mt19937_64& rng, int64_t n) {
  std::vector<uint8_t> bytes(n);
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(rng());
  return bytes;
}

struct Problem {
  Problem(const Case& c, std::mt19937_64& rng) {
    params.dtype = c.from;
    params.num_tokens = c.num_tokens;
    params.num_kv_heads = c.num_kv_heads;
    params.head_dim = c.head_dim;
    params.k_head = c.head_dim + c.padding;
    params.k_token = c.num_kv_heads * params.k_head + c.padding;
    params.v_head = c.head_dim;
    params.v_token = c.num_kv_heads * params.v_head + 2 * c.padding;
    k = RandomBytes(rng, c.num_tokens * params.k_token * DTypeBytes(c.from));
    v = RandomBytes(rng, c.num_tokens * params.v_token * DTypeBytes(c.from));
    KvView& view = params.view;
    view.dtype = c.to;
    view.page_tokens = c.page_tokens;
    view.num_pages = 2 * CeilDiv(c.num_tokens, c.page_tokens) + 1;
    view.k_head = c.head_dim + c.padding;
    view.k_token = c.num_kv_heads * view.k_head + c.padding;
    view.k_page = c.page_tokens * view.k_token + c.padding;
    view.v_token = c.head_dim + c.padding;
    view.v_head = c.page_tokens * view.v_token + c.padding;
    view.v_page = c.num_kv_heads * view.v_head + c.padding;
    slots.resize(view.num_pages * c.page_tokens);
    std::iota(slots.begin(), slots.end(), 0);
    std::shuffle(slots.begin(), slots.end(), rng);
    slots.resize(c.num_tokens);
    for (int32_t& slot : slots) {
      if (rng() % 4 == 0) slot = -1 - static_cast<int32_t>(rng() % 3);
    }
    params.k = k.data();
    params.v = v.data();
    params.slots = slots.data();
  }

  // Fresh pools, every byte a guard. A pool of the host form must equal the reference's in every
  // byte, written or not.
  void ResetPools() {
    const KvView& view = params.view;
    key_pool.assign(view.num_pages * view.k_page * DTypeBytes(view.dtype), kGuard);
    value_pool.assign(view.num_pages * view.v_page * DTypeBytes(view.dtype), kGuard);
    params.view.k = key_pool.data();
    params.view.v = value_pool.data();
  }

  WriteKvParams params;
  std::vector<uint8_t> k, v, key_pool, value_pool;
  std::vector<int32_t> slots;
};

void ExpectHostEqualsReference(const Case& c, std::mt19937_64& rng) {
  Problem problem(c, rng);
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
  for (DType from : kDTypes) {
    for (DType to : kDTypes) {
      for (int32_t head_dim : {64, 80, 128, 256, 7}) {
        const Case c = {
            from, to, 41, 2, head_dim, head_dim == 80 ? 1 : 16, head_dim == 128 ? 0 : 5};
        SCOPED_TRACE(Name(c));
        ExpectHostEqualsReference(c, rng);
      }
    }
  }
}

TEST(WriteKvTest, NothingIsWrittenForNoTokensOrNegativeSlots) {
  std::mt19937_64 rng(1);
  Problem problem({DType::kFloat32, DType::kFloat16, 40, 2, 64, 16, 0}, rng);
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
    const Case c = {kDTypes[rng() % 3],
                    kDTypes[rng() % 3],
                    1 + static_cast<int32_t>(rng() % 150),
                    1 + static_cast<int32_t>(rng() % 4),
                    1 + static_cast<int32_t>(rng() % 130),
                    1 << (rng() % 7),
                    static_cast<int32_t>(rng() % 4)};
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
