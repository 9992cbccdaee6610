#include "csrc/ops/retrieval/select_lists.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <vector>

#include "csrc/ops/parallel/thread_pool.h"
#include "tests/ops/retrieval/each_target.h"
#include "tests/ops/retrieval/retrieval_cases.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using ::semkv::testing::ForEachTarget;
using ::semkv::testing::RetrievalCase;
using ::semkv::testing::RetrievalCases;
using ::semkv::testing::RetrievalInput;
using ::semkv::testing::SoakFactor;
using ::semkv::testing::TestSeed;

constexpr int32_t kPoison = 0x7fffffff;

struct Selected {
  std::vector<int32_t> slots, positions, counts;  // poisoned where nothing was written
  bool operator==(const Selected&) const = default;
};

// GoogleTest would print bytes.
void PrintTo(const Selected& selected, std::ostream* out) {
  *out << ::testing::PrintToString(selected.counts);
}

void Poison(RetrievalInput& input) {
  std::fill(input.slots.begin(), input.slots.end(), kPoison);
  std::fill(input.positions.begin(), input.positions.end(), kPoison);
  std::fill(input.counts.begin(), input.counts.end(), kPoison);
}

Selected Output(const RetrievalInput& input) {
  return {input.slots, input.positions, input.counts};
}

Selected SelectHost(RetrievalInput& input, int num_threads) {
  ThreadPool pool(num_threads);
  Poison(input);
  std::vector<uint8_t> workspace(
      SelectListsWorkspaceBytes(input.max_row_tokens(), input.max_lists(), num_threads));
  SelectListsHost(input.Select(), workspace.data(), workspace.size(), pool);
  return Output(input);
}

Selected SelectReference(RetrievalInput& input) {
  Poison(input);
  SelectListsReference(input.Select());
  return Output(input);
}

Selected RetrieveSelected(RetrievalInput& input, int num_threads) {
  ThreadPool pool(num_threads);
  Poison(input);
  std::vector<uint8_t> workspace = input.RetrieveWorkspace(num_threads);
  ScoreListsParams score = input.Score();
  score.keys = nullptr;
  RetrieveHost(score, input.Select(), workspace.data(), workspace.size(), pool);
  return Output(input);
}

class RetrieveCaseTest : public ::testing::TestWithParam<RetrievalCase> {};

TEST_P(RetrieveCaseTest, SelectsWhatTheReferenceSelectsByTheSameKeys) {
  RetrievalInput input(GetParam(), 1);
  ScoreListsReference(input.Score());
  const Selected expected = SelectReference(input);
  ForEachTarget([&] { EXPECT_EQ(SelectHost(input, 1), expected); });
  EXPECT_EQ(SelectHost(input, 3), expected);
}

TEST_P(RetrieveCaseTest, EqualsScoreThenSelect) {
  RetrievalInput input(GetParam(), 2);
  ForEachTarget([&] {
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
  if (c.mass_target > 0) GTEST_SKIP() << "stops before the budget";
  RetrievalInput input(c, 3);
  const Selected selected = RetrieveSelected(input, 1);
  for (int64_t task = 0; task < input.num_tasks(); ++task) {
    const int32_t context = c.contexts[task / c.num_selections];
    EXPECT_EQ(selected.counts[task], std::min(c.budget, context));
    const int32_t* const positions = selected.positions.data() + task * input.slots_stride();
    for (int32_t k = 1; k < selected.counts[task]; ++k) ASSERT_LT(positions[k - 1], positions[k]);
  }
}

TEST_P(RetrieveCaseTest, TokensThatAreAlwaysTakenComeBeforeLists) {
  RetrievalCase c = GetParam();
  RetrievalInput input(c, 5);
  ScoreListsReference(input.Score());
  SelectListsParams p = input.Select();
  // Every seventh token, more than some budgets hold.
  std::vector<int32_t> sevenths(3000 / 7);
  for (size_t i = 0; i < sevenths.size(); ++i) sevenths[i] = static_cast<int32_t>(7 * i);
  std::vector<AlwaysTaken> always(input.num_tasks());
  for (int64_t task = 0; task < input.num_tasks(); ++task) {
    const int32_t context = c.contexts[task / c.num_selections];
    always[task] = {sevenths.data(), std::min<int32_t>(context / 7, 5 + 40 * (task % 3))};
  }
  p.always = always.data();
  Poison(input);
  SelectListsReference(p);
  const Selected expected = Output(input);
  ForEachTarget([&] {
    Poison(input);
    ThreadPool pool(2);
    std::vector<uint8_t> workspace(
        SelectListsWorkspaceBytes(input.max_row_tokens(), input.max_lists(), 2));
    SelectListsHost(p, workspace.data(), workspace.size(), pool);
    EXPECT_EQ(Output(input), expected);
  });
  for (int64_t task = 0; task < input.num_tasks(); ++task) {
    EXPECT_LE(expected.counts[task], c.budget);
    const int32_t* const first = expected.positions.data() + task * input.slots_stride();
    const int32_t* const end = first + expected.counts[task];
    const int32_t room = c.budget - input.rows()[task / c.num_selections].num_sinks -
                         input.rows()[task / c.num_selections].num_recent;
    for (int32_t i = 0; i < std::min(always[task].count, room); ++i) {
      EXPECT_TRUE(std::binary_search(first, end, sevenths[i])) << sevenths[i];
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, RetrieveCaseTest, ::testing::ValuesIn(RetrievalCases()),
                         [](const auto& info) { return info.param.name; });

// Float rounding may exchange lists whose keys differ by less than 1e-5 of the cut, no others.
TEST(RetrieveTest, DiffersFromTheReferenceOnlyAtTheCut) {
  for (const RetrievalCase& c : RetrievalCases()) {
    if (c.mass_target > 0) continue;
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

// One row of one selection with lists given by hand.
struct SmallInput {
  SmallInput() {
    row.num_tokens = 64;
    row.budget = 10;
    table.resize(64);
    std::iota(table.begin(), table.end(), 100);
  }

  // A view of `lists`, each a set of positions counted from 0.
  void AddView(const std::vector<std::vector<uint16_t>>& lists) {
    offsets.push_back({0});
    members.push_back({});
    for (const std::vector<uint16_t>& list : lists) {
      members.back().insert(members.back().end(), list.begin(), list.end());
      offsets.back().push_back(static_cast<uint16_t>(members.back().size()));
    }
    ListsView view;
    view.nlist = static_cast<int32_t>(lists.size());
    view.partition = static_cast<int32_t>(views.size()) % 2;
    view.offsets = offsets.back().data();
    view.members = members.back().data();
    views.push_back(view);
  }

  // The positions selected, checked against the reference and for stale entries.
  std::vector<int32_t> Select() {
    row.block_table = table.data();
    const std::vector<int32_t> view_begin = {0, static_cast<int32_t>(views.size())};
    std::vector<int32_t> positions(row.budget + 8), slots(row.budget + 8);
    int32_t count = kPoison;
    SelectListsParams p;
    p.num_rows = p.num_selections = p.heads_per_selection = 1;
    p.page_tokens = 1;
    p.rows = &row;
    p.views = views.data();
    p.view_begin = view_begin.data();
    p.keys = keys.data();
    p.keys_stride = static_cast<int64_t>(keys.size());
    p.slots = slots.data();
    p.positions = positions.data();
    p.counts = &count;
    p.slots_stride = row.budget;
    SelectListsReference(p);
    const std::vector<int32_t> expected(positions.begin(), positions.begin() + count);
    ForEachTarget([&] {
      std::fill(positions.begin(), positions.end(), kPoison);
      std::fill(slots.begin(), slots.end(), kPoison);
      ThreadPool pool(1);
      std::vector<uint8_t> workspace(
          SelectListsWorkspaceBytes(row.num_tokens, static_cast<int32_t>(keys.size()), 1));
      SelectListsHost(p, workspace.data(), workspace.size(), pool);
      ASSERT_EQ(count, static_cast<int32_t>(expected.size()));
      for (size_t k = 0; k < positions.size(); ++k) {
        const int32_t position = k < expected.size() ? expected[k] : kPoison;
        EXPECT_EQ(positions[k], position);
        EXPECT_EQ(slots[k], position == kPoison ? kPoison : 100 + position);
      }
    });
    return expected;
  }

  RetrievalRow row;
  std::vector<int32_t> table;
  std::vector<float> keys;
  std::deque<std::vector<uint16_t>> offsets, members;
  std::vector<ListsView> views;
};

using Positions = std::vector<int32_t>;

TEST(SelectListsTest, KeepsTheMostRecentMembersOfAListGreaterThanTheBudget) {
  SmallInput input;
  input.row.budget = 3;
  input.AddView({{2, 10, 20, 30, 40}});
  input.keys = {1.0f};
  EXPECT_EQ(input.Select(), (Positions{20, 30, 40}));
  input.row.trim = TrimKeep::kEarliest;
  EXPECT_EQ(input.Select(), (Positions{2, 10, 20}));
}

TEST(SelectListsTest, TakesWholeListsWhenTheBudgetIsTheirSum) {
  SmallInput input;
  input.row.budget = 5;
  input.AddView({{1, 2, 3}, {4, 5}, {6, 7}});
  input.keys = {0.1f, 0.3f, 0.2f};
  EXPECT_EQ(input.Select(), (Positions{3, 4, 5, 6, 7}));
  input.row.budget = 4;
  EXPECT_EQ(input.Select(), (Positions{4, 5, 6, 7}));
  input.row.budget = 7;
  EXPECT_EQ(input.Select(), (Positions{1, 2, 3, 4, 5, 6, 7}));
}

TEST(SelectListsTest, WritesNothingBeyondTheCountWhenListsDoNotSuffice) {
  SmallInput input;
  input.row.budget = 20;
  input.row.num_sinks = 2;
  input.row.num_recent = 3;
  input.AddView({{5, 6}, {7}});
  input.keys = {0.5f, 0.5f};
  EXPECT_EQ(input.Select(), (Positions{0, 1, 5, 6, 7, 61, 62, 63}));
}

TEST(SelectListsTest, TrimsOneGiantListAroundWhatIsTaken) {
  SmallInput input;
  input.row.budget = 6;
  input.row.num_sinks = 1;
  input.row.num_recent = 2;
  std::vector<uint16_t> all(64);
  std::iota(all.begin(), all.end(), uint16_t{0});
  input.AddView({all});
  input.keys = {1.0f};
  EXPECT_EQ(input.Select(), (Positions{0, 59, 60, 61, 62, 63}));
  input.views[0].members = nullptr;  // the same as a range
  EXPECT_EQ(input.Select(), (Positions{0, 59, 60, 61, 62, 63}));
  input.row.trim = TrimKeep::kEarliest;
  EXPECT_EQ(input.Select(), (Positions{0, 1, 2, 3, 62, 63}));
}

TEST(SelectListsTest, BreaksTiesByListId) {
  SmallInput input;
  input.row.budget = 2;
  input.AddView({{9}, {8}, {7}});
  input.AddView({{6}});
  input.keys = {0.25f, 0.5f, 0.25f, 0.25f};
  EXPECT_EQ(input.Select(), (Positions{8, 9}));
}

TEST(SelectListsTest, TakesATokenOfTwoListsOnce) {
  SmallInput input;
  input.row.budget = 5;
  input.AddView({{0, 1, 2}, {3, 4, 5}});
  input.AddView({{2, 3}, {0, 1, 4, 5}});
  input.keys = {0.4f, 0.1f, 0.3f, 0.2f};
  EXPECT_EQ(input.Select(), (Positions{0, 1, 2, 3, 5}));
}

TEST(SelectListsTest, GoesOnBelowTheThresholdWhenBestListsWereTakenBefore) {
  // The sinks cover the first lists of both partitions, so that twice the budget is not enough.
  SmallInput input;
  input.row.num_sinks = 8;
  input.row.budget = 10;
  input.AddView({{0, 1, 2, 3}, {4, 5, 6, 7}, {20, 21}});
  input.keys = {8.0f, 4.0f, 0.001f};
  EXPECT_EQ(input.Select(), (Positions{0, 1, 2, 3, 4, 5, 6, 7, 20, 21}));
}

TEST(SelectListsTest, PassesOverMembersBeyondTheContext) {
  SmallInput input;
  input.row.num_tokens = 30;
  input.AddView({{28, 29, 30, 31}, {5}});
  input.keys = {2.0f, 1.0f};
  EXPECT_EQ(input.Select(), (Positions{5, 28, 29}));
  input.views[0].members = nullptr;
  input.views[0].first_position = 27;  // lists [27, 31) and [31, 32)
  EXPECT_EQ(input.Select(), (Positions{27, 28, 29}));
}

TEST(SelectListsTest, NeverTakesAListWithoutAKey) {
  SmallInput input;
  input.AddView({{1}, {2}, {3}, {4}, {5}, {6}});
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  input.keys = {-1.0f, std::numeric_limits<float>::quiet_NaN(), 0.0f, kInfinity, -0.0f, -kInfinity};
  EXPECT_EQ(input.Select(), (Positions{3, 4, 5}));
  input.row.budget = 2;
  EXPECT_EQ(input.Select(), (Positions{3, 4}));
}

TEST(SelectListsTest, StopsAtTheFewestListsThatReachTheMassTarget) {
  SmallInput input;
  input.row.budget = 40;
  input.AddView({{0, 1}, {2, 3}, {4, 5}, {6, 7}});
  input.keys = {0.25f, 0.125f, 0.0625f, 0.0625f};  // masses .5, .25, .125, .125
  input.row.mass_target = 0.5f;
  EXPECT_EQ(input.Select(), (Positions{0, 1}));
  input.row.mass_target = 0.51f;
  EXPECT_EQ(input.Select(), (Positions{0, 1, 2, 3}));
  input.row.mass_target = 0.875f;
  EXPECT_EQ(input.Select(), (Positions{0, 1, 2, 3, 4, 5}));
}

TEST(SelectListsTest, SelectsNothingOfNoTokens) {
  SmallInput input;
  input.row.num_tokens = 0;
  input.AddView({});
  EXPECT_EQ(input.Select(), Positions{});
}

TEST(SelectListsTest, TakesTheBestListsForEveryNumberOfLists) {
  for (int32_t nlist : {1, 2, 100, 128, 200, 206, 255, 256, 257, 409, 1638}) {
    SCOPED_TRACE(nlist);
    RetrievalCase c;
    c.contexts = {nlist};
    c.num_heads = c.num_selections = 1;
    c.sentence_tokens = 1;
    c.cluster_tokens = 0;
    c.num_sinks = c.num_recent = 0;
    c.segment_tokens = 8192;
    c.budget = (nlist + 1) / 2;
    RetrievalInput input(c, nlist);
    std::vector<int32_t> order(nlist);
    std::iota(order.begin(), order.end(), 0);
    std::mt19937_64 rng(nlist);
    std::shuffle(order.begin(), order.end(), rng);
    for (int32_t i = 0; i < nlist; ++i) input.keys[order[i]] = 1.0f / static_cast<float>(i + 1);
    std::vector<int32_t> expected(order.begin(), order.begin() + c.budget);
    std::sort(expected.begin(), expected.end());
    EXPECT_EQ(SelectHost(input, 1).positions, expected);
  }
}

TEST(SelectListsTest, EqualsTheReferenceOnRandomKeysWithTies) {
  const uint64_t seed = TestSeed(5);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (int round = 0; round < 60 * SoakFactor(); ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    RetrievalCase c;
    c.head_dim = 16;
    c.num_selections = 1 + rng() % 3;
    c.num_heads = c.num_selections * (1 + rng() % 3);
    c.trim = static_cast<TrimKeep>(rng() % 2);
    c.sentence_tokens = rng() % 3 == 0 ? 0 : 1 + rng() % 40;
    c.cluster_tokens = rng() % 3 == 0 ? 0 : 1 + rng() % 40;
    c.page_tokens = 1 << rng() % 8;
    c.num_sinks = rng() % 20;
    c.num_recent = rng() % 80;
    c.budget = c.num_sinks + c.num_recent + rng() % 700;
    c.mass_target = rng() % 4 == 0 ? 0.3f : 0.0f;
    c.contexts.assign(1 + rng() % 4, 0);
    for (int32_t& context : c.contexts) context = 1 + rng() % 3000;
    RetrievalInput input(c, rng());
    const uint64_t kinds = 1 + rng() % 30;
    for (float& key : input.keys) {
      const uint64_t kind = rng() % kinds;
      key = kind == 0 ? -1.0f : std::exp(-static_cast<float>(kind) / 3);
    }
    const Selected expected = SelectReference(input);
    ForEachTarget([&] { EXPECT_EQ(SelectHost(input, 2), expected); });
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
  ForEachTarget([&] { EXPECT_EQ(RetrieveSelected(input, 1), expected); });
}

TEST(RetrieveTest, LeavesTheBytesAroundItsOutputsAlone) {
  RetrievalCase c;
  c.contexts = {700};
  c.num_selections = 1;
  RetrievalInput input(c, 8);
  ScoreListsParams score = input.Score();
  SelectListsParams select = input.Select();
  std::vector<float> keys(input.NumLists(0) + 32, -7.0f);
  std::vector<int32_t> slots(c.budget + 32, kPoison), positions(c.budget + 32, kPoison);
  score.keys = keys.data() + 16;
  select.slots = slots.data() + 16;
  select.positions = positions.data() + 16;
  std::vector<uint8_t> workspace = input.RetrieveWorkspace(1);
  ForEachTarget([&] {
    ThreadPool pool(1);
    RetrieveHost(score, select, workspace.data(), workspace.size(), pool);
    ASSERT_EQ(select.counts[0], c.budget);
    for (size_t i = 0; i < 16; ++i) {
      EXPECT_EQ(keys[i], -7.0f);
      EXPECT_EQ(keys[keys.size() - 1 - i], -7.0f);
      for (const std::vector<int32_t>* out : {&slots, &positions}) {
        EXPECT_EQ((*out)[i], kPoison);
        EXPECT_EQ((*out)[out->size() - 1 - i], kPoison);
      }
    }
  });
}

}  // namespace
}  // namespace semkv
