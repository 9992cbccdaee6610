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

#include "csrc/ops/attention/decode_attention_task.cuh"
#include "csrc/ops/cuda/copy_async.cuh"
#include "csrc/ops/cuda/last_cta.cuh"
#include "csrc/ops/cuda/launch_shape.h"
#include "csrc/ops/cuda/mma.cuh"
#include "csrc/ops/cuda/shared_memory.cuh"
#include "csrc/ops/cuda/warp_reduce.cuh"

namespace semkv::cuda {

constexpr int32_t kDecodeWarps = 4;
constexpr int32_t kDecodeThreads = kDecodeWarps * kWarpSize;
constexpr int32_t kDecodeWarpTokens = kDecodeTileTokens / kDecodeWarps;
constexpr int32_t kDecodeStages = 2;
constexpr int32_t kPerCopy = 8;  // elements of 16 bytes
static_assert(kDecodeWarpTokens == 16 && kDecodeMaxGroupHeads == 16, "sides of mma.m16n8k16");

// Dynamic shared memory, in 16-bit elements: [stage][warp][K, V][16 tokens][row], then 16 queries.
// Rows are padded by 16 bytes: an odd number of 16-byte units apart, 8 rows of ldmatrix lie in
// different banks whatever head_dim is. When the loop is over the warps' sums take the place of the
// tiles.
template <int32_t kHeadDim>
struct DecodeLayout {
  static constexpr int32_t kRow = kHeadDim + kPerCopy;
  static constexpr int32_t kValues = kDecodeWarpTokens * kRow;  // behind the keys
  static constexpr int32_t kWarpTile = 2 * kValues;
  static constexpr int32_t kStage = kDecodeWarps * kWarpTile;
  static constexpr int32_t kQueries = kDecodeStages * kStage;
  static constexpr int32_t kBytes = 2 * (kQueries + kDecodeMaxGroupHeads * kRow);
  static constexpr int32_t kSumsRow = kHeadDim + kPartChannels;  // floats
  static_assert(kDecodeWarps * kDecodeMaxGroupHeads * kSumsRow * 4 <= 2 * kQueries);
  static_assert(kRow / kPerCopy % 2 == 1);
};

struct DecodeShared {
  float max[kDecodeWarps][kDecodeMaxGroupHeads];
  float sum[kDecodeWarps][kDecodeMaxGroupHeads];
  bool is_last;
};

// Per lane: what the warp has added up for heads g and g + 8 (mma.cuh), the sums over values as
// fragments of D, 8 channels each. The queries' fragments would be half as many registers again;
// they are read from shared memory for each tile.
template <int32_t kHeadDim>
struct DecodeSums {
  float out[kHeadDim / 8][4] = {};
  float max[2] = {LowestScore(), LowestScore()};
  float sum[2] = {};  // of the lane's tokens
};

// Per warp: where lane's row of four 8x8 matrices of a 16-row tile begins. kNo: those of rows 0-7,
// the same 8 channels further, rows 8-15; kYes: rows 0-7, rows 8-15, both 8 channels further.
enum class RowsFirst { kNo, kYes };
template <RowsFirst kRowsFirst>
__device__ inline int32_t MatrixRow(int32_t lane, int32_t row_elements) {
  const int32_t low = lane / 8 % 2, high = lane / 16;
  const int32_t half = kRowsFirst == RowsFirst::kYes ? low : high;
  const int32_t channels = kRowsFirst == RowsFirst::kYes ? high : low;
  return (half * 8 + lane % 8) * row_elements + channels * 8;
}

// Starts the copy of the group's queries; rows of heads that there are none of become zero.
template <int32_t kHeadDim>
__device__ inline void CopyQueries(const DecodeAttentionParams& p, const DecodeTask& task,
                                   int32_t thread, uint16_t* queries) {
  constexpr int32_t kCopies = kHeadDim / kPerCopy;
  const uint16_t* q = static_cast<const uint16_t*>(p.q) + task.row * p.q_row;
  for (int32_t i = thread; i < kDecodeMaxGroupHeads * kCopies; i += kDecodeThreads) {
    const int32_t head = i / kCopies, channel = i % kCopies * kPerCopy;
    const bool is_head = head < task.group.num_heads;
    const uint16_t* from = is_head ? q + (task.group.first_head + head) * p.q_head + channel : q;
    CopyAsync16OrZero(queries + head * DecodeLayout<kHeadDim>::kRow + channel, from, is_head);
  }
}

// Per warp: starts the copy of the keys and values of tokens [first, first + 16) of the row, of
// which lane i has the slot of the i-th; without a slot they become zero. Nothing where the part
// has ended.
template <int32_t kHeadDim>
__device__ inline void CopyWarpTile(const DecodeAttentionParams& p, const DecodeTask& task,
                                    int32_t first, int32_t slot, int32_t lane, uint16_t* tile) {
  if (first >= task.end) return;
  constexpr int32_t kCopies = kHeadDim / kPerCopy;
  constexpr int32_t kRow = DecodeLayout<kHeadDim>::kRow;
  unsigned long long key = 0, value = 0;
  if (slot != kNoSlot) {
    const KvView& view = first + lane < task.num_list ? p.list : p.position;
    const int32_t head = task.group.kv_head;
    key = reinterpret_cast<unsigned long long>(static_cast<const uint16_t*>(view.k) +
                                               KeyOffset(view, slot, head));
    value = reinterpret_cast<unsigned long long>(static_cast<const uint16_t*>(view.v) +
                                                 ValueOffset(view, slot, head));
  }
  for (int32_t i = 0; i < kDecodeWarpTokens * kCopies / kWarpSize; ++i) {
    const int32_t copy = i * kWarpSize + lane;
    const int32_t row = copy / kCopies, channel = copy % kCopies * kPerCopy;
    const unsigned long long k = __shfl_sync(kAllLanes, key, row);
    const unsigned long long v = __shfl_sync(kAllLanes, value, row);
    const bool is_token = k != 0;
    const void* no_token = p.q;
    uint16_t* to = tile + row * kRow + channel;
    CopyAsync16OrZero(to, is_token ? reinterpret_cast<const uint16_t*>(k) + channel : no_token,
                      is_token);
    CopyAsync16OrZero(to + DecodeLayout<kHeadDim>::kValues,
                      is_token ? reinterpret_cast<const uint16_t*>(v) + channel : no_token,
                      is_token);
  }
}

// Products with the queries become scores, in units of log 2.
__device__ inline void ScaleScores(const DecodeAttentionParams& p, float (&scores)[2][4]) {
  const float scale = p.scale * kLog2E;
  if (p.logit_cap == 0.0f) {
    for (int32_t i = 0; i < 8; ++i) scores[i / 4][i % 4] *= scale;
    return;
  }
  const float cap = p.logit_cap * kLog2E;
  const float inner = p.scale / p.logit_cap;
  for (int32_t i = 0; i < 8; ++i) {
    scores[i / 4][i % 4] = cap * tanhf(scores[i / 4][i % 4] * inner);
  }
}

// Per warp: scores of the tile's tokens, as fragments of D for tokens 0-7 and 8-15; the lowest
// where there is no token.
template <DType kDType, int32_t kHeadDim>
__device__ inline void ScoreWarpTile(const DecodeAttentionParams& p, int32_t num_tokens,
                                     int32_t lane, const uint16_t* queries, const uint16_t* keys,
                                     float (&scores)[2][4]) {
  const uint16_t* q_row = queries + MatrixRow<RowsFirst::kYes>(lane, DecodeLayout<kHeadDim>::kRow);
  const uint16_t* k_row = keys + MatrixRow<RowsFirst::kNo>(lane, DecodeLayout<kHeadDim>::kRow);
  for (int32_t i = 0; i < 4; ++i) scores[0][i] = scores[1][i] = 0.0f;
  for (int32_t step = 0; step < kHeadDim / 16; ++step) {
    uint32_t q[4], k[4];
    LoadMatrixX4<Transpose::kNo>(q, q_row + 16 * step);
    LoadMatrixX4<Transpose::kNo>(k, k_row + 16 * step);
    const uint32_t low[2] = {k[0], k[1]}, high[2] = {k[2], k[3]};
    MmaM16N8K16<kDType>(scores[0], q, low);
    MmaM16N8K16<kDType>(scores[1], q, high);
  }
  ScaleScores(p, scores);
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
template <DType kDType, int32_t kHeadDim>
__device__ inline void AddWarpTile(const DecodeAttentionParams& p, int32_t num_tokens, int32_t lane,
                                   const uint16_t* queries, const uint16_t* tile,
                                   DecodeSums<kHeadDim>& sums) {
  using Layout = DecodeLayout<kHeadDim>;
  float weights[2][4];
  ScoreWarpTile<kDType, kHeadDim>(p, num_tokens, lane, queries, tile, weights);
  WeighScores<kHeadDim>(0, weights, sums);
  WeighScores<kHeadDim>(1, weights, sums);
  const uint32_t w[4] = {PackPair<kDType>(weights[0][0], weights[0][1]),
                         PackPair<kDType>(weights[0][2], weights[0][3]),
                         PackPair<kDType>(weights[1][0], weights[1][1]),
                         PackPair<kDType>(weights[1][2], weights[1][3])};
  const uint16_t* row = tile + Layout::kValues + MatrixRow<RowsFirst::kYes>(lane, Layout::kRow);
  for (int32_t step = 0; step < kHeadDim / 16; ++step) {
    uint32_t v[4];
    LoadMatrixX4<Transpose::kYes>(v, row + 16 * step);
    const uint32_t low[2] = {v[0], v[1]}, high[2] = {v[2], v[3]};
    MmaM16N8K16<kDType>(sums.out[2 * step], w, low);
    MmaM16N8K16<kDType>(sums.out[2 * step + 1], w, high);
  }
}

// Per warp: adds its tokens of the part. Copies of the next tiles run meanwhile, and their slots
// are read one tile earlier still.
template <DType kDType, int32_t kHeadDim>
__device__ inline void AddPart(const DecodeAttentionParams& p, const DecodeTask& task,
                               int32_t thread, uint16_t* shared, DecodeSums<kHeadDim>& sums) {
  using Layout = DecodeLayout<kHeadDim>;
  const int32_t warp = thread / kWarpSize, lane = thread % kWarpSize;
  uint16_t* tiles = shared + warp * Layout::kWarpTile;
  uint16_t* queries = shared + Layout::kQueries;
  const auto slot_of = [&](int32_t first) {
    return lane < kDecodeWarpTokens ? SlotOfToken(p, task, first + lane) : kNoSlot;
  };
  CopyQueries<kHeadDim>(p, task, thread, queries);
  CopyAsyncCommit();
  const int32_t begin = task.begin + warp * kDecodeWarpTokens;
  int32_t ahead = begin;
  int32_t slot = slot_of(ahead);
  for (int32_t stage = 0; stage < kDecodeStages; ++stage) {
    CopyWarpTile<kHeadDim>(p, task, ahead, slot, lane, tiles + stage * Layout::kStage);
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
    AddWarpTile<kDType, kHeadDim>(p, task.end - first, lane, queries, tile, sums);
    __syncwarp();
    CopyWarpTile<kHeadDim>(p, task, ahead, slot, lane, tile);
    CopyAsyncCommit();
    ahead += kDecodeTileTokens;
    slot = slot_of(ahead);
    stage = stage + 1 == kDecodeStages ? 0 : stage + 1;
  }
  CopyAsyncWait<0>();
}

// Per warp: leaves what it has added up in shared memory.
template <int32_t kHeadDim>
__device__ inline void ShareSums(int32_t thread, int32_t num_heads, DecodeShared& shared,
                                 float* shared_sums, DecodeSums<kHeadDim>& sums) {
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
    float* row = shared_sums +
                 (warp * kDecodeMaxGroupHeads + head) * DecodeLayout<kHeadDim>::kSumsRow +
                 lane % 4 * 2;
    for (int32_t i = 0; i < kHeadDim / 8; ++i) {
      row[8 * i] = sums.out[i][2 * half];
      row[8 * i + 1] = sums.out[i][2 * half + 1];
    }
  }
}

template <int32_t kHeadDim>
__device__ inline DecodePart WarpPart(int32_t warp, int32_t head, int32_t channel,
                                      const DecodeShared& shared, const float* shared_sums) {
  DecodePart part;
  part.max = shared.max[warp][head];
  part.sum = shared.sum[warp][head];
  LoadFloats(shared_sums + (warp * kDecodeMaxGroupHeads + head) * DecodeLayout<kHeadDim>::kSumsRow +
                 channel,
             part.out);
  return part;
}

// True in the CTA that comes last of those of its row and group.
__device__ inline bool IsLastPart(const DecodeAttentionLaunch& launch, const DecodeTask& task,
                                  int32_t thread, DecodeShared& shared) {
  uint32_t* counter =
      launch.counters + int64_t{task.row} * launch.plan.num_groups + task.group_index;
  return IsLastCta(counter, static_cast<uint32_t>(task.num_splits), thread, shared.is_last);
}

// grid = (splits, head groups, rows).
template <DType kDType, int32_t kHeadDim>
__global__ void __launch_bounds__(kDecodeThreads)
    DecodeAttentionKernel(const __grid_constant__ DecodeAttentionLaunch launch) {
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  DecodeTask task;
  if (!GetDecodeTask(launch, task)) return;
  DecodeShared& shared = SharedMemory<DecodeShared>();
  std::byte* dynamic_shared = DynamicSharedMemory();
  float* shared_sums = reinterpret_cast<float*>(dynamic_shared);
  DecodeSums<kHeadDim> sums;
  AddPart<kDType, kHeadDim>(launch.params, task, thread,
                            reinterpret_cast<uint16_t*>(dynamic_shared), sums);
  __syncthreads();
  ShareSums<kHeadDim>(thread, task.group.num_heads, shared, shared_sums, sums);
  __syncthreads();

  constexpr int32_t kParts = kHeadDim / kPartChannels;
  const int32_t num_parts = task.group.num_heads * kParts;
  for (int32_t i = thread; i < num_parts; i += kDecodeThreads) {
    const int32_t head = i / kParts, channel = i % kParts * kPartChannels;
    DecodePart part = WarpPart<kHeadDim>(0, head, channel, shared, shared_sums);
    for (int32_t warp = 1; warp < kDecodeWarps; ++warp) {
      Join(part, WarpPart<kHeadDim>(warp, head, channel, shared, shared_sums));
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

template <DType kDType, typename Launch>
auto DispatchDecodeHeadDim(LaunchShape shape, int32_t head_dim, const Launch& launch) {
  const auto with = [&](auto constant) {
    constexpr int32_t kHeadDim = decltype(constant)::value;
    shape.dynamic_shared_bytes = DecodeLayout<kHeadDim>::kBytes;
    return launch(&DecodeAttentionKernel<kDType, kHeadDim>, shape);
  };
  if (head_dim == 64) return with(std::integral_constant<int32_t, 64>{});
  if (head_dim == 80) return with(std::integral_constant<int32_t, 80>{});
  if (head_dim == 96) return with(std::integral_constant<int32_t, 96>{});
  if (head_dim == 128) return with(std::integral_constant<int32_t, 128>{});
  return with(std::integral_constant<int32_t, 256>{});
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
  if (params.q_dtype == DType::kFloat16) {
    return DispatchDecodeHeadDim<DType::kFloat16>(shape, params.head_dim, launch);
  }
  return DispatchDecodeHeadDim<DType::kBFloat16>(shape, params.head_dim, launch);
}

// `workspace` holds DecodeAttentionCudaWorkspaceBytes.
inline DecodeAttentionLaunch MakeDecodeLaunch(const DecodeAttentionParams& params,
                                              const DecodeAttentionPlan& plan, void* workspace) {
  std::byte* parts = static_cast<std::byte*>(workspace) + DecodeCounterBytes(plan);
  return {params, plan, static_cast<uint32_t*>(workspace), reinterpret_cast<float*>(parts)};
}

}  // namespace semkv::cuda

#endif  // SEMKV_OPS_ATTENTION_DECODE_ATTENTION_KERNEL_CUH_
