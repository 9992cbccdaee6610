#include "csrc/ops/retrieval/select_lists.h"

#include <algorithm>
#include <set>
#include <vector>

namespace semkv {
namespace {

struct RankedList {
  float key;
  const ListsView* view;
  int32_t list;
};

// Every list that may be taken, best first; lists come in ascending order of id.
std::vector<RankedList> RankLists(const SelectListsParams& p, int64_t task) {
  std::vector<RankedList> ranked;
  const float* key = p.keys + task * p.keys_stride;
  for (int32_t v = p.view_begin[task]; v < p.view_begin[task + 1]; ++v) {
    for (int32_t i = 0; i < p.views[v].nlist; ++i, ++key) {
      if (*key >= 0.0f) ranked.push_back({*key, &p.views[v], i});
    }
  }
  std::stable_sort(ranked.begin(), ranked.end(),
                   [](const RankedList& a, const RankedList& b) { return a.key > b.key; });
  return ranked;
}

std::set<int32_t> ExcludedPositions(const SelectListsParams& p, int64_t task) {
  std::set<int32_t> excluded;
  for (int32_t v = p.view_begin[task]; v < p.view_begin[task + 1]; ++v) {
    const ListsView& view = p.views[v];
    for (int32_t i = 0; i < view.num_excluded; ++i) {
      excluded.insert(view.first_position + view.excluded[i]);
    }
  }
  return excluded;
}

std::set<int32_t> TakePositions(const SelectListsParams& p, int64_t task) {
  const RetrievalRow& row = p.rows[task / p.num_selections];
  const std::set<int32_t> excluded = ExcludedPositions(p, task);
  std::set<int32_t> taken;
  for (int32_t t = 0; t < row.num_tokens; ++t) {
    const bool always = t < row.num_sinks || t >= row.num_tokens - row.num_recent;
    if (always && !excluded.contains(t)) taken.insert(t);
  }
  const AlwaysTaken always = p.always != nullptr ? p.always[task] : AlwaysTaken();
  for (int32_t i = 0; i < always.count && static_cast<int32_t>(taken.size()) < row.budget; ++i) {
    if (!excluded.contains(always.positions[i])) taken.insert(always.positions[i]);
  }
  double mass = 0;
  for (const RankedList& ranked : RankLists(p, task)) {
    if (static_cast<int32_t>(taken.size()) >= row.budget) break;
    const int32_t size = ListSize(*ranked.view, ranked.list);
    const size_t before = taken.size();
    for (int32_t j = 0; j < size && static_cast<int32_t>(taken.size()) < row.budget; ++j) {
      const int32_t member = row.trim == TrimKeep::kMostRecent ? size - 1 - j : j;
      const int32_t position = MemberPosition(*ranked.view, ranked.list, member);
      if (position < row.num_tokens && !excluded.contains(position)) taken.insert(position);
    }
    mass += double{ranked.key} * static_cast<double>(taken.size() - before) / p.heads_per_selection;
    if (row.mass_target > 0.0f && mass >= row.mass_target) break;
  }
  return taken;
}

}  // namespace

void SelectListsReference(const SelectListsParams& p) {
  for (int64_t task = 0; task < int64_t{p.num_rows} * p.num_selections; ++task) {
    const RetrievalRow& row = p.rows[task / p.num_selections];
    int32_t count = 0;
    for (int32_t position : TakePositions(p, task)) {
      const int64_t out = task * p.slots_stride + count++;
      p.slots[out] =
          row.block_table[position / p.page_tokens] * p.page_tokens + position % p.page_tokens;
      if (p.positions != nullptr) p.positions[out] = position;
    }
    p.counts[task] = count;
  }
}

}  // namespace semkv
