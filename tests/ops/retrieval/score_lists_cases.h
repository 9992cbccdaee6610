// The cases of score_lists beside RetrievalCases, which every form runs.

#ifndef SEMKV_TESTS_OPS_RETRIEVAL_SCORE_LISTS_CASES_H_
#define SEMKV_TESTS_OPS_RETRIEVAL_SCORE_LISTS_CASES_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "csrc/ops/retrieval/score_lists.h"
#include "tests/ops/retrieval/retrieval_cases.h"

namespace semkv::testing {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
inline constexpr float kPoison = -12345.0f;

// Keys by the reference; what lies past the lists of a task stays poisoned.
inline std::vector<float> ReferenceKeys(RetrievalInput& input) {
  std::fill(input.keys.begin(), input.keys.end(), kPoison);
  ScoreListsReference(input.Score());
  return input.keys;
}

inline void ExpectKeysNear(const std::vector<float>& keys, const std::vector<float>& expected,
                           double relative) {
  ASSERT_EQ(keys.size(), expected.size());
  for (size_t i = 0; i < keys.size(); ++i) {
    // Below 1e-30 float32 runs out of exponent before float64 does.
    ASSERT_NEAR(keys[i], expected[i], relative * std::abs(expected[i]) + 1e-30) << "list " << i;
  }
}

inline RetrievalCase RandomScoreCase(std::mt19937_64& rng) {
  RetrievalCase c;
  c.num_selections = 1 + rng() % 3;
  c.num_heads = c.num_selections * (1 + rng() % 9);
  c.head_dim = 16 * (1 + rng() % 16);
  c.form = static_cast<CentroidForm>(rng() % 5);
  c.q_dtype = static_cast<DType>(rng() % 3);
  c.variance = static_cast<VarianceTerm>(rng() % 3);
  c.rank = static_cast<GroupRank>(rng() % 2);
  if (rng() % 2 == 0) {
    c.sentence_weight = 0.25f + 0.25f * static_cast<float>(rng() % 8);
    c.cluster_weight = 0.25f + 0.25f * static_cast<float>(rng() % 8);
  }
  c.sentence_tokens = rng() % 3 == 0 ? 0 : 1 + rng() % 40;
  c.cluster_tokens = rng() % 3 == 0 ? 0 : 1 + rng() % 40;
  c.contexts.assign(1 + rng() % 3, 0);
  for (int32_t& context : c.contexts) context = 1 + rng() % 1500;
  return c;
}

// One selection over `centroids` [nlist, 16] in float32, scale 1, lists of `size` tokens.
struct SmallScoreInput {
  explicit SmallScoreInput(std::vector<float> vectors, int32_t size = 1) : centroids(vectors) {
    const int32_t nlist = static_cast<int32_t>(centroids.size() / 16);
    for (int32_t i = 0; i <= nlist; ++i) offsets.push_back(static_cast<uint16_t>(i * size));
    q.assign(16, 0.0f);
    view.nlist = nlist;
    view.form = CentroidForm::kFloat32;
    view_begin = {0, 1};
    keys.resize(nlist);
  }

  ScoreListsParams Params() {
    view.centroids = centroids.data();
    view.offsets = offsets.data();
    view.variances = variances.empty() ? nullptr : variances.data();
    ScoreListsParams p;
    p.q = q.data();
    p.q_head = 16;
    p.num_rows = p.num_selections = 1;
    p.num_heads = static_cast<int32_t>(q.size() / 16);
    p.head_dim = 16;
    p.scale = 1.0f;
    p.rows = &row;
    p.views = &view;
    p.view_begin = view_begin.data();
    p.keys = keys.data();
    p.keys_stride = static_cast<int64_t>(keys.size());
    return p;
  }

  std::vector<float> centroids, q, variances, keys;
  std::vector<uint16_t> offsets;
  std::vector<int32_t> view_begin;
  ListsView view;
  RetrievalRow row;
};

// [nlist, 16] with `values` in the first channel.
inline std::vector<float> FirstChannel(const std::vector<float>& values) {
  std::vector<float> centroids(values.size() * 16, 0.0f);
  for (size_t i = 0; i < values.size(); ++i) centroids[i * 16] = values[i];
  return centroids;
}

inline SmallScoreInput NotANumberCase() {
  SmallScoreInput input(FirstChannel({1.0f, kNan, 2.0f, 0.0f}));
  input.q[0] = 1.0f;
  return input;
}

inline SmallScoreInput EmptyListCase() {
  SmallScoreInput input(FirstChannel({1.0f, 100.0f, 2.0f}));
  input.q[0] = 1.0f;
  input.offsets = {0, 5, 5, 9};
  return input;
}

inline SmallScoreInput InfiniteScoresCase() {
  SmallScoreInput input(FirstChannel({1.0f, kInfinity, kInfinity, -kInfinity}), 2);
  input.q[0] = 1.0f;
  input.centroids[16 + 1] = 3.0f;
  return input;
}

inline SmallScoreInput ZeroQueryCase() {
  return SmallScoreInput(FirstChannel({1.0f, 2.0f, 3.0f, 4.0f}));
}

// Two heads, one of them good.
inline SmallScoreInput QueryNotFiniteCase(float bad) {
  SmallScoreInput input(FirstChannel({1.0f, 2.0f, 3.0f}));
  input.q.assign(32, 1.0f);
  input.q[20] = bad;
  return input;
}

inline SmallScoreInput VarianceCase(VarianceTerm term) {
  SmallScoreInput input(FirstChannel({0.0f, 0.0f, 0.0f, 0.0f, 0.0f}));
  input.q.assign(16, 2.0f);  // |q|^2 / head_dim = 4
  input.row.variance = term;
  input.offsets = {0, 1, 9, 17, 25, 26};
  input.variances = {0.5f, 0.1f, 1.0f, 3.0f, 0.0f};  // v = 2, 0.4, 4, 12, 0; 2 ln 8 = 4.16
  return input;
}

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_OPS_RETRIEVAL_SCORE_LISTS_CASES_H_
