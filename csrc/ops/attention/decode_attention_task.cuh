// What a CTA of decode attention works on, where its tokens are, and how results of parts of a row
// join: everything but the arithmetic on tiles (decode_attention_kernel.cuh).

#ifndef SEMKV_OPS_ATTENTION_DECODE_ATTENTION_TASK_CUH_
#define SEMKV_OPS_ATTENTION_DECODE_ATTENTION_TASK_CUH_

#include <cstdint>

#include "csrc/ops/attention/decode_attention.h"
#include "csrc/ops/attention/decode_attention_plan.h"
#include "csrc/ops/attention/result_channels.cuh"
#include "csrc/ops/cuda/exp2.cuh"

namespace semkv::cuda {

// The kernel's one argument.
struct DecodeAttentionLaunch {
  DecodeAttentionParams params;
  DecodeAttentionPlan plan;
  uint32_t* counters;  // of the workspace
  float* parts;
};

// A part of the tokens of a row, for one group of heads.
struct DecodeTask {
  int32_t row, group_index;
  DecodeHeadGroup group;
  int32_t split, num_splits;
  bool is_dense;
  const int32_t* list_slots;  // of the row's first num_list tokens
  const int32_t* slots;       // of the others; dense: page ids
  int32_t num_list;
  int32_t begin, end;  // tokens of the part; begin is the first of a tile
};

// The slots of (row, selection) in one pool; their number is returned, and 0 for an unused pool.
__device__ inline int32_t FindSlots(const SlotLists& lists, int32_t num_selections, int32_t row,
                                    int32_t selection, const int32_t** slots) {
  *slots = nullptr;
  if (lists.slots == nullptr) return 0;
  *slots = lists.slots + row * lists.row_stride + selection * lists.selection_stride;
  const int32_t count = lists.counts[int64_t{row} * num_selections + selection];
  return count < 0 ? 0 : count;
}

// Finds the tokens of the task's row and returns their number.
__device__ inline int32_t FindRowTokens(const DecodeAttentionParams& p, DecodeTask& task) {
  task.num_list = 0;
  task.list_slots = nullptr;
  if (task.is_dense) {
    task.slots = p.block_table + task.row * p.block_table_stride;
    return p.row_tokens[task.row];
  }
  const int32_t s = task.group.selection;
  task.num_list = FindSlots(p.list_slots, p.num_selections, task.row, s, &task.list_slots);
  return task.num_list + FindSlots(p.position_slots, p.num_selections, task.row, s, &task.slots);
}

// False when there is nothing to do for this CTA: grid = (splits, head groups, rows) is for the
// longest row there may be.
__device__ inline bool GetDecodeTask(const DecodeAttentionLaunch& launch, DecodeTask& task) {
  const DecodeAttentionParams& p = launch.params;
  task.row = static_cast<int32_t>(blockIdx.z);
  task.group_index = static_cast<int32_t>(blockIdx.y);
  task.split = static_cast<int32_t>(blockIdx.x);
  task.is_dense = p.row_tokens != nullptr && p.row_tokens[task.row] >= 0;
  const int32_t num_selections = task.is_dense ? p.num_kv_heads : p.num_selections;
  if (task.group_index >= NumDecodeHeadGroups(p.num_heads, num_selections)) return false;
  task.group = GetDecodeHeadGroup(p.num_heads, p.num_kv_heads, num_selections, task.group_index);
  const int32_t num_tokens = FindRowTokens(p, task);
  const int32_t tiles = CeilDiv(num_tokens, kDecodeTileTokens);
  task.num_splits = NumDecodeSplits(launch.plan, tiles);
  if (task.split >= task.num_splits) return false;
  const int64_t first = int64_t{tiles} * task.split / task.num_splits;
  const int64_t last = int64_t{tiles} * (task.split + 1) / task.num_splits;
  task.begin = static_cast<int32_t>(first) * kDecodeTileTokens;
  task.end = static_cast<int32_t>(last) * kDecodeTileTokens;
  if (task.end > num_tokens) task.end = num_tokens;
  return true;
}

// The slot of the row's token i; kNoSlot beyond the part.
__device__ inline int32_t SlotOfToken(const DecodeAttentionParams& p, const DecodeTask& task,
                                      int32_t i) {
  if (i >= task.end) return kNoSlot;
  if (task.is_dense) {
    const int32_t shift = PageShift(p.position);
    return task.slots[i >> shift] * p.position.page_tokens + (i & (p.position.page_tokens - 1));
  }
  return i < task.num_list ? task.list_slots[i] : task.slots[i - task.num_list];
}

// ------------------------------ results

// What one query head has seen of some tokens, for kPartChannels channels: the greatest score s (in
// units of log 2), the sum of w = 2^(s - max), the sums of w * value.
struct DecodePart {
  float max, sum;
  float out[kPartChannels];
};

// Adds what the head has seen of other tokens.
__device__ inline void Join(DecodePart& part, const DecodePart& other) {
  const float max = fmaxf(part.max, other.max);
  const float base = max == LowestScore() ? 0.0f : max;
  const float mine = Exp2(part.max - base);
  const float others = Exp2(other.max - base);
  part.max = max;
  part.sum = fmaf(part.sum, mine, other.sum * others);
  for (int32_t c = 0; c < kPartChannels; ++c) {
    part.out[c] = fmaf(part.out[c], mine, other.out[c] * others);
  }
}

// Of the workspace: head_dim sums, max, sum.
__device__ inline float* PartOf(const DecodeAttentionLaunch& launch, const DecodeTask& task,
                                int32_t split, int32_t head) {
  const DecodeAttentionPlan& plan = launch.plan;
  const int64_t group = int64_t{task.row} * plan.num_groups + task.group_index;
  const int64_t index = (group * plan.max_splits + split) * plan.group_heads + head;
  return launch.parts + index * DecodePartFloats(plan.head_dim);
}

__device__ inline void StorePart(const DecodeAttentionLaunch& launch, const DecodeTask& task,
                                 int32_t head, int32_t channel, const DecodePart& part) {
  float* to = PartOf(launch, task, task.split, head);
  StoreFloats(to + channel, part.out);
  if (channel != 0) return;
  to[launch.params.head_dim] = part.max;
  to[launch.params.head_dim + 1] = part.sum;
}

__device__ inline DecodePart LoadPart(const DecodeAttentionLaunch& launch, const DecodeTask& task,
                                      int32_t split, int32_t head, int32_t channel) {
  const float* from = PartOf(launch, task, split, head);
  DecodePart part;
  LoadFloats(from + channel, part.out);
  part.max = from[launch.params.head_dim];
  part.sum = from[launch.params.head_dim + 1];
  return part;
}

// Adds the estimate of what a sparse row did not read.
__device__ inline void JoinRest(const DecodeAttentionParams& p, int64_t row_head, int32_t channel,
                                DecodePart& part) {
  const float lse = p.rest_lse[row_head];
  if (lse == LowestScore()) return;
  DecodePart rest;
  rest.max = lse * kLog2E;
  rest.sum = 1.0f;
  LoadFloats(p.rest_out + row_head * p.head_dim + channel, rest.out);
  Join(part, rest);
}

// `head` of the group, `channel` the first of the part's.
template <DType kDType>
__device__ inline void StoreResult(const DecodeAttentionParams& p, const DecodeTask& task,
                                   int32_t head, int32_t channel, DecodePart part) {
  const int32_t h = task.group.first_head + head;
  const int64_t row_head = int64_t{task.row} * p.num_heads + h;
  if (!task.is_dense && p.rest_lse != nullptr) JoinRest(p, row_head, channel, part);
  const float scale = part.sum == 0.0f ? 0.0f : 1.0f / part.sum;
  for (float& x : part.out) x *= scale;
  StoreChannels<kDType>(
      static_cast<uint16_t*>(p.out) + task.row * p.out_row + h * p.out_head + channel, part.out);
  if (p.lse != nullptr && channel == 0) p.lse[row_head] = (part.max + log2f(part.sum)) * kLn2;
}

}  // namespace semkv::cuda

#endif  // SEMKV_OPS_ATTENTION_DECODE_ATTENTION_TASK_CUH_
