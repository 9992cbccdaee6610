// Attention of one query token per row over that row's keys and values, wherever they are:
//
//   s[t]      = scale * dot(q[r, h], K[t, g])          (then logit_cap * tanh(s / logit_cap), if
//   set) o[r, h]   = sum over t of exp(s[t] - lse) * V[t, g] lse[r, h] = log(sum over t of
//   exp(s[t]))           (natural logarithm)
//
// with g = h / (num_heads / num_kv_heads). The tokens of a dense row are those of its block table;
// those of a sparse row are listed per selection head, as slots of two pools (docs/design.md, 1.1):
// position slots (the engine's pages) and list slots (the hot tier's list pages). The operation
// never knows what a sentence is.
//
// A pool of float8 e4m3 holds K / k_scale and V / v_scale (KvView): K and V above are stored *
// scale. The host form does not take one.
//
// Rows are split into pieces of kDecodeSplitTokens tokens, a constant (on a GPU into parts of equal
// tiles, decode_attention_plan.h), and pieces are merged in order (of a sparse row: list slots,
// then position slots): the result does not depend on the number of threads. The two pools may
// differ in dtype (on a GPU they may not).
//
// NaN and infinities as in IEEE arithmetic: a NaN in a key, or a score of +inf, makes the output
// and lse of exactly the query heads that read it NaN; a score of -inf weighs 0. A row without
// tokens, or with nothing but scores of -inf, gives out 0 and lse -inf.
//
// Source: Dao et al., "FlashDecoding" (split and merge by log-sum-exp); Kwon et al., SOSP 2023,
// section 4 (block tables). Two pools and per-KV-head slot lists are ours.

#ifndef SEMKV_OPS_ATTENTION_DECODE_ATTENTION_H_
#define SEMKV_OPS_ATTENTION_DECODE_ATTENTION_H_

#include <cstddef>
#include <cstdint>

#include "semkv/types.h"

namespace semkv {

class ThreadPool;

constexpr int32_t kDecodeSplitTokens = 2048;

// One pool's share of the selection: slots[r * row_stride + s * selection_stride + i], for
// i < counts[r * num_selections + s]. Entries beyond the count are not read.
struct SlotLists {
  const int32_t* slots = nullptr;   // null: this pool is not used
  const int32_t* counts = nullptr;  // [num_rows, num_selections]
  int64_t row_stride = 0;
  int64_t selection_stride = 0;
};

struct DecodeAttentionParams {
  const void* q = nullptr;  // [num_rows, num_heads, head_dim], q_dtype; channels contiguous
  void* out = nullptr;      // [num_rows, num_heads, head_dim], q_dtype; channels contiguous
  float* lse = nullptr;     // [num_rows, num_heads]; may be null. A row without tokens: -inf, out 0
  DType q_dtype = DType::kFloat32;
  int64_t q_row = 0, q_head = 0;      // strides in elements
  int64_t out_row = 0, out_head = 0;  // strides in elements

  int32_t num_rows = 0;
  int32_t num_heads = 0;  // a multiple of num_kv_heads
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;  // 64, 80, 96, 128 or 256
  float scale = 0.0f;
  float logit_cap = 0.0f;  // 0: no soft cap

  KvView position;  // pool of block tables and of position slots
  KvView list;      // pool of list slots; list.k null when unused

  // Dense rows. row_tokens[r] < 0, or row_tokens null, marks a sparse row.
  const int32_t* block_table = nullptr;  // [num_rows, block_table_stride], page ids
  int64_t block_table_stride = 0;
  const int32_t* row_tokens = nullptr;  // [num_rows]

  // Sparse rows. Selection s serves the query heads [s, s + 1) * num_heads / num_selections.
  int32_t num_selections = 0;  // num_kv_heads, or num_heads (one selection per query head)
  SlotLists position_slots;
  SlotLists list_slots;

  // Optional state merged into sparse rows by log-sum-exp: the estimate of what was not read.
  const float* rest_out = nullptr;  // [num_rows, num_heads, head_dim], compact; may be null
  const float* rest_lse = nullptr;  // [num_rows, num_heads]; -inf where there is none
};

// The part of what follows that all forms take: everything but dtypes.
const char* DecodeShapeUnsupported(const DecodeAttentionParams& params);

// Which (dtype, head_dim, page_tokens) the host form takes: the one list that dispatch,
// semkv_supports and docs/support.md read. Null when supported, else the reason, naming the value.
const char* DecodeAttentionUnsupported(const DecodeAttentionParams& params);

// Scratch that DecodeAttentionHost needs for up to `max_rows` rows of at most `max_row_tokens`
// tokens each (dense) or slots (sparse), in bytes; independent of the number of threads.
size_t DecodeAttentionWorkspaceBytes(int32_t max_rows, int32_t num_heads, int32_t num_kv_heads,
                                     int32_t head_dim, int32_t max_row_tokens);

// SIMD with run-time dispatch (Highway), on the threads of `pool`. Reads K and V once per KV head
// (once per selection), for up to 16 query heads at a time. Allocates nothing. `workspace` is
// 64-byte aligned.
void DecodeAttentionHost(const DecodeAttentionParams& params, void* workspace,
                         size_t workspace_bytes, ThreadPool& pool);

// The same in plain loops, one pass, float64 accumulation: the specification.
void DecodeAttentionReference(const DecodeAttentionParams& params);

}  // namespace semkv

#endif  // SEMKV_OPS_ATTENTION_DECODE_ATTENTION_H_
