// The cases of merge_states, which every form runs.

#ifndef SEMKV_TESTS_OPS_ATTENTION_MERGE_STATES_CASES_H_
#define SEMKV_TESTS_OPS_ATTENTION_MERGE_STATES_CASES_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "csrc/ops/attention/merge_states.h"
#include "tests/testing/random.h"

namespace semkv::testing {

struct MergeStatesCase {
  DType dtype, out_dtype;
  int32_t num_states, num_rows, num_heads, head_dim;
  int32_t padding;  // elements behind each head and each row of out
};

inline std::string Name(const MergeStatesCase& c) {
  return "from " + std::to_string(static_cast<int>(c.dtype)) + " to " +
         std::to_string(static_cast<int>(c.out_dtype)) + " states " + std::to_string(c.num_states) +
         " rows " + std::to_string(c.num_rows) + " heads " + std::to_string(c.num_heads) + " dim " +
         std::to_string(c.head_dim) + " padding " + std::to_string(c.padding);
}

// Random states; of every five heads one has an lse that is no number in one state, and a state in
// three has seen nothing, and has NaN in o.
struct MergeStatesProblem {
  static constexpr uint8_t kGuard = 0xa5;  // of every byte of a fresh out
  static constexpr float kNoLse = -12345.0f;

  MergeStatesProblem(const MergeStatesCase& c, std::mt19937_64& rng) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
    const int64_t heads = int64_t{c.num_rows} * c.num_heads;
    std::vector<float> values = RandomNormal(rng, c.num_states * heads * c.head_dim);
    lse = RandomNormal(rng, c.num_states * heads, 8.0f);
    for (int64_t i = 0; i < c.num_states * heads; ++i) {
      const float offset = i % heads % 3 == 0 ? 1000.0f : 0.0f;
      lse[i] += offset;
      if (rng() % 3 == 0) {
        lse[i] = -kInfinity;
        std::fill_n(values.begin() + i * c.head_dim, c.head_dim, kNaN);
      }
    }
    for (int64_t i = 0; c.num_states > 0 && i < heads; i += 5) {
      const int64_t at = static_cast<int64_t>(rng() % c.num_states) * heads + i;
      if (rng() % 2 == 0) lse[at] = rng() % 2 == 0 ? kNaN : kInfinity;
      if (rng() % 2 == 0) values[at * c.head_dim + rng() % c.head_dim] = kNaN;
    }
    o = Encode(values, c.dtype);
    params.o = o.data();
    params.lse = lse.data();
    params.dtype = c.dtype;
    params.out_dtype = c.out_dtype;
    params.num_states = c.num_states;
    params.num_rows = c.num_rows;
    params.num_heads = c.num_heads;
    params.head_dim = c.head_dim;
    params.out_head = c.head_dim + c.padding;
    params.out_row = c.num_heads * params.out_head + c.padding;
    Reset();
  }

  void Reset() {
    out.assign(params.num_rows * params.out_row * DTypeBytes(params.out_dtype), kGuard);
    out_lse.assign(int64_t{params.num_rows} * params.num_heads + 1, kNoLse);
    params.out = out.data();
    params.out_lse = out_lse.data();
  }

  MergeStatesParams params;
  std::vector<uint8_t> o, out;
  std::vector<float> lse, out_lse;
};

inline bool IsNear(float actual, float expected, double tolerance) {
  if (std::isnan(expected)) return std::isnan(actual);
  if (std::isinf(expected)) return actual == expected;
  return std::abs(actual - expected) <= tolerance * std::max(1.0f, std::abs(expected));
}

// Compares what a form wrote into `out` and `out_lse` with what the reference wrote into those of
// `problem`: results within rounding, the bytes between rows untouched.
inline void ExpectMerged(const MergeStatesProblem& problem, std::vector<uint8_t> out,
                         const std::vector<float>& out_lse) {
  const MergeStatesParams& p = problem.params;
  const double tolerance = p.out_dtype == DType::kFloat32   ? 2e-6
                           : p.out_dtype == DType::kFloat16 ? 1e-3
                                                            : 8e-3;
  std::vector<uint8_t> expected = problem.out;
  for (int64_t i = 0; i < int64_t{p.num_rows} * p.num_heads; ++i) {
    EXPECT_TRUE(IsNear(out_lse[i], problem.out_lse[i], 1e-6))
        << "lse " << i << ": " << out_lse[i] << ", not " << problem.out_lse[i];
    for (int32_t c = 0; c < p.head_dim; ++c) {
      const int64_t at = i / p.num_heads * p.out_row + i % p.num_heads * p.out_head + c;
      const float x = LoadAsFloat(out.data(), p.out_dtype, at);
      const float y = LoadAsFloat(expected.data(), p.out_dtype, at);
      ASSERT_TRUE(IsNear(x, y, tolerance))
          << "out " << i << ", " << c << ": " << x << ", not " << y;
      StoreFromFloat(out.data(), p.out_dtype, at, 0.0f);
      StoreFromFloat(expected.data(), p.out_dtype, at, 0.0f);
    }
  }
  EXPECT_TRUE(out == expected) << "a write between rows";
  EXPECT_EQ(out_lse.back(), MergeStatesProblem::kNoLse);
}

// Pairs of dtypes that every form takes.
struct MergeDTypes {
  DType dtype, out_dtype;
};
inline constexpr MergeDTypes kMergeDTypes[] = {{DType::kFloat32, DType::kFloat32},
                                               {DType::kFloat32, DType::kFloat16},
                                               {DType::kFloat32, DType::kBFloat16},
                                               {DType::kFloat16, DType::kFloat16},
                                               {DType::kBFloat16, DType::kBFloat16}};

inline std::vector<MergeStatesCase> MergeStatesCases() {
  std::vector<MergeStatesCase> cases;
  for (const MergeDTypes& d : kMergeDTypes) {
    for (int32_t head_dim : {64, 80, 96, 128, 256}) {
      cases.push_back({d.dtype, d.out_dtype, 3, 2, 5, head_dim, head_dim == 80 ? 8 : 0});
    }
    for (int32_t num_states : {0, 1, 2, 9}) {
      cases.push_back({d.dtype, d.out_dtype, num_states, 3, 7, 64, 16});
    }
  }
  return cases;
}

inline MergeStatesCase RandomMergeStatesCase(std::mt19937_64& rng) {
  const MergeDTypes& d = kMergeDTypes[rng() % std::size(kMergeDTypes)];
  return {d.dtype,
          d.out_dtype,
          static_cast<int32_t>(rng() % 6),
          static_cast<int32_t>(rng() % 5),
          1 + static_cast<int32_t>(rng() % 9),
          8 * (1 + static_cast<int32_t>(rng() % 33)),
          8 * static_cast<int32_t>(rng() % 2)};
}

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_OPS_ATTENTION_MERGE_STATES_CASES_H_
