// merge_states on the GPU: the kernel, its launch shape and the choice of its instance.

#ifndef SEMKV_OPS_ATTENTION_MERGE_STATES_KERNEL_CUH_
#define SEMKV_OPS_ATTENTION_MERGE_STATES_KERNEL_CUH_

#include <cstdint>

#include "csrc/ops/attention/merge_states.h"
#include "csrc/ops/attention/result_channels.cuh"
#include "csrc/ops/cuda/dependent_launch.cuh"
#include "csrc/ops/cuda/dispatch.h"
#include "csrc/ops/cuda/element.cuh"
#include "csrc/ops/cuda/exp2.cuh"
#include "csrc/ops/cuda/launch_shape.h"
#include "semkv/types.h"

namespace semkv::cuda {

constexpr int32_t kMergeThreads = 128;

// A thread has kPartChannels channels of one head. It looks for the greatest lse first, so that
// the loads of the states depend on nothing and several are in flight; differences of lse are taken
// before the change to base 2, which would round large ones.
template <DType kFrom, DType kTo>
__global__ void __launch_bounds__(kMergeThreads)
    MergeStatesKernel(const __grid_constant__ MergeStatesParams p) {
  WaitForPreviousKernel();
  const uint32_t unit = blockIdx.x * kMergeThreads + threadIdx.x;
  const uint32_t head_units = static_cast<uint32_t>(p.head_dim / kPartChannels);
  const uint32_t row_head = unit / head_units;
  const uint32_t row = row_head / static_cast<uint32_t>(p.num_heads);
  if (row >= static_cast<uint32_t>(p.num_rows)) return;
  const uint32_t head = row_head - row * static_cast<uint32_t>(p.num_heads);
  const uint32_t channel = (unit - row_head * head_units) * kPartChannels;
  const int64_t heads = int64_t{p.num_rows} * p.num_heads;
  const float* lse = p.lse + row_head;
  const auto* o = static_cast<const ElementBits<kFrom>*>(p.o) + int64_t{row_head} * p.head_dim;
  float max = LowestScore();
  for (int32_t i = 0; i < p.num_states; ++i) max = fmaxf(max, lse[i * heads]);
  const float base = max == LowestScore() ? 0.0f : max;
  float sum = 0.0f;
  float out[kPartChannels] = {};
  for (int32_t i = 0; i < p.num_states; ++i) {
    float x[kPartChannels];
    LoadChannels<kFrom>(o + i * heads * p.head_dim + channel, x);
    const float state_lse = lse[i * heads];
    const float weight = Exp2((state_lse - base) * kLog2E);
    sum += weight;
    for (int32_t c = 0; c < kPartChannels; ++c) {
      const float value = state_lse == LowestScore() ? 0.0f : x[c];
      out[c] = fmaf(weight, value, out[c]);
    }
  }
  const float scale = sum == 0.0f ? 0.0f : 1.0f / sum;
  for (float& x : out) x *= scale;
  StoreChannels<kTo>(
      static_cast<ElementBits<kTo>*>(p.out) + row * p.out_row + head * p.out_head + channel, out);
  if (p.out_lse != nullptr && channel == 0) p.out_lse[row_head] = max + log2f(sum) * kLn2;
}

// Returns launch(kernel, shape) with the instance of MergeStatesKernel that serves `params`, which
// MergeStatesCudaUnsupported accepts.
template <typename Launch>
auto DispatchMergeStates(const MergeStatesParams& params, const Launch& launch) {
  const int64_t units =
      int64_t{params.num_rows} * params.num_heads * (params.head_dim / kPartChannels);
  LaunchShape shape;
  shape.grid_x = static_cast<uint32_t>(CeilDiv(units, int64_t{kMergeThreads}));
  shape.threads = kMergeThreads;
  shape.overlaps_previous = true;
  return DispatchDType(params.out_dtype, [&](auto to) {
    constexpr DType kTo = decltype(to)::value;
    if (params.dtype == kTo) return launch(&MergeStatesKernel<kTo, kTo>, shape);
    return launch(&MergeStatesKernel<DType::kFloat32, kTo>, shape);
  });
}

}  // namespace semkv::cuda

#endif  // SEMKV_OPS_ATTENTION_MERGE_STATES_KERNEL_CUH_
