// The cases of stage_keys, which every form runs.

#ifndef SEMKV_TESTS_OPS_CACHE_STAGE_KEYS_CASES_H_
#define SEMKV_TESTS_OPS_CACHE_STAGE_KEYS_CASES_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "csrc/ops/cache/stage_keys.h"
#include "csrc/ops/numeric/float_convert.h"

namespace semkv::testing {

// What lies side by side in a page: the heads of a token, or the tokens of a head.
enum class KeyLayout { kHeadsInside, kTokensInside };

struct StageKeysCase {
  DType dtype;  // of the pool
  int32_t head_dim, page_tokens;
  KeyLayout layout;
  int32_t num_layers, num_kv_heads, first, num_tokens;
  int32_t gap;                  // behind each page of a layer: 16 * (gap + layer) bytes
  bool finds_nonfinite = true;  // or the caller does not ask
};

inline std::string Name(const StageKeysCase& c) {
  return "dtype " + std::to_string(static_cast<int>(c.dtype)) + " dim " +
         std::to_string(c.head_dim) + " page " + std::to_string(c.page_tokens) + " layout " +
         std::to_string(static_cast<int>(c.layout)) + " layers " + std::to_string(c.num_layers) +
         " heads " + std::to_string(c.num_kv_heads) + " first " + std::to_string(c.first) +
         " tokens " + std::to_string(c.num_tokens) + " gap " + std::to_string(c.gap);
}

inline constexpr uint8_t kStagedGuard = 0xa5;           // of every byte of fresh keys
inline constexpr uint16_t kStagedGuardNumber = 0xa5a5;  // hardly a token
inline constexpr size_t kStagedGuardBytes = 64;

// Keys of e4m3 come out as bfloat16.
inline DType StagedDType(DType pool) {
  return pool == DType::kFloat8E4M3 ? DType::kBFloat16 : pool;
}

// Bits of a pool's numbers. Quiet and signalling NaN of both signs, infinities.
inline std::vector<uint16_t> NonfiniteBits(DType dtype) {
  if (dtype == DType::kFloat8E4M3) return {0x7f, 0xff};
  if (dtype == DType::kFloat16) return {0x7e00, 0x7c01, 0xfe00, 0xffff, 0x7c00, 0xfc00};
  return {0x7fc0, 0x7f81, 0xffc0, 0xffff, 0x7f80, 0xff80};
}

// Any finite number; half of them have the greatest or the least exponent.
inline uint16_t RandomFiniteBits(DType dtype, std::mt19937_64& rng) {
  if (dtype == DType::kFloat8E4M3) {
    const uint16_t bits = static_cast<uint8_t>(rng());
    return (bits & 0x7f) == 0x7f ? static_cast<uint16_t>(bits - 1) : bits;
  }
  const uint16_t exponent = dtype == DType::kFloat16 ? 0x7c00 : 0x7f80;
  const uint16_t lowest = exponent & (~exponent + 1);
  uint16_t bits = static_cast<uint16_t>(rng());
  if (rng() % 4 == 0) bits |= exponent;
  if (rng() % 4 == 0) bits &= static_cast<uint16_t>(~exponent);
  return (bits & exponent) == exponent ? static_cast<uint16_t>(bits ^ lowest) : bits;
}

// The keys are made first and then put where the pool has them, so that what any form must find is
// known without one.
struct StageKeysProblem {
  StageKeysProblem(const StageKeysCase& c, std::mt19937_64& rng) {
    params.num_layers = c.num_layers;
    params.num_kv_heads = c.num_kv_heads;
    params.head_dim = c.head_dim;
    params.pool_dtype = c.dtype;
    params.dtype = StagedDType(c.dtype);
    params.page_tokens = c.page_tokens;
    params.first = c.first;
    params.num_tokens = c.num_tokens;
    finds_nonfinite = c.finds_nonfinite;
    MakeKeys(rng);
    MakePages(rng);
    for (int32_t layer = 0; layer < c.num_layers; ++layer) AddLayer(c, layer);
    if (c.dtype == DType::kFloat8E4M3) Dequantize();
    params.layers = layers.data();
    params.pages = pages.data();
    ResetOutputs();
  }
  StageKeysProblem(const StageKeysProblem&) = delete;
  StageKeysProblem& operator=(const StageKeysProblem&) = delete;

  int64_t NumCells() const { return int64_t{params.num_layers} * params.num_kv_heads; }
  int64_t NumRows() const { return NumCells() * params.num_tokens; }
  int64_t KeyBytes() const { return NumRows() * params.head_dim * 2; }
  int64_t PoolKeyBytes() const {
    return NumRows() * params.head_dim * DTypeBytes(params.pool_dtype);
  }
  // Entries of the block table that have tokens.
  int32_t NumPages() const {
    if (params.num_tokens == 0) return 0;
    return (params.first + params.num_tokens - 1) / params.page_tokens -
           params.first / params.page_tokens + 1;
  }

  // Fresh outputs, all guards but for the counts, with more of them behind.
  void ResetOutputs() {
    keys.assign(KeyBytes() + kStagedGuardBytes, kStagedGuard);
    nonfinite.assign(NumRows() + kStagedGuardBytes / 2, kStagedGuardNumber);
    num_nonfinite.assign(NumCells() + kStagedGuardBytes / 4, 0);
    std::fill(num_nonfinite.begin() + NumCells(), num_nonfinite.end(), kStagedGuardNumber);
    params.keys = keys.data();
    params.num_nonfinite = finds_nonfinite ? num_nonfinite.data() : nullptr;
    params.nonfinite = finds_nonfinite ? nonfinite.data() : nullptr;
  }

  // What a GPU makes of a NaN of e4m3 is another one.
  void MakeNansEqual() {
    if (params.pool_dtype != DType::kFloat8E4M3) return;
    for (int64_t i = 0; i < KeyBytes() / 2; ++i) {
      if (std::isnan(LoadAsFloat(keys.data(), DType::kBFloat16, i))) {
        StoreFromFloat(keys.data(), DType::kBFloat16, i, std::nanf(""));
      }
    }
  }

  // Forms write a cell's numbers in their own order.
  void SortNonfinite() {
    for (int64_t cell = 0; cell < NumCells(); ++cell) {
      const auto begin = nonfinite.begin() + cell * params.num_tokens;
      std::sort(begin, begin + std::clamp(num_nonfinite[cell], 0, params.num_tokens));
    }
  }

  // Whole arrays, as any form must leave them after SortNonfinite.
  std::vector<uint8_t> ExpectedKeys() const {
    std::vector<uint8_t> expected(keys.size(), kStagedGuard);
    if (KeyBytes() > 0) std::memcpy(expected.data(), rows.data(), KeyBytes());
    return expected;
  }
  std::vector<int32_t> ExpectedCounts() const {
    std::vector<int32_t> expected(num_nonfinite.size(), kStagedGuardNumber);
    for (int64_t cell = 0; cell < NumCells(); ++cell) {
      expected[cell] = finds_nonfinite ? static_cast<int32_t>(found[cell].size()) : 0;
    }
    return expected;
  }
  std::vector<uint16_t> ExpectedNonfinite() const {
    std::vector<uint16_t> expected(nonfinite.size(), kStagedGuardNumber);
    for (int64_t cell = 0; cell < NumCells() && finds_nonfinite; ++cell) {
      std::copy(found[cell].begin(), found[cell].end(),
                expected.begin() + cell * params.num_tokens);
    }
    return expected;
  }

  StageKeysParams params;
  std::vector<KvView> layers;
  std::vector<std::vector<uint8_t>> pools;  // of each layer
  std::vector<int32_t> pages;
  std::vector<uint16_t> rows;                // what `keys` must become
  std::vector<std::vector<uint16_t>> found;  // of each cell, ascending
  bool finds_nonfinite = true;
  std::vector<uint8_t> keys;
  std::vector<uint16_t> nonfinite;
  std::vector<int32_t> num_nonfinite;

 private:
  // Of four cells one has no such token, one the first and the last, by a number at either end of
  // the key, one about half of its tokens, one all.
  void MakeKeys(std::mt19937_64& rng) {
    const int32_t d = params.head_dim, n = params.num_tokens;
    rows.resize(NumRows() * d);
    for (uint16_t& bits : rows) bits = RandomFiniteBits(params.pool_dtype, rng);
    found.resize(NumCells());
    const std::vector<uint16_t> kinds = NonfiniteBits(params.pool_dtype);
    for (int64_t cell = 0; cell < NumCells(); ++cell) {
      for (int32_t i = 0; i < n; ++i) {
        const bool is_end = i == 0 || i == n - 1;
        const bool chosen[] = {false, is_end, rng() % 2 == 0, true};
        if (!chosen[cell % 4]) continue;
        found[cell].push_back(static_cast<uint16_t>(i));
        uint16_t* key = rows.data() + (cell * n + i) * d;
        if (cell % 4 == 1) {
          key[i == 0 ? 0 : d - 1] = kinds[rng() % kinds.size()];
          continue;
        }
        for (uint64_t more = 1 + rng() % 3; more > 0; --more) {
          key[rng() % d] = kinds[rng() % kinds.size()];
        }
      }
    }
  }

  // Random pages of the pool; the table's other entries are of no pool.
  void MakePages(std::mt19937_64& rng) {
    std::vector<int32_t> ids(PoolPages());
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), rng);
    const int32_t begin = params.first / params.page_tokens;
    pages.assign(begin + NumPages() + 2, INT32_MAX);
    std::copy(ids.begin(), ids.begin() + NumPages(), pages.begin() + begin);
  }

  int32_t PoolPages() const { return 2 * NumPages() + 1; }

  // `rows` of codes become what the contract makes of them, by this file's own arithmetic.
  void Dequantize() {
    const int64_t layer_numbers =
        int64_t{params.num_kv_heads} * params.num_tokens * params.head_dim;
    for (int64_t i = 0; i < static_cast<int64_t>(rows.size()); ++i) {
      const uint8_t code = static_cast<uint8_t>(rows[i]);
      const float product =
          LoadAsFloat(&code, DType::kFloat8E4M3, 0) * layers[i / layer_numbers].k_scale;
      rows[i] = BFloat16FromFloat(std::isnan(product) ? std::nanf("") : product);
    }
  }

  // What no token's key is in stays NaN.
  void AddLayer(const StageKeysCase& c, int32_t layer) {
    const int64_t d = c.head_dim;
    KvView view;
    const bool heads_inside = c.layout == KeyLayout::kHeadsInside;
    view.k_head = heads_inside ? d : d * c.page_tokens;
    view.k_token = heads_inside ? d * c.num_kv_heads : d;
    const int64_t vector = 16 / DTypeBytes(c.dtype);
    view.k_page = d * c.num_kv_heads * c.page_tokens + vector * int64_t{c.gap + layer};
    constexpr float kScales[] = {0.0371f, 1.0f, 260.0f};
    if (c.dtype == DType::kFloat8E4M3) view.k_scale = kScales[layer % 3];
    const int64_t bytes = DTypeBytes(c.dtype);
    std::vector<uint8_t>& pool = pools.emplace_back(PoolPages() * view.k_page * bytes, 0xff);
    for (int32_t head = 0; head < c.num_kv_heads; ++head) {
      const int64_t cell = int64_t{layer} * c.num_kv_heads + head;
      for (int32_t i = 0; i < c.num_tokens; ++i) {
        const int32_t position = c.first + i;
        const int64_t offset = pages[position / c.page_tokens] * view.k_page + head * view.k_head +
                               position % c.page_tokens * view.k_token;
        const uint16_t* row = rows.data() + (cell * c.num_tokens + i) * d;
        for (int64_t j = 0; j < d; ++j) {
          std::memcpy(pool.data() + (offset + j) * bytes, row + j, bytes);  // low bytes first
        }
      }
    }
    view.k = pool.data();
    layers.push_back(view);
  }
};

inline constexpr DType kStagedDTypes[] = {DType::kFloat16, DType::kBFloat16, DType::kFloat8E4M3};
inline constexpr int32_t kStagedHeadDims[] = {64, 80, 96, 128, 256};

// Every dtype, head_dim, page size and layout, with numbers of tokens and first tokens in turn.
inline std::vector<StageKeysCase> StageKeysCases() {
  constexpr int32_t kTokens[] = {320, 17, 1, 64, 16};
  std::vector<StageKeysCase> cases;
  for (DType dtype : kStagedDTypes) {
    for (int32_t head_dim : kStagedHeadDims) {
      for (int32_t page_tokens : {1, 16, 64}) {
        for (KeyLayout layout : {KeyLayout::kHeadsInside, KeyLayout::kTokensInside}) {
          const int32_t i = static_cast<int32_t>(cases.size());
          const int32_t firsts[] = {0, page_tokens / 2 + 3, 3 * page_tokens, 5 * page_tokens + 7};
          cases.push_back({dtype, head_dim, page_tokens, layout, 1 + i % 3, 1 + i / 3 % 4,
                           firsts[i / 2 % 4], kTokens[(i + i / 20) % 5], 5 * (i / 4 % 2)});
        }
      }
    }
  }
  cases.push_back({DType::kBFloat16, 128, 16, KeyLayout::kHeadsInside, 2, 2, 20, 0, 0});
  cases.push_back({DType::kFloat16, 128, 16, KeyLayout::kHeadsInside, 2, 2, 9, 100, 1, false});
  return cases;
}

inline StageKeysCase RandomStageKeysCase(std::mt19937_64& rng) {
  const auto below = [&](int32_t n) { return static_cast<int32_t>(rng() % n); };
  return {kStagedDTypes[below(3)],
          kStagedHeadDims[below(5)],
          1 << below(8),
          below(2) == 0 ? KeyLayout::kHeadsInside : KeyLayout::kTokensInside,
          1 + below(3),
          1 + below(5),
          below(300),
          below(200),
          below(4),
          below(5) != 0};
}

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_OPS_CACHE_STAGE_KEYS_CASES_H_
