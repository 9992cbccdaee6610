#include "csrc/ops/retrieval/select_lists.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "csrc/ops/parallel/thread_pool.h"
#include "tests/ops/retrieval/retrieval_cases.h"
#include "tests/ops/retrieval/select_cases.h"
#include "tests/ops/retrieval/small_select_cases.h"
#include "tests/testing/random.h"
#include "tests/testing/simd_targets.h"

namespace semkv {
namespace {

using ::semkv::testing::BetterHalf;
using ::semkv::testing::EverySeventh;
using ::semkv::testing::ForEachSimdTarget;
using ::semkv::testing::kSelectPoison;
using ::semkv::testing::PoisonSelected;
using ::semkv::testing::RandomSelectCase;
using ::semkv::testing::RetrievalCase;
using ::semkv::testing::RetrievalCases;
using ::semkv::testing::RetrievalInput;
using ::semkv::testing::Selected;
using ::semkv::testing::SelectedOf;
using ::semkv::testing::SelectReference;
using ::semkv::testing::SetRandomKeys;
using ::semkv::testing::SmallSelectCase;
using ::semkv::testing::SmallSelectCases;
using ::semkv::testing::SmallSelectInput;
using ::semkv::testing::SoakFactor;
using ::semkv::testing::TestSeed;

Selected SelectHost(RetrievalInput& input, int num_threads) {
  ThreadPool pool(num_threads);
  PoisonSelected(input);
  std::vector<uint8_t> workspace(
      SelectListsWorkspaceBytes(input.max_row_tokens(), input.max_lists(), num_threads));
  SelectListsHost(input.Select(), workspace.data(), workspace.size(), pool);
  return SelectedOf(input);
}

Selected RetrieveSelected(RetrievalInput& input, int num_threads) {
  ThreadPool pool(num_threads);
  PoisonSelected(input);
  std::vector<uint8_t> workspace = input.RetrieveWorkspace(num_threads);
  ScoreListsParams score = input.Score();
  score.keys = nullptr;
  RetrieveHost(score, input.Select(), workspace.data(), workspace.size(), pool);
  return SelectedOf(input);
}

class RetrieveCaseTest : public ::testing::TestWithParam<RetrievalCase> {};

TEST_P(RetrieveCaseTest, SelectsWhatTheReferenceSelectsByTheSameKeys) {
  RetrievalInput input(GetParam(), 1);
  ScoreListsReference(input.Score());
  const Selected expected = SelectReference(input);
  ForEachSimdTarget([&] { EXPECT_EQ(SelectHost(input, 1), expected); });
  EXPECT_EQ(SelectHost(input, 3), expected);
}

TEST_P(RetrieveCaseTest, EqualsScoreThenSelect) {
  RetrievalInput input(GetParam(), 2);
  ForEachSimdTarget([&] {
    ThreadPool pool(1);
    std::vector<uint8_t> workspace = input.RetrieveWorkspace(1);
    ScoreListsHost(input.Score(), workspace.data(), workspace.size(), pool);
    const Selected expected = SelectHost(input, 1);
    EXPECT_EQ(RetrieveSelected(input, 1), expected);
    EXPECT_EQ(RetrieveSelected(input, 2), expected);
  });
}

TEST_P(RetrieveCaseTest, FillsTheBudgetWithoutATokenTwice) {
  RetrievalCase c = GetParam();
  if (c.mass_target > 0 || c.wanted_stride > 0) GTEST_SKIP() << "stops before the budget";
  RetrievalInput input(c, 3);
  RetrieveSelected(input, 1);
  for (int64_t task = 0; task < input.num_tasks(); ++task) {
    const int32_t context = c.contexts[task / c.num_selections];
    const std::vector<int32_t> taken = testing::TakenPositions(input.Select(), task);
    EXPECT_EQ(static_cast<int32_t>(taken.size()), std::min(c.budget, context));
    for (size_t k = 1; k < taken.size(); ++k) ASSERT_LT(taken[k - 1], taken[k]);
  }
}

TEST_P(RetrieveCaseTest, TokensThatAreAlwaysTakenComeBeforeLists) {
  RetrievalCase c = GetParam();
  RetrievalInput input(c, 5);
  ScoreListsReference(input.Score());
  SelectListsParams p = input.Select();
  const EverySeventh seventh(c, input.num_tasks());
  p.always = seventh.always.data();
  const Selected expected = SelectReference(input, p);
  ForEachSimdTarget([&] {
    PoisonSelected(input);
    ThreadPool pool(2);
    std::vector<uint8_t> workspace(
        SelectListsWorkspaceBytes(input.max_row_tokens(), input.max_lists(), 2));
    SelectListsHost(p, workspace.data(), workspace.size(), pool);
    EXPECT_EQ(SelectedOf(input), expected);
  });
  for (int64_t task = 0; task < input.num_tasks(); ++task) {
    EXPECT_LE(expected.counts[task], c.budget);
    const int32_t* const first = expected.positions.data() + task * input.slots_stride();
    const int32_t* const end = first + expected.counts[task];
    const int32_t room = c.budget - input.rows()[task / c.num_selections].num_sinks -
                         input.rows()[task / c.num_selections].num_recent;
    for (int32_t i = 0; i < std::min(seventh.always[task].count, room); ++i) {
      EXPECT_TRUE(std::binary_search(first, end, seventh.positions[i])) << seventh.positions[i];
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, RetrieveCaseTest, ::testing::ValuesIn(RetrievalCases()),
                         [](const auto& info) { return info.param.name; });

// Float rounding may exchange lists whose keys differ by less than 1e-5 of the cut, no others.
TEST(RetrieveTest, DiffersFromTheReferenceOnlyAtTheCut) {
  for (const RetrievalCase& c : RetrievalCases()) {
    if (c.mass_target > 0 || c.list_page_tokens > 0) continue;
    SCOPED_TRACE(c.name);
    RetrievalInput input(c, 4);
    const Selected host = RetrieveSelected(input, 1);
    ScoreListsReference(input.Score());
    const Selected reference = SelectReference(input);
    const SelectListsParams p = input.Select();
    for (int64_t task = 0; task < input.num_tasks(); ++task) {
      ASSERT_EQ(host.counts[task], reference.counts[task]);
      // The greatest key by which a position could have been taken.
      std::map<int32_t, float> key_of;
      const float* key = p.keys + task * p.keys_stride;
      for (int32_t v = p.view_begin[task]; v < p.view_begin[task + 1]; ++v) {
        for (int32_t i = 0; i < p.views[v].nlist; ++i, ++key) {
          for (int32_t j = 0; j < ListSize(p.views[v], i); ++j) {
            float& best = key_of[MemberPosition(p.views[v], i, j)];
            best = std::max(best, *key);
          }
        }
      }
      const auto begin = [&](const Selected& s) {
        return s.positions.begin() + task * input.slots_stride();
      };
      const int32_t count = host.counts[task];
      std::vector<int32_t> differ;
      std::set_symmetric_difference(begin(host), begin(host) + count, begin(reference),
                                    begin(reference) + count, std::back_inserter(differ));
      for (int32_t position : differ) {
        EXPECT_NEAR(key_of[position], key_of[differ[0]], 2e-5 * key_of[differ[0]]);
      }
    }
  }
}

class SmallSelectTest : public ::testing::TestWithParam<SmallSelectCase> {};

TEST_P(SmallSelectTest, SelectsWhatIsExpected) {
  SmallSelectInput input = GetParam().input;
  SelectListsReference(input.Params());
  input.ExpectSelected(GetParam().expected);
  input.ExpectPages(GetParam().expected_pages);
  ForEachSimdTarget([&] {
    const SelectListsParams p = input.Params();
    ThreadPool pool(1);
    std::vector<uint8_t> workspace(SelectListsWorkspaceBytes(
        input.row.num_tokens, static_cast<int32_t>(input.keys.size()), 1));
    SelectListsHost(p, workspace.data(), workspace.size(), pool);
    input.ExpectSelected(GetParam().expected);
    input.ExpectPages(GetParam().expected_pages);
  });
}

INSTANTIATE_TEST_SUITE_P(SelectListsTest, SmallSelectTest, ::testing::ValuesIn(SmallSelectCases()),
                         [](const auto& info) { return info.param.name; });

TEST(SelectListsTest, TakesTheBestListsForEveryNumberOfLists) {
  for (int32_t nlist : {1, 2, 100, 128, 200, 206, 255, 256, 257, 409, 1638}) {
    SCOPED_TRACE(nlist);
    BetterHalf half(nlist);
    EXPECT_EQ(SelectHost(half.input, 1).positions, half.expected);
  }
}

TEST(SelectListsTest, EqualsTheReferenceOnRandomKeysWithTies) {
  const uint64_t seed = TestSeed(5);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (int round = 0; round < 60 * SoakFactor(); ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    RetrievalInput input(RandomSelectCase(rng), rng());
    SetRandomKeys(rng, input);
    const Selected expected = SelectReference(input);
    ForEachSimdTarget([&] { EXPECT_EQ(SelectHost(input, 2), expected); });
  }
}

// What select_lists must write with pages, told from what it writes without.
void ExpectPagesOfWhatSlotsAloneHave(RetrievalInput& input, const RetrievalCase& c) {
  const SelectListsParams p = input.Select();
  SelectListsParams without = p;
  without.wanted = nullptr;
  SelectReference(input, without);
  std::vector<std::vector<int32_t>> expected;
  for (int64_t task = 0; task < input.num_tasks(); ++task) {
    expected.push_back(testing::TakenPositions(without, task));
  }
  SelectHost(input, 1);
  for (int64_t task = 0; task < input.num_tasks(); ++task) {
    SCOPED_TRACE("task " + std::to_string(task));
    const std::vector<int32_t> taken = testing::TakenPositions(p, task);
    const int32_t count = p.wanted_counts[task];
    if (count < p.wanted_stride) {
      EXPECT_EQ(taken, expected[task]);
    } else {  // a part: no token twice, none that is not there
      EXPECT_TRUE(std::adjacent_find(taken.begin(), taken.end()) == taken.end());
      EXPECT_TRUE(
          std::includes(expected[task].begin(), expected[task].end(), taken.begin(), taken.end()));
    }
    const std::map<int32_t, testing::PageOfList> pages = testing::PagesOfTask(p, task);
    for (int32_t i = 0; i < count; ++i) {
      const WantedPage& wanted = p.wanted[task * p.wanted_stride + i];
      EXPECT_NE(wanted.tokens, 0u);
      if (i == 0) continue;
      const testing::PageOfList& before = pages.at((&wanted)[-1].home_page);
      const testing::PageOfList& at = pages.at(wanted.home_page);
      if (before.list_id == at.list_id) {
        EXPECT_EQ(before.page < at.page, c.trim == TrimKeep::kEarliest);
        EXPECT_NE(before.page, at.page);
      } else {
        EXPECT_TRUE(before.key > at.key || (before.key == at.key && before.list_id < at.list_id));
      }
    }
  }
}

TEST(SelectListsTest, PagesAndSlotsAreTogetherWhatSlotsAreAlone) {
  const uint64_t seed = TestSeed(6);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (int round = 0; round < 60 * SoakFactor(); ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    RetrievalCase c = RandomSelectCase(rng);
    c.list_page_tokens = 1 << rng() % 6;
    c.segment_tokens = 100 + static_cast<int32_t>(rng() % 2000);
    RetrievalInput input(c, rng());
    SetRandomKeys(rng, input);
    ExpectPagesOfWhatSlotsAloneHave(input, c);
  }
}

// Of fewer pages a selection has the first, with the same tokens.
TEST(SelectListsTest, FewerPagesAreTheFirstOfMore) {
  RetrievalCase c;
  c.contexts = {3000};
  c.num_heads = c.num_selections = 1;
  c.list_page_tokens = 8;
  RetrievalInput input(c, 10);
  ScoreListsReference(input.Score());
  SelectReference(input);
  const int32_t most = input.wanted_counts[0];
  ASSERT_GT(most, 30);
  const std::vector<WantedPage> all(input.wanted.begin(), input.wanted.begin() + most);
  for (const int32_t stride : {0, 1, 2, 29, most - 1, most, most + 1}) {
    SCOPED_TRACE(stride);
    SelectListsParams p = input.Select();
    p.wanted_stride = stride;
    SelectReference(input, p);
    ASSERT_EQ(input.wanted_counts[0], std::min(stride, most));
    EXPECT_TRUE(std::equal(input.wanted.begin(), input.wanted.begin() + std::min(stride, most),
                           all.begin(), Selected::SamePage));
  }
}

TEST(SelectListsTest, TheMostWantedPagesAreWhatResolveTakes) {
  for (const auto& [budget, pages] :
       std::vector<std::pair<int32_t, int32_t>>{{-1, 4},
                                                {0, 4},
                                                {1, 4},
                                                {4, 4},
                                                {5, 8},
                                                {2047, 2048},
                                                {2048, 2048},
                                                {2049, 2048},
                                                {std::numeric_limits<int32_t>::max(), 2048}}) {
    EXPECT_EQ(MaxWantedPages(budget), pages);
  }
}

TEST(RetrieveTest, SelectsForEveryQueryHeadWhenAsked) {
  RetrievalCase c;
  c.contexts = {3000};
  c.num_heads = c.num_selections = 6;
  RetrievalInput input(c, 6);
  const Selected selected = RetrieveSelected(input, 2);
  std::set<std::vector<int32_t>> distinct;
  for (int64_t task = 0; task < 6; ++task) {
    const auto begin = selected.slots.begin() + task * input.slots_stride();
    distinct.insert(std::vector<int32_t>(begin, begin + c.budget));
  }
  EXPECT_EQ(distinct.size(), 6u);
}

// Small integers, and a query of three values that int16 holds exactly: sums are exact in every
// form of arithmetic, so ties and order are, too.
TEST(RetrieveTest, SelectsWhatTheReferenceSelectsOnSmallIntegers) {
  RetrievalCase c;
  c.contexts = {5000};
  c.num_heads = c.num_selections = 4;
  c.form = CentroidForm::kInt8;
  c.variance = VarianceTerm::kNone;
  c.cluster_tokens = 0;
  RetrievalInput input(c, 7);
  std::vector<float> zeros(c.head_dim, 0.0f), ones(input.max_lists(), 1.0f);
  for (ListsView& view : input.views()) {
    int8_t* const codes = static_cast<int8_t*>(const_cast<void*>(view.centroids));
    for (int32_t k = 0; k < view.nlist * c.head_dim; ++k) codes[k] %= 4;
    view.center = zeros.data();
    view.scales = ones.data();
  }
  float* const q = reinterpret_cast<float*>(input.q().data());
  for (int32_t k = 0; k < 4 * c.head_dim; ++k) q[k] = static_cast<float>(k * 7 % 5 % 3 - 1) * 0.5f;
  ScoreListsReference(input.Score());
  const Selected expected = SelectReference(input);
  ForEachSimdTarget([&] { EXPECT_EQ(RetrieveSelected(input, 1), expected); });
}

TEST(RetrieveTest, LeavesTheBytesAroundItsOutputsAlone) {
  RetrievalCase c;
  c.contexts = {700};
  c.num_selections = 1;
  RetrievalInput input(c, 8);
  ScoreListsParams score = input.Score();
  SelectListsParams select = input.Select();
  std::vector<float> keys(input.NumLists(0) + 32, -7.0f);
  std::vector<int32_t> slots(c.budget + 32, kSelectPoison), positions(c.budget + 32, kSelectPoison);
  score.keys = keys.data() + 16;
  select.slots = slots.data() + 16;
  select.positions = positions.data() + 16;
  std::vector<uint8_t> workspace = input.RetrieveWorkspace(1);
  ForEachSimdTarget([&] {
    ThreadPool pool(1);
    RetrieveHost(score, select, workspace.data(), workspace.size(), pool);
    ASSERT_EQ(select.counts[0], c.budget);
    for (size_t i = 0; i < 16; ++i) {
      EXPECT_EQ(keys[i], -7.0f);
      EXPECT_EQ(keys[keys.size() - 1 - i], -7.0f);
      for (const std::vector<int32_t>* out : {&slots, &positions}) {
        EXPECT_EQ((*out)[i], kSelectPoison);
        EXPECT_EQ((*out)[out->size() - 1 - i], kSelectPoison);
      }
    }
  });
}

}  // namespace
}  // namespace semkv
