// stage_keys on the GPU: the kernel, its launch shape and the choice of its instance.
//
// A warp has a block of neighbouring rows of one cell. It reads them as one array of units of 16
// bytes, whatever their rows: every lane has work at every head_dim, and what a warp writes is
// contiguous. All of a lane's units are in flight before any of them is stored. Keys of e4m3 are
// read in units of 16, and each becomes two units of bfloat16.

#ifndef SEMKV_OPS_CACHE_STAGE_KEYS_KERNEL_CUH_
#define SEMKV_OPS_CACHE_STAGE_KEYS_KERNEL_CUH_

#include <cstdint>
#include <type_traits>

#include "csrc/ops/cache/stage_keys.h"
#include "csrc/ops/cuda/element.cuh"
#include "csrc/ops/cuda/launch_shape.h"
#include "csrc/ops/cuda/mma.cuh"
#include "csrc/ops/cuda/vector_access.cuh"
#include "csrc/ops/cuda/warp_reduce.cuh"
#include "semkv/types.h"

namespace semkv::cuda {

constexpr int32_t kStageKeysWarps = 4;
constexpr int32_t kStageKeysThreads = kStageKeysWarps * kWarpSize;
constexpr int32_t kStageKeysUnit = 8;  // elements of `keys` of 16 bytes

// A unit of a pool is 16 bytes. A warp's rows: a whole number of units for each lane, and at most
// 8, which registers hold.
template <DType kPool, int32_t kHeadDim>
struct StageKeysBlock {
  static constexpr int32_t kUnit = static_cast<int32_t>(16 / DTypeBytes(kPool));  // elements
  static constexpr int32_t kRowUnits = kHeadDim / kUnit;
  static constexpr int32_t kFewRows = kPool == DType::kFloat8E4M3 ? 80 : 0;  // up to this head_dim
  static constexpr int32_t kRows = kHeadDim <= kFewRows ? 32 : kHeadDim <= 128 ? 16 : 8;
  static constexpr int32_t kLaneUnits = kRows * kRowUnits / kWarpSize;
  static_assert(kHeadDim % kUnit == 0 && kRows * kRowUnits % kWarpSize == 0);
  static_assert(kLaneUnits <= 8 && kRows <= kWarpSize);
};

// True when one of the numbers is infinite or NaN: its exponent is all ones. One more then carries
// into the place of the sign, which was cleared, and never beyond: both halves of a word at once.
template <DType kDType>
__device__ inline bool HasNonfinite(const Vec16& unit) {
  static_assert(kDType == DType::kFloat16 || kDType == DType::kBFloat16);
  constexpr uint32_t kOneInExponent = kDType == DType::kBFloat16 ? 0x00800080u : 0x04000400u;
  uint32_t carries = 0;
  for (uint32_t word : unit.words) carries |= (word & 0x7fff7fffu) + kOneInExponent;
  return (carries & 0x80008000u) != 0;
}

// Per thread: 8 numbers of e4m3 as a unit of bfloat16.
__device__ inline Vec16 Dequantize(const uint32_t (&fours)[2], float scale) {
  Vec16 unit;
  for (int32_t i = 0; i < 4; ++i) {
    float low, high;
    UnpackPair<DType::kFloat16>(Float16PairFromE4M3(fours[i / 2] >> (16 * (i % 2))), low, high);
    unit.words[i] = PackPair<DType::kBFloat16>(low * scale, high * scale);
  }
  return unit;
}

// Per warp: the units of the block of `num_rows` rows from token `begin` on, zeros behind them.
// Lane r looks up where row r is. (Units are used outside of branches too: those that only a branch
// used ptxas would load there, behind stores.)
template <DType kPool, int32_t kHeadDim>
__device__ inline void LoadRows(const StageKeysParams& p, const KvView& layer, int32_t head,
                                int32_t begin, int32_t num_rows, int32_t lane,
                                Vec16 (&units)[StageKeysBlock<kPool, kHeadDim>::kLaneUnits]) {
  using Block = StageKeysBlock<kPool, kHeadDim>;
  int64_t row = 0;
  if (lane < num_rows) {
    const int32_t position = p.first + begin + lane;
    const int32_t page = p.pages[position >> (__ffs(p.page_tokens) - 1)];
    row = page * layer.k_page + (position & (p.page_tokens - 1)) * layer.k_token;
  }
  const ElementBits<kPool>* keys =
      static_cast<const ElementBits<kPool>*>(layer.k) + head * layer.k_head;
  for (int32_t i = 0; i < Block::kLaneUnits; ++i) {
    const int32_t unit = i * kWarpSize + lane;
    const int64_t offset = __shfl_sync(kAllLanes, row, unit / Block::kRowUnits);
    units[i] = {};
    if (unit >= num_rows * Block::kRowUnits) continue;
    const ElementBits<kPool>* from = keys + offset + unit % Block::kRowUnits * Block::kUnit;
    units[i] = kPool == DType::kFloat8E4M3 ? LoadAhead(from) : LoadStreaming(from);
  }
}

// Per warp: stores the units of the block, and returns in bit r whether a lane's numbers of row r
// are not all finite.
template <DType kDType, int32_t kHeadDim>
__device__ inline uint32_t StoreRows(
    int32_t num_rows, int32_t lane,
    const Vec16 (&units)[StageKeysBlock<kDType, kHeadDim>::kLaneUnits], uint16_t* to) {
  using Block = StageKeysBlock<kDType, kHeadDim>;
  uint32_t rows = 0;
  for (int32_t i = 0; i < Block::kLaneUnits; ++i) {
    const int32_t unit = i * kWarpSize + lane;
    if (HasNonfinite<kDType>(units[i])) rows |= 1u << (unit / Block::kRowUnits);
    if (unit >= num_rows * Block::kRowUnits) continue;
    Store(to + unit * Block::kUnit, units[i]);
  }
  return rows;
}

// Two lanes exchange halves of their units of e4m3: each then has a half of the even lane's units
// (words 0, 1) and of the odd lane's (2, 3), the even lane the first halves. All units before any
// is stored, or ptxas would load some of them behind stores.
template <int32_t kNumUnits>
__device__ inline void ExchangeHalves(int32_t lane, Vec16 (&units)[kNumUnits]) {
  const bool is_odd = lane % 2 != 0;
  for (Vec16& unit : units) {
    for (int32_t j = 0; j < 2; ++j) {
      const uint32_t given = is_odd ? unit.words[j] : unit.words[2 + j];
      const uint32_t taken = __shfl_xor_sync(kAllLanes, given, 1);
      (is_odd ? unit.words[j] : unit.words[2 + j]) = taken;
    }
  }
}

// StoreRows of units of e4m3 whose halves were exchanged. The 32 bytes that a unit becomes, a
// sector, are written by one access of two lanes.
template <int32_t kHeadDim>
__device__ inline uint32_t StoreE4M3Rows(
    float scale, int32_t num_rows, int32_t lane,
    const Vec16 (&units)[StageKeysBlock<DType::kFloat8E4M3, kHeadDim>::kLaneUnits], uint16_t* to) {
  using Block = StageKeysBlock<DType::kFloat8E4M3, kHeadDim>;
  uint32_t rows = 0;
  for (int32_t i = 0; i < 2 * Block::kLaneUnits; ++i) {
    const int32_t unit = i / 2 * kWarpSize + lane / 2 * 2 + i % 2;
    const uint32_t(&words)[4] = units[i / 2].words;
    const uint32_t fours[2] = {words[i % 2 * 2], words[i % 2 * 2 + 1]};
    const Vec16 staged = Dequantize(fours, scale);
    if (HasNonfinite<DType::kBFloat16>(staged)) rows |= 1u << (unit / Block::kRowUnits);
    if (unit >= num_rows * Block::kRowUnits) continue;
    StoreGlobal(to + unit * Block::kUnit + lane % 2 * kStageKeysUnit, staged);
  }
  return rows;
}

// grid = (KV heads, blocks of tokens, layers): CTAs that run together read the heads of the same
// tokens, which are neighbours in most engines' pools.
template <DType kPool, int32_t kHeadDim>
__global__ void __launch_bounds__(kStageKeysThreads)
    StageKeysKernel(const __grid_constant__ StageKeysParams p) {
  using Block = StageKeysBlock<kPool, kHeadDim>;
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t warp = thread / kWarpSize, lane = thread % kWarpSize;
  const int32_t head = static_cast<int32_t>(blockIdx.x);
  const int32_t begin = (static_cast<int32_t>(blockIdx.y) * kStageKeysWarps + warp) * Block::kRows;
  if (begin >= p.num_tokens) return;
  const int32_t rows_left = p.num_tokens - begin;
  const int32_t num_rows = rows_left < Block::kRows ? rows_left : Block::kRows;
  const int64_t cell = int64_t{blockIdx.z} * p.num_kv_heads + head;
  Vec16 units[Block::kLaneUnits];
  const KvView& layer = p.layers[blockIdx.z];
  LoadRows<kPool, kHeadDim>(p, layer, head, begin, num_rows, lane, units);
  uint16_t* to = static_cast<uint16_t*>(p.keys) + (cell * p.num_tokens + begin) * kHeadDim;
  uint32_t rows;  // bit r: there is a number that is not finite in row r
  if constexpr (kPool == DType::kFloat8E4M3) {
    __syncwarp();  // ptxas would wait for the first units before it loads the last
    ExchangeHalves(lane, units);
    rows = StoreE4M3Rows<kHeadDim>(layer.k_scale, num_rows, lane, units, to);
  } else {
    rows = StoreRows<kPool, kHeadDim>(num_rows, lane, units, to);
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
  const bool is_float16 = p.pool_dtype == DType::kFloat16 && p.dtype == DType::kFloat16;
  const bool is_bfloat16 = p.dtype == DType::kBFloat16 &&
                           (p.pool_dtype == DType::kBFloat16 || p.pool_dtype == DType::kFloat8E4M3);
  return (is_float16 || is_bfloat16) && (d == 64 || d == 80 || d == 96 || d == 128 || d == 256) &&
         p.num_tokens >= 0 && p.num_tokens <= kStageKeysMaxTokens && p.page_tokens > 0 &&
         (p.page_tokens & (p.page_tokens - 1)) == 0;
}

template <DType kPool, typename Launch>
auto DispatchStageKeysHeadDim(const StageKeysParams& params, const Launch& launch) {
  const auto with = [&](auto constant) {
    constexpr int32_t kHeadDim = decltype(constant)::value;
    constexpr int32_t kCtaRows = kStageKeysWarps * StageKeysBlock<kPool, kHeadDim>::kRows;
    LaunchShape shape;
    shape.grid_x = static_cast<uint32_t>(params.num_kv_heads);
    shape.grid_y = static_cast<uint32_t>(CeilDiv(params.num_tokens, kCtaRows));
    shape.grid_z = static_cast<uint32_t>(params.num_layers);
    shape.threads = kStageKeysThreads;
    return launch(&StageKeysKernel<kPool, kHeadDim>, shape);
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
  if (params.pool_dtype == DType::kFloat8E4M3) {
    return DispatchStageKeysHeadDim<DType::kFloat8E4M3>(params, launch);
  }
  if (params.pool_dtype == DType::kFloat16) {
    return DispatchStageKeysHeadDim<DType::kFloat16>(params, launch);
  }
  return DispatchStageKeysHeadDim<DType::kBFloat16>(params, launch);
}

}  // namespace semkv::cuda

#endif  // SEMKV_OPS_CACHE_STAGE_KEYS_KERNEL_CUH_
