// The cases of write_kv, which every form runs.

#ifndef SEMKV_TESTS_OPS_CACHE_WRITE_KV_CASES_H_
#define SEMKV_TESTS_OPS_CACHE_WRITE_KV_CASES_H_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "csrc/ops/cache/write_kv.h"
#include "csrc/ops/numeric/float_convert.h"

namespace semkv::testing {

inline constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
// Of keys and values, and of pools on a device.
inline constexpr DType kDevicePoolDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16,
                                              DType::kFloat8E4M3};
inline constexpr uint8_t kGuard = 0xa5;  // of every byte of a fresh pool

struct WriteKvCase {
  DType from, to;
  int32_t num_tokens, num_kv_heads, head_dim, page_tokens;
  int32_t padding;  // elements between heads, tokens and pages
};

inline std::string Name(const WriteKvCase& c) {
  return "from " + std::to_string(static_cast<int>(c.from)) + " to " +
         std::to_string(static_cast<int>(c.to)) + " tokens " + std::to_string(c.num_tokens) +
         " dim " + std::to_string(c.head_dim) + " page " + std::to_string(c.page_tokens) +
         " padding " + std::to_string(c.padding);
}

// Any bits at all: NaNs with payloads, infinities and subnormals must arrive too.
inline std::vector<uint8_t> RandomBytes(std::mt19937_64& rng, int64_t n) {
  std::vector<uint8_t> bytes(n);
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(rng());
  return bytes;
}

struct WriteKvProblem {
  WriteKvProblem(const WriteKvCase& c, std::mt19937_64& rng) {
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
    if (c.to == DType::kFloat8E4M3) {
      // With random bits most of float32 saturates or vanishes: one of the scales is a power of two
      // or not, small, large or 1.
      constexpr float kScales[] = {1.0f, 0.25f, 0.0371f, 3.7f, 1e-5f, 2000.0f};
      view.k_scale = kScales[rng() % 6];
      view.v_scale = kScales[rng() % 6];
      PutNumbersWithinReach(c, rng);
    }
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

  // Fresh pools, every byte a guard. A form's pools must equal the reference's in every byte,
  // written or not.
  void ResetPools() {
    const KvView& view = params.view;
    key_pool.assign(view.num_pages * view.k_page * DTypeBytes(view.dtype), kGuard);
    value_pool.assign(view.num_pages * view.v_page * DTypeBytes(view.dtype), kGuard);
    params.view.k = key_pool.data();
    params.view.v = value_pool.data();
  }

  // Half of the numbers become such that e4m3 can tell them apart, some of them at ties.
  void PutNumbersWithinReach(const WriteKvCase& c, std::mt19937_64& rng) {
    for (auto& [data, scale] :
         {std::pair{&k, params.view.k_scale}, std::pair{&v, params.view.v_scale}}) {
      for (int64_t i = 0; i < static_cast<int64_t>(data->size()) / DTypeBytes(c.from); ++i) {
        if (rng() % 2 == 0) continue;
        const float x =
            std::ldexp(static_cast<float>(rng() % 64), static_cast<int>(rng() % 18) - 13);
        StoreFromFloat(data->data(), c.from, i, (rng() % 2 == 0 ? x : -x) * scale);
      }
    }
  }

  WriteKvParams params;
  std::vector<uint8_t> k, v, key_pool, value_pool;
  std::vector<int32_t> slots;
};

// Every pair of dtypes, rows that are whole vectors and rows that are not. `pool_dtypes`: kDTypes,
// or kDevicePoolDTypes for forms that take e4m3.
template <size_t kNumDTypes>
std::vector<WriteKvCase> WriteKvCases(const DType (&pool_dtypes)[kNumDTypes]) {
  std::vector<WriteKvCase> cases;
  for (DType from : kDTypes) {
    for (DType to : pool_dtypes) {
      for (int32_t head_dim : {64, 80, 128, 256, 7}) {
        cases.push_back(
            {from, to, 41, 2, head_dim, head_dim == 80 ? 1 : 16, head_dim == 128 ? 0 : 5});
      }
    }
  }
  return cases;
}

template <size_t kNumDTypes>
WriteKvCase RandomWriteKvCase(std::mt19937_64& rng, const DType (&pool_dtypes)[kNumDTypes]) {
  return {kDTypes[rng() % 3],
          pool_dtypes[rng() % kNumDTypes],
          1 + static_cast<int32_t>(rng() % 150),
          1 + static_cast<int32_t>(rng() % 4),
          1 + static_cast<int32_t>(rng() % 130),
          1 << (rng() % 7),
          static_cast<int32_t>(rng() % 4)};
}

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_OPS_CACHE_WRITE_KV_CASES_H_
