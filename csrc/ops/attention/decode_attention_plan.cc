#include "csrc/ops/attention/decode_attention_plan.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>

namespace semkv {
namespace {

constexpr int32_t kResidentCtas = 2;  // per multiprocessor, which the plan tries to fill
constexpr int32_t kMaxGridRows = 65535;

int32_t LargestGroup(int32_t num_heads, int32_t num_selections) {
  return num_selections == 0 ? 0 : std::min(num_heads / num_selections, kDecodeMaxGroupHeads);
}

bool IsAligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// A stride of 16-bit elements.
bool IsAligned(int64_t stride) { return stride % 8 == 0; }

bool IsAligned(const KvView& view) {
  const int64_t strides[] = {view.k_page, view.k_head, view.k_token,
                             view.v_page, view.v_head, view.v_token};
  return IsAligned(view.k) && IsAligned(view.v) &&
         std::all_of(std::begin(strides), std::end(strides),
                     [&](int64_t stride) { return stride * DTypeBytes(view.dtype) % 16 == 0; });
}

bool IsScale(float x) { return x > 0.0f && x <= std::numeric_limits<float>::max(); }

const char* PoolsUnsupported(const DecodeAttentionParams& p) {
  const bool has_position = p.position.k != nullptr, has_list = p.list.k != nullptr;
  if (has_position && p.position.dtype != p.q_dtype && p.position.dtype != DType::kFloat8E4M3) {
    return "dtype of the position pool is not that of q, nor float8 e4m3";
  }
  if (has_list && p.list.dtype != p.q_dtype && p.list.dtype != DType::kFloat8E4M3) {
    return "dtype of the list pool is not that of q, nor float8 e4m3";
  }
  if (has_position && has_list && p.position.dtype != p.list.dtype) {
    return "the position pool and the list pool differ in dtype";
  }
  if (has_position && has_list &&
      (p.position.k_scale != p.list.k_scale || p.position.v_scale != p.list.v_scale)) {
    return "the position pool and the list pool differ in k_scale or v_scale";
  }
  for (const KvView* view : {&p.position, &p.list}) {
    if (view->k == nullptr) continue;
    if (view->dtype != DType::kFloat8E4M3 && (view->k_scale != 1.0f || view->v_scale != 1.0f)) {
      return "k_scale or v_scale is not 1 and the pool not float8 e4m3";
    }
    if (!IsScale(view->k_scale) || !IsScale(view->v_scale)) {
      return "k_scale or v_scale is not a positive number";
    }
  }
  return nullptr;
}

}  // namespace

DecodeAttentionPlan PlanDecodeAttention(const DecodeAttentionBounds& bounds) {
  DecodeAttentionPlan plan;
  plan.num_rows = bounds.num_rows;
  plan.head_dim = bounds.head_dim;
  plan.num_groups = std::max(NumDecodeHeadGroups(bounds.num_heads, bounds.num_kv_heads),
                             NumDecodeHeadGroups(bounds.num_heads, bounds.num_selections));
  plan.group_heads = std::max(LargestGroup(bounds.num_heads, bounds.num_kv_heads),
                              LargestGroup(bounds.num_heads, bounds.num_selections));
  // A part's result is written and read: 8 bytes per head and channel, against 256 of a tile.
  // Of e4m3 that is 128.
  plan.part_tiles = bounds.kv_dtype == DType::kFloat8E4M3
                        ? std::max(3, CeilDiv(3 * plan.group_heads, 4))
                        : std::max(2, CeilDiv(plan.group_heads, 2));
  const int64_t groups = std::max<int64_t>(1, int64_t{plan.num_rows} * plan.num_groups);
  const int64_t ctas = int64_t{kResidentCtas} * bounds.num_multiprocessors;
  plan.filling_splits = static_cast<int32_t>(CeilDiv(ctas, groups));
  const int32_t tiles = CeilDiv(std::max(bounds.max_row_tokens, 0), kDecodeTileTokens);
  const int32_t wanted = std::max(plan.filling_splits, CeilDiv(tiles, kDecodeMaxPartTiles));
  plan.max_splits = std::max(1, std::min(wanted, tiles / plan.part_tiles));
  return plan;
}

size_t DecodeAttentionCudaWorkspaceBytes(const DecodeAttentionPlan& plan) {
  if (plan.max_splits == 1) return DecodeCounterBytes(plan);
  const size_t heads =
      static_cast<size_t>(plan.num_rows) * plan.num_groups * plan.max_splits * plan.group_heads;
  return DecodeCounterBytes(plan) + heads * DecodePartFloats(plan.head_dim) * sizeof(float);
}

const char* DecodeAttentionCudaUnsupported(const DecodeAttentionParams& p) {
  if (const char* reason = DecodeShapeUnsupported(p); reason != nullptr) return reason;
  if (p.q_dtype == DType::kFloat32) return "dtype of q is float32";
  if (p.q_dtype != DType::kFloat16 && p.q_dtype != DType::kBFloat16) {
    return "dtype of q is not float16 or bfloat16";
  }
  if (const char* reason = PoolsUnsupported(p); reason != nullptr) return reason;
  if (!IsAligned(p.q) || !IsAligned(p.q_row) || !IsAligned(p.q_head)) {
    return "q is not aligned to 16 bytes";
  }
  if (!IsAligned(p.out) || !IsAligned(p.out_row) || !IsAligned(p.out_head)) {
    return "out is not aligned to 16 bytes";
  }
  if (!IsAligned(p.position)) return "the position pool is not aligned to 16 bytes";
  if (p.list.k != nullptr && !IsAligned(p.list)) return "the list pool is not aligned to 16 bytes";
  if (!IsAligned(p.rest_out)) return "rest_out is not aligned to 16 bytes";
  if (p.num_rows > kMaxGridRows) return "num_rows is above 65535";
  return nullptr;
}

bool PlanServes(const DecodeAttentionPlan& plan, const DecodeAttentionParams& p) {
  const int32_t groups = std::max(NumDecodeHeadGroups(p.num_heads, p.num_kv_heads),
                                  NumDecodeHeadGroups(p.num_heads, p.num_selections));
  const int32_t heads = std::max(LargestGroup(p.num_heads, p.num_kv_heads),
                                 LargestGroup(p.num_heads, p.num_selections));
  return p.num_rows <= plan.num_rows && groups <= plan.num_groups && heads <= plan.group_heads &&
         p.head_dim == plan.head_dim;
}

}  // namespace semkv
