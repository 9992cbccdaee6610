// The buffers of score_lists and select_lists, for launches in the SIMT harness.

#ifndef SEMKV_TESTS_OPS_RETRIEVAL_SIMT_BUFFERS_H_
#define SEMKV_TESTS_OPS_RETRIEVAL_SIMT_BUFFERS_H_

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "csrc/ops/retrieval/score_lists.h"
#include "csrc/ops/retrieval/score_lists_plan.h"
#include "csrc/ops/retrieval/select_lists.h"
#include "tests/simt/launch.h"

namespace semkv::testing {

template <typename Params>
int64_t NumTasks(const Params& p) {
  return int64_t{p.num_rows} * p.num_selections;
}

inline int32_t NumLists(const ScoreListsParams& p, int64_t task) {
  int32_t lists = 0;
  for (int32_t v = p.view_begin[task]; v < p.view_begin[task + 1]; ++v) lists += p.views[v].nlist;
  return lists;
}

// The plan with the least bounds that hold.
inline ScoreListsPlan TightPlan(const ScoreListsParams& p) {
  int32_t max_lists = 0, max_views = 0;
  CentroidForm form = CentroidForm::kInt8;
  for (int64_t task = 0; task < NumTasks(p); ++task) {
    max_lists = std::max(max_lists, NumLists(p, task));
    max_views = std::max(max_views, p.view_begin[task + 1] - p.view_begin[task]);
    if (max_views > 0) form = p.views[0].form;
  }
  return PlanScoreLists(p.num_rows, p.num_heads, p.num_selections, p.head_dim, form, max_lists,
                        max_views);
}

class BufferList {
 public:
  template <typename T>
  void Add(const std::string& name, const T* data, int64_t n,
           simt::Access access = simt::Access::kRead) {
    if (data == nullptr || n == 0) return;
    buffers_.push_back({name, data, n * static_cast<int64_t>(sizeof(T)), access});
  }

  std::vector<simt::Buffer> Take() { return std::move(buffers_); }

 private:
  std::vector<simt::Buffer> buffers_;
};

// All but the workspace.
inline void AddScoreBuffers(const ScoreListsParams& p, int64_t q_bytes, BufferList& list) {
  const int32_t num_views = p.view_begin[NumTasks(p)];
  list.Add("keys", p.keys, NumTasks(p) * p.keys_stride, simt::Access::kReadWrite);
  list.Add("q", static_cast<const uint8_t*>(p.q), q_bytes);
  list.Add("rows", p.rows, p.num_rows);
  list.Add("views", p.views, num_views);
  list.Add("view_begin", p.view_begin, NumTasks(p) + 1);
  for (int32_t v = 0; v < num_views; ++v) {
    const ListsView& view = p.views[v];
    const std::string at = std::to_string(v);
    list.Add("centroids " + at, static_cast<const uint8_t*>(view.centroids),
             int64_t{view.nlist} * CentroidRowBytes(view.form, p.head_dim));
    list.Add("scales " + at, view.scales, view.nlist);
    list.Add("center " + at, view.center, p.head_dim);
    list.Add("variances " + at, view.variances, view.nlist);
    list.Add("offsets " + at, view.offsets, view.nlist + 1);
  }
}

inline void AddSelectOutputs(const SelectListsParams& p, BufferList& list) {
  list.Add("slots", p.slots, NumTasks(p) * p.slots_stride, simt::Access::kReadWrite);
  list.Add("positions", p.positions, NumTasks(p) * p.slots_stride, simt::Access::kReadWrite);
  list.Add("counts", p.counts, NumTasks(p), simt::Access::kReadWrite);
  if (p.wanted == nullptr) return;
  list.Add("wanted", p.wanted, NumTasks(p) * p.wanted_stride, simt::Access::kReadWrite);
  list.Add("wanted counts", p.wanted_counts, NumTasks(p), simt::Access::kReadWrite);
}

// What selection reads and scoring does not. Tasks have their `always` positions from one array.
inline void AddSelectOnlyInputs(const SelectListsParams& p, BufferList& list) {
  for (int32_t r = 0; r < p.num_rows; ++r) {
    list.Add("table " + std::to_string(r), p.rows[r].block_table,
             CeilDiv(p.rows[r].num_tokens, p.page_tokens));
  }
  for (int32_t v = 0; v < p.view_begin[NumTasks(p)]; ++v) {
    const ListsView& view = p.views[v];
    const std::string at = std::to_string(v);
    list.Add("members " + at, view.members, view.offsets[view.nlist]);
    list.Add("excluded " + at, view.excluded, view.num_excluded);
    if (p.wanted != nullptr) list.Add("first page " + at, view.first_page, view.nlist);
  }
  if (p.always == nullptr) return;
  int32_t most = 0;
  for (int64_t task = 0; task < NumTasks(p); ++task) {
    most = most < p.always[task].count ? p.always[task].count : most;
  }
  list.Add("always", p.always, NumTasks(p));
  list.Add("always positions", p.always[0].positions, most);
}

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_OPS_RETRIEVAL_SIMT_BUFFERS_H_
