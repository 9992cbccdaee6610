// The cases of resolve, which every form runs: a residency that lives through many steps.

#ifndef SEMKV_TESTS_OPS_RESIDENCY_RESOLVE_CASES_H_
#define SEMKV_TESTS_OPS_RESIDENCY_RESOLVE_CASES_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "csrc/ops/residency/resolve.h"

namespace semkv::testing {

inline constexpr int32_t kUnwritten = -12345;

struct ResolveCase {
  ResolveShape shape;
  int32_t num_steps = 6;
  int32_t shared_of_ten = 3;  // rows want a page that the row before wants, in tenths
  int32_t drift_of_ten = 2;   // a step wants other pages than the one before, in tenths
};

inline std::string Name(const ResolveCase& c) {
  const ResolveShape& s = c.shape;
  return std::to_string(s.num_rows) + " x " + std::to_string(s.num_selections) + " x " +
         std::to_string(s.max_wanted) + " of " + std::to_string(s.page_tokens) + " tokens, slots " +
         std::to_string(s.max_slots) + ", keep " + std::to_string(s.keep_steps) + ", home " +
         std::to_string(s.num_home_pages) + ", hot " + std::to_string(s.num_hot_pages);
}

// Everything that resolve writes. Elements of out lists that it must not write are kUnwritten, and
// one more lies behind each array.
struct ResolveState {
  explicit ResolveState(const ResolveShape& shape)
      : hot_of_home(shape.num_home_pages + 1, kNotResident),
        home_of_hot(shape.num_hot_pages + 1, kNotResident),
        stamps(shape.num_hot_pages + 1, kNeverUsed),
        hand{0, kUnwritten},
        num_unplaced{0, kUnwritten} {
    hot_of_home.back() = home_of_hot.back() = stamps.back() = kUnwritten;
    ClearOutputs(shape);
  }

  void ClearOutputs(const ResolveShape& shape) {
    const int64_t selections = int64_t{shape.num_rows} * shape.num_selections;
    const int64_t wanted = selections * shape.max_wanted;
    const int64_t misses = std::min<int64_t>(wanted, shape.num_hot_pages);
    this->misses.assign(misses + 1, {kUnwritten, kUnwritten});
    num_misses.assign(2, kUnwritten);
    slots.assign(selections * shape.max_slots + 1, kUnwritten);
    slot_counts.assign(selections + 1, kUnwritten);
  }

  bool operator==(const ResolveState& other) const {
    const auto same = [](const PagePair& a, const PagePair& b) {
      return a.home_page == b.home_page && a.hot_page == b.hot_page;
    };
    return hot_of_home == other.hot_of_home && home_of_hot == other.home_of_hot &&
           stamps == other.stamps && hand == other.hand && num_misses == other.num_misses &&
           num_unplaced == other.num_unplaced && slots == other.slots &&
           slot_counts == other.slot_counts &&
           std::equal(misses.begin(), misses.end(), other.misses.begin(), other.misses.end(), same);
  }

  std::vector<int32_t> hot_of_home, home_of_hot, stamps, hand, num_unplaced;
  std::vector<PagePair> misses;
  std::vector<int32_t> num_misses, slots, slot_counts;
};

// What one step wants.
struct ResolveStep {
  std::vector<WantedPage> wanted;
  std::vector<int32_t> wanted_counts;
  std::vector<int32_t> step;

  ResolveParams Params(const ResolveShape& shape, ResolveState& state) const {
    ResolveParams p;
    p.shape = shape;
    p.wanted = wanted.data();
    p.wanted_counts = wanted_counts.data();
    p.step = step.data();
    p.residency = {state.hot_of_home.data(), state.home_of_hot.data(), state.stamps.data(),
                   state.hand.data()};
    p.misses = state.misses.data();
    p.num_misses = state.num_misses.data();
    p.num_unplaced = state.num_unplaced.data();
    p.slots = state.slots.data();
    p.slot_counts = state.slot_counts.data();
    return p;
  }
};

// Steps that want mostly what the one before wanted. Pages are whole, trimmed or empty; some are no
// home page; behind the count there are valid pages, which nobody wants.
class ResolveSteps {
 public:
  ResolveSteps(const ResolveCase& c, std::mt19937_64& rng) : case_(c), rng_(rng) {
    const ResolveShape& s = c.shape;
    step_.wanted.resize(int64_t{s.num_rows} * s.num_selections * s.max_wanted);
    step_.wanted_counts.resize(int64_t{s.num_rows} * s.num_selections);
    step_.step = {static_cast<int32_t>(rng() % 3)};
    for (WantedPage& page : step_.wanted) page = RandomPage();
  }

  const ResolveStep& Next() {
    const ResolveShape& s = case_.shape;
    const int64_t row_pages = int64_t{s.num_selections} * s.max_wanted;
    for (int64_t i = 0; i < static_cast<int64_t>(step_.wanted.size()); ++i) {
      if (OfTen(case_.drift_of_ten)) step_.wanted[i] = RandomPage();
      if (i >= row_pages && OfTen(case_.shared_of_ten)) {
        step_.wanted[i].home_page = step_.wanted[i - row_pages].home_page;
      }
    }
    for (int32_t& count : step_.wanted_counts) {
      count = static_cast<int32_t>(rng_() % (s.max_wanted + 1));
      if (rng_() % 4 == 0) count = s.max_wanted;
      if (rng_() % 16 == 0) count = rng_() % 2 == 0 ? -1 : s.max_wanted + 1;
    }
    step_.step[0] += rng_() % 8 == 0 ? 3 : 1;
    return step_;
  }

 private:
  bool OfTen(int32_t n) { return static_cast<int32_t>(rng_() % 10) < n; }

  WantedPage RandomPage() {
    const ResolveShape& s = case_.shape;
    WantedPage page;
    page.home_page = s.num_home_pages == 0 ? 0 : static_cast<int32_t>(rng_() % s.num_home_pages);
    if (rng_() % 64 == 0) {
      const int32_t foreign[] = {-1, INT32_MIN, s.num_home_pages, INT32_MAX};
      page.home_page = foreign[rng_() % 4];
    }
    page.tokens = 0xffffffffu;
    if (rng_() % 4 == 0) page.tokens = static_cast<uint32_t>(rng_());
    if (rng_() % 4 == 0) page.tokens &= (1u << rng_() % 32) - 1;
    return page;
  }

  ResolveCase case_;
  std::mt19937_64& rng_;
  ResolveStep step_;
};

// Pages that `step` wants, each once.
inline std::set<int32_t> WantedPages(const ResolveShape& shape, const ResolveStep& step) {
  std::set<int32_t> pages;
  for (size_t s = 0; s < step.wanted_counts.size(); ++s) {
    for (int32_t i = 0; i < std::clamp(step.wanted_counts[s], 0, shape.max_wanted); ++i) {
      const int32_t page = step.wanted[s * shape.max_wanted + i].home_page;
      if (page >= 0 && page < shape.num_home_pages) pages.insert(page);
    }
  }
  return pages;
}

// hot_of_home and home_of_hot are inverse to each other.
inline void ExpectInverse(const ResolveState& state) {
  for (size_t hot = 0; hot + 1 < state.home_of_hot.size(); ++hot) {
    const int32_t home = state.home_of_hot[hot];
    if (home == kNotResident) continue;
    ASSERT_EQ(state.hot_of_home[home], static_cast<int32_t>(hot));
  }
  for (size_t home = 0; home + 1 < state.hot_of_home.size(); ++home) {
    const int32_t hot = state.hot_of_home[home];
    if (hot == kNotResident) continue;
    ASSERT_GE(hot, 0);
    ASSERT_EQ(state.home_of_hot[hot], static_cast<int32_t>(home));
  }
}

// What must hold between the residency before and after, whatever chooses the victims.
inline void ExpectProperties(const ResolveShape& shape, const ResolveStep& step,
                             const ResolveState& before, const ResolveState& after) {
  ExpectInverse(after);
  const int32_t now = step.step[0];
  std::set<int32_t> missing;
  const std::set<int32_t> wanted = WantedPages(shape, step);
  int32_t num_absent = 0;
  for (int32_t page : wanted) {
    const int32_t hot = before.hot_of_home[page];
    if (hot == kNotResident) {
      missing.insert(page);
    } else {
      ASSERT_EQ(after.hot_of_home[page], hot) << "a hit was moved";
    }
    if (after.hot_of_home[page] == kNotResident) {
      ++num_absent;
    } else {
      ASSERT_EQ(after.stamps[after.hot_of_home[page]], now);
    }
  }
  ASSERT_EQ(after.num_unplaced[0] - before.num_unplaced[0], num_absent);
  ASSERT_EQ(after.num_misses[0], static_cast<int32_t>(missing.size()) - num_absent);
  for (int32_t i = 0; i < after.num_misses[0]; ++i) {
    const PagePair& miss = after.misses[i];
    ASSERT_EQ(missing.erase(miss.home_page), 1u) << "not missing, or twice";
    ASSERT_EQ(after.hot_of_home[miss.home_page], miss.hot_page);
    ASSERT_LT(before.stamps[miss.hot_page], now - shape.keep_steps) << "a page that is kept";
  }
  if (shape.num_hot_pages >= NeededHotPages(shape)) {
    ASSERT_EQ(num_absent, 0);
  }
  // A page is in the pool as before, or was a victim of this step.
  for (int32_t hot = 0; hot < shape.num_hot_pages; ++hot) {
    if (after.home_of_hot[hot] == before.home_of_hot[hot]) continue;
    ASSERT_EQ(wanted.count(after.home_of_hot[hot]), 1u);
  }
}

// The shape of a decode step at batch 1, shapes of one CTA and of several, pages of 1 to 32 tokens,
// lists that fill their slots, no rows, and pools that are too small (which plans refuse).
inline std::vector<ResolveCase> ResolveCases() {
  return {
      {{1, 8, 128, 2048, 16, 1, 8192, 2048}, 5},
      {{1, 8, 256, 4096, 16, 0, 16384, 2048}, 3},
      {{3, 2, 20, 20 * 16, 16, 2, 400, 360}},
      {{2, 3, 4, 50, 16, 0, 90, 24}, 12, 3, 5},
      {{2, 2, 8, 8, 1, 1, 300, 64}},
      {{2, 2, 12, 12 * 32, 32, 1, 300, 96}},
      {{4, 1, 8, 16, 4, 1, 40, 40}, 8, 9},
      {{1, 1, 2048, 2048 * 2, 2, 0, 6000, 2048}, 3},
      {{5, 2, 512, 512 * 16, 16, 0, 9000, 5120}, 4, 5},
      {{7, 3, 200, 200 * 4, 4, 1, 30000, 8400}, 4, 0, 9},
      {{0, 4, 8, 8, 16, 0, 10, 4}, 2},
      {{2, 2, 64, 64 * 16, 16, 1, 4000, 256}, 6, 0, 8},
      {{6, 2, 512, 512 * 16, 16, 2, 90000, 1024}, 4, 0, 8},
      {{2, 2, 8, 100, 16, 0, 0, 4}, 2},
      {{2, 2, 64, 300, 16, 1, 500, 500}},
  };
}

inline ResolveCase RandomResolveCase(std::mt19937_64& rng) {
  const auto below = [&](int32_t n) { return static_cast<int32_t>(rng() % n); };
  ResolveCase c;
  ResolveShape& s = c.shape;
  s.num_rows = 1 + below(4);
  s.num_selections = 1 + below(4);
  s.max_wanted = kClockGroup * (1 + below(rng() % 4 == 0 ? 200 : 20));
  s.page_tokens = 1 << below(6);
  s.max_slots = 1 + below(s.max_wanted * s.page_tokens);
  s.keep_steps = below(4);
  s.num_home_pages = 1 + below(4 * s.num_rows * s.num_selections * s.max_wanted);
  s.num_hot_pages = static_cast<int32_t>(std::max<int64_t>(kClockGroup, NeededHotPages(s)));
  if (rng() % 4 == 0) s.num_hot_pages = kClockGroup * (1 + below(s.num_hot_pages / kClockGroup));
  c.num_steps = 5;
  c.shared_of_ten = below(10);
  c.drift_of_ten = 1 + below(9);
  return c;
}

// Takes a residency through the steps of `c`; run(params) is the form under test, which must leave
// what the reference does in every element.
template <typename Run>
void ExpectEqualsReference(const ResolveCase& c, std::mt19937_64& rng, const Run& run) {
  ResolveState state(c.shape);
  ResolveSteps steps(c, rng);
  for (int32_t i = 0; i < c.num_steps; ++i) {
    const ResolveStep& step = steps.Next();
    state.ClearOutputs(c.shape);
    ResolveState expected = state;
    const ResolveState before = state;
    ResolveReference(step.Params(c.shape, expected));
    run(step, state);
    ASSERT_NO_FATAL_FAILURE(ExpectProperties(c.shape, step, before, expected)) << "step " << i;
    ASSERT_NO_FATAL_FAILURE(ExpectProperties(c.shape, step, before, state)) << "step " << i;
    ASSERT_TRUE(state == expected) << "step " << i;
  }
}

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_OPS_RESIDENCY_RESOLVE_CASES_H_
