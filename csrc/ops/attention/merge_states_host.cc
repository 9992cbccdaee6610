#include "csrc/ops/attention/merge_states.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "csrc/ops/parallel/thread_pool.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "csrc/ops/attention/merge_states_host.cc"
#include <hwy/foreach_target.h>

#include "csrc/ops/numeric/float_convert-inl.h"

HWY_BEFORE_NAMESPACE();
namespace semkv {
namespace HWY_NAMESPACE {
namespace {

constexpr int32_t kBlockChannels = 64;  // of sums that stay in L1
constexpr float kLowest = -std::numeric_limits<float>::infinity();

// sums[0, n) += weight * o[0, n).
template <DType kDType>
void AddChannels(const typename Element<kDType>::Type* o, float weight, int32_t n, float* sums) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::ScalableTag<float> d;
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(d));
  const auto weights = hn::Set(d, weight);
  int32_t c = 0;
  for (; c + lanes <= n; c += lanes) {
    const auto x = Element<kDType>::Load(d, o + c);
    hn::StoreU(hn::MulAdd(weights, x, hn::LoadU(d, sums + c)), d, sums + c);
  }
  for (; c < n; ++c) sums[c] += weight * LoadAsFloat(o, kDType, c);
}

template <DType kDType, DType kOutDType>
void MergeHead(const MergeStatesParams& p, int64_t row_head) {
  const int64_t heads = int64_t{p.num_rows} * p.num_heads;
  const auto* o = static_cast<const typename Element<kDType>::Type*>(p.o) + row_head * p.head_dim;
  auto* out = static_cast<typename Element<kOutDType>::Type*>(p.out) +
              row_head / p.num_heads * p.out_row + row_head % p.num_heads * p.out_head;
  const float* lse = p.lse + row_head;
  float max = kLowest;
  for (int32_t i = 0; i < p.num_states; ++i) max = std::fmax(max, lse[i * heads]);
  const float base = max == kLowest ? 0.0f : max;
  float sum = 0.0f;
  for (int32_t i = 0; i < p.num_states; ++i) sum += std::exp(lse[i * heads] - base);
  const float scale = sum == 0.0f ? 0.0f : 1.0f / sum;
  for (int32_t begin = 0; begin < p.head_dim; begin += kBlockChannels) {
    const int32_t n = std::min(kBlockChannels, p.head_dim - begin);
    float sums[kBlockChannels] = {};
    for (int32_t i = 0; i < p.num_states; ++i) {
      if (lse[i * heads] == kLowest) continue;
      const float weight = std::exp(lse[i * heads] - base) * scale;
      AddChannels<kDType>(o + i * heads * p.head_dim + begin, weight, n, sums);
    }
    ConvertRow<DType::kFloat32, kOutDType>(sums, n, out + begin);
  }
  if (p.out_lse != nullptr) p.out_lse[row_head] = max + std::log(sum);
}

void MergeHeads(const MergeStatesParams& p, int64_t begin, int64_t end) {
  DispatchDType(p.dtype, [&](auto from) {
    DispatchDType(p.out_dtype, [&](auto to) {
      for (int64_t i = begin; i < end; ++i) {
        MergeHead<decltype(from)::kDType, decltype(to)::kDType>(p, i);
      }
    });
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace semkv
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace semkv {
namespace {

HWY_EXPORT(MergeHeads);

// Heads per task: a few tens of KiB of states, so that a task outweighs its dispatch.
constexpr int64_t kTaskHeads = 16;

bool IsAligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace

void MergeStatesHost(const MergeStatesParams& params, ThreadPool& pool) {
  const int64_t heads = int64_t{params.num_rows} * params.num_heads;
  pool.Run(CeilDiv(heads, kTaskHeads), [&](int64_t task, int) {
    HWY_DYNAMIC_DISPATCH(MergeHeads)
    (params, task * kTaskHeads, std::min(heads, (task + 1) * kTaskHeads));
  });
}

const char* MergeStatesCudaUnsupported(const MergeStatesParams& p) {
  constexpr int64_t kMaxUnits = std::numeric_limits<int32_t>::max();
  if (p.out_dtype == DType::kFloat8E4M3) return "dtype of out is float8 e4m3";
  if (p.dtype != DType::kFloat32 && p.dtype != p.out_dtype) {
    return "dtype of o is neither float32 nor that of out";
  }
  if (p.head_dim < 1 || p.head_dim % 8 != 0) return "head_dim is not a multiple of 8";
  if (p.num_states < 0 || p.num_rows < 0 || p.num_heads < 0) return "a negative size";
  if (int64_t{p.num_rows} * p.num_heads > kMaxUnits / (p.head_dim / 8)) {
    return "num_rows * num_heads * head_dim is above 2^34";
  }
  const int64_t out_bytes = DTypeBytes(p.out_dtype);
  if (!IsAligned(p.o)) return "o is not aligned to 16 bytes";
  if (!IsAligned(p.out) || p.out_row * out_bytes % 16 != 0 || p.out_head * out_bytes % 16 != 0) {
    return "out is not aligned to 16 bytes";
  }
  return nullptr;
}

}  // namespace semkv

#endif  // HWY_ONCE
