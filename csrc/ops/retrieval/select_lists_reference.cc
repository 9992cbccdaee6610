#include "csrc/ops/retrieval/select_lists.h"

#include <algorithm>
#include <cstdint>
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

// What one (row, selection) takes, lists best first.
class Taker {
 public:
  Taker(const SelectListsParams& p, int64_t task)
      : p_(p),
        task_(task),
        row_(p.rows[task / p.num_selections]),
        excluded_(ExcludedPositions(p, task)) {}

  void Take() {
    for (int32_t t = 0; t < row_.num_tokens; ++t) {
      if (t < row_.num_sinks || t >= row_.num_tokens - row_.num_recent) TakeAsSlot(t);
    }
    const AlwaysTaken always = p_.always != nullptr ? p_.always[task_] : AlwaysTaken();
    for (int32_t i = 0; i < always.count && HasRoom(); ++i) TakeAsSlot(always.positions[i]);
    double mass = 0;
    for (const RankedList& ranked : RankLists(p_, task_)) {
      if (!HasRoom()) break;
      const size_t before = taken_.size();
      TakeList(*ranked.view, ranked.list);
      const auto taken = static_cast<double>(taken_.size() - before);
      mass += double{ranked.key} * taken / p_.heads_per_selection;
      if (row_.mass_target > 0.0f && mass >= row_.mass_target) break;
    }
  }

  const std::set<int32_t>& slots() const { return slots_; }
  const std::vector<WantedPage>& pages() const { return pages_; }

 private:
  bool HasRoom() const {
    return static_cast<int32_t>(taken_.size()) < row_.budget && !is_out_of_pages_;
  }

  void TakeList(const ListsView& view, int32_t list) {
    const int32_t size = ListSize(view, list);
    for (int32_t j = 0; j < size && HasRoom(); ++j) {
      const int32_t member = row_.trim == TrimKeep::kMostRecent ? size - 1 - j : j;
      const int32_t position = MemberPosition(view, list, member);
      if (position >= row_.num_tokens) continue;
      if (p_.wanted != nullptr && view.first_page != nullptr) {
        TakeOfPage(position, view.first_page[list] + member / p_.list_page_tokens,
                   member % p_.list_page_tokens);
      } else {
        TakeAsSlot(position);
      }
    }
  }

  void TakeAsSlot(int32_t position) {
    if (!excluded_.contains(position) && taken_.insert(position).second) slots_.insert(position);
  }

  void TakeOfPage(int32_t position, int32_t home_page, int32_t bit) {
    if (excluded_.contains(position) || taken_.contains(position)) return;
    const auto same = [&](const WantedPage& page) { return page.home_page == home_page; };
    auto page = std::find_if(pages_.begin(), pages_.end(), same);
    if (page == pages_.end()) {
      is_out_of_pages_ = static_cast<int32_t>(pages_.size()) == p_.wanted_stride;
      if (is_out_of_pages_) return;
      page = pages_.insert(pages_.end(), {home_page, 0});
    }
    page->tokens |= uint32_t{1} << bit;
    taken_.insert(position);
  }

  const SelectListsParams& p_;
  const int64_t task_;
  const RetrievalRow& row_;
  const std::set<int32_t> excluded_;
  std::set<int32_t> taken_;
  std::set<int32_t> slots_;  // of those, the ones that are in no page
  std::vector<WantedPage> pages_;
  bool is_out_of_pages_ = false;
};

}  // namespace

void SelectListsReference(const SelectListsParams& p) {
  for (int64_t task = 0; task < int64_t{p.num_rows} * p.num_selections; ++task) {
    const RetrievalRow& row = p.rows[task / p.num_selections];
    Taker taker(p, task);
    taker.Take();
    int32_t count = 0;
    for (int32_t position : taker.slots()) {
      const int64_t out = task * p.slots_stride + count++;
      p.slots[out] =
          row.block_table[position / p.page_tokens] * p.page_tokens + position % p.page_tokens;
      if (p.positions != nullptr) p.positions[out] = position;
    }
    p.counts[task] = count;
    if (p.wanted == nullptr) continue;
    std::copy(taker.pages().begin(), taker.pages().end(), p.wanted + task * p.wanted_stride);
    p.wanted_counts[task] = static_cast<int32_t>(taker.pages().size());
  }
}

}  // namespace semkv
