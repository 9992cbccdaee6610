// list_means on the GPU: the kernel, its launch shape and the choice of its instance.

#ifndef SEMKV_OPS_CACHE_LIST_MEANS_KERNEL_CUH_
#define SEMKV_OPS_CACHE_LIST_MEANS_KERNEL_CUH_

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "csrc/ops/cache/list_means.h"
#include "csrc/ops/cuda/launch_shape.h"
#include "csrc/ops/cuda/shared_memory.cuh"
#include "csrc/ops/cuda/vector_access.cuh"
#include "csrc/ops/cuda/warp_reduce.cuh"

namespace semkv::cuda {

constexpr int32_t kListMeansWarps = 4;
constexpr int32_t kListMeansThreads = kListMeansWarps * kWarpSize;
constexpr int32_t kListMeansMaxHeadDim = 512;
constexpr int32_t kListMeansBlock = 32 * kListMeansWarps;  // members

// How a warp reads a key: a lane has 4 channels at a time in one access of 16 bytes, or one
// channel.
enum class ListMeansUnit { kVectors, kElements };

// What the warps of a CTA tell each other, besides their mean keys.
struct ListMeansShared {
  float count[kListMeansWarps];
  float squares[kListMeansWarps];  // sum of squared distances to the warp's own mean
  float spread[kListMeansWarps];   // and of the warps' means to the list's
};

// Per lane: the channel of its i-th number.
template <ListMeansUnit kUnit>
__device__ inline int32_t ListMeansChannel(int32_t i, int32_t lane) {
  if constexpr (kUnit == ListMeansUnit::kVectors) return (i / 4 * kWarpSize + lane) * 4 + i % 4;
  return i * kWarpSize + lane;
}

// Per warp: x of each lane = its numbers of the key; 0 beyond head_dim.
template <ListMeansUnit kUnit, int32_t kNumbers>
__device__ inline void LoadKey(const float* key, int32_t head_dim, int32_t lane,
                               float (&x)[kNumbers]) {
  constexpr int32_t kPerAccess = kUnit == ListMeansUnit::kVectors ? 4 : 1;
  for (int32_t i = 0; i < kNumbers; i += kPerAccess) {
    const int32_t channel = ListMeansChannel<kUnit>(i, lane);
    for (int32_t j = 0; j < kPerAccess; ++j) x[i + j] = 0.0f;
    if (channel >= head_dim) continue;
    if constexpr (kUnit == ListMeansUnit::kVectors) {
      const Vec16 vector = LoadStreaming(key + channel);
      std::memcpy(x + i, &vector, sizeof(vector));
    } else {
      x[i] = key[channel];
    }
  }
}

// Per lane: what a warp has added up. Distances are from the first key, so that an offset of a
// channel does not cancel.
template <int32_t kNumbers>
struct ListMeansSums {
  float first[kNumbers] = {}, distance[kNumbers] = {};
  float squares = 0.0f, count = 0.0f;
};

// Per warp: adds members [begin, end) in steps of the warps. Sums of a block join the total as one
// number, which keeps float32 exact enough for 65,535 members.
template <ListMeansUnit kUnit, int32_t kNumbers>
__device__ inline void AddBlock(const ListMeansParams& p, int32_t begin, int32_t end, int32_t lane,
                                ListMeansSums<kNumbers>& total) {
  float block[kNumbers] = {};
  float squares = 0.0f;
  for (int32_t m = begin; m < end; m += kListMeansWarps) {
    const int64_t token = p.members != nullptr ? p.members[m] : m;
    float x[kNumbers];
    LoadKey<kUnit>(p.keys + token * p.head_dim, p.head_dim, lane, x);
    bool finite = true;
    for (int32_t i = 0; i < kNumbers; ++i) finite = finite && x[i] * 0.0f == 0.0f;
    if (!__all_sync(kAllLanes, finite)) continue;
    for (int32_t i = 0; i < kNumbers; ++i) {
      if (total.count == 0.0f) total.first[i] = x[i];
      const float distance = x[i] - total.first[i];
      block[i] += distance;
      squares = fmaf(distance, distance, squares);
    }
    total.count += 1.0f;
  }
  for (int32_t i = 0; i < kNumbers; ++i) total.distance[i] += block[i];
  total.squares += squares;
}

// Per warp: mean key of the warp's members of [begin, end) and squared distances to it, into shared
// memory, in one pass.
template <ListMeansUnit kUnit, int32_t kNumbers>
__device__ inline void AddMembers(const ListMeansParams& p, int32_t begin, int32_t end,
                                  int32_t warp, int32_t lane, ListMeansShared& shared,
                                  float* warp_mean) {
  ListMeansSums<kNumbers> sums;
  for (int32_t m = begin; m < end; m += kListMeansBlock) {
    const int32_t block_end = end - m < kListMeansBlock ? end : m + kListMeansBlock;
    AddBlock<kUnit>(p, m + warp, block_end, lane, sums);
  }
  const float scale = sums.count > 0.0f ? 1.0f / sums.count : 0.0f;
  for (int32_t i = 0; i < kNumbers; ++i) {
    sums.squares -= sums.distance[i] * sums.distance[i] * scale;
    const int32_t channel = ListMeansChannel<kUnit>(i, lane);
    if (channel < p.head_dim) warp_mean[channel] = sums.first[i] + sums.distance[i] * scale;
  }
  const float squares = WarpSum(sums.squares);
  if (lane == 0) {
    shared.count[warp] = sums.count;
    shared.squares[warp] = squares;
  }
}

// grid = nlist; a CTA has one list, its warps every kListMeansWarps-th member each.
template <ListMeansUnit kUnit, int32_t kNumbers>
__global__ void __launch_bounds__(kListMeansThreads)
    ListMeansKernel(const __grid_constant__ ListMeansParams p) {
  ListMeansShared& shared = SharedMemory<ListMeansShared>();
  float* warp_means = reinterpret_cast<float*>(DynamicSharedMemory());  // [warps, head_dim]
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t warp = thread / kWarpSize;
  const int32_t lane = thread % kWarpSize;
  const int64_t list = blockIdx.x;
  AddMembers<kUnit, kNumbers>(p, p.offsets[list], p.offsets[list + 1], warp, lane, shared,
                              warp_means + warp * p.head_dim);
  __syncthreads();

  float count = 0.0f;
  for (int32_t w = 0; w < kListMeansWarps; ++w) count += shared.count[w];
  const float scale = count > 0.0f ? 1.0f / count : 0.0f;
  float spread = 0.0f;
  for (int32_t channel = thread; channel < p.head_dim; channel += kListMeansThreads) {
    float mean = 0.0f;
    for (int32_t w = 0; w < kListMeansWarps; ++w) {
      mean = fmaf(shared.count[w] * scale, warp_means[w * p.head_dim + channel], mean);
    }
    for (int32_t w = 0; w < kListMeansWarps; ++w) {
      const float distance = warp_means[w * p.head_dim + channel] - mean;
      spread = fmaf(shared.count[w] * distance, distance, spread);
    }
    p.means[list * p.head_dim + channel] = mean;
  }
  if (p.variances == nullptr) return;
  spread = WarpSum(spread);
  if (lane == 0) shared.spread[warp] = spread;
  __syncthreads();
  if (thread != 0) return;
  float squares = 0.0f;
  for (int32_t w = 0; w < kListMeansWarps; ++w) squares += shared.squares[w] + shared.spread[w];
  p.variances[list] = squares * scale;
}

inline bool ListMeansTakesVectors(const ListMeansParams& p) {
  return reinterpret_cast<uintptr_t>(p.keys) % 16 == 0 && p.head_dim % 4 == 0;
}

inline LaunchShape ListMeansLaunchShape(const ListMeansParams& p) {
  LaunchShape shape;
  shape.grid_x = static_cast<uint32_t>(p.nlist);
  shape.threads = kListMeansThreads;
  shape.dynamic_shared_bytes = static_cast<uint32_t>(kListMeansWarps * p.head_dim * sizeof(float));
  return shape;
}

// Returns launch(kernel, shape) with the instance of ListMeansKernel that serves `params`, whose
// head_dim is at most kListMeansMaxHeadDim.
template <typename Launch>
auto DispatchListMeans(const ListMeansParams& params, const Launch& launch) {
  const LaunchShape shape = ListMeansLaunchShape(params);
  const bool vectors = ListMeansTakesVectors(params);
  const auto with_numbers = [&](auto numbers) {
    constexpr int32_t kNumbers = decltype(numbers)::value;
    return vectors ? launch(&ListMeansKernel<ListMeansUnit::kVectors, kNumbers>, shape)
                   : launch(&ListMeansKernel<ListMeansUnit::kElements, kNumbers>, shape);
  };
  if (params.head_dim <= 4 * kWarpSize) return with_numbers(std::integral_constant<int32_t, 4>{});
  if (params.head_dim <= 8 * kWarpSize) return with_numbers(std::integral_constant<int32_t, 8>{});
  return with_numbers(std::integral_constant<int32_t, kListMeansMaxHeadDim / kWarpSize>{});
}

}  // namespace semkv::cuda

#endif  // SEMKV_OPS_CACHE_LIST_MEANS_KERNEL_CUH_
