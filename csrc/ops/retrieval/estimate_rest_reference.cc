#include "csrc/ops/retrieval/estimate_rest.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <vector>

#include "csrc/ops/numeric/float_convert.h"
#include "csrc/ops/retrieval/list_reference.h"

namespace semkv {
namespace {

struct UnreadList {
  const ListsView* view;
  int32_t list;
  int32_t unread;
};

std::vector<UnreadList> FindUnread(const EstimateRestParams& params, int64_t task) {
  const ScoreListsParams& p = params.score;
  const int32_t num_tokens = p.rows[task / p.num_selections].num_tokens;
  const int32_t* const positions = params.positions + task * params.positions_stride;
  const std::set<int32_t> selected(positions, positions + params.counts[task]);
  std::vector<UnreadList> lists;
  for (int32_t v = p.view_begin[task]; v < p.view_begin[task + 1]; ++v) {
    const ListsView& view = p.views[v];
    if (view.value_means == nullptr || view.form == CentroidForm::kBounds) continue;
    std::set<int32_t> done = selected;
    for (int32_t e = 0; e < view.num_excluded; ++e) {
      done.insert(view.first_position + view.excluded[e]);
    }
    for (int32_t i = 0; i < view.nlist; ++i) {
      int32_t unread = 0;
      for (int32_t j = 0; j < ListSize(view, i); ++j) {
        const int32_t position = MemberPosition(view, i, j);
        unread += position < num_tokens && done.count(position) == 0;
      }
      if (unread > 0) lists.push_back({&view, i, unread});
    }
  }
  return lists;
}

void EstimateHead(const EstimateRestParams& params, const std::vector<UnreadList>& lists,
                  int32_t row, int32_t head) {
  const ScoreListsParams& p = params.score;
  const std::vector<double> query = LoadQueryReference(p, row, head);
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  std::vector<double> scores;
  double maximum = -kInfinity;
  for (const UnreadList& list : lists) {
    const double score = p.scale * ListDotReference(*list.view, p.head_dim, list.list, query);
    scores.push_back(std::isfinite(score) ? score : -kInfinity);
    maximum = std::max(maximum, scores.back());
  }
  if (maximum == -kInfinity) return;
  double total = 0;
  std::vector<double> sum(p.head_dim);
  for (size_t i = 0; i < lists.size(); ++i) {
    const double weight = lists[i].unread * std::exp(scores[i] - maximum);
    total += weight;
    for (int32_t c = 0; c < p.head_dim; ++c) {
      const int64_t at = int64_t{lists[i].list} * p.head_dim + c;
      sum[c] += weight * FloatFromBFloat16(lists[i].view->value_means[at]);
    }
  }
  const int64_t out = int64_t{row} * p.num_heads + head;
  params.rest_lse[out] = static_cast<float>(maximum + std::log(total));
  for (int32_t c = 0; c < p.head_dim; ++c) {
    params.rest_out[out * p.head_dim + c] = static_cast<float>(sum[c] / total);
  }
}

}  // namespace

void EstimateRestReference(const EstimateRestParams& params) {
  const ScoreListsParams& p = params.score;
  const int32_t heads = p.num_heads / p.num_selections;
  std::fill_n(params.rest_out, int64_t{p.num_rows} * p.num_heads * p.head_dim, 0.0f);
  std::fill_n(params.rest_lse, int64_t{p.num_rows} * p.num_heads,
              -std::numeric_limits<float>::infinity());
  for (int32_t row = 0; row < p.num_rows; ++row) {
    for (int32_t selection = 0; selection < p.num_selections; ++selection) {
      const int64_t task = int64_t{row} * p.num_selections + selection;
      if (params.counts[task] < 0) continue;
      const std::vector<UnreadList> lists = FindUnread(params, task);
      for (int32_t h = 0; h < heads; ++h) {
        EstimateHead(params, lists, row, selection * heads + h);
      }
    }
  }
}

}  // namespace semkv
