// stage_keys on the GPU: the kernel, its launch shape and the choice of its instance.
//
// A warp has a block of neighbouring rows of one cell. It reads them as one array of units of 16
// bytes, whatever their rows: every lane has work at every head_dim, and what a warp writes is
// contiguous. All of a lane's units are in flight before any of them is stored.

#ifndef SEMKV_OPS_CACHE_STAGE_KEYS_KERNEL_CUH_
#define SEMKV_OPS_CACHE_STAGE_KEYS_KERNEL_CUH_

#include <cstdint>
#include <type_traits>

#include "csrc/ops/cache/stage_keys.h"
#include "csrc/ops/cuda/launch_shape.h"
#include "csrc/ops/cuda/vector_access.cuh"
#include "csrc/ops/cuda/warp_reduce.cuh"
#include "semkv/types.h"

namespace semkv::cuda {

constexpr int32_t kStageKeysWarps = 4;
constexpr int32_t kStageKeysThreads = kStageKeysWarps * kWarpSize;
constexpr int32_t kStageKeysUnit = 8;  // elements of 16 bytes

// A warp's rows: a whole number of units for each lane, and at most 8, which registers hold.
template <int32_t kHeadDim>
struct StageKeysBlock {
  static constexpr int32_t kRowUnits = kHeadDim / kStageKeysUnit;
  static constexpr int32_t kRows = kHeadDim <= 128 ? 16 : 8;
  static constexpr int32_t kLaneUnits = kRows * kRowUnits / kWarpSize;
  static_assert(kHeadDim % kStageKeysUnit == 0 && kRows * kRowUnits % kWarpSize == 0);
  static_assert(kLaneUnits <= 8);
};

// True when one of the numbers is infinite or NaN: its exponent is all ones. One more then carries
// into the place of the sign, which was cleared, and never beyond: both halves of a word at once.
template <DType kDType>
__device__ inline bool HasNonfinite(const Vec16& unit) {
  static_assert(kDType != DType::kFloat32);
  constexpr uint32_t kOneInExponent = kDType == DType::kBFloat16 ? 0x00800080u : 0x04000400u;
  uint32_t carries = 0;
  for (uint32_t word : unit.words) carries |= (word & 0x7fff7fffu) + kOneInExponent;
  return (carries & 0x80008000u) != 0;
}

// Per warp: the units of the block of `num_rows` rows from token `begin` on, zeros behind them.
// Lane r looks up where row r is. (Units are used outside of branches too: those that only a branch
// used ptxas would load there, behind stores.)
template <int32_t kHeadDim>
__device__ inline void LoadRows(const StageKeysParams& p, const KvView& layer, int32_t head,
                                int32_t begin, int32_t num_rows, int32_t lane,
                                Vec16 (&units)[StageKeysBlock<kHeadDim>::kLaneUnits]) {
  using Block = StageKeysBlock<kHeadDim>;
  int64_t row = 0;
  if (lane < num_rows) {
    const int32_t position = p.first + begin + lane;
    const int32_t page = p.pages[position >> (__ffs(p.page_tokens) - 1)];
    row = page * layer.k_page + (position & (p.page_tokens - 1)) * layer.k_token;
  }
  const uint16_t* keys = static_cast<const uint16_t*>(layer.k) + head * layer.k_head;
  for (int32_t i = 0; i < Block::kLaneUnits; ++i) {
    const int32_t unit = i * kWarpSize + lane;
    const int64_t offset = __shfl_sync(kAllLanes, row, unit / Block::kRowUnits);
    units[i] = {};
    if (unit >= num_rows * Block::kRowUnits) continue;
    units[i] = LoadStreaming(keys + offset + unit % Block::kRowUnits * kStageKeysUnit);
  }
}

// grid = (KV heads, blocks of tokens, layers): CTAs that run together read the heads of the same
// tokens, which are neighbours in most engines' pools.
template <DType kDType, int32_t kHeadDim>
__global__ void __launch_bounds__(kStageKeysThreads)
    StageKeysKernel(const __grid_constant__ StageKeysParams p) {
  using Block = StageKeysBlock<kHeadDim>;
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t warp = thread / kWarpSize, lane = thread % kWarpSize;
  const int32_t head = static_cast<int32_t>(blockIdx.x);
  const int32_t begin = (static_cast<int32_t>(blockIdx.y) * kStageKeysWarps + warp) * Block::kRows;
  if (begin >= p.num_tokens) return;
  const int32_t rows_left = p.num_tokens - begin;
  const int32_t num_rows = rows_left < Block::kRows ? rows_left : Block::kRows;
  const int64_t cell = int64_t{blockIdx.z} * p.num_kv_heads + head;
  Vec16 units[Block::kLaneUnits];
  LoadRows<kHeadDim>(p, p.layers[blockIdx.z], head, begin, num_rows, lane, units);
  uint16_t* to = static_cast<uint16_t*>(p.keys) + (cell * p.num_tokens + begin) * kHeadDim;
  uint32_t rows = 0;  // bit r: there is a number that is not finite in row r
  for (int32_t i = 0; i < Block::kLaneUnits; ++i) {
    const int32_t unit = i * kWarpSize + lane;
    if (HasNonfinite<kDType>(units[i])) rows |= 1u << (unit / Block::kRowUnits);
    if (unit >= num_rows * Block::kRowUnits) continue;
    Store(to + unit * kStageKeysUnit, units[i]);
  }
  if (p.num_nonfinite == nullptr || !__any_sync(kAllLanes, rows != 0)) return;
  rows = WarpOr(rows);
  if ((rows >> lane & 1) == 0) return;
  const int32_t place = atomicAdd(p.num_nonfinite + cell, 1);
  p.nonfinite[cell * p.num_tokens + place] = static_cast<uint16_t>(begin + lane);
}

// Host only.
inline bool StageKeysIsServed(const StageKeysParams& p) {
  const int32_t d = p.head_dim;
  return (p.dtype == DType::kFloat16 || p.dtype == DType::kBFloat16) &&
         (d == 64 || d == 80 || d == 96 || d == 128 || d == 256) && p.num_tokens >= 0 &&
         p.num_tokens <= kStageKeysMaxTokens && p.page_tokens > 0 &&
         (p.page_tokens & (p.page_tokens - 1)) == 0;
}

template <DType kDType, typename Launch>
auto DispatchStageKeysHeadDim(const StageKeysParams& params, const Launch& launch) {
  const auto with = [&](auto constant) {
    constexpr int32_t kHeadDim = decltype(constant)::value;
    constexpr int32_t kCtaRows = kStageKeysWarps * StageKeysBlock<kHeadDim>::kRows;
    LaunchShape shape;
    shape.grid_x = static_cast<uint32_t>(params.num_kv_heads);
    shape.grid_y = static_cast<uint32_t>(CeilDiv(params.num_tokens, kCtaRows));
    shape.grid_z = static_cast<uint32_t>(params.num_layers);
    shape.threads = kStageKeysThreads;
    return launch(&StageKeysKernel<kDType, kHeadDim>, shape);
  };
  if (params.head_dim == 64) return with(std::integral_constant<int32_t, 64>{});
  if (params.head_dim == 80) return with(std::integral_constant<int32_t, 80>{});
  if (params.head_dim == 96) return with(std::integral_constant<int32_t, 96>{});
  if (params.head_dim == 128) return with(std::integral_constant<int32_t, 128>{});
  return with(std::integral_constant<int32_t, 256>{});
}

// Returns launch(kernel, shape) with the instance of StageKeysKernel that serves `params`, of which
// StageKeysIsServed is true.
template <typename Launch>
auto DispatchStageKeys(const StageKeysParams& params, const Launch& launch) {
  if (params.dtype == DType::kFloat16) {
    return DispatchStageKeysHeadDim<DType::kFloat16>(params, launch);
  }
  return DispatchStageKeysHeadDim<DType::kBFloat16>(params, launch);
}

}  // namespace semkv::cuda

#endif  // SEMKV_OPS_CACHE_STAGE_KEYS_KERNEL_CUH_
