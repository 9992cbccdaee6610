// Inputs of estimate_rest that its forms share: a batch with a selection and mean values.

#ifndef SEMKV_TESTS_OPS_RETRIEVAL_ESTIMATE_REST_CASES_H_
#define SEMKV_TESTS_OPS_RETRIEVAL_ESTIMATE_REST_CASES_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <limits>
#include <random>
#include <vector>

#include "csrc/ops/retrieval/estimate_rest.h"
#include "tests/ops/retrieval/retrieval_cases.h"
#include "tests/testing/random.h"

namespace semkv::testing {

struct Estimate {
  std::vector<float> out, lse;
};

// Lists of `partition` have mean values.
struct EstimateInput {
  EstimateInput(const RetrievalCase& c, int32_t partition) : input(c, 21) {
    std::mt19937_64 rng(22);
    for (ListsView& view : input.views()) {
      if (view.partition != partition) continue;
      std::vector<uint16_t>& means = value_means.emplace_back();
      for (float x : RandomNormal(rng, int64_t{view.nlist} * c.head_dim)) {
        means.push_back(BFloat16FromFloat(x));
      }
      view.value_means = means.data();
    }
    Select();
    rest.lse.resize(input.num_rows() * c.num_heads);
    rest.out.resize(rest.lse.size() * c.head_dim);
  }
  EstimateInput(const EstimateInput&) = delete;
  EstimateInput& operator=(const EstimateInput&) = delete;

  void Select() {
    ScoreListsReference(input.Score());
    SelectListsReference(input.Select());
  }

  EstimateRestParams Params() {
    EstimateRestParams p;
    p.score = input.Score();
    p.positions = input.positions.data();
    p.counts = input.counts.data();
    p.positions_stride = input.slots_stride();
    p.rest_out = rest.out.data();
    p.rest_lse = rest.lse.data();
    return p;
  }

  // What every form has to leave; `rest` is poisoned.
  Estimate Expected() {
    EstimateRestReference(Params());
    const Estimate expected = rest;
    std::fill(rest.lse.begin(), rest.lse.end(), 777.0f);
    std::fill(rest.out.begin(), rest.out.end(), 777.0f);
    return expected;
  }

  RetrievalInput input;
  std::deque<std::vector<uint16_t>> value_means;
  Estimate rest;
};

inline void ExpectEstimateNear(const Estimate& rest, const Estimate& expected) {
  ASSERT_EQ(rest.lse.size(), expected.lse.size());
  for (size_t i = 0; i < rest.lse.size(); ++i) {
    if (std::isinf(expected.lse[i])) {
      ASSERT_EQ(rest.lse[i], expected.lse[i]) << i;
    } else {
      ASSERT_NEAR(rest.lse[i], expected.lse[i], 1e-4) << i;
    }
  }
  for (size_t i = 0; i < rest.out.size(); ++i) ASSERT_NEAR(rest.out[i], expected.out[i], 2e-4) << i;
}

// Calls check(estimate) with inputs that the table of cases does not have.
template <typename Check>
void ForEachOddEstimate(const Check& check) {
  constexpr float kInfinite = std::numeric_limits<float>::infinity();
  {
    SCOPED_TRACE("everything was read");
    RetrievalCase c;
    c.contexts = {300};  // below the budget
    EstimateInput estimate(c, 1);
    for (float lse : estimate.Expected().lse) ASSERT_EQ(lse, -kInfinite);
    check(estimate);
  }
  {
    SCOPED_TRACE("a row that is not sparse");
    EstimateInput estimate(RetrievalCases()[0], 1);
    estimate.input.counts[0] = -1;
    const Estimate expected = estimate.Expected();
    ASSERT_EQ(expected.lse[0], -kInfinite);
    ASSERT_NE(expected.lse[4], -kInfinite);
    check(estimate);
  }
  {
    SCOPED_TRACE("scores that are not finite");
    EstimateInput estimate(RetrievalCases()[0], 1);
    auto* const scales = const_cast<float*>(estimate.input.views()[1].scales);
    scales[3] = std::numeric_limits<float>::quiet_NaN();
    scales[4] = kInfinite;
    reinterpret_cast<float*>(estimate.input.q().data())[5] = kInfinite;  // head 0 of row 0
    const Estimate expected = estimate.Expected();
    ASSERT_EQ(expected.lse[0], -kInfinite);
    for (float out : expected.out) ASSERT_TRUE(std::isfinite(out));
    check(estimate);
  }
  {
    SCOPED_TRACE("some views without mean values");
    EstimateInput estimate(RetrievalCases()[0], 1);
    estimate.input.views()[3].value_means = nullptr;
    check(estimate);
  }
  {
    SCOPED_TRACE("tokens that are never selected");
    for (int32_t partition : {0, 1}) {
      EstimateInput estimate(RetrievalCases()[0], partition);
      const Estimate before = estimate.Expected();
      std::vector<uint16_t> excluded(900);
      std::iota(excluded.begin(), excluded.end(), uint16_t{100});
      for (size_t v = 0; v < 2; ++v) {  // of the first segment
        estimate.input.views()[v].excluded = excluded.data();
        estimate.input.views()[v].num_excluded = static_cast<int32_t>(excluded.size());
      }
      estimate.Select();
      ASSERT_NE(estimate.Expected().lse[0], before.lse[0]);
      check(estimate);
    }
  }
}

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_OPS_RETRIEVAL_ESTIMATE_REST_CASES_H_
