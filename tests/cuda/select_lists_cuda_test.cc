// SelectListsCuda and RetrieveCuda on the machine's GPU over the cases of every form; without a GPU
// only that they say so.

#include "csrc/ops/retrieval/select_lists_cuda.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "csrc/ops/retrieval/score_lists_cuda.h"
#include "tests/cuda/device_copy.h"
#include "tests/cuda/device_select_input.h"
#include "tests/cuda/run_captured.h"
#include "tests/ops/retrieval/select_cases.h"
#include "tests/ops/retrieval/small_select_cases.h"

namespace semkv {
namespace {

using testing::DeviceCopy;
using testing::DeviceSelectInput;
using testing::HasDevice;
using testing::RetrievalCase;
using testing::RetrievalInput;
using testing::Selected;
using testing::SmallSelectInput;

// Twice, with lists in shared memory and in the workspace.
void Select(const SelectListsParams& p, SelectListsPlan plan) {
  for (const bool in_shared : {true, false}) {
    plan.lists_in_shared = in_shared;
    const size_t bytes = SelectListsCudaWorkspaceBytes(plan);
    DeviceCopy workspace(std::vector<uint8_t>(bytes + 1, 0xa5));
    testing::RunCaptured(2, [&](cudaStream_t stream) {
      return SelectListsCuda(p, plan, workspace.data(), bytes, stream);
    });
  }
}

TEST(SelectListsCudaTest, SelectsWhatIsExpectedOfListsByHand) {
  if (!HasDevice()) GTEST_SKIP() << "no GPU";
  for (const testing::SmallSelectCase& c : testing::Thinned(testing::SmallSelectCases())) {
    SCOPED_TRACE(c.name);
    SmallSelectInput input = c.input;
    const DeviceSelectInput device(input.Params());
    Select(device.select(),
           PlanSelectLists(1, 1, input.row.num_tokens, static_cast<int32_t>(input.keys.size()),
                           static_cast<int32_t>(input.views.size()), {true}));
    const Selected selected = device.Read(input.wanted, {input.wanted_count});
    std::copy(selected.slots.begin(), selected.slots.end(), input.slots.begin());
    std::copy(selected.positions.begin(), selected.positions.end(), input.positions.begin());
    input.count = selected.counts[0];
    std::copy(selected.wanted.begin(), selected.wanted.end(), input.wanted.begin());
    input.wanted_count = selected.wanted_counts[0];
    input.ExpectSelected(c.expected);
    input.ExpectPages(c.expected_pages);
  }
}

void ExpectCudaEqualsReference(RetrievalInput& input) {
  testing::PoisonSelected(input);
  const SelectListsParams p = input.Select();
  const DeviceSelectInput device(p);
  const Selected expected = SelectReference(input);
  Select(device.select(),
         PlanSelectLists(p.num_rows, p.num_selections, input.max_row_tokens(), input.max_lists(),
                         static_cast<int32_t>(input.views().size()), {p.wanted != nullptr}));
  EXPECT_EQ(device.Read(input.wanted, input.wanted_counts), expected);
}

TEST(SelectListsCudaTest, EqualsTheReference) {
  if (!HasDevice()) GTEST_SKIP() << "no GPU";
  for (const RetrievalCase& c : testing::Thinned(testing::RetrievalCases())) {
    SCOPED_TRACE(c.name);
    RetrievalInput input(c, 1);
    ScoreListsReference(input.Score());
    ExpectCudaEqualsReference(input);
  }
  std::mt19937_64 rng(5);
  for (int round = 0; round < (testing::kIsEmulated ? 3 : 60); ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    RetrievalInput input(testing::RandomSelectCase(rng), rng());
    testing::SetRandomKeys(rng, input);
    ExpectCudaEqualsReference(input);
  }
  testing::BetterHalf half(5121);
  ExpectCudaEqualsReference(half.input);
}

TEST(RetrieveCudaTest, SelectsWhatTheReferenceSelectsByTheKeysOfScoreListsCuda) {
  if (!HasDevice()) GTEST_SKIP() << "no GPU";
  for (const RetrievalCase& c : testing::Thinned(testing::RetrievalCases())) {
    SCOPED_TRACE(c.name);
    RetrievalInput input(c, 2);
    testing::PoisonSelected(input);
    DeviceSelectInput device(input.Select());
    ScoreListsParams score = device.Score(input.Score(), input.q());
    const RetrievePlan plan = PlanRetrieve(
        input.num_rows(), c.num_heads, c.num_selections, c.head_dim, c.form, input.max_row_tokens(),
        input.max_lists(), static_cast<int32_t>(input.views().size()), {c.list_page_tokens > 0});
    const size_t bytes = RetrieveCudaWorkspaceBytes(plan);
    DeviceCopy workspace(std::vector<uint8_t>(bytes, 0xff));
    ASSERT_EQ(ScoreListsCuda(score, plan.score, workspace.data(), bytes, nullptr), cudaSuccess);
    ASSERT_EQ(cudaMemcpy(input.keys.data(), score.keys, input.keys.size() * sizeof(float),
                         cudaMemcpyDeviceToHost),
              cudaSuccess);
    const Selected expected = SelectReference(input);
    score.keys = nullptr;
    testing::RunCaptured(1, [&](cudaStream_t stream) {
      return RetrieveCuda(score, device.select(), plan, workspace.data(), bytes, stream);
    });
    EXPECT_EQ(device.Read(input.wanted, input.wanted_counts), expected);
  }
}

TEST(SelectListsCudaTest, ALaunchWithoutADeviceReturnsItsError) {
  if (HasDevice()) GTEST_SKIP() << "there is a GPU";
  SmallSelectInput input = testing::SmallSelectCases()[0].input;
  const SelectListsParams p = input.Params();
  EXPECT_NE(SelectListsCuda(p, PlanSelectLists(1, 1, 64, 1, 1), nullptr, 0, nullptr), cudaSuccess);
  RetrievalCase c;
  RetrievalInput retrieval(c, 1);
  const RetrievePlan plan =
      PlanRetrieve(3, c.num_heads, c.num_selections, c.head_dim, c.form, 3000, 1000, 20);
  std::vector<uint8_t> workspace(RetrieveCudaWorkspaceBytes(plan));
  EXPECT_NE(RetrieveCuda(retrieval.Score(), retrieval.Select(), plan, workspace.data(),
                         workspace.size(), nullptr),
            cudaSuccess);
}

TEST(SelectListsCudaTest, NothingToSelectIsASuccessAndBadBoundsAreRefused) {
  EXPECT_EQ(SelectListsCuda(SelectListsParams(), SelectListsPlan(), nullptr, 0, nullptr),
            cudaSuccess);
  EXPECT_EQ(
      RetrieveCuda(ScoreListsParams(), SelectListsParams(), RetrievePlan(), nullptr, 0, nullptr),
      cudaSuccess);
  SmallSelectInput input = testing::SmallSelectCases()[0].input;
  const SelectListsParams p = input.Params();
  EXPECT_EQ(SelectListsCuda(p, PlanSelectLists(2, 1, 64, 1, 1), nullptr, 0, nullptr),
            cudaErrorInvalidValue);
  SelectListsPlan plan = PlanSelectLists(1, 1, 64, 1, 1);
  plan.lists_in_shared = false;
  EXPECT_EQ(SelectListsCuda(p, plan, nullptr, SelectListsCudaWorkspaceBytes(plan) - 1, nullptr),
            cudaErrorInvalidValue);
  RetrievalCase c;
  RetrievalInput retrieval(c, 1);
  const RetrievePlan retrieve =
      PlanRetrieve(3, c.num_heads, c.num_selections, c.head_dim, c.form, 3000, 1000, 20);
  EXPECT_EQ(RetrieveCuda(retrieval.Score(), retrieval.Select(), retrieve, nullptr,
                         RetrieveCudaWorkspaceBytes(retrieve) - 1, nullptr),
            cudaErrorInvalidValue);
}

}  // namespace
}  // namespace semkv
