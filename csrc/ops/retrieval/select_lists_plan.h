// What select_lists on the GPU fixes beforehand, from upper bounds, on the host and once a step:
// whether the lists of a (row, selection) fit a CTA's shared memory, and where everything lies in
// it. Standard library only, C++17.

#ifndef SEMKV_OPS_RETRIEVAL_SELECT_LISTS_PLAN_H_
#define SEMKV_OPS_RETRIEVAL_SELECT_LISTS_PLAN_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "csrc/ops/retrieval/inverted_lists.h"
#include "csrc/ops/retrieval/score_lists_plan.h"
#include "semkv/types.h"

namespace semkv {

// Of the CTA that serves a (row, selection).
constexpr int32_t kSelectThreads = 1024;
// Members of lists that are looked at together, in the order in which they are taken: 4 a thread,
// but whole warps of flags and numbers below 2^12 - 1. Twice the tokens that a budget of 2,048
// leaves to lists.
constexpr int32_t kSelectWindow = 4064;
constexpr int32_t kSelectWindowBits = 12;
constexpr int32_t kSelectMarks = 8192;  // of the table that finds tokens twice in a window
constexpr int32_t kSelectBins = 2 * kSelectThreads;

constexpr int32_t kSelectPositionBits = 20;
constexpr int32_t kSelectListBits = 20;
constexpr int32_t kSelectMaxRowTokens = 1 << kSelectPositionBits;
constexpr int32_t kSelectMaxLists = 1 << kSelectListBits;  // per (row, selection)
constexpr int32_t kSelectMaxViews = 1 << (32 - kSelectListBits);
// Of sm_90's 227 KiB (sm_80: 163), less what the kernels have statically.
constexpr int32_t kSelectStaticSharedBytes = 3 * 1024;
constexpr int32_t kSelectMaxSharedBytes = 227 * 1024 - kSelectStaticSharedBytes;

// What selection needs of a view, in shared memory.
struct SelectView {
  const uint16_t* offsets;
  const uint16_t* members;
  int32_t first_position;
  int32_t first_list;  // list id; behind the last view, the number of lists
  int32_t partition;
  int32_t has_pages;  // 0: its tokens get slots
};

// Dynamic shared memory, in bytes from its start.
struct SelectLayout {
  int32_t taken;       // [max_row_tokens] bits
  int32_t in_pages;    // likewise, if pages are wanted
  int32_t views;       // [max_views + 1]
  int32_t scratch;     // bins and the heads of their chains; later marks; later sums
  int32_t candidates;  // three arrays of [kSelectWindow]
  int32_t owners;      // [kSelectWindow]
  int32_t lists;       // two arrays of [max_lists], if they fit
  int32_t bytes;
};

struct SelectListsPlan {
  int32_t num_rows = 0, num_selections = 0;
  int32_t max_row_tokens = 0;
  int32_t max_lists = 0, max_views = 0;          // per (row, selection)
  bool lists_in_shared = false;                  // else in the workspace
  bool wants_pages = false;                      // serves SelectListsParams::wanted
  int32_t shared_bytes = kSelectMaxSharedBytes;  // that a CTA may have
};

inline SelectLayout LayOutSelectShared(const SelectListsPlan& plan) {
  int64_t used = 0;
  const auto take = [&](int64_t piece) {
    const int64_t at = used;
    used += CeilDiv<int64_t>(piece, 16) * 16;
    return static_cast<int32_t>(std::min<int64_t>(at, INT32_MAX));
  };
  SelectLayout s = {};
  const int64_t bitmap_bytes = CeilDiv<int64_t>(plan.max_row_tokens, 32) * 4;
  s.taken = take(bitmap_bytes);
  s.in_pages = take(plan.wants_pages ? bitmap_bytes : 0);
  s.views = take((int64_t{plan.max_views} + 1) * int64_t{sizeof(SelectView)});
  s.scratch = take(int64_t{kSelectMarks} * 4);
  s.candidates = take(int64_t{kSelectWindow} * 8);
  s.owners = take(int64_t{kSelectWindow} * 2);
  s.lists = take(plan.lists_in_shared ? int64_t{plan.max_lists} * 8 : 0);
  s.bytes = take(0);
  return s;
}

// What is asked of a plan beyond bounds, and what its GPU gives a CTA of dynamic shared memory.
struct SelectLimits {
  bool wants_pages = false;
  int32_t shared_bytes = kSelectMaxSharedBytes;
};

// Upper bounds: rows of `max_row_tokens` tokens, `max_lists` lists in `max_views` views per (row,
// selection). A plan that wants pages serves params that do not, too.
inline SelectListsPlan PlanSelectLists(int32_t num_rows, int32_t num_selections,
                                       int32_t max_row_tokens, int32_t max_lists, int32_t max_views,
                                       const SelectLimits& limits = {}) {
  SelectListsPlan plan = {num_rows,  num_selections, max_row_tokens,     max_lists,
                          max_views, true,           limits.wants_pages, limits.shared_bytes};
  plan.lists_in_shared = LayOutSelectShared(plan).bytes <= plan.shared_bytes;
  return plan;
}

// Lists of a (row, selection) in the workspace; a warp's access is whole lines.
inline int64_t SelectListsStride(const SelectListsPlan& plan) {
  return CeilDiv<int64_t>(plan.max_lists, 32) * 32;
}

inline size_t SelectListsCudaWorkspaceBytes(const SelectListsPlan& plan) {
  if (plan.lists_in_shared) return 0;
  return static_cast<size_t>(int64_t{plan.num_rows} * plan.num_selections *
                             SelectListsStride(plan) * 8);
}

// Of scoring and selecting in two launches (RetrieveCuda).
struct RetrievePlan {
  ScoreListsPlan score;
  SelectListsPlan select;
};

// Bounds as of PlanScoreLists and PlanSelectLists.
inline RetrievePlan PlanRetrieve(int32_t num_rows, int32_t num_heads, int32_t num_selections,
                                 int32_t head_dim, CentroidForm form, int32_t max_row_tokens,
                                 int32_t max_lists, int32_t max_views,
                                 const SelectLimits& limits = {}) {
  return {PlanScoreLists(num_rows, num_heads, num_selections, head_dim, form, max_lists, max_views),
          PlanSelectLists(num_rows, num_selections, max_row_tokens, max_lists, max_views, limits)};
}

// Scores first; a multiple of 64 bytes.
inline size_t RetrieveCudaWorkspaceBytes(const RetrievePlan& plan) {
  return ScoreListsCudaWorkspaceBytes(plan.score) + SelectListsCudaWorkspaceBytes(plan.select);
}

}  // namespace semkv

#endif  // SEMKV_OPS_RETRIEVAL_SELECT_LISTS_PLAN_H_
