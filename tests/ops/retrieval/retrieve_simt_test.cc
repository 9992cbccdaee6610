// RetrieveCuda's two kernels, executed by the SIMT harness: score_lists' first and the one that
// makes keys of scores and selects by them at once.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "csrc/ops/retrieval/score_lists_kernel.cuh"
#include "csrc/ops/retrieval/select_lists_kernel.cuh"
#include "tests/ops/retrieval/score_lists_cases.h"
#include "tests/ops/retrieval/select_cases.h"
#include "tests/ops/retrieval/simt_buffers.h"
#include "tests/simt/launch.h"

namespace semkv {
namespace {

using testing::RetrievalCase;
using testing::RetrievalInput;
using testing::Selected;

RetrievePlan PlanOf(RetrievalInput& input, const RetrievalCase& c) {
  return PlanRetrieve(input.num_rows(), c.num_heads, c.num_selections, c.head_dim, c.form,
                      input.max_row_tokens(), input.max_lists(),
                      static_cast<int32_t>(input.views().size()), {c.list_page_tokens > 0});
}

// As RetrieveCuda; the workspace holds garbage before. Returns the second launch's report.
simt::LaunchReport RetrieveSimt(RetrievalInput& input, const ScoreListsParams& score,
                                const RetrievePlan& plan, uint64_t seed) {
  const SelectListsParams select = input.Select();
  EXPECT_TRUE(cuda::ScoreListsCudaServes(score, plan.score));
  EXPECT_TRUE(cuda::RetrieveCudaServes(score, select, plan));
  std::vector<uint8_t> workspace(RetrieveCudaWorkspaceBytes(plan), 0xff);
  testing::BufferList buffers;
  buffers.Add("workspace", workspace.data(), static_cast<int64_t>(workspace.size()),
              simt::Access::kReadWrite);
  AddScoreBuffers(score, static_cast<int64_t>(input.q().size()), buffers);
  AddSelectOutputs(select, buffers);
  AddSelectOnlyInputs(select, buffers);
  simt::LaunchOptions options;
  options.seed = seed;
  options.buffers = buffers.Take();
  const cuda::ScoreListsKernelParams score_params =
      cuda::MakeScoreListsKernelParams(score, plan.score, workspace.data());
  EXPECT_EQ(simt::Launch(cuda::ScoreTilesShape(plan.score), options,
                         [&] { cuda::ScoreTilesKernel(score_params); })
                .Errors(),
            "");
  const cuda::RetrieveKernelParams params =
      cuda::MakeRetrieveKernelParams(score, select, plan, workspace.data());
  const auto kernel =
      select.wanted != nullptr ? &cuda::RetrieveKernel<true> : &cuda::RetrieveKernel<false>;
  const simt::LaunchReport report =
      simt::Launch(cuda::SelectListsShape(plan.select), options, [&] { kernel(params); });
  EXPECT_EQ(report.Errors(), "");
  return report;
}

// Keys by both of score_lists' kernels.
std::vector<float> ScoreKeys(RetrievalInput& input, const RetrievePlan& plan) {
  std::fill(input.keys.begin(), input.keys.end(), testing::kPoison);
  const ScoreListsParams score = input.Score();
  std::vector<uint8_t> workspace(ScoreListsCudaWorkspaceBytes(plan.score), 0xff);
  testing::BufferList buffers;
  buffers.Add("workspace", workspace.data(), static_cast<int64_t>(workspace.size()),
              simt::Access::kReadWrite);
  AddScoreBuffers(score, static_cast<int64_t>(input.q().size()), buffers);
  simt::LaunchOptions options;
  options.buffers = buffers.Take();
  const cuda::ScoreListsKernelParams params =
      cuda::MakeScoreListsKernelParams(score, plan.score, workspace.data());
  simt::Launch(cuda::ScoreTilesShape(plan.score), options, [&] { cuda::ScoreTilesKernel(params); });
  simt::Launch(cuda::ScoreKeysShape(plan.score), options, [&] { cuda::ScoreKeysKernel(params); });
  return input.keys;
}

class RetrieveSimtCaseTest : public ::testing::TestWithParam<RetrievalCase> {};

// The same bits of every key, written or not, so the same selection.
TEST_P(RetrieveSimtCaseTest, EqualsScoreThenSelect) {
  RetrievalCase c = GetParam();
  if (c.contexts.size() > 1) c.contexts = {1500, 64};
  RetrievalInput input(c, 2);
  const RetrievePlan plan = PlanOf(input, c);
  const std::vector<float> keys = ScoreKeys(input, plan);
  const Selected expected = SelectReference(input);
  std::fill(input.keys.begin(), input.keys.end(), testing::kPoison);
  testing::PoisonSelected(input);
  ScoreListsParams score = input.Score();
  RetrieveSimt(input, score, plan, 1);
  EXPECT_EQ(testing::SelectedOf(input), expected);
  EXPECT_EQ(std::memcmp(input.keys.data(), keys.data(), keys.size() * sizeof(float)), 0);
  testing::PoisonSelected(input);
  score.keys = nullptr;
  RetrieveSimt(input, score, plan, 2);
  EXPECT_EQ(testing::SelectedOf(input), expected);
}

INSTANTIATE_TEST_SUITE_P(Cases, RetrieveSimtCaseTest,
                         ::testing::ValuesIn(testing::RetrievalCases()),
                         [](const auto& info) { return info.param.name; });

TEST(RetrieveSimtTest, ListsMayLieInTheWorkspace) {
  RetrievalCase c;
  c.contexts = {1500, 64};
  RetrievalInput input(c, 3);
  RetrievePlan plan = PlanOf(input, c);
  ScoreKeys(input, plan);
  const Selected expected = SelectReference(input);
  testing::PoisonSelected(input);
  plan.select.lists_in_shared = false;
  RetrieveSimt(input, input.Score(), plan, 1);
  EXPECT_EQ(testing::SelectedOf(input), expected);
}

TEST(RetrieveSimtTest, NoListsAndAQueryThatIsNotFiniteTakeTheEndsAlone) {
  RetrievalCase c;
  c.contexts = {700};
  RetrievalInput input(c, 4);
  const RetrievePlan plan = PlanOf(input, c);
  std::vector<int32_t> ends;
  for (int32_t t = 0; t < 700; ++t) {
    if (t < c.num_sinks || t >= 700 - c.num_recent) ends.push_back(t);
  }
  const auto expect_ends = [&] {
    testing::PoisonSelected(input);
    RetrieveSimt(input, input.Score(), plan, 1);
    ASSERT_EQ(input.counts[1], static_cast<int32_t>(ends.size()));
    EXPECT_TRUE(std::equal(ends.begin(), ends.end(), input.positions.begin() + c.budget));
  };
  reinterpret_cast<float*>(input.q().data())[c.num_heads * c.head_dim - 1] = testing::kNan;
  expect_ends();
  for (ListsView& view : input.views()) view.nlist = 0;
  expect_ends();
}

// The floor: scores of all heads and an offset of every list, a member and a slot of every token.
TEST(RetrieveSimtTest, MovesAtMostATenthMoreThanItMust) {
  if (!simt::kMemoryHooks) GTEST_SKIP() << "no traffic is counted in this build";
  RetrievalCase c;
  c.contexts = {65536};
  c.num_heads = 4;
  c.num_selections = 1;
  c.head_dim = 16;
  c.segment_tokens = 8192;
  c.budget = 2048;
  RetrievalInput input(c, 9);
  ScoreListsParams score = input.Score();
  score.keys = nullptr;
  const simt::LaunchReport report = RetrieveSimt(input, score, PlanOf(input, c), 1);
  EXPECT_EQ(input.counts[0], c.budget);
  const int64_t floor =
      (4 * c.num_heads + 2) * int64_t{input.max_lists()} + (2 + 4 + 4) * int64_t{c.budget};
  EXPECT_LE(report.Bytes(), 1.1 * floor);
  RecordProperty("over_floor", std::to_string(1.0 * report.Bytes() / floor));
}

TEST(RetrieveSimtTest, ParamsThatDoNotBelongTogetherAreRefused) {
  RetrievalCase c;
  c.contexts = {100};
  RetrievalInput input(c, 5);
  RetrievePlan plan = PlanOf(input, c);
  EXPECT_TRUE(cuda::RetrieveCudaServes(input.Score(), input.Select(), plan));
  SelectListsParams select = input.Select();
  select.heads_per_selection = 1;
  EXPECT_FALSE(cuda::RetrieveCudaServes(input.Score(), select, plan));
  plan.select.num_selections = 1;
  EXPECT_FALSE(cuda::RetrieveCudaServes(input.Score(), input.Select(), plan));
}

}  // namespace
}  // namespace semkv
