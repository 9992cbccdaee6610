// What the launches of a RetrieveProblem wrote, against the references. A selection is held to
// keys of the reference: float32 may put lists with nearly equal keys in either order.

#include <algorithm>
#include <functional>
#include <limits>
#include <string>
#include <unordered_map>
#include <vector>

#include "benchmarks/cuda/cuda_lists_problem.h"
#include "benchmarks/cuda/cuda_twin.h"

namespace semkv {
namespace {

constexpr double kKeyTolerance = 2e-4;

// Rows, views and queries of one layer, in host memory, and the reference's keys.
class HostLists {
 public:
  HostLists(const ScoreListsParams& on_device, const ListsView* views, const CudaTwin& twin)
      : score(on_device) {
    const int32_t num_cells = score.num_rows * score.num_selections;
    twin.Move(score.q, score.view_begin);
    const RetrievalRow* const rows = twin.At(score.rows);
    rows_.assign(rows, rows + score.num_rows);
    for (RetrievalRow& row : rows_) twin.Move(row.block_table);
    const ListsView* const first = twin.At(views);
    views_.assign(first, first + score.view_begin[num_cells]);
    for (ListsView& view : views_) {
      twin.Move(view.centroids, view.scales, view.center, view.variances, view.offsets,
                view.members, view.first_page, view.value_means);
    }
    keys_.resize(num_cells * score.keys_stride);
    score.rows = rows_.data();
    score.views = views_.data();
    score.keys = keys_.data();
  }

  const std::vector<float>& Keys() {
    ScoreListsReference(score);
    return keys_;
  }

  // Calls f(view, list, key) for every list of a cell.
  template <typename F>
  void ForEachList(int32_t cell, const F& f) const {
    const float* key = keys_.data() + cell * score.keys_stride;
    for (int32_t v = score.view_begin[cell]; v < score.view_begin[cell + 1]; ++v) {
      for (int32_t i = 0; i < views_[v].nlist; ++i) f(views_[v], i, *key++);
    }
  }

  ScoreListsParams score;

 private:
  std::vector<RetrievalRow> rows_;
  std::vector<ListsView> views_;
  std::vector<float> keys_;
};

// Greatest key of the lists that a token is in; tokens that are always taken have the greatest.
std::vector<float> KeysOfTokens(const HostLists& lists, int32_t cell) {
  const RetrievalRow& row = lists.score.rows[cell / lists.score.num_selections];
  std::vector<float> keys(row.num_tokens, -1.0f);
  lists.ForEachList(cell, [&](const ListsView& view, int32_t i, float key) {
    for (int32_t j = 0; j < ListSize(view, i); ++j) {
      float& of_token = keys[MemberPosition(view, i, j)];
      of_token = std::max(of_token, key);
    }
  });
  std::fill_n(keys.begin(), row.num_sinks, std::numeric_limits<float>::infinity());
  std::fill_n(keys.rbegin(), row.num_recent, std::numeric_limits<float>::infinity());
  return keys;
}

// The positions of a cell's slots, -1 for a slot that is not the row's.
std::vector<int32_t> PositionsOfSlots(const SelectListsParams& select, const RetrievalRow& row,
                                      int32_t cell, const CudaTwin& after) {
  std::unordered_map<int32_t, int32_t> page_numbers;
  for (int32_t i = 0; i < CeilDiv(row.num_tokens, select.page_tokens); ++i) {
    page_numbers[row.block_table[i]] = i;
  }
  const int32_t* const slots = after.At(select.slots) + cell * select.slots_stride;
  const int64_t count = after.At(select.counts)[cell];
  std::vector<int32_t> positions(std::clamp<int64_t>(count, 0, select.slots_stride));
  for (size_t i = 0; i < positions.size(); ++i) {
    const auto page = page_numbers.find(slots[i] / select.page_tokens);
    positions[i] = page == page_numbers.end()
                       ? -1
                       : page->second * select.page_tokens + slots[i] % select.page_tokens;
  }
  return positions;
}

// The positions of the tokens whose bits are in a cell's wanted pages.
std::vector<int32_t> PositionsOfPages(const SelectListsParams& select, const HostLists& lists,
                                      int32_t cell, const CudaTwin& after) {
  std::vector<int32_t> positions;
  if (select.wanted == nullptr) return positions;
  std::unordered_map<int32_t, uint32_t> tokens_of_page;
  const WantedPage* const wanted = after.At(select.wanted) + cell * select.wanted_stride;
  const int32_t count = std::min(after.At(select.wanted_counts)[cell], select.wanted_stride);
  for (int32_t i = 0; i < count; ++i) {
    tokens_of_page[wanted[i].home_page] = wanted[i].tokens;
  }
  lists.ForEachList(cell, [&](const ListsView& view, int32_t list, float) {
    for (int32_t j = 0; j < ListSize(view, list); ++j) {
      const auto page = tokens_of_page.find(view.first_page[list] + j / select.list_page_tokens);
      if (page == tokens_of_page.end()) continue;
      if (page->second >> j % select.list_page_tokens & 1) {
        positions.push_back(MemberPosition(view, list, j));
      }
    }
  });
  return positions;
}

// `taken`: positions. Of a row's tokens, as many as its budget, those with the greatest keys.
std::string CheckTaken(const std::vector<int32_t>& taken, const std::vector<float>& keys,
                       int32_t budget) {
  const auto count = [](auto n) { return std::to_string(n); };
  if (taken.size() != static_cast<size_t>(budget)) {
    return count(taken.size()) + " tokens were taken, must be " + count(budget);
  }
  std::vector<float> best = keys;
  std::nth_element(best.begin(), best.begin() + budget - 1, best.end(), std::greater<float>());
  const double cut = best[budget - 1];
  std::vector<bool> is_taken(keys.size());
  for (int32_t position : taken) {
    if (position < 0 || is_taken[position]) return "a slot that is no token's, or taken twice";
    is_taken[position] = true;
    if (keys[position] < (1.0 - kKeyTolerance) * cut) {
      return "token " + count(position) + " was taken, below the cut";
    }
  }
  for (size_t position = 0; position < keys.size(); ++position) {
    if (!is_taken[position] && keys[position] > (1.0 + kKeyTolerance) * cut) {
      return "token " + count(position) + " was not taken, above the cut";
    }
  }
  return "";
}

}  // namespace

std::string RetrieveProblem::CheckScore(const CudaTwin& before, const CudaTwin& after) const {
  HostLists lists(score, layers[0].views, before);
  const std::vector<float>& keys = lists.Keys();
  return Differs("key", DType::kFloat32, after.At(layers[0].keys), keys.data(),
                 static_cast<int64_t>(keys.size()), 1e-30, kKeyTolerance);
}

std::string RetrieveProblem::CheckRetrieve(const CudaTwin& before, const CudaTwin& after) const {
  HostLists lists(score, layers[0].views, before);
  lists.Keys();
  for (int32_t cell = 0; cell < score.num_rows * score.num_selections; ++cell) {
    const RetrievalRow& row = lists.score.rows[cell / score.num_selections];
    std::vector<int32_t> taken = PositionsOfSlots(select, row, cell, after);
    if (!std::is_sorted(taken.begin(), taken.end())) return "slots are not in order of position";
    const std::vector<int32_t> in_pages = PositionsOfPages(select, lists, cell, after);
    taken.insert(taken.end(), in_pages.begin(), in_pages.end());
    const std::string wrong = CheckTaken(taken, KeysOfTokens(lists, cell), row.budget);
    if (!wrong.empty()) return "cell " + std::to_string(cell) + ": " + wrong;
  }
  return "";
}

std::string RetrieveProblem::CheckEstimate(const CudaTwin& before, const CudaTwin& after) const {
  const HostLists lists(score, layers[0].views, before);
  EstimateRestParams p = estimate;
  p.score = lists.score;
  before.Move(p.positions, p.counts, p.rest_out, p.rest_lse);
  EstimateRestReference(p);
  const int64_t heads = int64_t{score.num_rows} * score.num_heads;
  return FirstOf(
      {Differs("lse", DType::kFloat32, after.At(estimate.rest_lse), p.rest_lse, heads, 1e-4, 1e-6),
       Differs("mean value", DType::kFloat32, after.At(estimate.rest_out), p.rest_out,
               heads * score.head_dim, 2e-4, 0.0)});
}

}  // namespace semkv
