#include "csrc/ops/retrieval/estimate_rest.h"

#include <gtest/gtest.h>

#include <vector>

#include "csrc/ops/parallel/thread_pool.h"
#include "tests/ops/retrieval/estimate_rest_cases.h"
#include "tests/testing/simd_targets.h"

namespace semkv {
namespace {

using ::semkv::testing::Estimate;
using ::semkv::testing::EstimateInput;
using ::semkv::testing::RetrievalCase;

// The host's result against the reference's, on every target.
void ExpectHostEqualsReference(EstimateInput& estimate) {
  constexpr int kNumThreads = 2;
  testing::ForEachSimdTarget([&] {
    const Estimate expected = estimate.Expected();
    const EstimateRestParams p = estimate.Params();
    ThreadPool pool(kNumThreads);
    std::vector<uint8_t> workspace(EstimateRestWorkspaceBytes(
        p.score.num_heads, p.score.num_selections, p.score.head_dim,
        estimate.input.max_row_tokens(), estimate.input.max_lists(), kNumThreads));
    EstimateRestHost(p, workspace.data(), workspace.size(), pool);
    testing::ExpectEstimateNear(estimate.rest, expected);
  });
}

class EstimateRestCaseTest : public ::testing::TestWithParam<RetrievalCase> {};

TEST_P(EstimateRestCaseTest, EqualsTheReferenceForEitherPartition) {
  for (int32_t partition : {0, 1}) {
    EstimateInput estimate(GetParam(), partition);
    ExpectHostEqualsReference(estimate);
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, EstimateRestCaseTest,
                         ::testing::ValuesIn(testing::RetrievalCases()),
                         [](const auto& info) { return info.param.name; });

TEST(EstimateRestTest, OddInputsAreTheReferences) {
  testing::ForEachOddEstimate(&ExpectHostEqualsReference);
}

}  // namespace
}  // namespace semkv
