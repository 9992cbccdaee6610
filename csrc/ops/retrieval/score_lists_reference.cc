#include "csrc/ops/retrieval/score_lists.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "csrc/ops/retrieval/list_reference.h"

namespace semkv {
namespace {

double VarianceTermOf(VarianceTerm term, double v, int32_t size) {
  if (term == VarianceTerm::kNone) return 0;
  const double log_size = std::log(static_cast<double>(size));
  if (term == VarianceTerm::kHalf || v <= 2 * log_size) return v / 2;
  return std::sqrt(2 * v * log_size) - log_size;
}

struct ScoredList {
  int32_t partition;
  int32_t size;               // 0: never selected
  std::vector<double> score;  // [heads]
};

std::vector<ScoredList> ScoreSelection(const ScoreListsParams& p, int32_t row, int32_t selection) {
  const int32_t heads = p.num_heads / p.num_selections;
  const int64_t task = int64_t{row} * p.num_selections + selection;
  std::vector<ScoredList> lists;
  for (int32_t v = p.view_begin[task]; v < p.view_begin[task + 1]; ++v) {
    const ListsView& view = p.views[v];
    for (int32_t i = 0; i < view.nlist; ++i) {
      ScoredList list = {view.partition, ListSize(view, i), {}};
      for (int32_t h = 0; h < heads; ++h) {
        const std::vector<double> query = LoadQueryReference(p, row, selection * heads + h);
        double score = p.scale * ListDotReference(view, p.head_dim, i, query);
        if (view.variances != nullptr && view.form != CentroidForm::kBounds) {
          double square_norm = 0;
          for (double x : query) square_norm += x * x;
          const double v_of_scores =
              double{p.scale} * p.scale * square_norm / p.head_dim * view.variances[i];
          score += VarianceTermOf(p.rows[row].variance, v_of_scores, std::max(list.size, 1));
        }
        list.score.push_back(score);
      }
      for (double score : list.score) {
        if (std::isnan(score)) list.size = 0;
      }
      lists.push_back(list);
    }
  }
  return lists;
}

// Adds the weighed shares of head `h` to `keys`, or takes their maximum.
void RankByHead(const std::vector<ScoredList>& lists, int32_t h, const RetrievalRow& row,
                std::vector<double>& keys) {
  double maximum = -std::numeric_limits<double>::infinity();
  for (const ScoredList& list : lists) {
    if (list.size > 0) maximum = std::max(maximum, list.score[h]);
  }
  const auto exp_below = [&](double score) {
    return score == maximum ? 1.0 : std::exp(score - maximum);
  };
  double sums[2] = {};
  for (const ScoredList& list : lists) {
    if (list.size > 0) sums[list.partition] += list.size * exp_below(list.score[h]);
  }
  const double z = std::max(sums[0], sums[1]);
  for (size_t i = 0; i < lists.size(); ++i) {
    if (lists[i].size == 0) continue;
    const double share = row.rank_weight[lists[i].partition] * exp_below(lists[i].score[h]) / z;
    keys[i] = row.rank == GroupRank::kShareSum ? keys[i] + share : std::max(keys[i], share);
  }
}

}  // namespace

void ScoreListsReference(const ScoreListsParams& p) {
  const int32_t heads = p.num_heads / p.num_selections;
  for (int32_t row = 0; row < p.num_rows; ++row) {
    for (int32_t selection = 0; selection < p.num_selections; ++selection) {
      const std::vector<ScoredList> lists = ScoreSelection(p, row, selection);
      std::vector<double> keys(lists.size());
      for (int32_t h = 0; h < heads; ++h) RankByHead(lists, h, p.rows[row], keys);
      float* const out = p.keys + (int64_t{row} * p.num_selections + selection) * p.keys_stride;
      for (size_t i = 0; i < lists.size(); ++i) {
        out[i] = lists[i].size == 0 ? -1.0f : static_cast<float>(keys[i]);
      }
    }
  }
}

}  // namespace semkv
