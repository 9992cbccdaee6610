// Decode attention problems that every form is tested on, besides the table of shapes.

#ifndef SEMKV_TESTS_OPS_ATTENTION_DECODE_CASES_H_
#define SEMKV_TESTS_OPS_ATTENTION_DECODE_CASES_H_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "csrc/ops/attention/decode_attention_plan.h"
#include "tests/ops/attention/decode_problem.h"

namespace semkv::testing {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline DType StoredDType(const DecodeAttentionParams& p) {
  return (p.position.k != nullptr ? p.position : p.list).dtype;
}

// The CUDA form's plan; the fewer multiprocessors the GPU has, the fewer parts a row is cut into.
inline DecodeAttentionPlan PlanFor(const DecodeAttentionParams& p, int32_t max_row_tokens,
                                   int32_t num_multiprocessors = 132) {
  DecodeAttentionBounds bounds;
  bounds.num_rows = p.num_rows;
  bounds.max_row_tokens = max_row_tokens;
  bounds.num_heads = p.num_heads;
  bounds.num_kv_heads = p.num_kv_heads;
  bounds.num_selections = p.num_selections;
  bounds.head_dim = p.head_dim;
  bounds.kv_dtype = StoredDType(p);
  bounds.num_multiprocessors = num_multiprocessors;
  return PlanDecodeAttention(bounds);
}

using SlotList = std::vector<int32_t>;

inline SlotList Slice(const SlotList& slots, size_t begin, size_t end) {
  return SlotList(slots.begin() + begin, slots.begin() + end);
}

// Writes token t of `tokens` to slot slots[t] of both pools.
inline void WriteBoth(DecodeProblem& problem, const TokenRows& tokens, const SlotList& slots) {
  for (size_t t = 0; t < slots.size(); ++t) {
    problem.WriteToken(problem.position_pool(), slots[t], tokens, t);
    problem.WriteToken(problem.list_pool(), slots[t], tokens, t);
  }
}

inline DecodeProblem DenseProblem(std::mt19937_64& rng, const AttentionShape& shape,
                                  PoolLayout layout = PoolLayout::kRowPairs,
                                  int32_t page_tokens = 16) {
  DecodeProblem problem(shape, 1, RandomQueries(rng, shape, 1));
  problem.SetDense(rng, {RandomTokens(rng, shape)}, layout, page_tokens);
  return problem;
}

// A ragged batch with lengths one below, at and one above every border.
inline DecodeProblem BordersProblem(std::mt19937_64& rng, AttentionShape shape,
                                    const std::vector<int32_t>& borders) {
  std::vector<TokenRows> rows;
  for (int32_t border : borders) {
    for (int32_t offset : {-1, 0, 1}) {
      shape.num_tokens = std::max(0, border + offset);
      rows.push_back(RandomTokens(rng, shape));
    }
  }
  const int32_t num_rows = static_cast<int32_t>(rows.size());
  DecodeProblem problem(shape, num_rows, RandomQueries(rng, shape, num_rows));
  problem.SetDense(rng, rows, PoolLayout::kTokenMajor, 32);
  return problem;
}

// Scores far beyond the cap.
inline DecodeProblem SoftCapProblem(std::mt19937_64& rng, DType dtype, float cap,
                                    bool is_e4m3 = false) {
  DecodeProblem problem = DenseProblem(rng, {8, 2, 256, 300, dtype, is_e4m3});
  problem.params.logit_cap = cap;
  problem.params.scale = 2.0f;
  return problem;
}

// 70 tokens, 8 heads, 2 KV heads; a NaN in token `bad`'s key of KV head 1.
inline DecodeProblem NanKeyProblem(DType dtype, int32_t bad, bool is_e4m3 = false) {
  std::mt19937_64 rng(7);
  const AttentionShape shape{8, 2, 64, 70, dtype, is_e4m3};
  TokenRows tokens = RandomTokens(rng, shape);
  tokens.k[(bad * 2 + 1) * 64 + 5] = std::numeric_limits<float>::quiet_NaN();
  DecodeProblem problem(shape, 1, RandomQueries(rng, shape, 1));
  problem.SetDense(rng, {tokens}, PoolLayout::kRowPairs, 16);
  return problem;
}

// The first `masked` of 300 tokens have scores of -inf.
inline DecodeProblem MinusInfinityProblem(DType dtype, int32_t masked) {
  std::mt19937_64 rng(8);
  const AttentionShape shape{4, 1, 64, 300, dtype};
  TokenRows tokens = RandomTokens(rng, shape);
  std::vector<float> q = RandomQueries(rng, shape, 1);
  for (int32_t h = 0; h < 4; ++h) q[h * 64] = 1.0f;
  for (int32_t t = 0; t < masked; ++t) tokens.k[t * 64] = -kInfinity;
  DecodeProblem problem(shape, 1, q);
  problem.SetDense(rng, {tokens}, PoolLayout::kRowPairs, 16);
  return problem;
}

// Infinities in channels 79 and 2 of the values.
inline DecodeProblem InfiniteValuesProblem(DType dtype, PoolLayout layout) {
  std::mt19937_64 rng(9);
  const AttentionShape shape{4, 1, 80, 67, dtype};
  TokenRows tokens = RandomTokens(rng, shape);
  tokens.v[66 * 80 + 79] = kInfinity;
  tokens.v[5 * 80 + 2] = -kInfinity;
  DecodeProblem problem(shape, 1, RandomQueries(rng, shape, 1));
  problem.SetDense(rng, {tokens}, layout, 16);
  return problem;
}

// One token with numbers at the edges of float16: subnormals and the greatest.
inline DecodeProblem EdgesOfFloat16Problem() {
  std::mt19937_64 rng(10);
  const AttentionShape shape{1, 1, 64, 1, DType::kFloat16};
  TokenRows tokens = RandomTokens(rng, shape);
  for (int32_t c = 0; c < 64; ++c) {
    tokens.v[c] = std::ldexp(c % 2 == 0 ? 1.0f : -1.0f, c % 32 - 24) * (c < 32 ? 1.0f : 1.5f);
  }
  tokens.v[63] = 65504.0f;
  DecodeProblem problem(shape, 1, RandomQueries(rng, shape, 1));
  problem.SetDense(rng, {tokens}, PoolLayout::kRowPairs, 16);
  return problem;
}

// A sparse row with slots in both pools. A pool holds NaN where the other has the token.
inline DecodeProblem TwoPoolsProblem(std::mt19937_64& rng, const AttentionShape& shape,
                                     size_t num_list, size_t num_position) {
  DecodeProblem problem(shape, 1, RandomQueries(rng, shape, 1));
  problem.MakePools(PoolLayout::kTokenMajor, KvDType(shape), KvDType(shape), shape.num_tokens, 32);
  const SlotList slots = Permutation(rng, shape.num_tokens);
  const TokenRows tokens = RandomTokens(rng, shape);
  const size_t end = slots.size(), last = shape.num_kv_heads - 1;
  for (size_t t = 0; t < num_list + last; ++t) {
    problem.WriteToken(problem.list_pool(), slots[t], tokens, t);
  }
  for (size_t t = end - num_position - last; t < end; ++t) {
    problem.WriteToken(problem.position_pool(), slots[t], tokens, t);
  }
  std::vector<SlotList> list, position;
  for (int32_t s = 0; s < shape.num_kv_heads; ++s) {
    list.push_back(Slice(slots, s, s + num_list));
    position.push_back(Slice(slots, end - s - num_position, end - s));
  }
  problem.SetSlots(shape.num_kv_heads, position, list);
  return problem;
}

// Each of 8 query heads has its own selection from 400 tokens.
inline DecodeProblem SelectionPerHeadProblem(std::mt19937_64& rng, DType dtype,
                                             bool is_e4m3 = false) {
  const AttentionShape shape{8, 2, 128, 400, dtype, is_e4m3};
  DecodeProblem problem(shape, 1, RandomQueries(rng, shape, 1));
  problem.MakePools(PoolLayout::kRowPairs, KvDType(shape), KvDType(shape), 400, 16);
  const SlotList slots = Permutation(rng, 400);
  WriteBoth(problem, RandomTokens(rng, shape), slots);
  std::vector<SlotList> position, list;
  for (int32_t h = 0; h < 8; ++h) {
    position.push_back(Slice(slots, h, h + 20));
    list.push_back(Slice(slots, 40 * h, 40 * h + 37 + h));
  }
  problem.SetSlots(8, position, list);
  return problem;
}

// What a random batch may hold.
struct BatchLimits {
  int32_t max_tokens;       // of a dense row
  int32_t max_slots;        // of a selection
  int32_t num_layouts = 3;  // the first of kPoolLayouts
  int32_t num_dtypes = 3;   // the last of kAttentionDTypes
  int32_t max_rows = 5;
  int32_t max_kv_heads = 4;
  bool is_e4m3 = false;
};

// Rows of every kind and length in one call, as the batch of an engine is. Every other row is
// sparse and selects among the slots of row 0.
inline DecodeProblem RandomBatch(std::mt19937_64& rng, const BatchLimits& limits,
                                 bool selection_per_head) {
  const auto uniform = [&](int32_t low, int32_t high) {
    return std::uniform_int_distribution<int32_t>(low, high)(rng);
  };
  constexpr int32_t kGroups[] = {1, 2, 3, 4, 7, 8, 16, 20};
  AttentionShape shape;
  shape.num_kv_heads = uniform(1, limits.max_kv_heads);
  shape.num_heads = shape.num_kv_heads * kGroups[uniform(0, 7)];
  shape.head_dim = kAttentionHeadDims[uniform(0, 4)];
  shape.dtype = kAttentionDTypes[uniform(3 - limits.num_dtypes, 2)];
  shape.is_e4m3 = limits.is_e4m3;
  const int32_t num_rows = uniform(1, limits.max_rows);
  DecodeProblem problem(shape, num_rows, RandomQueries(rng, shape, num_rows));
  std::vector<TokenRows> rows;
  for (int32_t r = 0; r < num_rows; ++r) {
    shape.num_tokens = uniform(0, limits.max_tokens);
    rows.push_back(RandomTokens(rng, shape));
  }
  problem.SetDense(rng, rows, kPoolLayouts[uniform(0, limits.num_layouts - 1)], 1 << uniform(0, 7));
  const int32_t num_selections = selection_per_head ? shape.num_heads : shape.num_kv_heads;
  std::vector<SlotList> position;
  for (int32_t i = 0; i < num_rows * num_selections; ++i) {
    position.push_back(problem.DenseSlots(0, uniform(0, limits.max_slots)));
  }
  problem.SetSlots(num_selections, position, {});
  for (int32_t r = 0; r < num_rows; r += 2) problem.MakeSparse(r);
  return problem;
}

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_OPS_ATTENTION_DECODE_CASES_H_
