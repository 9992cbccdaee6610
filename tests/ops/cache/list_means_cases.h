// The cases of list_means, which every form runs.

#ifndef SEMKV_TESTS_OPS_CACHE_LIST_MEANS_CASES_H_
#define SEMKV_TESTS_OPS_CACHE_LIST_MEANS_CASES_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "csrc/ops/cache/list_means.h"
#include "tests/testing/random.h"

namespace semkv::testing {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
inline constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
inline constexpr float kGuard = -12345.0f;

enum class ListLayout { kRanges, kMembers };

// Keys, lists of random sizes (empty ones too), and outputs with a guard behind them.
struct ListMeansProblem {
  ListMeansProblem(int32_t head_dim, std::vector<int32_t> sizes, ListLayout layout,
                   std::mt19937_64& rng) {
    offsets.push_back(0);
    for (int32_t size : sizes) offsets.push_back(static_cast<uint16_t>(offsets.back() + size));
    const int32_t num_tokens = offsets.back();
    keys = RandomNormal(rng, int64_t{num_tokens} * head_dim);
    members.resize(num_tokens);
    for (int32_t t = 0; t < num_tokens; ++t) members[t] = static_cast<uint16_t>(t);
    if (layout == ListLayout::kMembers) std::shuffle(members.begin(), members.end(), rng);
    params.head_dim = head_dim;
    params.nlist = static_cast<int32_t>(sizes.size());
    params.keys = keys.data();
    params.offsets = offsets.data();
    params.members = layout == ListLayout::kMembers ? members.data() : nullptr;
    means.assign(int64_t{params.nlist} * head_dim + 1, kGuard);
    variances.assign(params.nlist + 1, kGuard);
    params.means = means.data();
    params.variances = variances.data();
  }

  const float* Key(int32_t member) const { return keys.data() + members[member] * params.head_dim; }
  float* Key(int32_t member) { return keys.data() + members[member] * params.head_dim; }

  ListMeansParams params;
  std::vector<float> keys, means, variances;
  std::vector<uint16_t> offsets, members;
};

using ListMeansCheck = std::function<void(ListMeansProblem&)>;

// Lists of many sizes in both layouts, at head dimensions that are whole vectors and that are not.
inline void ForEachListMeansCase(std::mt19937_64& rng, const ListMeansCheck& check) {
  for (int32_t head_dim : {1, 7, 64, 80, 96, 128, 256, 300}) {
    for (ListLayout layout : {ListLayout::kRanges, ListLayout::kMembers}) {
      SCOPED_TRACE(head_dim);
      ListMeansProblem problem(head_dim, {1, 0, 31, 32, 33, 64, 100, 0}, layout, rng);
      check(problem);
    }
  }
  for (int round = 0; round < 30 * SoakFactor(); ++round) {
    std::vector<int32_t> sizes(1 + rng() % 40);
    for (int32_t& size : sizes) size = static_cast<int32_t>(rng() % 120);
    ListMeansProblem problem(1 + static_cast<int32_t>(rng() % 140), sizes,
                             rng() % 2 == 0 ? ListLayout::kRanges : ListLayout::kMembers, rng);
    SCOPED_TRACE("round " + std::to_string(round));
    check(problem);
  }
}

// Members that are not finite: first, last, with sums that are NaN, and all of a list (the last).
inline void ForEachNonFiniteCase(std::mt19937_64& rng, const ListMeansCheck& check) {
  for (int32_t head_dim : {5, 64, 80}) {
    for (ListLayout layout : {ListLayout::kRanges, ListLayout::kMembers}) {
      ListMeansProblem problem(head_dim, {40, 3, 70, 2}, layout, rng);
      problem.Key(0)[0] = kNaN;
      problem.Key(39)[head_dim - 1] = -kInfinity;
      problem.Key(50)[1] = kInfinity;
      problem.Key(80)[1] = -kInfinity;                        // with the one above: inf - inf
      for (int32_t t : {113, 114}) problem.Key(t)[2] = kNaN;  // a list without finite members
      check(problem);
    }
  }
}

// One list of 8,192 keys with two channels that stand `offset` deviations off, as real keys have:
// neither the mean nor the variance (whose one-pass form would cancel) may lose its digits.
inline ListMeansProblem OffsetChannelCase(float offset, std::mt19937_64& rng) {
  ListMeansProblem problem(128, {8192}, ListLayout::kMembers, rng);
  for (int32_t t = 0; t < 8192; ++t) {
    problem.keys[t * 128 + 3] += offset;
    problem.keys[t * 128 + 77] -= offset;
  }
  return problem;
}

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_OPS_CACHE_LIST_MEANS_CASES_H_
