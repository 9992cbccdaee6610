// Which tokens of a prompt SentenceKV keeps, by how much attention the last tokens of the prompt
// (the observation window) pay to them. With n = num_tokens, w = num_window, for query head h:
//
//   p[j, i]   = softmax over the positions i <= n - w + j of scale * dot(q[j, h], k[i])
//   alpha[i]  = sum over the window queries j of p[j, i]             for i in [0, n - w)
//   pooled[i] = max of alpha over [i - pool_width / 2, i + pool_width / 2], inside [0, n - w)
//   kept      = the num_kept - w positions of greatest pooled (ties: lower position), and
//               [n - w, n), ascending
//
// The window's own columns take part in the softmax and are dropped afterwards. A token whose key
// is not finite has weight 0 and comes last; a product that overflows has weight 0; a query without
// any finite product counts for nothing.
//
// Source: SentenceKV (arXiv 2504.00970) section 4.1 and its code: per query head where the text
// sums over heads, and max-pooled as in SnapKV. Ties are unspecified there; pooling makes many.

#ifndef SEMKV_OPS_RETRIEVAL_KEEP_TOKENS_H_
#define SEMKV_OPS_RETRIEVAL_KEEP_TOKENS_H_

#include <cstddef>
#include <cstdint>

#include "semkv/types.h"

namespace semkv {

class ThreadPool;

struct KeepTokensParams {
  const float* q = nullptr;  // [num_window, num_heads, head_dim], oldest first; rotated
  int32_t num_window = 0;    // in [1, num_tokens]
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;  // a multiple of 16, at most 256
  float scale = 0.0f;

  KvView position;
  const int32_t* block_table = nullptr;
  int32_t num_tokens = 0;
  int32_t pool_width = 7;  // odd; 1: no pooling
  int32_t num_kept = 0;    // in [num_window, num_tokens]

  float* alpha = nullptr;   // out: [num_heads, num_tokens - num_window]; may be null
  int32_t* kept = nullptr;  // out: [num_heads, num_kept]
};

// Scratch for `num_threads` threads, in bytes: about 4 * (num_window + 4) * num_tokens each.
size_t KeepTokensWorkspaceBytes(int32_t num_tokens, int32_t num_window, int32_t head_dim,
                                int num_threads);

// SIMD with run-time dispatch, one task per query head. Allocates nothing.
void KeepTokensHost(const KeepTokensParams& params, void* workspace, size_t workspace_bytes,
                    ThreadPool& pool);

// Plain loops, float64: the specification.
void KeepTokensReference(const KeepTokensParams& params);

}  // namespace semkv

#endif  // SEMKV_OPS_RETRIEVAL_KEEP_TOKENS_H_
