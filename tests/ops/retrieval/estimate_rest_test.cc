#include "csrc/ops/retrieval/estimate_rest.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "csrc/ops/parallel/thread_pool.h"
#include "tests/ops/retrieval/retrieval_cases.h"
#include "tests/testing/random.h"
#include "tests/testing/simd_targets.h"

namespace semkv {
namespace {

using ::semkv::testing::ForEachSimdTarget;
using ::semkv::testing::RetrievalCase;
using ::semkv::testing::RetrievalCases;
using ::semkv::testing::RetrievalInput;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A batch with a selection and mean values.
struct EstimateInput {
  explicit EstimateInput(const RetrievalCase& c) : input(c, 21) {
    std::mt19937_64 rng(22);
    for (ListsView& view : input.views()) {
      std::vector<uint16_t>& means = value_means.emplace_back();
      for (float x : testing::RandomNormal(rng, int64_t{view.nlist} * c.head_dim)) {
        means.push_back(BFloat16FromFloat(x));
      }
      view.value_means = means.data();
    }
    ScoreListsReference(input.Score());
    SelectListsReference(input.Select());
    rest_lse.resize(input.num_rows() * c.num_heads);
    rest_out.resize(rest_lse.size() * c.head_dim);
  }

  EstimateRestParams Params(int32_t partition) {
    EstimateRestParams p;
    p.score = input.Score();
    p.partition = partition;
    p.positions = input.positions.data();
    p.counts = input.counts.data();
    p.positions_stride = input.slots_stride();
    p.rest_out = rest_out.data();
    p.rest_lse = rest_lse.data();
    return p;
  }

  void EstimateHost(int32_t partition, int num_threads) {
    const EstimateRestParams p = Params(partition);
    ThreadPool pool(num_threads);
    std::fill(rest_lse.begin(), rest_lse.end(), 777.0f);
    std::fill(rest_out.begin(), rest_out.end(), 777.0f);
    std::vector<uint8_t> workspace(
        EstimateRestWorkspaceBytes(p.score.num_heads, p.score.num_selections, p.score.head_dim,
                                   input.max_row_tokens(), input.max_lists(), num_threads));
    EstimateRestHost(p, workspace.data(), workspace.size(), pool);
  }

  // The host's result against the reference's, on every target.
  void ExpectEqualToReference(int32_t partition) {
    EstimateRestReference(Params(partition));
    const std::vector<float> out = rest_out, lse = rest_lse;
    ForEachSimdTarget([&] {
      EstimateHost(partition, 2);
      for (size_t i = 0; i < lse.size(); ++i) {
        if (std::isinf(lse[i])) {
          ASSERT_EQ(rest_lse[i], lse[i]);
        } else {
          ASSERT_NEAR(rest_lse[i], lse[i], 1e-4);
        }
      }
      for (size_t i = 0; i < out.size(); ++i) ASSERT_NEAR(rest_out[i], out[i], 2e-4);
    });
  }

  RetrievalInput input;
  std::deque<std::vector<uint16_t>> value_means;
  std::vector<float> rest_out, rest_lse;
};

class EstimateRestCaseTest : public ::testing::TestWithParam<RetrievalCase> {};

TEST_P(EstimateRestCaseTest, EqualsTheReferenceForEitherPartition) {
  EstimateInput estimate(GetParam());
  estimate.ExpectEqualToReference(0);
  estimate.ExpectEqualToReference(1);
}

INSTANTIATE_TEST_SUITE_P(Cases, EstimateRestCaseTest, ::testing::ValuesIn(RetrievalCases()),
                         [](const auto& info) { return info.param.name; });

TEST(EstimateRestTest, IsEmptyWhereEverythingWasRead) {
  RetrievalCase c;
  c.contexts = {300};  // below the budget
  EstimateInput estimate(c);
  estimate.EstimateHost(1, 1);
  for (float lse : estimate.rest_lse) EXPECT_EQ(lse, -kInfinity);
  for (float out : estimate.rest_out) EXPECT_EQ(out, 0.0f);
}

TEST(EstimateRestTest, IsEmptyForARowThatIsNotSparse) {
  EstimateInput estimate(RetrievalCases()[0]);
  estimate.input.counts[0] = -1;
  estimate.ExpectEqualToReference(1);
  EXPECT_EQ(estimate.rest_lse[0], -kInfinity);
  EXPECT_NE(estimate.rest_lse[4], -kInfinity);
}

TEST(EstimateRestTest, LeavesOutScoresThatAreNotFinite) {
  EstimateInput estimate(RetrievalCases()[0]);
  const_cast<float*>(estimate.input.views()[1].scales)[3] = std::numeric_limits<float>::quiet_NaN();
  const_cast<float*>(estimate.input.views()[1].scales)[4] = kInfinity;
  reinterpret_cast<float*>(estimate.input.q().data())[5] = kInfinity;  // head 0 of row 0
  estimate.ExpectEqualToReference(1);
  EXPECT_EQ(estimate.rest_lse[0], -kInfinity);
  for (float out : estimate.rest_out) EXPECT_TRUE(std::isfinite(out));
}

}  // namespace
}  // namespace semkv
