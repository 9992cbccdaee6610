// Scores every inverted list of every row against its current query and ranks the lists of both
// partitions in one order:
//
//   s[h, i]  = scale * dot(q[r, h], centroid[i]) + f(v[h, i]),
//   v[h, i]  = scale^2 * |q[r, h]|^2 / head_dim * variance[i]        (f: VarianceTerm)
//   Z[h]     = max over partitions p of the sum over lists i of p of size[i] * exp(s[h, i])
//   key[i]   = rank_weight[p(i)] * sum (or max) over the heads h of the selection of
//              exp(s[h, i]) / Z[h]
//
// key is the list's estimated attention mass per token, weighed by how far the row trusts the
// estimates of its partition. Both partitions hold the row's tokens, so their sums estimate one
// number, and the mean that hides a key makes the lesser: were each partition measured by its own,
// lists of the one that missed it would seem as much greater. kBounds lists: the dot product is
// Quest's upper bound, sum over channels of max(q * least, q * greatest), without a variance term.
//
// A list whose score is not a number for some head of the selection, or of size 0, gets key -1, is
// never selected and counts in no Z. A query head with a channel that is not finite makes every
// score of its selection not a number. Lists of score +inf share the mass of their head alone.
//
// The lists of (row, selection) are numbered through its views in order: list id.
//
// Source: ClusterKV (arXiv 2412.03213) section III-C, SentenceKV (arXiv 2504.00970) section 4,
// Quest (ICML 2024) figure 5; the variance term, joint ranking of two partitions and one selection
// per KV head are ours (docs/design.md, section 4).

#ifndef SEMKV_OPS_RETRIEVAL_SCORE_LISTS_H_
#define SEMKV_OPS_RETRIEVAL_SCORE_LISTS_H_

#include <cstddef>
#include <cstdint>

#include "csrc/ops/retrieval/inverted_lists.h"
#include "semkv/types.h"

namespace semkv {

class ThreadPool;

struct ScoreListsParams {
  const void* q = nullptr;  // [num_rows, num_heads, head_dim], q_dtype
  DType q_dtype = DType::kFloat32;
  int64_t q_row = 0, q_head = 0;  // strides in elements
  int32_t num_rows = 0;
  int32_t num_heads = 0;
  int32_t num_selections = 0;  // divides num_heads; selection s serves consecutive heads
  int32_t head_dim = 0;        // a multiple of 16, at most 256
  float scale = 0.0f;

  const RetrievalRow* rows = nullptr;  // [num_rows]
  const ListsView* views = nullptr;    // views[view_begin[p] .. view_begin[p + 1]) belong to
  const int32_t* view_begin =
      nullptr;  // p = r * num_selections + s; [num_rows * num_selections + 1]

  float* keys = nullptr;    // out: [num_rows, num_selections, keys_stride]; past the last list of a
                            // (row, selection) nothing is written
  int64_t keys_stride = 0;  // >= lists of any (row, selection)
};

// Scratch for `num_threads` threads and at most `max_lists` lists per (row, selection), in bytes.
size_t ScoreListsWorkspaceBytes(int32_t num_heads, int32_t num_selections, int32_t head_dim,
                                int32_t max_lists, int num_threads);

// SIMD with run-time dispatch, one task per (row, selection).
void ScoreListsHost(const ScoreListsParams& params, void* workspace, size_t workspace_bytes,
                    ThreadPool& pool);

// Plain loops, float64: the specification.
void ScoreListsReference(const ScoreListsParams& params);

}  // namespace semkv

#endif  // SEMKV_OPS_RETRIEVAL_SCORE_LISTS_H_
