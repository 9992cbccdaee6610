// Decode attention on the GPU: the kernel, its launch shape and the choice of its instance.
//
// A CTA has a part of the tokens of one row for one group of query heads, padded to the 16 rows of
// a tensor core product. Its warps work alone until the end: of each tile of 64 tokens a warp
// copies, multiplies and weighs 16, so that no barrier is in the loop and each warp's copies run
// ahead by themselves. Then the warps' results join, and if the row was cut, the last of its CTAs
// joins those of all parts, in their order.

#ifndef SEMKV_OPS_ATTENTION_DECODE_ATTENTION_KERNEL_CUH_
#define SEMKV_OPS_ATTENTION_DECODE_ATTENTION_KERNEL_CUH_

#include <cstdint>
#include <type_traits>

#include "csrc/ops/attention/decode_attention_products.cuh"
#include "csrc/ops/attention/decode_attention_task.cuh"
#include "csrc/ops/cuda/copy_async.cuh"
#include "csrc/ops/cuda/dependent_launch.cuh"
#include "csrc/ops/cuda/last_cta.cuh"
#include "csrc/ops/cuda/launch_shape.h"
#include "csrc/ops/cuda/mma.cuh"
#include "csrc/ops/cuda/shared_memory.cuh"
#include "csrc/ops/cuda/warp_reduce.cuh"

namespace semkv::cuda {

constexpr int32_t kDecodeThreads = kDecodeWarps * kWarpSize;

struct DecodeShared {
  float max[kDecodeWarps][kDecodeMaxGroupHeads];
  float sum[kDecodeWarps][kDecodeMaxGroupHeads];
  bool is_last;
};

// Starts the copy of the group's queries; rows of heads that there are none of become zero.
template <DType kKv, int32_t kHeadDim>
__device__ inline void CopyQueries(const DecodeAttentionParams& p, const DecodeTask& task,
                                   int32_t thread, uint16_t* queries) {
  using Layout = DecodeLayout<kKv, kHeadDim>;
  constexpr int32_t kCopies = Layout::kQueryCopies;
  const uint16_t* q = static_cast<const uint16_t*>(p.q) + task.row * p.q_row;
  for (int32_t i = thread; i < kDecodeMaxGroupHeads * kCopies; i += kDecodeThreads) {
    const int32_t head = i / kCopies, channel = i % kCopies * kPerCopy;
    const bool is_head = head < task.group.num_heads;
    const uint16_t* from = is_head ? q + (task.group.first_head + head) * p.q_head + channel : q;
    CopyAsync16OrZero(queries + head * Layout::kQueryRow + channel, from, is_head);
  }
}

// Per warp: starts the copy of the keys and values of tokens [first, first + 16) of the row, of
// which lane i has the slot of the i-th; without a slot they become zero. Nothing where the part
// has ended.
template <DType kKv, int32_t kHeadDim>
__device__ inline void CopyWarpTile(const DecodeAttentionParams& p, const DecodeTask& task,
                                    int32_t first, int32_t slot, int32_t lane, uint16_t* tile) {
  if (first >= task.end) return;
  using Layout = DecodeLayout<kKv, kHeadDim>;
  constexpr int32_t kCopies = Layout::kRowCopies;
  constexpr int32_t kWarpCopies = kDecodeWarpTokens * kCopies;
  unsigned long long key = 0, value = 0;
  if (slot != kNoSlot) {
    const KvView& view = first + lane < task.num_list ? p.list : p.position;
    const int32_t head = task.group.kv_head;
    key = reinterpret_cast<unsigned long long>(static_cast<const ElementBits<kKv>*>(view.k) +
                                               KeyOffset(view, slot, head));
    value = reinterpret_cast<unsigned long long>(static_cast<const ElementBits<kKv>*>(view.v) +
                                                 ValueOffset(view, slot, head));
  }
  for (int32_t i = 0; i < CeilDiv(kWarpCopies, kWarpSize); ++i) {
    const int32_t copy = i * kWarpSize + lane;
    const int32_t row = copy / kCopies, word = copy % kCopies * kPerCopy;
    const unsigned long long k = __shfl_sync(kAllLanes, key, row);
    const unsigned long long v = __shfl_sync(kAllLanes, value, row);
    if (kWarpCopies % kWarpSize != 0 && copy >= kWarpCopies) continue;
    const bool is_token = k != 0;
    const void* no_token = p.q;
    uint16_t* to = tile + row * Layout::kRow + word;
    CopyAsync16OrZero(to, is_token ? reinterpret_cast<const uint16_t*>(k) + word : no_token,
                      is_token);
    CopyAsync16OrZero(to + Layout::kValues,
                      is_token ? reinterpret_cast<const uint16_t*>(v) + word : no_token, is_token);
  }
}

// Products with the queries become scores, in units of log 2. `factor`: of the products.
__device__ inline void ScaleScores(const DecodeAttentionParams& p, float factor,
                                   float (&scores)[2][4]) {
  const float scale = factor * kLog2E;
  if (p.logit_cap == 0.0f) {
    for (int32_t i = 0; i < 8; ++i) scores[i / 4][i % 4] *= scale;
    return;
  }
  const float cap = p.logit_cap * kLog2E;
  const float inner = factor / p.logit_cap;
  for (int32_t i = 0; i < 8; ++i) {
    scores[i / 4][i % 4] = cap * tanhf(scores[i / 4][i % 4] * inner);
  }
}

// Per warp: scores of the tile's tokens, as fragments of D for tokens 0-7 and 8-15; the lowest
// where there is no token.
template <DType kDType, DType kKv, int32_t kHeadDim>
__device__ inline void ScoreWarpTile(const DecodeAttentionParams& p, int32_t num_tokens,
                                     int32_t lane, const uint16_t* queries, const uint16_t* keys,
                                     float (&scores)[2][4]) {
  for (int32_t i = 0; i < 4; ++i) scores[0][i] = scores[1][i] = 0.0f;
  if constexpr (kKv == DType::kFloat8E4M3) {
    MultiplyE4M3Keys<kDType, kHeadDim>(lane, queries, keys, scores);
    ScaleScores(p, p.scale * p.position.k_scale, scores);
  } else {
    MultiplyKeys<kDType, kHeadDim>(lane, queries, keys, scores);
    ScaleScores(p, p.scale, scores);
  }
  for (int32_t i = 0; i < 8; ++i) {
    const int32_t token = i / 4 * 8 + lane % 4 * 2 + i % 2;
    if (token >= num_tokens) scores[i / 4][i % 4] = LowestScore();
  }
}

// Per warp: replaces the scores of heads g (half 0) or g + 8 by weights, and rescales what was
// added up before to the new greatest score. A NaN stays one.
template <int32_t kHeadDim>
__device__ inline void WeighScores(int32_t half, float (&scores)[2][4],
                                   DecodeSums<kHeadDim>& sums) {
  const int32_t a = 2 * half, b = a + 1;
  float max = fmaxf(fmaxf(scores[0][a], scores[0][b]), fmaxf(scores[1][a], scores[1][b]));
  max = fmaxf(max, __shfl_xor_sync(kAllLanes, max, 1));
  max = fmaxf(max, __shfl_xor_sync(kAllLanes, max, 2));
  max = fmaxf(max, sums.max[half]);
  const float base = max == LowestScore() ? 0.0f : max;
  const float rescale = Exp2(sums.max[half] - base);
  for (int32_t j = 0; j < 2; ++j) {
    scores[j][a] = Exp2(scores[j][a] - base);
    scores[j][b] = Exp2(scores[j][b] - base);
  }
  const float added = (scores[0][a] + scores[0][b]) + (scores[1][a] + scores[1][b]);
  sums.sum[half] = fmaf(sums.sum[half], rescale, added);
  sums.max[half] = max;
  for (int32_t i = 0; i < kHeadDim / 8; ++i) {
    sums.out[i][a] *= rescale;
    sums.out[i][b] *= rescale;
  }
}

// Per warp: adds the first num_tokens tokens of its tile.
template <DType kDType, DType kKv, int32_t kHeadDim>
__device__ inline void AddWarpTile(const DecodeAttentionParams& p, int32_t num_tokens, int32_t lane,
                                   const uint16_t* queries, const uint16_t* tile,
                                   DecodeSums<kHeadDim>& sums) {
  float weights[2][4];
  ScoreWarpTile<kDType, kKv, kHeadDim>(p, num_tokens, lane, queries, tile, weights);
  WeighScores<kHeadDim>(0, weights, sums);
  WeighScores<kHeadDim>(1, weights, sums);
  if constexpr (kKv == DType::kFloat8E4M3) {
    AddE4M3Values<kHeadDim>(lane, weights, tile, sums);
  } else {
    AddValues<kDType, kHeadDim>(lane, weights, tile, sums);
  }
}

// Per warp: adds its tokens of the part. Copies of the next tiles run meanwhile, and their slots
// are read one tile earlier still.
template <DType kDType, DType kKv, int32_t kHeadDim>
__device__ inline void AddPart(const DecodeAttentionParams& p, const DecodeTask& task,
                               int32_t thread, uint16_t* shared, DecodeSums<kHeadDim>& sums) {
  using Layout = DecodeLayout<kKv, kHeadDim>;
  const int32_t warp = thread / kWarpSize, lane = thread % kWarpSize;
  uint16_t* tiles = shared + warp * Layout::kWarpTile;
  uint16_t* queries = shared + Layout::kQueries;
  const auto slot_of = [&](int32_t first) {
    return lane < kDecodeWarpTokens ? SlotOfToken(p, task, first + lane) : kNoSlot;
  };
  CopyQueries<kKv, kHeadDim>(p, task, thread, queries);
  CopyAsyncCommit();
  const int32_t begin = task.begin + warp * kDecodeWarpTokens;
  int32_t ahead = begin;
  int32_t slot = slot_of(ahead);
  for (int32_t stage = 0; stage < kDecodeStages; ++stage) {
    CopyWarpTile<kKv, kHeadDim>(p, task, ahead, slot, lane, tiles + stage * Layout::kStage);
    CopyAsyncCommit();
    ahead += kDecodeTileTokens;
    slot = slot_of(ahead);
  }
  CopyAsyncWait<kDecodeStages>();
  __syncthreads();

  int32_t stage = 0;
  for (int32_t first = begin; first < task.end; first += kDecodeTileTokens) {
    uint16_t* tile = tiles + stage * Layout::kStage;
    CopyAsyncWait<kDecodeStages - 1>();
    __syncwarp();
    AddWarpTile<kDType, kKv, kHeadDim>(p, task.end - first, lane, queries, tile, sums);
    __syncwarp();
    CopyWarpTile<kKv, kHeadDim>(p, task, ahead, slot, lane, tile);
    CopyAsyncCommit();
    ahead += kDecodeTileTokens;
    slot = slot_of(ahead);
    stage = stage + 1 == kDecodeStages ? 0 : stage + 1;
  }
  CopyAsyncWait<0>();
}

// Per lane: its sums over values of head g (half 0) or g + 8 to that head's row of shared memory;
// of e4m3 times the values' scale, so that parts are of values as attention knows them.
template <DType kKv, int32_t kHeadDim>
__device__ inline void ShareChannels(int32_t lane, int32_t half, float v_scale,
                                     const DecodeSums<kHeadDim>& sums, float* row) {
  const int32_t a = 2 * half, b = a + 1;
  if constexpr (kKv == DType::kFloat8E4M3) {
    for (int32_t i = 0; i < kHeadDim / 16; ++i) {
      const float(&even)[4] = sums.out[2 * i], (&odd)[4] = sums.out[2 * i + 1];
      float* to = row + 16 * i + lane % 4 * 4;
      to[0] = even[a] * v_scale;
      to[1] = odd[a] * v_scale;
      to[2] = even[b] * v_scale;
      to[3] = odd[b] * v_scale;
    }
  } else {
    row += lane % 4 * 2;
    for (int32_t i = 0; i < kHeadDim / 8; ++i) {
      row[8 * i] = sums.out[i][a];
      row[8 * i + 1] = sums.out[i][b];
    }
  }
}

// Per warp: leaves what it has added up in shared memory.
template <DType kKv, int32_t kHeadDim>
__device__ inline void ShareSums(int32_t thread, int32_t num_heads, float v_scale,
                                 DecodeShared& shared, float* shared_sums,
                                 DecodeSums<kHeadDim>& sums) {
  const int32_t warp = thread / kWarpSize, lane = thread % kWarpSize;
  for (int32_t half = 0; half < 2; ++half) {
    const int32_t head = lane / 4 + 8 * half;
    float sum = sums.sum[half];
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    if (head >= num_heads) continue;
    if (lane % 4 == 0) {
      shared.max[warp][head] = sums.max[half];
      shared.sum[warp][head] = sum;
    }
    float* row =
        shared_sums + (warp * kDecodeMaxGroupHeads + head) * DecodeLayout<kKv, kHeadDim>::kSumsRow;
    ShareChannels<kKv, kHeadDim>(lane, half, v_scale, sums, row);
  }
}

template <int32_t kSumsRow>
__device__ inline DecodePart WarpPart(int32_t warp, int32_t head, int32_t channel,
                                      const DecodeShared& shared, const float* shared_sums) {
  DecodePart part;
  part.max = shared.max[warp][head];
  part.sum = shared.sum[warp][head];
  LoadFloats(shared_sums + (warp * kDecodeMaxGroupHeads + head) * kSumsRow + channel, part.out);
  return part;
}

// True in the CTA that comes last of those of its row and group.
__device__ inline bool IsLastPart(const DecodeAttentionLaunch& launch, const DecodeTask& task,
                                  int32_t thread, DecodeShared& shared) {
  uint32_t* counter =
      launch.counters + int64_t{task.row} * launch.plan.num_groups + task.group_index;
  return IsLastCta(counter, static_cast<uint32_t>(task.num_splits), thread, shared.is_last);
}

// grid = (splits, head groups, rows). kDType: of q and out; kKv: of the pools, kDType or
// kFloat8E4M3.
template <DType kDType, DType kKv, int32_t kHeadDim>
__global__ void __launch_bounds__(kDecodeThreads, DecodeLayout<kKv, kHeadDim>::kMinCtas)
    DecodeAttentionKernel(const __grid_constant__ DecodeAttentionLaunch launch) {
  WaitForPreviousKernel();
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  DecodeTask task;
  if (!GetDecodeTask(launch, task)) return;
  DecodeShared& shared = SharedMemory<DecodeShared>();
  std::byte* dynamic_shared = DynamicSharedMemory();
  float* shared_sums = reinterpret_cast<float*>(dynamic_shared);
  DecodeSums<kHeadDim> sums;
  AddPart<kDType, kKv, kHeadDim>(launch.params, task, thread,
                                 reinterpret_cast<uint16_t*>(dynamic_shared), sums);
  __syncthreads();
  ShareSums<kKv, kHeadDim>(thread, task.group.num_heads, launch.params.position.v_scale, shared,
                           shared_sums, sums);
  __syncthreads();

  constexpr int32_t kSumsRow = DecodeLayout<kKv, kHeadDim>::kSumsRow;
  constexpr int32_t kParts = kHeadDim / kPartChannels;
  const int32_t num_parts = task.group.num_heads * kParts;
  for (int32_t i = thread; i < num_parts; i += kDecodeThreads) {
    const int32_t head = i / kParts, channel = i % kParts * kPartChannels;
    DecodePart part = WarpPart<kSumsRow>(0, head, channel, shared, shared_sums);
    for (int32_t warp = 1; warp < kDecodeWarps; ++warp) {
      Join(part, WarpPart<kSumsRow>(warp, head, channel, shared, shared_sums));
    }
    if (task.num_splits == 1) {
      StoreResult<kDType>(launch.params, task, head, channel, part);
    } else {
      StorePart(launch, task, head, channel, part);
    }
  }
  if (task.num_splits == 1 || !IsLastPart(launch, task, thread, shared)) return;
  for (int32_t i = thread; i < num_parts; i += kDecodeThreads) {
    const int32_t head = i / kParts, channel = i % kParts * kPartChannels;
    DecodePart part = LoadPart(launch, task, 0, head, channel);
    for (int32_t split = 1; split < task.num_splits; ++split) {
      Join(part, LoadPart(launch, task, split, head, channel));
    }
    StoreResult<kDType>(launch.params, task, head, channel, part);
  }
}

template <DType kDType, DType kKv, typename Launch>
auto DispatchDecodeHeadDim(LaunchShape shape, int32_t head_dim, const Launch& launch) {
  const auto with = [&](auto constant) {
    constexpr int32_t kHeadDim = decltype(constant)::value;
    shape.dynamic_shared_bytes = DecodeLayout<kKv, kHeadDim>::kBytes;
    return launch(&DecodeAttentionKernel<kDType, kKv, kHeadDim>, shape);
  };
  if (head_dim == 64) return with(std::integral_constant<int32_t, 64>{});
  if (head_dim == 80) return with(std::integral_constant<int32_t, 80>{});
  if (head_dim == 96) return with(std::integral_constant<int32_t, 96>{});
  if (head_dim == 128) return with(std::integral_constant<int32_t, 128>{});
  return with(std::integral_constant<int32_t, 256>{});
}

// A pool that is used: dtype and scales are the same in both.
inline const KvView& UsedPool(const DecodeAttentionParams& p) {
  return p.position.k != nullptr ? p.position : p.list;
}

template <DType kDType, typename Launch>
auto DispatchDecodePools(LaunchShape shape, const DecodeAttentionParams& params,
                         const Launch& launch) {
  if (UsedPool(params).dtype == DType::kFloat8E4M3) {
    return DispatchDecodeHeadDim<kDType, DType::kFloat8E4M3>(shape, params.head_dim, launch);
  }
  return DispatchDecodeHeadDim<kDType, kDType>(shape, params.head_dim, launch);
}

// Returns launch(kernel, shape) with the instance of DecodeAttentionKernel that serves `params`,
// which DecodeAttentionCudaUnsupported accepts.
template <typename Launch>
auto DispatchDecodeAttention(const DecodeAttentionParams& params, const DecodeAttentionPlan& plan,
                             const Launch& launch) {
  LaunchShape shape;
  shape.grid_x = static_cast<uint32_t>(plan.max_splits);
  shape.grid_y = static_cast<uint32_t>(plan.num_groups);
  shape.grid_z = static_cast<uint32_t>(params.num_rows);
  shape.threads = kDecodeThreads;
  shape.overlaps_previous = true;
  if (params.q_dtype == DType::kFloat16) {
    return DispatchDecodePools<DType::kFloat16>(shape, params, launch);
  }
  return DispatchDecodePools<DType::kBFloat16>(shape, params, launch);
}

// `workspace` holds DecodeAttentionCudaWorkspaceBytes.
inline DecodeAttentionLaunch MakeDecodeLaunch(const DecodeAttentionParams& params,
                                              const DecodeAttentionPlan& plan, void* workspace) {
  std::byte* parts = static_cast<std::byte*>(workspace) + DecodeCounterBytes(plan);
  DecodeAttentionLaunch launch = {params, plan, static_cast<uint32_t*>(workspace),
                                  reinterpret_cast<float*>(parts)};
  // Both pools have the same.
  launch.params.position.k_scale = UsedPool(params).k_scale;
  launch.params.position.v_scale = UsedPool(params).v_scale;
  return launch;
}

}  // namespace semkv::cuda

#endif  // SEMKV_OPS_ATTENTION_DECODE_ATTENTION_KERNEL_CUH_
