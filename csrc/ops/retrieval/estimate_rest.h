// Estimates the attention over the tokens of a partition that a selection did not read, from the
// lists' plain centroids (a lower bound of their mass) and mean values:
//
//   w[h, i]     = unread[i] * exp(scale * dot(q[r, h], centroid[i]))
//   rest_lse[h] = log(sum over i of w[h, i])
//   rest_out[h] = sum over i of w[h, i] * value_mean[i] / exp(rest_lse[h])
//
// unread[i]: members of list i, before num_tokens, that are in no slot of the selection and not
// among the view's `excluded`, whose keys are no numbers. Only views
// with value_means take part, not kBounds (which has no centroid): of two partitions one has them,
// so that no token is estimated twice. A list is left out for the heads for which its
// score is not finite; where nothing is left, rest_lse is -inf and rest_out 0. Merged into
// attention by log-sum-exp (DecodeAttentionParams::rest_out). Off by default: an over-estimate
// hurts more than nothing (docs/design.md, section 4).
//
// Source: RetroInfer (arXiv 2505.02922), section 4 (accuracy-bounded estimation).

#ifndef SEMKV_OPS_RETRIEVAL_ESTIMATE_REST_H_
#define SEMKV_OPS_RETRIEVAL_ESTIMATE_REST_H_

#include <cstddef>
#include <cstdint>

#include "csrc/ops/retrieval/score_lists.h"

namespace semkv {

struct EstimateRestParams {
  ScoreListsParams score;              // q, rows and views; keys are not used
  const int32_t* positions = nullptr;  // [num_rows, num_selections, positions_stride], ascending
  const int32_t* counts = nullptr;  // [num_rows, num_selections]; < 0: not a sparse row, rest -inf
  int64_t positions_stride = 0;
  float* rest_out = nullptr;  // out: [num_rows, num_heads, head_dim]
  float* rest_lse = nullptr;  // out: [num_rows, num_heads]; -inf where nothing is estimated
};

// Scratch for rows of at most `max_row_tokens` tokens and `max_lists` lists, in bytes.
size_t EstimateRestWorkspaceBytes(int32_t num_heads, int32_t num_selections, int32_t head_dim,
                                  int32_t max_row_tokens, int32_t max_lists, int num_threads);
void EstimateRestHost(const EstimateRestParams& params, void* workspace, size_t workspace_bytes,
                      ThreadPool& pool);
void EstimateRestReference(const EstimateRestParams& params);

}  // namespace semkv

#endif  // SEMKV_OPS_RETRIEVAL_ESTIMATE_REST_H_
