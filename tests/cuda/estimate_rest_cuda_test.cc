// EstimateRestCuda on the machine's GPU over the cases of every form; without a GPU only that it
// says so.

#include "csrc/ops/retrieval/estimate_rest_cuda.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "tests/cuda/device_copy.h"
#include "tests/cuda/device_select_input.h"
#include "tests/cuda/run_captured.h"
#include "tests/ops/retrieval/estimate_rest_cases.h"

namespace semkv {
namespace {

using testing::DeviceCopy;
using testing::Estimate;
using testing::EstimateInput;
using testing::HasDevice;

ScoreListsPlan PlanOf(EstimateInput& estimate) {
  const ScoreListsParams p = estimate.input.Score();
  const CentroidForm form = estimate.input.views()[0].form;
  return PlanScoreLists(p.num_rows, p.num_heads, p.num_selections, p.head_dim, form,
                        estimate.input.max_lists(),
                        static_cast<int32_t>(estimate.input.views().size()));
}

void ExpectCudaEqualsReference(EstimateInput& estimate) {
  const Estimate expected = estimate.Expected();
  const ScoreListsPlan plan = PlanOf(estimate);
  testing::DeviceSelectInput device(estimate.input.Select());
  DeviceCopy out(estimate.rest.out), lse(estimate.rest.lse);
  DeviceCopy workspace(std::vector<uint8_t>(EstimateRestCudaWorkspaceBytes(plan), 0xff));
  EstimateRestParams p = estimate.Params();
  p.score = device.Score(p.score, estimate.input.q());
  p.positions = device.select().positions;
  p.counts = device.select().counts;
  p.rest_out = static_cast<float*>(out.data());
  p.rest_lse = static_cast<float*>(lse.data());
  testing::RunCaptured(testing::kIsEmulated ? 1 : 2, [&](cudaStream_t stream) {
    return EstimateRestCuda(p, plan, workspace.data(), EstimateRestCudaWorkspaceBytes(plan),
                            stream);
  });
  testing::ExpectEstimateNear({out.Read<float>(), lse.Read<float>()}, expected);
}

TEST(EstimateRestCudaTest, EqualsTheReference) {
  if (!HasDevice()) GTEST_SKIP() << "no GPU";
  for (const testing::RetrievalCase& c : testing::Thinned(testing::RetrievalCases())) {
    SCOPED_TRACE(c.name);
    for (int32_t partition : {0, 1}) {
      EstimateInput estimate(c, partition);
      ExpectCudaEqualsReference(estimate);
    }
  }
}

TEST(EstimateRestCudaTest, OddInputsAreTheReferences) {
  if (!HasDevice()) GTEST_SKIP() << "no GPU";
  testing::ForEachOddEstimate(&ExpectCudaEqualsReference);
}

TEST(EstimateRestCudaTest, ALaunchWithoutADeviceReturnsItsError) {
  if (HasDevice()) GTEST_SKIP() << "there is a GPU";
  EstimateInput estimate(testing::RetrievalCases()[0], 0);
  const ScoreListsPlan plan = PlanOf(estimate);
  std::vector<uint8_t> workspace(EstimateRestCudaWorkspaceBytes(plan));
  EXPECT_NE(EstimateRestCuda(estimate.Params(), plan, workspace.data(), workspace.size(), nullptr),
            cudaSuccess);
}

TEST(EstimateRestCudaTest, NoRowsAreASuccessAndTooLittleWorkspaceIsRefused) {
  EXPECT_EQ(EstimateRestCuda(EstimateRestParams(), ScoreListsPlan(), nullptr, 0, nullptr),
            cudaSuccess);
  EstimateInput estimate(testing::RetrievalCases()[0], 0);
  ScoreListsPlan plan = PlanOf(estimate);
  EXPECT_EQ(EstimateRestCuda(estimate.Params(), plan, nullptr,
                             EstimateRestCudaWorkspaceBytes(plan) - 1, nullptr),
            cudaErrorInvalidValue);
  std::vector<uint8_t> workspace(EstimateRestCudaWorkspaceBytes(plan));
  plan.num_heads = 16;
  EXPECT_EQ(EstimateRestCuda(estimate.Params(), plan, workspace.data(), workspace.size(), nullptr),
            cudaErrorInvalidValue);
}

}  // namespace
}  // namespace semkv
