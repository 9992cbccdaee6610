// Causal attention of a chunk of new query tokens per row over the row's block table (which already
// holds the chunk's own keys and values):
//
//   query i of row r stands at position row_tokens[r] - num_queries[r] + i and sees the tokens at
//   positions [0, that position]; formula as in decode_attention.h.
//
// Exact; the way an engine that owns no prefill kernel reads a prompt in chunks. Tiles are counted
// from the row's first token, so neither the chunk size nor the number of threads changes a bit.
//
// Keys and values of the chunk must be finite: a token that a query does not see counts with weight
// 0 in the same tile, and 0 * infinity is NaN.
//
// Source: Dao et al., FlashAttention-2 (tiles with an online softmax).

#ifndef SEMKV_OPS_ATTENTION_PREFILL_ATTENTION_H_
#define SEMKV_OPS_ATTENTION_PREFILL_ATTENTION_H_

#include <cstddef>
#include <cstdint>

#include "semkv/types.h"

namespace semkv {

class ThreadPool;

struct PrefillAttentionParams {
  const void* q = nullptr;  // [num_tokens, num_heads, head_dim], q_dtype; rows one after another
  void* out = nullptr;      // [num_tokens, num_heads, head_dim], q_dtype
  float* lse = nullptr;     // [num_tokens, num_heads]; may be null
  DType q_dtype = DType::kFloat32;
  int64_t q_token = 0, q_head = 0;      // strides in elements
  int64_t out_token = 0, out_head = 0;  // strides in elements

  int32_t num_rows = 0;
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  float scale = 0.0f;
  float logit_cap = 0.0f;

  KvView position;
  const int32_t* query_start = nullptr;  // [num_rows + 1]: row r's queries in q
  const int32_t* row_tokens = nullptr;   // [num_rows]: context length, the chunk included
  const int32_t* block_table = nullptr;  // [num_rows, block_table_stride]
  int64_t block_table_stride = 0;
};

const char* PrefillAttentionUnsupported(const PrefillAttentionParams& params);

// Scratch for `num_threads` threads, in bytes; about 0.35 MiB each at head_dim 128.
size_t PrefillAttentionWorkspaceBytes(int32_t num_heads, int32_t num_kv_heads, int32_t head_dim,
                                      int num_threads);

// SIMD with run-time dispatch, on the threads of `pool`. `workspace` is 64-byte aligned.
void PrefillAttentionHost(const PrefillAttentionParams& params, void* workspace,
                          size_t workspace_bytes, ThreadPool& pool);

// Plain loops, float64 accumulation: the specification.
void PrefillAttentionReference(const PrefillAttentionParams& params);

}  // namespace semkv

#endif  // SEMKV_OPS_ATTENTION_PREFILL_ATTENTION_H_
