// The CUDA form of select_lists, executed by the SIMT harness over the cases of every form.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "csrc/ops/retrieval/select_lists_kernel.cuh"
#include "tests/ops/retrieval/score_lists_cases.h"
#include "tests/ops/retrieval/select_cases.h"
#include "tests/simt/launch.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using testing::RetrievalCase;
using testing::RetrievalInput;
using testing::Selected;
using testing::SelectReference;
using testing::SmallSelectCase;
using testing::SmallSelectInput;

int64_t NumTasks(const SelectListsParams& p) { return int64_t{p.num_rows} * p.num_selections; }

// The plan with the least bounds that hold.
SelectListsPlan TightPlan(const SelectListsParams& p) {
  int32_t max_row_tokens = 0, max_lists = 0, max_views = 0;
  for (int32_t r = 0; r < p.num_rows; ++r) {
    max_row_tokens = std::max(max_row_tokens, p.rows[r].num_tokens);
  }
  for (int64_t task = 0; task < NumTasks(p); ++task) {
    int32_t lists = 0;
    for (int32_t v = p.view_begin[task]; v < p.view_begin[task + 1]; ++v) lists += p.views[v].nlist;
    max_lists = std::max(max_lists, lists);
    max_views = std::max(max_views, p.view_begin[task + 1] - p.view_begin[task]);
  }
  return PlanSelectLists(p.num_rows, p.num_selections, max_row_tokens, max_lists, max_views);
}

// The same with lists in the workspace, though they fit shared memory.
SelectListsPlan PlanWithWorkspace(const SelectListsParams& p) {
  SelectListsPlan plan = TightPlan(p);
  plan.lists_in_shared = false;
  return plan;
}

class BufferList {
 public:
  template <typename T>
  void Add(const std::string& name, const T* data, int64_t n,
           simt::Access access = simt::Access::kRead) {
    if (data == nullptr || n == 0) return;
    buffers_.push_back({name, data, n * static_cast<int64_t>(sizeof(T)), access});
  }

  std::vector<simt::Buffer> Take() { return std::move(buffers_); }

 private:
  std::vector<simt::Buffer> buffers_;
};

std::vector<simt::Buffer> Buffers(const SelectListsParams& p,
                                  const std::vector<uint8_t>& workspace) {
  BufferList list;
  list.Add("workspace", workspace.data(), static_cast<int64_t>(workspace.size()),
           simt::Access::kReadWrite);
  list.Add("slots", p.slots, NumTasks(p) * p.slots_stride, simt::Access::kReadWrite);
  list.Add("positions", p.positions, NumTasks(p) * p.slots_stride, simt::Access::kReadWrite);
  list.Add("counts", p.counts, NumTasks(p), simt::Access::kReadWrite);
  list.Add("keys", p.keys, NumTasks(p) * p.keys_stride);
  list.Add("rows", p.rows, p.num_rows);
  list.Add("views", p.views, p.view_begin[NumTasks(p)]);
  list.Add("view_begin", p.view_begin, NumTasks(p) + 1);
  list.Add("always", p.always, NumTasks(p));
  for (int32_t r = 0; r < p.num_rows; ++r) {
    list.Add("table " + std::to_string(r), p.rows[r].block_table,
             CeilDiv(p.rows[r].num_tokens, p.page_tokens));
  }
  for (int64_t task = 0; p.always != nullptr && task < NumTasks(p); ++task) {
    const AlwaysTaken& always = p.always[task];
    const bool is_shared = task > 0 && always.positions == p.always[0].positions;
    if (!is_shared) list.Add("always positions", always.positions, 1 << 9);
  }
  for (int32_t v = 0; v < p.view_begin[NumTasks(p)]; ++v) {
    const ListsView& view = p.views[v];
    const std::string at = std::to_string(v);
    list.Add("offsets " + at, view.offsets, view.nlist + 1);
    list.Add("members " + at, view.members, view.offsets[view.nlist]);
    list.Add("excluded " + at, view.excluded, view.num_excluded);
  }
  return list.Take();
}

// As SelectListsCuda; the workspace holds garbage before.
simt::LaunchReport SelectSimt(const SelectListsParams& p, const SelectListsPlan& plan,
                              uint64_t seed) {
  EXPECT_TRUE(cuda::SelectListsCudaServes(p, plan));
  std::vector<uint8_t> workspace(SelectListsCudaWorkspaceBytes(plan), 0xa5);
  simt::LaunchOptions options;
  options.seed = seed;
  options.buffers = Buffers(p, workspace);
  const cuda::SelectListsKernelParams kernel_params =
      cuda::MakeSelectListsKernelParams(p, plan, workspace.data());
  const simt::LaunchReport report = simt::Launch(cuda::SelectListsShape(plan), options,
                                                 [&] { cuda::SelectListsKernel(kernel_params); });
  EXPECT_EQ(report.Errors(), "");
  return report;
}

Selected SelectSimt(RetrievalInput& input, const SelectListsParams& p, uint64_t seed) {
  testing::PoisonSelected(input);
  SelectSimt(p, TightPlan(p), seed);
  return testing::SelectedOf(input);
}

Selected SelectSimt(RetrievalInput& input, uint64_t seed) {
  return SelectSimt(input, input.Select(), seed);
}

class SmallSelectSimtTest : public ::testing::TestWithParam<SmallSelectCase> {};

TEST_P(SmallSelectSimtTest, SelectsWhatIsExpected) {
  SmallSelectInput input = GetParam().input;
  input.always.reserve(1 << 9);
  for (const bool in_workspace : {false, true}) {
    const SelectListsParams p = input.Params();
    SelectSimt(p, in_workspace ? PlanWithWorkspace(p) : TightPlan(p), 1);
    input.ExpectSelected(GetParam().expected);
  }
}

INSTANTIATE_TEST_SUITE_P(SelectListsSimtTest, SmallSelectSimtTest,
                         ::testing::ValuesIn(testing::SmallSelectCases()),
                         [](const auto& info) { return info.param.name; });

class SelectListsSimtCaseTest : public ::testing::TestWithParam<RetrievalCase> {};

TEST_P(SelectListsSimtCaseTest, SelectsWhatTheReferenceSelectsInEverySchedule) {
  RetrievalInput input(GetParam(), 1);
  ScoreListsReference(input.Score());
  const Selected expected = SelectReference(input);
  for (const uint64_t seed : {1, 2, 3}) EXPECT_EQ(SelectSimt(input, seed), expected) << seed;
}

TEST_P(SelectListsSimtCaseTest, TokensThatAreAlwaysTakenComeBeforeLists) {
  RetrievalInput input(GetParam(), 5);
  ScoreListsReference(input.Score());
  const testing::EverySeventh seventh(GetParam(), input.num_tasks());
  SelectListsParams p = input.Select();
  p.always = seventh.always.data();
  const Selected expected = SelectReference(input, p);
  EXPECT_EQ(SelectSimt(input, p, 1), expected);
}

INSTANTIATE_TEST_SUITE_P(Cases, SelectListsSimtCaseTest,
                         ::testing::ValuesIn(testing::RetrievalCases()),
                         [](const auto& info) { return info.param.name; });

TEST(SelectListsSimtTest, TakesTheBestListsForEveryNumberOfLists) {
  for (const int32_t nlist : {1, 2, 31, 32, 33, 1023, 1024, 1025, 2049, 5121}) {
    SCOPED_TRACE(nlist);
    testing::BetterHalf half(nlist);
    EXPECT_EQ(SelectSimt(half.input, 1).positions, half.expected);
  }
}

TEST(SelectListsSimtTest, EqualsTheReferenceOnRandomKeysWithTies) {
  const uint64_t seed = testing::TestSeed(5);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (int round = 0; round < 40 * testing::SoakFactor(); ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    RetrievalInput input(testing::RandomSelectCase(rng), rng());
    testing::SetRandomKeys(rng, input);
    const Selected expected = SelectReference(input);
    EXPECT_EQ(SelectSimt(input, rng()), expected);
  }
}

}  // namespace
}  // namespace semkv
