// Takes lists in descending order of key (ties: lower list id first) until the row's budget is
// exactly filled, and writes the tokens taken as position slots:
//
//   taken = sinks + recent + always + lists; a token already taken is not counted again (a bitmap
//   per row and selection), so lists of two partitions can be ranked jointly and each token is
//   attended once; the last list is trimmed to the exact budget, its most recent (or earliest)
//   members kept.
//
// Excluded tokens of a view (a key that is not finite) are never taken, not even as sinks or
// recent.
//
// Slots are written in ascending order of position: equal sets give equal sums in attention, and
// neighbours in memory are read as neighbours.
//
// With mass_target the walk also stops at the fewest lists whose estimated share of the lists' mass
// reaches it: a newly taken token counts its list's key / (heads of the selection), rank_weight and
// all.
//
// If the lists do not suffice, the count is less than the budget; nothing past it is written.
// Members at or past num_tokens are passed over.
//
// With `wanted`, a token that is taken through a list that has pages gets no slot but a bit of its
// list's page, for resolve: the budget counts slots and bits together, and each token is one of
// them. Of two lists with a token the better one has it. A page has one entry, and no entry is
// without bits; entries come in the order in which their first tokens are taken: best list first,
// and of a list the last page first where the most recent members are kept. Pages are a second
// budget: a selection ends before the token that needs one more than wanted_stride, and
// MaxWantedPages is enough that none does.
//
// Source: ClusterKV section III-C (take clusters until the budget, trim the last); exact budget,
// joint order and the bitmap are ours (docs/design.md, sections 1 and 4).

#ifndef SEMKV_OPS_RETRIEVAL_SELECT_LISTS_H_
#define SEMKV_OPS_RETRIEVAL_SELECT_LISTS_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "csrc/ops/residency/wanted_page.h"
#include "csrc/ops/retrieval/inverted_lists.h"
#include "csrc/ops/retrieval/score_lists.h"
#include "semkv/types.h"

namespace semkv {

// Tokens of one (row, selection) that are always taken, beside the row's sinks and recent ones.
struct AlwaysTaken {
  const int32_t* positions = nullptr;  // [count], each below the row's num_tokens
  int32_t count = 0;
};

struct SelectListsParams {
  int32_t num_rows = 0;
  int32_t num_selections = 0;
  int32_t heads_per_selection = 0;
  int32_t page_tokens = 0;  // of the block tables; a power of two

  const RetrievalRow* rows = nullptr;   // [num_rows]
  const ListsView* views = nullptr;     // as in ScoreListsParams
  const int32_t* view_begin = nullptr;  // [num_rows * num_selections + 1]
  const AlwaysTaken* always = nullptr;  // [num_rows * num_selections]; null: none. Inside the
                                        // budget: what does not fit it is left out
  const float* keys = nullptr;          // [num_rows, num_selections, keys_stride]; < 0 or not a
                                        // number: never taken
  int64_t keys_stride = 0;

  int32_t* slots = nullptr;      // out: [num_rows, num_selections, slots_stride]
  int32_t* positions = nullptr;  // out: same shape, the tokens' positions; may be null
  int32_t* counts = nullptr;     // out: [num_rows, num_selections], of slots
  int64_t slots_stride = 0;      // >= budget of every row

  WantedPage* wanted = nullptr;      // out: [num_rows, num_selections, wanted_stride]; null: every
                                     // token taken gets a slot
  int32_t* wanted_counts = nullptr;  // out: [num_rows, num_selections]
  int32_t wanted_stride = 0;
  int32_t list_page_tokens = 0;  // of ListsView::first_page; a power of two, at most 32
};

// The wanted_stride with which every budget of at most `max_budget` tokens is filled: each may lie
// in a page of its own. Resolve takes kMaxWantedPages, with which greater budgets may end early.
// Tokens come by lists, so a fraction of it does in practice.
inline int32_t MaxWantedPages(int32_t max_budget) {
  const int32_t pages = std::clamp(max_budget, 1, kMaxWantedPages);
  return CeilDiv(pages, kWantedPageGroup) * kWantedPageGroup;
}

// Scratch for rows of at most `max_row_tokens` tokens and `max_lists` lists, in bytes.
size_t SelectListsWorkspaceBytes(int32_t max_row_tokens, int32_t max_lists, int num_threads);

// One task per (row, selection). Allocates nothing.
void SelectListsHost(const SelectListsParams& params, void* workspace, size_t workspace_bytes,
                     ThreadPool& pool);

// Full sort, std::set of taken tokens: the specification.
void SelectListsReference(const SelectListsParams& params);

// ScoreListsHost and SelectListsHost in one parallel region: a task selects while what it scored is
// in its core's cache. What a decode step calls.
//
// REQUIRES: `score` and `select` describe the same rows and views. If score.keys is null the keys
// stay in the workspace; select.keys is not read.
size_t RetrieveWorkspaceBytes(int32_t num_heads, int32_t num_selections, int32_t head_dim,
                              int32_t max_row_tokens, int32_t max_lists, int num_threads);
void RetrieveHost(const ScoreListsParams& score, const SelectListsParams& select, void* workspace,
                  size_t workspace_bytes, ThreadPool& pool);

}  // namespace semkv

#endif  // SEMKV_OPS_RETRIEVAL_SELECT_LISTS_H_
