// One task of a retrieval operation, dispatched to the best SIMD target: what the operations'
// parallel regions, and the fused one, are made of. Internal to csrc/ops/retrieval.

#ifndef SEMKV_OPS_RETRIEVAL_RETRIEVAL_TASKS_H_
#define SEMKV_OPS_RETRIEVAL_RETRIEVAL_TASKS_H_

#include <cstdint>

#include "csrc/ops/retrieval/dots_vnni.h"
#include "csrc/ops/retrieval/score_lists.h"
#include "csrc/ops/retrieval/select_lists.h"
#include "csrc/ops/retrieval/workspace.h"

namespace semkv {

// Vector loops may write this many elements past the end of a scratch array.
constexpr int32_t kScratchPadding = 16;

// A multiple of the padding, so that every head's part of a scratch array is aligned.
inline int64_t ScratchStride(int32_t lists) {
  return CeilDiv<int64_t>(lists, kScratchPadding) * kScratchPadding + kScratchPadding;
}

// Lists of all views of one (row, selection).
inline int32_t CountLists(const ListsView* views, int32_t num_views) {
  int32_t lists = 0;
  for (int32_t v = 0; v < num_views; ++v) lists += views[v].nlist;
  return lists;
}

// The query heads of one selection, in the forms that the dot products need.
struct QueryScratch {
  QueryScratch(Workspace& workspace, int32_t heads, int32_t head_dim)
      : query(workspace.Take<float>(int64_t{heads} * head_dim)),
        query_int16(workspace.Take<int16_t>(int64_t{heads} * head_dim)),
        query_vnni(workspace.Take<int16_t>(heads * VnniQueryElements(head_dim))),
        int16_step(workspace.Take<float>(heads)),
        query_for_int4(workspace.Take<int16_t>(int64_t{heads} * Int4Channels(head_dim))),
        query_vnni_int4(workspace.Take<int8_t>(heads * VnniQueryElements(Int4Channels(head_dim)))),
        int4_step(workspace.Take<float>(heads)),
        square_norm(workspace.Take<float>(heads)),
        center_dot(workspace.Take<float>(heads)) {}

  float* query;          // [heads, head_dim]
  int16_t* query_int16;  // [heads, head_dim]; query = int16_step * query_int16, rounded
  int16_t* query_vnni;  // [heads, VnniQueryElements]; the same split for DotsVnni, where it is used
  float* int16_step;    // [heads]; not a number for a query that is not finite
  // Likewise of 8 bits, for int4 lists.
  int16_t* query_for_int4;  // [heads, Int4Channels], 0 behind head_dim
  int8_t* query_vnni_int4;  // [heads, VnniQueryElements(Int4Channels)]
  float* int4_step;         // [heads]
  float* square_norm;       // [heads]; likewise
  float* center_dot;        // [heads], of the current view
};

struct ScoreScratch {
  ScoreScratch(Workspace& workspace, int32_t heads, int32_t head_dim, int32_t lists)
      : query(workspace, heads, head_dim),
        stride(ScratchStride(lists)),
        scores(workspace.Take<float>(heads * stride)),
        sizes(workspace.Take<float>(stride)),
        multiplier(workspace.Take<float>(heads)),
        spread(workspace.Take<float>(heads)),
        root_spread(workspace.Take<float>(heads)),
        maximum(workspace.Take<float>(heads * int64_t{kScratchPadding})),
        total(workspace.Take<float>(2 * heads * int64_t{kScratchPadding})) {}

  QueryScratch query;
  int64_t stride;
  float* scores;       // [heads, stride]: dots, then scores, then exp(score - maximum)
  float* sizes;        // [stride]; 0 for a list that is never selected
  float* multiplier;   // [heads] of a dot product, for the current view
  float* spread;       // [heads] what a list's variance is multiplied by
  float* root_spread;  // [heads] its square root
  float* maximum;      // [heads, kScratchPadding]; lanes folded into the first
  float* total;        // [2, heads, kScratchPadding], per partition: sum, then rank_weight / Z
};

// Writes the keys of (row, selection) `task` to keys[0 .. lists).
void ScoreListsTask(const ScoreListsParams& params, int64_t task, float* keys, Workspace workspace);

// Selects for (row, selection) `task` by keys[0 .. lists).
void SelectListsTask(const SelectListsParams& params, int64_t task, const float* keys,
                     Workspace workspace);

}  // namespace semkv

#endif  // SEMKV_OPS_RETRIEVAL_RETRIEVAL_TASKS_H_
