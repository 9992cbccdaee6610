#include "csrc/ops/cache/write_kv.h"

#include <algorithm>
#include <cassert>
#include <cstring>

#include "csrc/ops/parallel/thread_pool.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "csrc/ops/cache/write_kv_host.cc"
#include <hwy/foreach_target.h>

#include "csrc/ops/numeric/float_convert-inl.h"

HWY_BEFORE_NAMESPACE();
namespace semkv {
namespace HWY_NAMESPACE {
namespace {

template <DType kFrom, DType kTo>
void WriteTokens(const WriteKvParams& params, int32_t begin, int32_t end) {
  using From = typename Element<kFrom>::Type;
  using To = typename Element<kTo>::Type;
  const KvView& view = params.view;
  const From* k = static_cast<const From*>(params.k);
  const From* v = static_cast<const From*>(params.v);
  for (int32_t t = begin; t < end; ++t) {
    const int32_t slot = params.slots[t];
    if (slot < 0) continue;
    for (int32_t g = 0; g < params.num_kv_heads; ++g) {
      const From* key = k + t * params.k_token + g * params.k_head;
      const From* value = v + t * params.v_token + g * params.v_head;
      To* key_slot = static_cast<To*>(view.k) + KeyOffset(view, slot, g);
      To* value_slot = static_cast<To*>(view.v) + ValueOffset(view, slot, g);
      if constexpr (kFrom == kTo) {
        std::memcpy(key_slot, key, params.head_dim * sizeof(To));
        std::memcpy(value_slot, value, params.head_dim * sizeof(To));
      } else {
        ConvertRow<kFrom, kTo>(key, params.head_dim, key_slot);
        ConvertRow<kFrom, kTo>(value, params.head_dim, value_slot);
      }
    }
  }
}

void WriteKv(const WriteKvParams& params, int32_t begin, int32_t end) {
  DispatchDType(params.dtype, [&](auto from) {
    DispatchDType(params.view.dtype, [&](auto to) {
      WriteTokens<decltype(from)::kDType, decltype(to)::kDType>(params, begin, end);
    });
  });
}

void GatherRow(const KvView& view, const void* base, int64_t row_offset, int32_t head_dim,
               float* row) {
  DispatchDType(view.dtype, [&](auto from) {
    using From = typename Element<decltype(from)::kDType>::Type;
    ConvertRow<decltype(from)::kDType, DType::kFloat32>(static_cast<const From*>(base) + row_offset,
                                                        head_dim, row);
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace semkv
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace semkv {
namespace {

HWY_EXPORT(WriteKv);
HWY_EXPORT(GatherRow);

// Tokens per task: a few tens of KiB of keys and values, so that a task outweighs its dispatch.
constexpr int32_t kTaskTokens = 32;

}  // namespace

void WriteKvHost(const WriteKvParams& params, ThreadPool& pool) {
  assert(params.view.dtype != DType::kFloat8E4M3);
  pool.Run(CeilDiv(params.num_tokens, kTaskTokens), [&](int64_t task, int) {
    const int32_t begin = static_cast<int32_t>(task) * kTaskTokens;
    HWY_DYNAMIC_DISPATCH(WriteKv)
    (params, begin, std::min(begin + kTaskTokens, params.num_tokens));
  });
}

// Dispatched row by row: before a process's first call the table's pointer is one that asks the
// processor for its features, which a virtual machine answers in tens of microseconds.
void GatherKeys(const KvView& view, int32_t head, int32_t head_dim, const int32_t* slots,
                int32_t num_slots, float* rows) {
  for (int32_t i = 0; i < num_slots; ++i) {
    HWY_DYNAMIC_DISPATCH(GatherRow)
    (view, view.k, KeyOffset(view, slots[i], head), head_dim, rows + int64_t{i} * head_dim);
  }
}

void GatherValues(const KvView& view, int32_t head, int32_t head_dim, const int32_t* slots,
                  int32_t num_slots, float* rows) {
  for (int32_t i = 0; i < num_slots; ++i) {
    HWY_DYNAMIC_DISPATCH(GatherRow)
    (view, view.v, ValueOffset(view, slots[i], head), head_dim, rows + int64_t{i} * head_dim);
  }
}

}  // namespace semkv

#endif  // HWY_ONCE
