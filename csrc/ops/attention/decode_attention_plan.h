// How decode attention on the GPU cuts rows into parts, and the memory that the parts meet in. Host
// code that needs no GPU and that the SIMT harness shares.
//
// A plan is made once from upper bounds, outside a captured graph; what a row really holds is read
// on the device. A row is cut into NumDecodeSplits parts of equal numbers of tiles, so that the
// result depends on the plan's part_tiles and filling_splits and on the row, and on nothing else.

#ifndef SEMKV_OPS_ATTENTION_DECODE_ATTENTION_PLAN_H_
#define SEMKV_OPS_ATTENTION_DECODE_ATTENTION_PLAN_H_

#include <cstddef>
#include <cstdint>

#include "csrc/ops/attention/decode_attention.h"

namespace semkv {

constexpr int32_t kDecodeTileTokens = 64;
constexpr int32_t kDecodeMaxPartTiles = 32;  // of kDecodeTileTokens tokens
constexpr int32_t kDecodeMaxGroupHeads = 16;

// The query heads of a row that are attended together: one KV head's, or one selection's, at most
// kDecodeMaxGroupHeads.
struct DecodeHeadGroup {
  int32_t selection;  // KV head of a dense row
  int32_t kv_head;
  int32_t first_head;
  int32_t num_heads;
};

SEMKV_HOST_DEVICE inline int32_t NumDecodeHeadGroups(int32_t num_heads, int32_t num_selections) {
  if (num_selections == 0) return 0;
  return num_selections * CeilDiv(num_heads / num_selections, kDecodeMaxGroupHeads);
}

SEMKV_HOST_DEVICE inline DecodeHeadGroup GetDecodeHeadGroup(int32_t num_heads, int32_t num_kv_heads,
                                                            int32_t num_selections, int32_t i) {
  const int32_t heads = num_heads / num_selections;
  const int32_t parts = CeilDiv(heads, kDecodeMaxGroupHeads);
  const int32_t skipped = i % parts * kDecodeMaxGroupHeads;
  DecodeHeadGroup group;
  group.selection = i / parts;
  group.kv_head = group.selection / (num_selections / num_kv_heads);
  group.first_head = group.selection * heads + skipped;
  group.num_heads = heads - skipped < kDecodeMaxGroupHeads ? heads - skipped : kDecodeMaxGroupHeads;
  return group;
}

struct DecodeAttentionBounds {
  int32_t num_rows = 0;
  int32_t max_row_tokens =
      0;  // of a dense row; slots of one selection in both pools of a sparse one
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t num_selections = 0;  // 0: no sparse rows
  int32_t head_dim = 0;
  DType kv_dtype = DType::kFloat16;   // of the pools
  int32_t num_multiprocessors = 132;  // of the GPU
};

struct DecodeAttentionPlan {
  int32_t num_rows = 0;
  int32_t head_dim = 0;
  int32_t num_groups = 0;      // head groups of a row, the most of either kind
  int32_t group_heads = 0;     // of the largest group
  int32_t part_tiles = 1;      // a part has at least so many, unless its row has fewer
  int32_t filling_splits = 1;  // parts of a row with which all rows together fill the GPU
  int32_t max_splits = 1;      // of any row
};

DecodeAttentionPlan PlanDecodeAttention(const DecodeAttentionBounds& bounds);

// Into how many parts a row of `tiles` tiles is cut: enough to fill the GPU, and none longer than
// kDecodeMaxPartTiles, but none so short that its result, which is written and read once, weighs
// against its keys and values. At least 1. A row beyond the plan's bounds has longer parts.
SEMKV_HOST_DEVICE inline int32_t NumDecodeSplits(const DecodeAttentionPlan& plan, int32_t tiles) {
  int32_t splits = CeilDiv(tiles, kDecodeMaxPartTiles);
  if (splits < plan.filling_splits) splits = plan.filling_splits;
  if (splits > tiles / plan.part_tiles) splits = tiles / plan.part_tiles;
  if (splits > plan.max_splits) splits = plan.max_splits;
  return splits < 1 ? 1 : splits;
}

// The workspace: a counter per (row, head group), zero between launches, then what the parts of
// rows that are cut leave for the last of them: float32, [row][group][split][head] of
// DecodePartFloats each (the sums over values, the greatest score, the sum of weights).
SEMKV_HOST_DEVICE inline int64_t DecodePartFloats(int32_t head_dim) { return head_dim + 4; }

inline size_t DecodeCounterBytes(const DecodeAttentionPlan& plan) {
  constexpr size_t kAlignment = 64;
  const size_t counters = static_cast<size_t>(plan.num_rows) * plan.num_groups * sizeof(uint32_t);
  return CeilDiv(counters, kAlignment) * kAlignment;
}

size_t DecodeAttentionCudaWorkspaceBytes(const DecodeAttentionPlan& plan);

// Null when the CUDA form takes `params`, else the reason, naming the value. What both forms take
// (DecodeShapeUnsupported) of float16 or bfloat16, the same in q and the pools, or pools of
// kFloat8E4M3, with the same scales in both; and rows of q, out, keys and values at multiples of 16
// bytes.
const char* DecodeAttentionCudaUnsupported(const DecodeAttentionParams& params);

// The same for a plan that was made for other shapes.
bool PlanServes(const DecodeAttentionPlan& plan, const DecodeAttentionParams& params);

}  // namespace semkv

#endif  // SEMKV_OPS_ATTENTION_DECODE_ATTENTION_PLAN_H_
