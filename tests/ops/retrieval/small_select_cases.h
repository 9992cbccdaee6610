// Cases of select_lists that are small enough to say what is selected, which every form runs.

#ifndef SEMKV_TESTS_OPS_RETRIEVAL_SMALL_SELECT_CASES_H_
#define SEMKV_TESTS_OPS_RETRIEVAL_SMALL_SELECT_CASES_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "csrc/ops/retrieval/select_lists.h"
#include "tests/ops/retrieval/select_cases.h"

namespace semkv::testing {

// One row of one selection with lists given by hand. The slot of a position is 100 more.
struct SmallSelectInput {
  explicit SmallSelectInput(int32_t budget = 10) {
    row.num_tokens = 64;
    row.budget = budget;
  }

  // A view of `lists`, each a set of positions counted from 0. List i begins in page first_page[i].
  SmallSelectInput& AddView(const std::vector<std::vector<uint16_t>>& lists,
                            std::vector<int32_t> first_page = {}) {
    View view;
    view.first_page = std::move(first_page);
    for (const std::vector<uint16_t>& list : lists) {
      view.members.insert(view.members.end(), list.begin(), list.end());
      view.offsets.push_back(static_cast<uint16_t>(view.members.size()));
    }
    views.push_back(std::move(view));
    return *this;
  }

  // With outputs for `budget` tokens, poisoned, and eight more.
  SelectListsParams Params() {
    table.resize(std::max(row.num_tokens, 1));
    std::iota(table.begin(), table.end(), 100);
    row.block_table = table.data();
    list_views.clear();
    for (const View& from : views) {
      ListsView view;
      view.nlist = static_cast<int32_t>(from.offsets.size()) - 1;
      view.partition = static_cast<int32_t>(list_views.size()) % 2;
      view.first_position = from.first_position;
      view.offsets = from.offsets.data();
      view.members = from.is_range ? nullptr : from.members.data();
      view.first_page = from.first_page.empty() ? nullptr : from.first_page.data();
      view.excluded = from.excluded.data();
      view.num_excluded = static_cast<int32_t>(from.excluded.size());
      list_views.push_back(view);
    }
    view_begin = {0, static_cast<int32_t>(list_views.size())};
    always_taken = {always.data(), static_cast<int32_t>(always.size())};
    slots.assign(row.budget + 8, kSelectPoison);
    positions = slots;
    count = kSelectPoison;
    SelectListsParams p;
    p.num_rows = p.num_selections = p.heads_per_selection = p.page_tokens = 1;
    p.rows = &row;
    p.views = list_views.data();
    p.view_begin = view_begin.data();
    p.always = always.empty() ? nullptr : &always_taken;
    p.keys = keys.data();
    p.keys_stride = static_cast<int64_t>(keys.size());
    p.slots = slots.data();
    p.positions = positions.data();
    p.counts = &count;
    p.slots_stride = row.budget;
    if (list_page_tokens == 0) return p;
    wanted.assign(wanted_stride + 8, kWantedPoison);
    wanted_count = kSelectPoison;
    p.wanted = wanted.data();
    p.wanted_counts = &wanted_count;
    p.wanted_stride = wanted_stride;
    p.list_page_tokens = list_page_tokens;
    return p;
  }

  // Likewise the pages.
  void ExpectPages(const std::vector<WantedPage>& expected) const {
    if (list_page_tokens == 0) return;
    ASSERT_EQ(wanted_count, static_cast<int32_t>(expected.size()));
    for (size_t k = 0; k < wanted.size(); ++k) {
      const WantedPage& page = k < expected.size() ? expected[k] : kWantedPoison;
      EXPECT_EQ(wanted[k].home_page, page.home_page) << k;
      EXPECT_EQ(wanted[k].tokens, page.tokens) << k;
    }
  }

  // What the outputs of Params() hold, which must be `expected` and poison behind.
  void ExpectSelected(const std::vector<int32_t>& expected) const {
    ASSERT_EQ(count, static_cast<int32_t>(expected.size()));
    for (size_t k = 0; k < positions.size(); ++k) {
      const int32_t position = k < expected.size() ? expected[k] : kSelectPoison;
      EXPECT_EQ(positions[k], position);
      EXPECT_EQ(slots[k], position == kSelectPoison ? kSelectPoison : 100 + position);
    }
  }

  struct View {
    int32_t first_position = 0;
    bool is_range = false;
    std::vector<uint16_t> offsets = {0};
    std::vector<uint16_t> members, excluded;
    std::vector<int32_t> first_page;  // empty: none
  };

  RetrievalRow row;
  std::vector<View> views;
  std::vector<float> keys;
  std::vector<int32_t> always;
  int32_t list_page_tokens = 0;  // 0: no pages are wanted
  int32_t wanted_stride = 8;

  std::vector<int32_t> table, view_begin, slots, positions;
  std::vector<ListsView> list_views;
  alignas(16) AlwaysTaken always_taken;  // as device memory is
  int32_t count = 0;
  std::vector<WantedPage> wanted;
  int32_t wanted_count = 0;
};

struct SmallSelectCase {
  std::string name;
  SmallSelectInput input;
  std::vector<int32_t> expected;
  std::vector<WantedPage> expected_pages;
};

inline void PrintTo(const SmallSelectCase& c, std::ostream* out) { *out << c.name; }

class SmallSelectTable {
 public:
  std::vector<SmallSelectCase> Take() {
    AddTrim();
    AddBudgets();
    AddOrder();
    AddPassedOver();
    AddMassTargets();
    AddAlways();
    AddPages();
    AddTrimOfPages();
    return std::move(cases_);
  }

 private:
  void Add(const std::string& name, SmallSelectInput input, std::vector<float> keys,
           std::vector<int32_t> expected, std::vector<WantedPage> pages = {}) {
    input.keys = std::move(keys);
    cases_.push_back({name, std::move(input), std::move(expected), std::move(pages)});
  }

  void AddTrim() {
    SmallSelectInput greater = SmallSelectInput(3).AddView({{2, 10, 20, 30, 40}});
    Add("KeepsTheMostRecentMembersOfAListGreaterThanTheBudget", greater, {1}, {20, 30, 40});
    greater.row.trim = TrimKeep::kEarliest;
    Add("KeepsTheEarliestMembersOfAListGreaterThanTheBudget", greater, {1}, {2, 10, 20});
    std::vector<uint16_t> all(64);
    std::iota(all.begin(), all.end(), uint16_t{0});
    SmallSelectInput giant = SmallSelectInput(6).AddView({all});
    giant.row.num_sinks = 1;
    giant.row.num_recent = 2;
    Add("TrimsOneGiantListAroundWhatIsTaken", giant, {1}, {0, 59, 60, 61, 62, 63});
    giant.views[0].is_range = true;
    Add("TrimsOneGiantRangeAroundWhatIsTaken", giant, {1}, {0, 59, 60, 61, 62, 63});
    giant.row.trim = TrimKeep::kEarliest;
    Add("TrimsOneGiantRangeFromItsEnd", giant, {1}, {0, 1, 2, 3, 62, 63});
  }

  void AddBudgets() {
    const std::vector<std::pair<int32_t, std::vector<int32_t>>> expected = {
        {0, {}},
        {1, {5}},
        {2, {4, 5}},
        {4, {4, 5, 6, 7}},
        {5, {3, 4, 5, 6, 7}},
        {7, {1, 2, 3, 4, 5, 6, 7}},
        {8, {1, 2, 3, 4, 5, 6, 7}}};
    for (const auto& [budget, positions] : expected) {
      Add("FillsABudgetOf" + std::to_string(budget),
          SmallSelectInput(budget).AddView({{1, 2, 3}, {4, 5}, {6, 7}}), {.1f, .3f, .2f},
          positions);
    }
    SmallSelectInput few = SmallSelectInput(20).AddView({{5, 6}, {7}});
    few.row.num_sinks = 2;
    few.row.num_recent = 3;
    Add("WritesNothingBeyondTheCountWhenListsDoNotSuffice", few, {.5f, .5f},
        {0, 1, 5, 6, 7, 61, 62, 63});
    SmallSelectInput full = SmallSelectInput(5).AddView({{5, 6}, {7}});
    full.row.num_sinks = 2;
    full.row.num_recent = 3;
    Add("TakesNoListWhenSinksAndRecentFillTheBudget", full, {.5f, .5f}, {0, 1, 61, 62, 63});
    SmallSelectInput empty = SmallSelectInput().AddView({});
    empty.row.num_tokens = 0;
    Add("SelectsNothingOfNoTokens", empty, {}, {});
    SmallSelectInput one = SmallSelectInput().AddView({{0}});
    one.row.num_tokens = 1;
    Add("SelectsTheOneTokenOfARow", one, {.5f}, {0});
    one.row.num_sinks = 16;
    one.row.num_recent = 64;
    Add("SelectsTheOneTokenOfARowOnce", one, {.5f}, {0});
    // The sinks cover the first lists of both partitions, so that twice the budget is not enough.
    SmallSelectInput sunk = SmallSelectInput().AddView({{0, 1, 2, 3}, {4, 5, 6, 7}, {20, 21}});
    sunk.row.num_sinks = 8;
    Add("GoesOnBelowTheThresholdWhenBestListsWereTakenBefore", sunk, {8, 4, .001f},
        {0, 1, 2, 3, 4, 5, 6, 7, 20, 21});
    Add("GoesOnBelowSixteenOctaves", sunk, {8, 4, 1e-30f}, {0, 1, 2, 3, 4, 5, 6, 7, 20, 21});
  }

  void AddOrder() {
    Add("BreaksTiesByListId", SmallSelectInput(2).AddView({{9}, {8}, {7}}).AddView({{6}}),
        {.25f, .5f, .25f, .25f}, {8, 9});
    Add("TellsNeighbouringKeysApart", SmallSelectInput(2).AddView({{9}, {8}, {7}}).AddView({{6}}),
        {.25f, std::nextafter(.25f, 1.0f), .25f, std::nextafter(.25f, 1.0f)}, {6, 8});
    Add("TakesATokenOfTwoListsOnce",
        SmallSelectInput(5).AddView({{0, 1, 2}, {3, 4, 5}}).AddView({{2, 3}, {0, 1, 4, 5}}),
        {.4f, .1f, .3f, .2f}, {0, 1, 2, 3, 5});
    Add("TakesEqualListsOnce",
        SmallSelectInput(4).AddView({{0, 1, 2}, {3, 4, 5}}).AddView({{0, 1, 2}, {3, 4, 5}}),
        {.4f, .1f, .4f, .1f}, {0, 1, 2, 5});
  }

  void AddPassedOver() {
    SmallSelectInput beyond = SmallSelectInput().AddView({{28, 29, 30, 31}, {5}});
    beyond.row.num_tokens = 30;
    Add("PassesOverMembersBeyondTheContext", beyond, {2, 1}, {5, 28, 29});
    beyond.views[0].is_range = true;
    beyond.views[0].first_position = 27;  // lists [27, 31) and [31, 32)
    Add("PassesOverARangeBeyondTheContext", beyond, {2, 1}, {27, 28, 29});
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
    const std::vector<float> keys = {-1.0f, kNan, 0.0f, kInfinity, -0.0f, -kInfinity, -kNan};
    for (const int32_t budget : {10, 2}) {
      Add("NeverTakesAListWithoutAKeyIntoABudgetOf" + std::to_string(budget),
          SmallSelectInput(budget).AddView({{1}, {2}, {3}, {4}, {5}, {6}, {7}}), keys,
          budget == 10 ? std::vector<int32_t>{3, 4, 5} : std::vector<int32_t>{3, 4});
    }
    Add("PassesOverEmptyLists", SmallSelectInput(2).AddView({{}, {1}, {}, {2}, {}}).AddView({}),
        {3, 1, 2, 1, .5f}, {1, 2});
    SmallSelectInput excluded = SmallSelectInput(6).AddView({{0, 1, 2, 3}, {4, 5, 6, 7}});
    excluded.AddView({{0, 1, 2, 3, 4}, {5, 6, 7}});
    excluded.row.num_sinks = 2;
    excluded.row.num_recent = 2;
    excluded.views[0].excluded = {1, 3, 63, 5};
    excluded.views[1].excluded = {1, 3, 63, 5, 64};
    Add("NeverTakesWhatIsExcluded", excluded, {.1f, .2f, .3f, .4f}, {0, 2, 4, 6, 7, 62});
  }

  void AddMassTargets() {
    SmallSelectInput input = SmallSelectInput(40).AddView({{0, 1}, {2, 3}, {4, 5}, {6, 7}});
    const std::vector<float> keys = {.25f, .125f, .0625f, .0625f};  // masses .5, .25, .125, .125
    const std::vector<int32_t> expected = {0, 1, 2, 3, 4, 5, 6, 7};
    int number = 0;
    for (const auto& [target, count] : std::vector<std::pair<float, int>>{
             {.5f, 2}, {.51f, 4}, {.75f, 4}, {.875f, 6}, {.99f, 8}}) {
      input.row.mass_target = target;
      Add("StopsAtTheMassTarget" + std::to_string(number++), input, keys,
          {expected.begin(), expected.begin() + count});
    }
    // A token that was taken before, or that a better list has, counts no mass.
    SmallSelectInput shared = SmallSelectInput(40).AddView({{0, 1}, {2, 3}, {4, 5}});
    shared.AddView({{0, 2}, {1, 3}});
    shared.row.num_sinks = 1;
    shared.row.mass_target = .5f;
    Add("CountsTheMassOfNewTokensOnly", shared, {.25f, .0625f, .125f, .1875f, .01f},
        {0, 1, 2, 4, 5});
  }

  void AddAlways() {
    SmallSelectInput input = SmallSelectInput(6).AddView({{10, 11}, {12, 13}});
    input.row.num_sinks = 1;
    input.row.num_recent = 1;
    input.always = {40, 0, 30, 40, 50, 63};
    Add("TakesWhatIsAlwaysTakenBeforeLists", input, {1, 2}, {0, 13, 30, 40, 50, 63});
    input.row.budget = 4;
    Add("LeavesOutWhatDoesNotFitTheBudget", input, {1, 2}, {0, 30, 40, 63});
    input.views[0].excluded = {30};
    Add("NeverTakesWhatIsExcludedEvenAlways", input, {1, 2}, {0, 40, 50, 63});
  }

  // Lists of 5, 2 and 3 members on pages of 4, from home page 40 down.
  static SmallSelectInput PagedInput(int32_t budget) {
    SmallSelectInput input = SmallSelectInput(budget).AddView(
        {{10, 11, 12, 13, 14}, {15, 16}, {17, 18, 19}}, {40, 30, 20});
    input.list_page_tokens = 4;
    return input;
  }

  void AddPages() {
    const std::vector<float> keys = {.2f, .3f, .1f};
    SmallSelectInput input = PagedInput(12);
    input.row.num_sinks = 2;
    Add("WantsPagesInTheOrderOfRanks", input, keys, {0, 1}, {{30, 3}, {41, 1}, {40, 15}, {20, 7}});
    input.row.trim = TrimKeep::kEarliest;
    Add("WantsTheFirstPageFirstWhereTheEarliestAreKept", input, keys, {0, 1},
        {{30, 3}, {40, 15}, {41, 1}, {20, 7}});
    input.wanted_stride = 4;
    Add("WantsAsManyPagesAsThereAre", input, keys, {0, 1}, {{30, 3}, {40, 15}, {41, 1}, {20, 7}});
    for (const int32_t stride : {0, 1, 2, 3}) {
      input.wanted_stride = stride;
      std::vector<WantedPage> pages = {{30, 3}, {40, 15}, {41, 1}};
      pages.resize(stride);
      Add("EndsWhenThereAreNoMorePagesThan" + std::to_string(stride), input, keys, {0, 1}, pages);
    }
    SmallSelectInput mixed = PagedInput(9).AddView({{3, 4}, {10, 16, 20}});
    mixed.row.num_sinks = 1;
    Add("GivesSlotsToListsWithoutPages", mixed, {.2f, .3f, .1f, .5f, .25f}, {0, 3, 4, 10, 20},
        {{30, 3}, {41, 1}, {40, 8}});
    mixed.wanted_stride = 1;
    Add("GivesNoMoreSlotsWhenPagesHaveRunOut", mixed, {.2f, .3f, .1f, .01f, .25f}, {0, 10, 20},
        {{30, 3}});
    SmallSelectInput both = PagedInput(20).AddView({{10, 15, 17, 18}, {11, 12, 21}}, {50, 60});
    Add("GivesATokenToTheBetterOfTwoLists", both, {.2f, .3f, .1f, .25f, .05f}, {},
        {{30, 3}, {50, 13}, {41, 1}, {40, 14}, {20, 4}, {60, 4}});
    SmallSelectInput empty = PagedInput(5);
    empty.row.num_sinks = 5;
    Add("WantsNoPageWhenSinksFillTheBudget", empty, keys, {0, 1, 2, 3, 4});
    SmallSelectInput before = PagedInput(30);
    before.row.num_tokens = 18;
    before.row.num_recent = 2;
    before.views[0].excluded = {11, 13};
    before.always = {14};
    Add("WantsNothingOfWhatIsTakenExcludedOrBeyond", before, keys, {14, 16, 17},
        {{30, 1}, {40, 5}});
    SmallSelectInput mass = PagedInput(30);
    mass.row.mass_target = .5f;
    Add("StopsAtTheMassTargetOfPages", mass, {.0625f, .25f, .125f}, {}, {{30, 3}});
    SmallSelectInput none = PagedInput(4);
    none.views[0].first_page.clear();
    Add("WantsNoPagesOfListsWithoutAny", none, keys, {13, 14, 15, 16});
  }

  void AddTrimOfPages() {
    const std::vector<float> keys = {.3f, .2f, .1f};
    // The first page of the first list has members 10 to 13, its second 14.
    const std::vector<std::vector<WantedPage>> recent = {
        {{41, 1}},           {{41, 1}, {40, 8}},  {{41, 1}, {40, 12}},
        {{41, 1}, {40, 14}}, {{41, 1}, {40, 15}}, {{41, 1}, {40, 15}, {30, 2}}};
    const std::vector<std::vector<WantedPage>> earliest = {
        {{40, 1}},  {{40, 3}},           {{40, 7}},
        {{40, 15}}, {{40, 15}, {41, 1}}, {{40, 15}, {41, 1}, {30, 1}}};
    for (int32_t budget = 1; budget <= 6; ++budget) {
      SmallSelectInput input = PagedInput(budget);
      Add("KeepsTheMostRecentOfPagesInABudgetOf" + std::to_string(budget), input, keys, {},
          recent[budget - 1]);
      input.row.trim = TrimKeep::kEarliest;
      Add("KeepsTheEarliestOfPagesInABudgetOf" + std::to_string(budget), input, keys, {},
          earliest[budget - 1]);
    }
    std::vector<uint16_t> all(64);
    std::iota(all.begin(), all.end(), uint16_t{0});
    SmallSelectInput range = SmallSelectInput(40).AddView({all}, {7});
    range.views[0].is_range = true;
    range.list_page_tokens = 32;
    Add("TakesThirtyTwoTokensOfAPage", range, {1}, {}, {{8, ~0u}, {7, 0xff000000u}});
    range.row.trim = TrimKeep::kEarliest;
    Add("TakesThirtyTwoTokensOfTheFirstPage", range, {1}, {}, {{7, ~0u}, {8, 0xffu}});
    range.list_page_tokens = 1;
    range.row.budget = 2;
    Add("TakesPagesOfOneToken", range, {1}, {}, {{7, 1}, {8, 1}});
  }

  std::vector<SmallSelectCase> cases_;
};

inline std::vector<SmallSelectCase> SmallSelectCases() { return SmallSelectTable().Take(); }

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_OPS_RETRIEVAL_SMALL_SELECT_CASES_H_
