// The CUDA form of select_lists, executed by the SIMT harness over the cases of every form.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "csrc/ops/retrieval/select_lists_kernel.cuh"
#include "tests/ops/retrieval/score_lists_cases.h"
#include "tests/ops/retrieval/select_cases.h"
#include "tests/ops/retrieval/simt_buffers.h"
#include "tests/ops/retrieval/small_select_cases.h"
#include "tests/simt/launch.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using testing::NumTasks;
using testing::RetrievalCase;
using testing::RetrievalInput;
using testing::Selected;
using testing::SelectReference;
using testing::SmallSelectCase;
using testing::SmallSelectInput;

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
  return PlanSelectLists(p.num_rows, p.num_selections, max_row_tokens, max_lists, max_views,
                         {p.wanted != nullptr});
}

// The same with lists in the workspace, though they fit shared memory.
SelectListsPlan PlanWithWorkspace(const SelectListsParams& p) {
  SelectListsPlan plan = TightPlan(p);
  plan.lists_in_shared = false;
  return plan;
}

std::vector<simt::Buffer> Buffers(const SelectListsParams& p,
                                  const std::vector<uint8_t>& workspace) {
  testing::BufferList list;
  list.Add("workspace", workspace.data(), static_cast<int64_t>(workspace.size()),
           simt::Access::kReadWrite);
  AddSelectOutputs(p, list);
  list.Add("keys", p.keys, NumTasks(p) * p.keys_stride);
  list.Add("rows", p.rows, p.num_rows);
  list.Add("views", p.views, p.view_begin[NumTasks(p)]);
  list.Add("view_begin", p.view_begin, NumTasks(p) + 1);
  for (int32_t v = 0; v < p.view_begin[NumTasks(p)]; ++v) {
    list.Add("offsets " + std::to_string(v), p.views[v].offsets, p.views[v].nlist + 1);
  }
  AddSelectOnlyInputs(p, list);
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
  const auto kernel =
      p.wanted != nullptr ? &cuda::SelectListsKernel<true> : &cuda::SelectListsKernel<false>;
  const simt::LaunchReport report =
      simt::Launch(cuda::SelectListsShape(plan), options, [&] { kernel(kernel_params); });
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
  for (const bool in_workspace : {false, true}) {
    const SelectListsParams p = input.Params();
    SelectSimt(p, in_workspace ? PlanWithWorkspace(p) : TightPlan(p), 1);
    input.ExpectSelected(GetParam().expected);
    input.ExpectPages(GetParam().expected_pages);
  }
}

INSTANTIATE_TEST_SUITE_P(SelectListsSimtTest, SmallSelectSimtTest,
                         ::testing::ValuesIn(testing::SmallSelectCases()),
                         [](const auto& info) { return info.param.name; });

class SelectListsSimtCaseTest : public ::testing::TestWithParam<RetrievalCase> {};

TEST_P(SelectListsSimtCaseTest, SelectsWhatTheReferenceSelects) {
  RetrievalInput input(GetParam(), 1);
  ScoreListsReference(input.Score());
  const Selected expected = SelectReference(input);
  EXPECT_EQ(SelectSimt(input, 1), expected);
}

TEST_P(SelectListsSimtCaseTest, TokensThatAreAlwaysTakenComeBeforeLists) {
  RetrievalCase c = GetParam();
  c.contexts = {std::min(c.contexts[0], 1500)};
  RetrievalInput input(c, 5);
  ScoreListsReference(input.Score());
  const testing::EverySeventh seventh(c, input.num_tasks());
  SelectListsParams p = input.Select();
  p.always = seventh.always.data();
  const Selected expected = SelectReference(input, p);
  EXPECT_EQ(SelectSimt(input, p, 1), expected);
}

INSTANTIATE_TEST_SUITE_P(Cases, SelectListsSimtCaseTest,
                         ::testing::ValuesIn(testing::RetrievalCases()),
                         [](const auto& info) { return info.param.name; });

TEST(SelectListsSimtTest, TakesTheBestListsForEveryNumberOfLists) {
  for (const int32_t nlist : {1, 2, 31, 32, 33, 1023, 1024, 1025, 5121}) {
    SCOPED_TRACE(nlist);
    testing::BetterHalf half(nlist);
    EXPECT_EQ(SelectSimt(half.input, 1).positions, half.expected);
  }
}

TEST(SelectListsSimtTest, EqualsTheReferenceOnRandomKeysWithTies) {
  const uint64_t seed = testing::TestSeed(5);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (int round = 0; round < 12 * testing::SoakFactor(); ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    RetrievalCase c = testing::RandomSelectCase(rng);
    c.contexts.resize(std::min<size_t>(c.contexts.size(), 2));
    RetrievalInput input(c, rng());
    testing::SetRandomKeys(rng, input);
    const Selected expected = SelectReference(input);
    const SelectListsParams p = input.Select();
    testing::PoisonSelected(input);
    SelectSimt(p, round % 2 == 0 ? TightPlan(p) : PlanWithWorkspace(p), rng());
    EXPECT_EQ(testing::SelectedOf(input), expected);
  }
}

// Several windows and batches; the last of them at every border.
TEST(SelectListsSimtTest, BudgetsGreaterThanAWindow) {
  RetrievalCase c;
  c.contexts = {20000};
  c.num_heads = c.num_selections = 1;
  c.head_dim = 16;
  c.segment_tokens = 8192;
  for (const int32_t budget : {4064 + 80, 9000, 19999, 20001}) {
    SCOPED_TRACE(std::to_string(budget));
    c.budget = budget;
    c.trim = budget == 19999 ? TrimKeep::kEarliest : TrimKeep::kMostRecent;
    c.mass_target = budget == 9000 ? 0.4f : 0.0f;
    RetrievalInput input(c, budget);
    ScoreListsReference(input.Score());
    const Selected expected = SelectReference(input);
    EXPECT_EQ(SelectSimt(input, 1), expected);
  }
}

// A list is many windows; its partner in the other partition is reached within.
TEST(SelectListsSimtTest, ListsGreaterThanAWindow) {
  for (const TrimKeep trim : {TrimKeep::kMostRecent, TrimKeep::kEarliest}) {
    for (const float target : {0.0f, 0.3f}) {
      RetrievalCase c;
      c.contexts = {16000};
      c.num_heads = c.num_selections = 1;
      c.head_dim = 16;
      c.segment_tokens = 16000;
      c.sentence_tokens = 9000;
      c.cluster_tokens = 2500;
      c.budget = 12000;
      c.trim = trim;
      c.mass_target = target;
      RetrievalInput input(c, 4);
      for (float& key : input.keys) key = 0.5f / 8192;
      input.keys[0] = 1.0f / 8192;
      const Selected expected = SelectReference(input);
      EXPECT_EQ(SelectSimt(input, 1), expected);
      EXPECT_GT(expected.counts[0], target > 0 ? 4000 : 11999);
    }
  }
}

// Windows end where pages do, wherever the list's last page does.
TEST(SelectListsSimtTest, PagesOfListsGreaterThanAWindow) {
  for (const int32_t size : {4064, 4065, 8128, 8129, 9000, 9031}) {
    for (const TrimKeep trim : {TrimKeep::kMostRecent, TrimKeep::kEarliest}) {
      SCOPED_TRACE(std::to_string(size) + (trim == TrimKeep::kEarliest ? " earliest" : ""));
      std::vector<uint16_t> all(size);
      std::iota(all.begin(), all.end(), uint16_t{0});
      SmallSelectInput input = SmallSelectInput(size - 100).AddView({all}, {5});
      input.AddView({{8, 40, 41}});
      input.keys = {1, 2};
      input.row.num_tokens = size - 3;
      input.row.num_sinks = 7;
      input.row.trim = trim;
      input.list_page_tokens = 32;
      input.wanted_stride = size == 9000 ? 200 : 400;
      const SelectListsParams p = input.Params();
      SelectListsReference(p);
      const std::vector<WantedPage> expected(input.wanted.begin(),
                                             input.wanted.begin() + input.wanted_count);
      const std::vector<int32_t> positions(input.positions.begin(),
                                           input.positions.begin() + input.count);
      SelectSimt(input.Params(), TightPlan(p), 1);
      input.ExpectSelected(positions);
      input.ExpectPages(expected);
      EXPECT_EQ(expected.size() == 200, size == 9000);
    }
  }
}

// All keys equal, or a unit of the last place apart: bins narrow down to single lists.
TEST(SelectListsSimtTest, TiesOfMoreListsThanFitAWindow) {
  for (const uint32_t distance : {0, 1, 300}) {
    testing::BetterHalf half(5000);
    for (int32_t i = 0; i < 5000; ++i) {
      const uint32_t step = static_cast<uint32_t>(i * 7919 % 5000) * distance;
      half.input.keys[i] = FloatFromBits(FloatBits(0.125f) + step);
    }
    const Selected expected = SelectReference(half.input);
    EXPECT_EQ(SelectSimt(half.input, 1), expected) << distance;
  }
}

TEST(SelectListsSimtTest, DoesNotDependOnTheSchedule) {
  for (const int32_t list_page_tokens : {0, 16}) {
    RetrievalCase c;
    c.contexts = {3000};
    c.num_heads = c.num_selections = 1;
    c.list_page_tokens = list_page_tokens;
    RetrievalInput input(c, 2);
    std::mt19937_64 rng(2);
    testing::SetRandomKeys(rng, input);
    const Selected expected = SelectReference(input);
    for (const uint64_t seed : {1, 2, 3, 4, 5, 6}) EXPECT_EQ(SelectSimt(input, seed), expected);
  }
}

TEST(SelectListsSimtTest, LooseBoundsAndNoPositionsChangeNothing) {
  RetrievalCase c;
  c.contexts = {700, 90};
  RetrievalInput input(c, 7);
  ScoreListsReference(input.Score());
  Selected expected = SelectReference(input);
  testing::PoisonSelected(input);
  SelectListsParams p = input.Select();
  SelectSimt(p, PlanSelectLists(2, c.num_selections, 5000, 3 * input.max_lists(), 100), 1);
  EXPECT_EQ(testing::SelectedOf(input), expected);
  p.positions = nullptr;
  expected.positions.assign(expected.positions.size(), testing::kSelectPoison);
  EXPECT_EQ(SelectSimt(input, p, 1), expected);
}

TEST(SelectListsSimtTest, ThereMayBeMoreViewsThanACtaHasThreads) {
  RetrievalCase c;
  c.contexts = {5300};
  c.num_heads = c.num_selections = 1;
  c.head_dim = 16;
  c.segment_tokens = 10;
  RetrievalInput input(c, 6);
  ASSERT_GT(input.views().size(), 1024u);
  for (const size_t v : {0, 5, 1023, 1024, 1025, 1059}) input.views()[v].nlist = 0;
  std::mt19937_64 rng(6);
  testing::SetRandomKeys(rng, input);
  const Selected expected = SelectReference(input);
  EXPECT_EQ(SelectSimt(input, 1), expected);
}

// One row of 128k tokens in two partitions, selected by the kernel as by the reference.
class LongRow {
 public:
  explicit LongRow(int32_t list_page_tokens) : input_(Case(list_page_tokens), 9) {
    ScoreListsReference(input_.Score());
    expected_ = SelectReference(input_);
    SelectListsParams p = input_.Select();
    p.positions = nullptr;
    testing::PoisonSelected(input_);
    report_ = SelectSimt(p, TightPlan(p), 1);
  }

  static RetrievalCase Case(int32_t list_page_tokens) {
    RetrievalCase c;
    c.contexts = {131072};
    c.num_heads = c.num_selections = 1;
    c.head_dim = 16;
    c.segment_tokens = 8192;
    c.budget = 2048;
    c.cluster_tokens = 16;  // this and the weight as hybrid's
    c.sentence_weight = 0.5f;
    c.list_page_tokens = list_page_tokens;
    return c;
  }

  RetrievalInput& input() { return input_; }
  const Selected& expected() const { return expected_; }
  void ExpectFloor(int64_t floor) const {
    EXPECT_LE(report_.Bytes(), 1.1 * floor);
    ::testing::Test::RecordProperty("over_floor", std::to_string(1.0 * report_.Bytes() / floor));
  }

 private:
  RetrievalInput input_;
  Selected expected_;
  simt::LaunchReport report_;
};

// The floor: a key and an offset of every list, a member and a slot of every token, and its pages'
// entries of the table.
TEST(SelectListsSimtTest, MovesAtMostATenthMoreThanItMust) {
  if (!simt::kMemoryHooks) GTEST_SKIP() << "no traffic is counted in this build";
  LongRow row(0);
  EXPECT_EQ(row.input().slots, row.expected().slots);
  const RetrievalCase c = LongRow::Case(0);
  std::set<int32_t> pages;
  for (const int32_t position : row.expected().positions) pages.insert(position / c.page_tokens);
  row.ExpectFloor(6 * row.input().max_lists() + (2 + 4) * int64_t{c.budget} +
                  4 * static_cast<int64_t>(pages.size()));
}

// With pages: one and the home page that its list begins in for every page, a view's address of
// these for each view, and slots of ends alone.
TEST(SelectListsSimtTest, MovesAtMostATenthMoreThanItMustWithPages) {
  if (!simt::kMemoryHooks) GTEST_SKIP() << "no traffic is counted in this build";
  LongRow row(16);
  const std::vector<int32_t>& counts = row.expected().counts;
  EXPECT_EQ(row.input().counts, counts);
  const RetrievalCase c = LongRow::Case(16);
  EXPECT_EQ(counts[0], c.num_sinks + c.num_recent);
  const int64_t pages = row.expected().wanted_counts[0];
  row.ExpectFloor(6 * row.input().max_lists() + 2 * int64_t{c.budget} + 4 * int64_t{counts[0]} +
                  (8 + 4) * pages + 8 * static_cast<int64_t>(row.input().views().size()));
}

TEST(SelectListsSimtTest, PagesThatCannotBeServedAreRefused) {
  SmallSelectInput input = testing::SmallSelectCases()[0].input;
  input.list_page_tokens = 32;
  SelectListsParams p = input.Params();
  const SelectListsPlan plan = PlanSelectLists(1, 1, 64, 1, 1, {true});
  EXPECT_TRUE(cuda::SelectListsCudaServes(p, plan));
  EXPECT_FALSE(cuda::SelectListsCudaServes(p, PlanSelectLists(1, 1, 64, 1, 1)));
  EXPECT_TRUE(cuda::SelectListsCudaServes(p, PlanSelectLists(1, 1, 580000, 1, 64, {true})));
  EXPECT_FALSE(cuda::SelectListsCudaServes(p, PlanSelectLists(1, 1, 1 << 20, 1, 64, {true})));
  for (const int32_t tokens : {-1, 0, 12, 64}) {
    p.list_page_tokens = tokens;
    EXPECT_FALSE(cuda::SelectListsCudaServes(p, plan)) << tokens;
  }
  p = input.Params();
  p.wanted_stride = -1;
  EXPECT_FALSE(cuda::SelectListsCudaServes(p, plan));
  p = input.Params();
  p.wanted_counts = nullptr;
  EXPECT_FALSE(cuda::SelectListsCudaServes(p, plan));
}

TEST(SelectListsSimtTest, BoundsThatAreTooGreatAreRefused) {
  SmallSelectInput input = testing::SmallSelectCases()[0].input;
  SelectListsParams p = input.Params();
  EXPECT_TRUE(cuda::SelectListsCudaServes(p, PlanSelectLists(1, 1, 1 << 20, 10000, 256)));
  EXPECT_EQ(SelectListsCudaWorkspaceBytes(PlanSelectLists(1, 1, 1 << 17, 9400, 64)), 0u);
  EXPECT_EQ(SelectListsCudaWorkspaceBytes(PlanSelectLists(2, 3, 1 << 20, 75001, 256)),
            6u * 75008 * 8);
  // An sm_80 has less: there the lists go to the workspace, and no room is left for 2^20 tokens.
  const SelectLimits sm_80 = {false, 163 * 1024 - kSelectStaticSharedBytes};
  EXPECT_EQ(SelectListsCudaWorkspaceBytes(PlanSelectLists(1, 1, 1 << 17, 9400, 64, sm_80)),
            9408u * 8);
  EXPECT_EQ(SelectListsCudaWorkspaceBytes(PlanSelectLists(1, 1, 1 << 17, 8000, 64, sm_80)), 0u);
  EXPECT_TRUE(cuda::SelectListsCudaServes(p, PlanSelectLists(1, 1, 600000, 75000, 256, sm_80)));
  EXPECT_FALSE(cuda::SelectListsCudaServes(p, PlanSelectLists(1, 1, 1 << 20, 10, 256, sm_80)));
  EXPECT_FALSE(cuda::SelectListsCudaServes(p, PlanSelectLists(2, 1, 64, 1, 1)));
  EXPECT_FALSE(cuda::SelectListsCudaServes(p, PlanSelectLists(1, 2, 64, 1, 1)));
  EXPECT_FALSE(cuda::SelectListsCudaServes(p, PlanSelectLists(1, 1, (1 << 20) + 1, 1, 1)));
  EXPECT_FALSE(cuda::SelectListsCudaServes(p, PlanSelectLists(1, 1, 64, (1 << 20) + 1, 1)));
  EXPECT_FALSE(cuda::SelectListsCudaServes(p, PlanSelectLists(1, 1, 64, 1, 4097)));
  EXPECT_FALSE(cuda::SelectListsCudaServes(p, PlanSelectLists(1, 1, 1 << 20, 1, 4096)));
  EXPECT_FALSE(cuda::SelectListsCudaServes(p, PlanSelectLists(1, 1, -1, 1, 1)));
  p.page_tokens = 12;
  EXPECT_FALSE(cuda::SelectListsCudaServes(p, PlanSelectLists(1, 1, 64, 1, 1)));
}

}  // namespace
}  // namespace semkv
