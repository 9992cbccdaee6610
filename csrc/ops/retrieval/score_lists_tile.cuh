// The pieces of score_lists on the GPU that work on one tile: finding it, loading it and the
// queries, the dot products, and the launch of a kernel that does. estimate_rest has them too.

#ifndef SEMKV_OPS_RETRIEVAL_SCORE_LISTS_TILE_CUH_
#define SEMKV_OPS_RETRIEVAL_SCORE_LISTS_TILE_CUH_

#include <cstddef>
#include <cstdint>

#include "csrc/ops/cuda/block_scan.cuh"
#include "csrc/ops/cuda/copy_async.cuh"
#include "csrc/ops/cuda/launch_shape.h"
#include "csrc/ops/cuda/mma.cuh"
#include "csrc/ops/cuda/vector_access.cuh"
#include "csrc/ops/cuda/warp_reduce.cuh"
#include "csrc/ops/numeric/float_convert.h"
#include "csrc/ops/retrieval/score_lists.h"
#include "csrc/ops/retrieval/score_lists_plan.h"

namespace semkv::cuda {

constexpr int32_t kScoreWarps = 4;
constexpr int32_t kScoreThreads = kScoreWarps * kWarpSize;
constexpr int32_t kScoreBlockHeads = 4;  // whose dot products are formed together

// What the kernels get. All pointers are device pointers, those within `op` too.
struct ScoreListsKernelParams {
  ScoreListsParams op;
  ScoreWorkspace workspace;
  int32_t max_tiles = 0;
  bool vector_queries = false;  // every query head begins at a multiple of 16 bytes
};

// The CTA's tile, with what it needs of its view.
struct TileView {
  ScoreTile tile;
  const ListsView* view;
  int32_t first;  // of the view's lists
  CentroidForm form;
  const std::byte* centroids;
  const float* scales;
  const float* center;
  const float* variances;
  const uint16_t* offsets;
};

// Static shared memory.
struct ScoreShared {
  TileView view;
  uint16_t offsets[kScoreTileLists + 1];  // of the tile's lists
  float multiplier[kScoreMaxHeads];       // score = dot * multiplier * (scale of the list) +
  float center_dot[kScoreMaxHeads];       //         center_dot + variance term
  float square_norm[kScoreMaxHeads];
};

// Dynamic shared memory, in bytes from its start.
struct ScoreLayout {
  int32_t center, query, query_int8, scores, bytes;
  int32_t int8_pitch;
};

SEMKV_HOST_DEVICE constexpr ScoreLayout LayOutScoreShared(int32_t heads, int32_t head_dim) {
  ScoreLayout s = {};
  const int32_t float_bytes = head_dim * int32_t{sizeof(float)};
  const int32_t columns = CeilDiv(heads, kScoreBlockHeads) * 2 * kScoreBlockHeads;
  s.int8_pitch = ScorePitch(head_dim);
  s.center = kScoreTileBytes;
  s.query = s.center + float_bytes;
  s.query_int8 = s.query + heads * float_bytes;
  s.scores = s.query_int8 + columns * s.int8_pitch;
  s.bytes = s.scores + heads * kScoreTileLists * int32_t{sizeof(float)};
  return s;
}

struct ScoreMemory {
  std::byte* tile;     // [lists, pitch]
  float* center;       // [head_dim]; zeros where the view has none
  float* query;        // [heads, head_dim]
  int8_t* query_int8;  // [2 * heads, int8_pitch]: upper and lower part of a head
  float* scores;       // [heads, kScoreTileLists]
  int32_t int8_pitch;
};

__device__ inline ScoreMemory ScoreMemoryAt(std::byte* base, int32_t heads, int32_t head_dim) {
  const ScoreLayout s = LayOutScoreShared(heads, head_dim);
  return {base,
          reinterpret_cast<float*>(base + s.center),
          reinterpret_cast<float*>(base + s.query),
          reinterpret_cast<int8_t*>(base + s.query_int8),
          reinterpret_cast<float*>(base + s.scores),
          s.int8_pitch};
}

// By the lane whose view holds the tile: its k-th of n. Tiles of a view are alike but for the last.
__device__ inline void DescribeTile(const ListsView& view, int32_t k, int32_t n,
                                    int32_t lists_before, TileView& out) {
  const int32_t nlist = view.nlist;
  const int32_t lists = CeilDiv(CeilDiv(nlist, n), kScoreTileAlignment) * kScoreTileAlignment;
  const int32_t first = k * lists;
  out.view = &view;
  out.first = first;
  out.tile.first_list = lists_before + first;
  out.tile.num_lists = nlist - first < lists ? nlist - first : lists;
  out.tile.partition = view.partition;
  out.form = view.form;
  out.centroids = static_cast<const std::byte*>(view.centroids);
  out.scales = view.scales;
  out.center = view.center;
  out.variances = view.variances;
  out.offsets = view.offsets;
}

// Per warp: describes tile number `tile` of (row, selection) `task`; num_lists 0 if there is none.
__device__ inline void FindTile(const ScoreListsParams& p, int64_t task, int32_t tile, int32_t lane,
                                TileView& out) {
  if (lane == 0) {
    out.tile.first_list = out.tile.num_lists = 0;
    out.tile.partition = out.tile.unused = 0;
  }
  __syncwarp();
  const int32_t end = p.view_begin[task + 1];
  int32_t tiles_before = 0, lists_before = 0;
  for (int32_t block = p.view_begin[task]; block < end; block += kWarpSize) {
    const int32_t v = block + lane;
    const int32_t nlist = v < end ? p.views[v].nlist : 0;
    const int32_t tiles =
        nlist > 0 ? CeilDiv(nlist, ScoreTileLists(p.views[v].form, p.head_dim)) : 0;
    const int32_t first_tile = tiles_before + WarpSumBelow(tiles, lane);
    const int32_t first_list = lists_before + WarpSumBelow(nlist, lane);
    const bool mine = tile >= first_tile && tile < first_tile + tiles;
    if (mine) DescribeTile(p.views[v], tile - first_tile, tiles, first_list, out);
    if (__any_sync(kAllLanes, mine)) return;
    tiles_before = __shfl_sync(kAllLanes, first_tile + tiles, kWarpSize - 1);
    lists_before = __shfl_sync(kAllLanes, first_list + nlist, kWarpSize - 1);
  }
}

// Per CTA: asks for the tile's vectors and its center, which arrive at the next CopyAsyncWait<0>.
__device__ inline void BeginTile(const TileView& view, int32_t head_dim, int32_t thread,
                                 const ScoreMemory& memory) {
  const int32_t row_bytes = CentroidRowBytes(view.form, head_dim);
  const int32_t pitch = ScorePitch(row_bytes);
  const int32_t units = row_bytes / 16;
  const std::byte* from = view.centroids + int64_t{view.first} * row_bytes;
  for (int32_t i = thread; i < view.tile.num_lists * units; i += kScoreThreads) {
    const int32_t row = i / units;
    CopyAsync16(memory.tile + row * pitch + (i - row * units) * 16, from + int64_t{i} * 16);
  }
  const bool has_center = HasCenter(view.form);
  for (int32_t i = thread; i < head_dim / 4; i += kScoreThreads) {
    if (has_center) {
      CopyAsync16(memory.center + 4 * i, view.center + 4 * i);
    } else {
      Store(memory.center + 4 * i, Vec16{});
    }
  }
  CopyAsyncCommit();
}

__device__ inline float QueryFromBits(DType dtype, uint16_t bits) {
  return dtype == DType::kFloat16 ? FloatFromFloat16(bits) : FloatFromBFloat16(bits);
}

// Per thread: 8 channels of a query head as float. Of the three dtypes that q may have: LoadAsFloat
// has a fourth, which costs registers here.
__device__ inline void LoadQueryUnit(const ScoreListsKernelParams& p, int64_t element,
                                     float (&x)[8]) {
  const DType dtype = p.op.q_dtype;
  if (!p.vector_queries) {
    for (int32_t i = 0; i < 8; ++i) {
      x[i] = dtype == DType::kFloat32
                 ? static_cast<const float*>(p.op.q)[element + i]
                 : QueryFromBits(dtype, static_cast<const uint16_t*>(p.op.q)[element + i]);
    }
    return;
  }
  const std::byte* from =
      static_cast<const std::byte*>(p.op.q) + element * (dtype == DType::kFloat32 ? 4 : 2);
  const Vec16 first = LoadStreaming(from);
  if (dtype == DType::kFloat32) {
    const Vec16 second = LoadStreaming(from + 16);
    for (int32_t i = 0; i < 4; ++i) {
      x[i] = FloatFromBits(first.words[i]);
      x[4 + i] = FloatFromBits(second.words[i]);
    }
    return;
  }
  for (int32_t i = 0; i < 8; ++i) {
    x[i] = QueryFromBits(dtype, static_cast<uint16_t>(first.words[i / 2] >> (16 * (i % 2))));
  }
}

// Per CTA: the query heads of the task's selection.
__device__ inline void LoadQueries(const ScoreListsKernelParams& p, int64_t task, int32_t heads,
                                   int32_t thread, float* query) {
  const int32_t units = p.op.head_dim / 8;
  const int64_t row = task / p.op.num_selections;
  const int64_t first_head = task % p.op.num_selections * heads;
  for (int32_t i = thread; i < heads * units; i += kScoreThreads) {
    const int32_t h = i / units;
    const int32_t channel = (i - h * units) * 8;
    float x[8];
    LoadQueryUnit(p, row * p.op.q_row + (first_head + h) * p.op.q_head + channel, x);
    for (int32_t j = 0; j < 8; j += 4) {
      const Vec16 vector = {
          {FloatBits(x[j]), FloatBits(x[j + 1]), FloatBits(x[j + 2]), FloatBits(x[j + 3])}};
      Store(query + h * p.op.head_dim + channel + j, vector);
    }
  }
}

// Per warp: a query head as step * (256 * upper + lower), both int8, whose largest channel is
// 127 * 256, for int4 lists 127, and 0 behind head_dim. Returns the step, not a number for a query
// that is not finite.
__device__ inline float SplitQuery(const float* query, int32_t head_dim, bool for_int4,
                                   int32_t lane, int8_t* upper, int8_t* lower) {
  constexpr float kLargest = 127 * 256;
  float largest = 0.0f, poison = 0.0f;
  for (int32_t c = lane; c < head_dim; c += kWarpSize) {
    largest = fmaxf(largest, fabsf(query[c]));
    poison += query[c] * 0.0f;
  }
  largest = WarpMax(largest);
  const float step = for_int4 ? Int4QueryStep(largest) : largest / kLargest;
  poison = WarpSum(poison);
  // Below, 1 / step may overflow; such a query is 0 beside any other.
  const float inverse = step > kLeastQueryStep && poison == 0.0f ? 1.0f / step : 0.0f;
  for (int32_t c = lane; c < CeilDiv(head_dim, 64) * 64; c += kWarpSize) {
    const int32_t whole =
        c < head_dim && inverse > 0.0f ? static_cast<int32_t>(rintf(query[c] * inverse)) : 0;
    const int32_t low = ((whole + 128) & 255) - 128;
    upper[c] = static_cast<int8_t>((whole - low) / 256);
    lower[c] = static_cast<int8_t>(low);
  }
  return step + poison;
}

__device__ inline float WarpDot(const float* a, const float* b, int32_t n, int32_t lane) {
  float sum = 0.0f;
  for (int32_t c = lane; c < n; c += kWarpSize) sum = fmaf(a[c], b[c], sum);
  return WarpSum(sum);
}

// Per CTA: everything that scores need of the query heads but their product with the center.
__device__ inline void PrepareQueries(const ScoreListsParams& p, int32_t heads, int32_t thread,
                                      const ScoreMemory& memory, ScoreShared& shared) {
  const int32_t lane = thread % kWarpSize;
  const int32_t columns = CeilDiv(heads, kScoreBlockHeads) * kScoreBlockHeads;
  for (int32_t h = thread / kWarpSize; h < columns; h += kScoreWarps) {
    int8_t* upper = memory.query_int8 + 2 * h * memory.int8_pitch;
    if (h >= heads) {
      for (int32_t i = lane; i < 2 * memory.int8_pitch / 16; i += kWarpSize) {
        Store(upper + 16 * i, Vec16{});
      }
      continue;
    }
    const float* query = memory.query + h * p.head_dim;
    const bool for_int4 = shared.view.form == CentroidForm::kInt4;
    const float step =
        SplitQuery(query, p.head_dim, for_int4, lane, upper, upper + memory.int8_pitch);
    const float square_norm = WarpDot(query, query, p.head_dim, lane);
    if (lane != 0) continue;
    const float finite = step == step ? 1.0f : step;
    shared.square_norm[h] = square_norm;
    shared.multiplier[h] = p.scale * (HasScales(shared.view.form) ? step : finite);
  }
}

// Per CTA: what the center adds to every head's scores.
__device__ inline void DotCenters(const ScoreListsParams& p, int32_t heads, int32_t thread,
                                  const ScoreMemory& memory, ScoreShared& shared) {
  const int32_t lane = thread % kWarpSize;
  for (int32_t h = thread / kWarpSize; h < heads; h += kScoreWarps) {
    const float dot = WarpDot(memory.query + h * p.head_dim, memory.center, p.head_dim, lane);
    if (lane == 0) shared.center_dot[h] = p.scale * dot;
  }
}

// Four codes as int8; of int4, half 0 or 1 of each of four bytes times 16, since the half that is
// the upper one of its byte has its sign in place.
template <CentroidForm kForm>
__device__ inline uint32_t FourCodes(uint32_t bytes, int32_t half) {
  if constexpr (kForm == CentroidForm::kInt8) return bytes;
  return (half == 0 ? bytes << 4 : bytes) & 0xf0f0f0f0u;
}

// Per warp: dots of int8 or int4 lists with 4 heads at a time, upper and lower parts as the 8
// columns of one product. A lane reads 16 bytes of a row at once; queries are read in the order of
// their channels, so the order of channels within the product does not matter.
template <CentroidForm kForm>
__device__ inline void DotCodes(int32_t num_lists, int32_t heads, int32_t head_dim, int32_t warp,
                                int32_t lane, const ScoreMemory& memory) {
  constexpr int32_t kHalves = kForm == CentroidForm::kInt4 ? 2 : 1;
  constexpr int32_t kLaneChannels = 16 * kHalves, kUnit = kForm == CentroidForm::kInt4 ? 16 : 1;
  const int32_t g = lane / 4, t = lane % 4;
  const int32_t pitch = ScorePitch(CentroidRowBytes(kForm, head_dim));
  for (int32_t first = warp * 16; first < num_lists; first += kScoreWarps * 16) {
    const std::byte* row = memory.tile + (first + g) * pitch;
    for (int32_t block = 0; block < heads; block += kScoreBlockHeads) {
      const int8_t* column = memory.query_int8 + (2 * block + g) * memory.int8_pitch;
      int32_t sum[4] = {};
      for (int32_t begin = 0; begin < head_dim; begin += 4 * kLaneChannels) {
        const int32_t channel = begin + kLaneChannels * t;
        const bool inside = channel < head_dim;
        const Vec16 upper = inside ? Load(row + channel / kHalves) : Vec16{};
        const Vec16 lower = inside ? Load(row + 8 * pitch + channel / kHalves) : Vec16{};
        for (int32_t half = 0; half < kHalves; ++half) {
          const Vec16 query = inside ? Load(column + channel + 16 * half) : Vec16{};
          for (int32_t i = 0; i < 4; i += 2) {
            const uint32_t a[4] = {FourCodes<kForm>(upper.words[i], half),
                                   FourCodes<kForm>(lower.words[i], half),
                                   FourCodes<kForm>(upper.words[i + 1], half),
                                   FourCodes<kForm>(lower.words[i + 1], half)};
            const uint32_t b[2] = {query.words[i], query.words[i + 1]};
            MmaM16N8K32Int8(sum, a, b);
          }
        }
      }
      if (block + t >= heads) continue;
      float* out = memory.scores + (block + t) * kScoreTileLists + first + g;
      out[0] = static_cast<float>((256 * sum[0] + sum[1]) / kUnit);
      out[8] = static_cast<float>((256 * sum[2] + sum[3]) / kUnit);
    }
  }
}

// Per thread: the channels of 16 bytes of a list; of bounds also which of them a query meets.
template <CentroidForm kForm>
struct ListUnit {
  static constexpr int32_t kChannels = kForm == CentroidForm::kFloat32 ? 4 : 8;

  __device__ void LoadFrom(const std::byte* row, int32_t unit, int32_t head_dim) {
    Unpack(Load(row + 16 * unit), least);
    if constexpr (kForm == CentroidForm::kBounds) {
      Unpack(Load(row + 2 * head_dim + 16 * unit), greatest);
      for (int32_t i = 0; i < kChannels; ++i) {
        const float a = least[i], b = greatest[i];
        either[i] = fabsf(a) > fabsf(b) ? a : b;
        least[i] = fminf(a, b);
        greatest[i] = fmaxf(a, b);
        // A bound that is not a number must not hide behind the other one.
        if (a != a || b != b) least[i] = greatest[i] = either[i] = a + b;
      }
    }
  }

  // The i-th channel as the query number x meets it; 0 meets an infinite bound of either side.
  __device__ float At(int32_t i, float x) const {
    if constexpr (kForm == CentroidForm::kBounds) {
      if (x > 0.0f) return greatest[i];
      return x < 0.0f ? least[i] : either[i];
    } else {
      return least[i];
    }
  }

  __device__ static void Unpack(const Vec16& from, float (&x)[kChannels]) {
    for (int32_t i = 0; i < kChannels; ++i) {
      if constexpr (kForm == CentroidForm::kFloat32) {
        x[i] = FloatFromBits(from.words[i]);
      } else {
        x[i] = FloatFromBFloat16(static_cast<uint16_t>(from.words[i / 2] >> (16 * (i % 2))));
      }
    }
  }

  float least[kChannels];  // the channels themselves where there are no bounds
  float greatest[kChannels], either[kChannels];
};

// Per 4 lanes: lane t gets the sum of x[t] over them.
__device__ inline float SumOfQuad(const float (&x)[4], int32_t t) {
  const bool upper = t >= 2, odd = t % 2 == 1;
  const float first = __shfl_xor_sync(kAllLanes, upper ? x[0] : x[2], 2) + (upper ? x[2] : x[0]);
  const float second = __shfl_xor_sync(kAllLanes, upper ? x[1] : x[3], 2) + (upper ? x[3] : x[1]);
  return __shfl_xor_sync(kAllLanes, odd ? first : second, 1) + (odd ? second : first);
}

// Per warp: dots of other lists with 4 heads at a time. 4 lanes share a list; a lane has 4 lists.
template <CentroidForm kForm>
__device__ inline void DotFloats(int32_t num_lists, int32_t heads, int32_t head_dim, int32_t warp,
                                 int32_t lane, const ScoreMemory& memory) {
  using Unit = ListUnit<kForm>;
  constexpr int32_t kLists = 4;
  const int32_t g = lane / 4, t = lane % 4;
  const int32_t pitch = ScorePitch(CentroidRowBytes(kForm, head_dim));
  for (int32_t first = warp * 8 * kLists; first < num_lists; first += kScoreWarps * 8 * kLists) {
    const std::byte* row = memory.tile + (first + g) * pitch;
    for (int32_t block = 0; block < heads; block += kScoreBlockHeads) {
      float sums[kLists][kScoreBlockHeads] = {};
      for (int32_t unit = t; unit < head_dim / Unit::kChannels; unit += 4) {
        float query[kScoreBlockHeads][Unit::kChannels];
        for (int32_t h = 0; h < kScoreBlockHeads; ++h) {
          const int32_t head = block + h < heads ? block + h : heads - 1;
          const float* from = memory.query + head * head_dim + unit * Unit::kChannels;
          for (int32_t i = 0; i < Unit::kChannels; i += 4) {
            const Vec16 vector = Load(from + i);
            for (int32_t j = 0; j < 4; ++j) query[h][i + j] = FloatFromBits(vector.words[j]);
          }
        }
        for (int32_t l = 0; l < kLists; ++l) {
          Unit list;
          list.LoadFrom(row + 8 * l * pitch, unit, head_dim);
          for (int32_t h = 0; h < kScoreBlockHeads; ++h) {
            for (int32_t i = 0; i < Unit::kChannels; ++i) {
              sums[l][h] = fmaf(query[h][i], list.At(i, query[h][i]), sums[l][h]);
            }
          }
        }
      }
      for (int32_t l = 0; l < kLists; ++l) {
        const float sum = SumOfQuad(sums[l], t);
        if (block + t < heads) {
          memory.scores[(block + t) * kScoreTileLists + first + 8 * l + g] = sum;
        }
      }
    }
  }
}

// Per CTA: dots of the tile in shared memory with every head.
__device__ inline void DotTile(int32_t heads, int32_t head_dim, int32_t thread,
                               const ScoreMemory& memory, const TileView& view) {
  const int32_t warp = thread / kWarpSize, lane = thread % kWarpSize;
  const int32_t lists = view.tile.num_lists;
  switch (view.form) {
    case CentroidForm::kInt8:
      DotCodes<CentroidForm::kInt8>(lists, heads, head_dim, warp, lane, memory);
      return;
    case CentroidForm::kInt4:
      DotCodes<CentroidForm::kInt4>(lists, heads, head_dim, warp, lane, memory);
      return;
    case CentroidForm::kBFloat16:
      DotFloats<CentroidForm::kBFloat16>(lists, heads, head_dim, warp, lane, memory);
      return;
    case CentroidForm::kFloat32:
      DotFloats<CentroidForm::kFloat32>(lists, heads, head_dim, warp, lane, memory);
      return;
    case CentroidForm::kBounds:
      DotFloats<CentroidForm::kBounds>(lists, heads, head_dim, warp, lane, memory);
      return;
  }
}

// ------------------------------ launch

// What the kernels refuse: other geometry than the plan's, or more than they have room for.
inline bool ScoreListsCudaServes(const ScoreListsParams& p, const ScoreListsPlan& plan) {
  return p.num_rows == plan.num_rows && p.num_heads == plan.num_heads &&
         p.num_selections == plan.num_selections && p.head_dim == plan.head_dim &&
         int64_t{p.num_rows} * p.num_selections <= kScoreMaxTasks &&  // blockIdx.y
         p.num_selections > 0 && p.num_heads % p.num_selections == 0 &&
         p.num_heads / p.num_selections <= kScoreMaxHeads && p.head_dim > 0 &&
         p.head_dim % 16 == 0 && p.head_dim <= kScoreMaxHeadDim && p.q_dtype != DType::kFloat8E4M3;
}

inline ScoreListsKernelParams MakeScoreListsKernelParams(const ScoreListsParams& params,
                                                         const ScoreListsPlan& plan,
                                                         void* workspace) {
  const int64_t bytes = DTypeBytes(params.q_dtype);
  size_t unused = 0;
  ScoreListsKernelParams p;
  p.op = params;
  p.workspace = LayOutScoreWorkspace(plan, workspace, &unused);
  p.max_tiles = plan.max_tiles;
  p.vector_queries = reinterpret_cast<uintptr_t>(params.q) % 16 == 0 &&
                     params.q_row * bytes % 16 == 0 && params.q_head * bytes % 16 == 0;
  return p;
}

inline LaunchShape ScoreTilesShape(const ScoreListsPlan& plan) {
  LaunchShape shape;
  shape.grid_x = static_cast<uint32_t>(plan.max_tiles);
  shape.grid_y = static_cast<uint32_t>(plan.num_rows * plan.num_selections);
  shape.threads = kScoreThreads;
  shape.overlaps_previous = true;
  shape.dynamic_shared_bytes = static_cast<uint32_t>(
      LayOutScoreShared(plan.num_heads / plan.num_selections, plan.head_dim).bytes);
  return shape;
}

}  // namespace semkv::cuda

#endif  // SEMKV_OPS_RETRIEVAL_SCORE_LISTS_TILE_CUH_
