// The cases of select_lists beside RetrievalCases, which every form runs.

#ifndef SEMKV_TESTS_OPS_RETRIEVAL_SELECT_CASES_H_
#define SEMKV_TESTS_OPS_RETRIEVAL_SELECT_CASES_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <numeric>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "csrc/ops/retrieval/select_lists.h"
#include "tests/ops/retrieval/retrieval_cases.h"

namespace semkv::testing {

inline constexpr int32_t kSelectPoison = 0x7fffffff;
inline constexpr WantedPage kWantedPoison = {kSelectPoison, 0x7fffffffu};

struct Selected {
  std::vector<int32_t> slots, positions, counts;  // poisoned where nothing was written
  std::vector<WantedPage> wanted;                 // likewise
  std::vector<int32_t> wanted_counts;
  bool operator==(const Selected& other) const {
    return slots == other.slots && positions == other.positions && counts == other.counts &&
           std::equal(wanted.begin(), wanted.end(), other.wanted.begin(), other.wanted.end(),
                      SamePage) &&
           wanted_counts == other.wanted_counts;
  }

  static bool SamePage(const WantedPage& a, const WantedPage& b) {
    return a.home_page == b.home_page && a.tokens == b.tokens;
  }
};

// GoogleTest would print bytes.
inline void PrintTo(const Selected& selected, std::ostream* out) {
  *out << ::testing::PrintToString(selected.counts)
       << ::testing::PrintToString(selected.wanted_counts);
}

inline void PoisonSelected(RetrievalInput& input) {
  std::fill(input.slots.begin(), input.slots.end(), kSelectPoison);
  std::fill(input.positions.begin(), input.positions.end(), kSelectPoison);
  std::fill(input.counts.begin(), input.counts.end(), kSelectPoison);
  std::fill(input.wanted.begin(), input.wanted.end(), kWantedPoison);
  std::fill(input.wanted_counts.begin(), input.wanted_counts.end(), kSelectPoison);
}

inline Selected SelectedOf(const RetrievalInput& input) {
  return {input.slots, input.positions, input.counts, input.wanted, input.wanted_counts};
}

inline Selected SelectReference(RetrievalInput& input, const SelectListsParams& p) {
  PoisonSelected(input);
  SelectListsReference(p);
  return SelectedOf(input);
}

inline Selected SelectReference(RetrievalInput& input) {
  return SelectReference(input, input.Select());
}

// A page of a list, and where the list stands in the order of the specification.
struct PageOfList {
  float key = 0;
  const ListsView* view = nullptr;
  int32_t list_id = 0;  // among all of the task
  int32_t list = 0;
  int32_t page = 0;
};

// By home page, all pages of a task's lists.
inline std::map<int32_t, PageOfList> PagesOfTask(const SelectListsParams& p, int64_t task) {
  std::map<int32_t, PageOfList> pages;
  PageOfList at;
  for (int32_t v = p.view_begin[task]; v < p.view_begin[task + 1]; ++v) {
    at.view = &p.views[v];
    for (at.list = 0; at.list < at.view->nlist; ++at.list, ++at.list_id) {
      if (at.view->first_page == nullptr) continue;
      at.key = p.keys[task * p.keys_stride + at.list_id];
      const int32_t num_pages = CeilDiv(ListSize(*at.view, at.list), p.list_page_tokens);
      for (at.page = 0; at.page < num_pages; ++at.page) {
        EXPECT_TRUE(pages.emplace(at.view->first_page[at.list] + at.page, at).second);
      }
    }
  }
  return pages;
}

// Positions of everything that a task has taken, slots and pages, ascending; what is there twice
// comes twice.
inline std::vector<int32_t> TakenPositions(const SelectListsParams& p, int64_t task) {
  const int32_t* const first = p.positions + task * p.slots_stride;
  std::vector<int32_t> taken(first, first + p.counts[task]);
  if (p.wanted == nullptr) return taken;
  const std::map<int32_t, PageOfList> pages = PagesOfTask(p, task);
  for (int32_t i = 0; i < p.wanted_counts[task]; ++i) {
    const WantedPage& wanted = p.wanted[task * p.wanted_stride + i];
    const PageOfList& at = pages.at(wanted.home_page);
    for (int32_t bit = 0; bit < 32; ++bit) {
      if ((wanted.tokens >> bit & 1) == 0) continue;
      const int32_t member = at.page * p.list_page_tokens + bit;
      EXPECT_TRUE(bit < p.list_page_tokens && member < ListSize(*at.view, at.list));
      taken.push_back(MemberPosition(*at.view, at.list, member));
    }
  }
  std::sort(taken.begin(), taken.end());
  return taken;
}

// For every task, some of every seventh token: more than some budgets hold.
class EverySeventh {
 public:
  EverySeventh(const RetrievalCase& c, int64_t num_tasks) : always(num_tasks) {
    for (int32_t i = 0; i < 3000 / 7; ++i) positions.push_back(7 * i);
    for (int64_t task = 0; task < num_tasks; ++task) {
      const int32_t context = c.contexts[task / c.num_selections];
      const int32_t wanted = 5 + 40 * static_cast<int32_t>(task % 3);
      always[task] = {positions.data(), std::min(context / 7, wanted)};
    }
  }
  EverySeventh(const EverySeventh&) = delete;
  EverySeventh& operator=(const EverySeventh&) = delete;

  std::vector<int32_t> positions;
  std::vector<AlwaysTaken> always;
};

inline RetrievalCase RandomSelectCase(std::mt19937_64& rng) {
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
  c.list_page_tokens = rng() % 2 == 0 ? 0 : 1 << rng() % 6;
  c.wanted_stride = rng() % 3 == 0 ? 1 + static_cast<int32_t>(rng() % 60) : 0;
  c.contexts.assign(1 + rng() % 4, 0);
  for (int32_t& context : c.contexts) context = 1 + rng() % 3000;
  return c;
}

// Few different keys, so that there are ties; some lists have none.
inline void SetRandomKeys(std::mt19937_64& rng, RetrievalInput& input) {
  const uint64_t kinds = 1 + rng() % 30;
  for (float& key : input.keys) {
    const uint64_t kind = rng() % kinds;
    key = kind == 0 ? -1.0f : std::exp(-static_cast<float>(kind) / 3);
  }
}

// A row of one-token lists of which the better half is to be taken.
class BetterHalf {
 public:
  explicit BetterHalf(int32_t nlist) : input(Case(nlist), nlist) {
    std::vector<int32_t> order(nlist);
    std::iota(order.begin(), order.end(), 0);
    std::mt19937_64 rng(nlist);
    std::shuffle(order.begin(), order.end(), rng);
    for (int32_t i = 0; i < nlist; ++i) input.keys[order[i]] = 1.0f / static_cast<float>(i + 1);
    expected.assign(order.begin(), order.begin() + (nlist + 1) / 2);
    std::sort(expected.begin(), expected.end());
  }

  RetrievalInput input;
  std::vector<int32_t> expected;

 private:
  static RetrievalCase Case(int32_t nlist) {
    RetrievalCase c;
    c.contexts = {nlist};
    c.num_heads = c.num_selections = 1;
    c.sentence_tokens = 1;
    c.cluster_tokens = 0;
    c.num_sinks = c.num_recent = 0;
    c.segment_tokens = 8192;
    c.budget = (nlist + 1) / 2;
    return c;
  }
};

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_OPS_RETRIEVAL_SELECT_CASES_H_
