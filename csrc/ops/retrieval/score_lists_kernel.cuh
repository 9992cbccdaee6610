// score_lists on the GPU, in two launches over all rows, heads and partitions: scores with each
// tile's share of Z, then keys. The launch between makes every tile's share visible; all sums are
// formed in the order of lists and tiles, so results do not depend on the schedule.

#ifndef SEMKV_OPS_RETRIEVAL_SCORE_LISTS_KERNEL_CUH_
#define SEMKV_OPS_RETRIEVAL_SCORE_LISTS_KERNEL_CUH_

#include <cmath>
#include <cstdint>

#include "csrc/ops/cuda/copy_async.cuh"
#include "csrc/ops/cuda/dependent_launch.cuh"
#include "csrc/ops/cuda/launch_shape.h"
#include "csrc/ops/cuda/shared_memory.cuh"
#include "csrc/ops/cuda/vector_access.cuh"
#include "csrc/ops/cuda/warp_reduce.cuh"
#include "csrc/ops/retrieval/score_lists.h"
#include "csrc/ops/retrieval/score_lists_keys.cuh"
#include "csrc/ops/retrieval/score_lists_plan.h"
#include "csrc/ops/retrieval/score_lists_tile.cuh"

namespace semkv::cuda {

// Of the second launch.
constexpr int32_t kScoreKeyWarps = 16;
constexpr int32_t kScoreKeyThreads = kScoreKeyWarps * kWarpSize;
constexpr int32_t kScoreKeyParts = 4;  // of a tile; a warp takes one at a time
constexpr int32_t kScoreKeyLists = kScoreTileLists / kScoreKeyParts;

// What f(v) of v = spread * variance needs of a list.
struct ListSpread {
  VarianceTerm term;
  float variance, log_size;

  __device__ float Term(float spread) const {
    if (term == VarianceTerm::kNone) return 0.0f;
    const float v = spread * variance;
    if (term == VarianceTerm::kHalf || v <= 2.0f * log_size) return 0.5f * v;
    return sqrtf(2.0f * v * log_size) - log_size;
  }
};

// Per CTA: turns dots into scores, a list at a time and thread, and writes them to the workspace.
// Lists that are never selected get NaN, in shared memory too.
__device__ inline void ScoreTileLists(const ScoreListsKernelParams& p, int64_t task, int32_t heads,
                                      int32_t thread, const ScoreMemory& memory,
                                      const ScoreShared& shared) {
  const TileView& view = shared.view;
  const bool spreads = view.variances != nullptr && view.form != CentroidForm::kBounds;
  const VarianceTerm term =
      spreads ? p.op.rows[task / p.op.num_selections].variance : VarianceTerm::kNone;
  const float spread_of_norm = p.op.scale * p.op.scale / static_cast<float>(p.op.head_dim);
  const float nan = FloatFromBits(0x7fc00000u);
  float* out = p.workspace.scores + task * heads * p.workspace.stride + view.tile.first_list;
  for (int32_t i = thread; i < view.tile.num_lists; i += kScoreThreads) {
    const int32_t size = shared.offsets[i + 1] - shared.offsets[i];
    const float scale = HasScales(view.form) ? view.scales[view.first + i] : 1.0f;
    const float variance = term == VarianceTerm::kNone ? 0.0f : view.variances[view.first + i];
    const ListSpread list = {term, variance, logf(static_cast<float>(size > 1 ? size : 1))};
    bool dead = size == 0;
    for (int32_t h = 0; h < heads; ++h) {
      float* at = memory.scores + h * kScoreTileLists + i;
      float score = fmaf(*at, shared.multiplier[h] * scale, shared.center_dot[h]);
      score += list.Term(spread_of_norm * shared.square_norm[h]);
      dead = dead || score != score;
      *at = score;
    }
    for (int32_t h = 0; h < heads; ++h) {
      float* at = memory.scores + h * kScoreTileLists + i;
      if (dead) *at = nan;
      out[h * p.workspace.stride + i] = *at;
    }
  }
}

// Per CTA: the tile's share of every head's Z.
__device__ inline void WriteMasses(const ScoreListsKernelParams& p, int64_t task, int32_t tile,
                                   int32_t heads, int32_t thread, const ScoreMemory& memory,
                                   const ScoreShared& shared) {
  const int32_t lane = thread % kWarpSize;
  const int32_t lists = shared.view.tile.num_lists;
  for (int32_t h = thread / kWarpSize; h < heads; h += kScoreWarps) {
    const float* scores = memory.scores + h * kScoreTileLists;
    float maximum = -INFINITY;
    for (int32_t i = lane; i < lists; i += kWarpSize) maximum = fmaxf(maximum, scores[i]);
    maximum = WarpMax(maximum);
    float sum = 0.0f;
    for (int32_t i = lane; i < lists; i += kWarpSize) {
      if (scores[i] != scores[i]) continue;
      const float size = static_cast<float>(shared.offsets[i + 1] - shared.offsets[i]);
      sum = fmaf(size, ExpBelow(scores[i], maximum), sum);
    }
    sum = WarpSum(sum);
    if (lane != 0) continue;
    ScoreMass& mass = p.workspace.masses[(task * heads + h) * p.max_tiles + tile];
    mass.max = maximum;
    mass.sum = sum;
  }
}

// grid = (max_tiles, tasks); a CTA scores one tile.
__global__ void __launch_bounds__(kScoreThreads)
    ScoreTilesKernel(const __grid_constant__ ScoreListsKernelParams p) {
  WaitForPreviousKernel();
  ScoreShared& shared = SharedMemory<ScoreShared>();
  const int32_t heads = p.op.num_heads / p.op.num_selections;
  const int32_t head_dim = p.op.head_dim;
  const ScoreMemory memory = ScoreMemoryAt(DynamicSharedMemory(), heads, head_dim);
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t lane = thread % kWarpSize;
  const int32_t tile = static_cast<int32_t>(blockIdx.x);
  const int64_t task = blockIdx.y;
  if (thread < kWarpSize) FindTile(p.op, task, tile, lane, shared.view);
  __syncthreads();
  const int32_t lists = shared.view.tile.num_lists;
  if (thread == 0) {
    Store(p.workspace.tiles + task * p.max_tiles + tile, Load(&shared.view.tile));
  }
  if (lists == 0) return;
  BeginTile(shared.view, head_dim, thread, memory);
  for (int32_t i = thread; i <= lists; i += kScoreThreads) {
    shared.offsets[i] = shared.view.offsets[shared.view.first + i];
  }
  LoadQueries(p, task, heads, thread, memory.query);
  __syncthreads();
  PrepareQueries(p.op, heads, thread, memory, shared);
  CopyAsyncWait<0>();
  __syncthreads();
  DotCenters(p.op, heads, thread, memory, shared);
  DotTile(heads, head_dim, thread, memory, shared.view);
  __syncthreads();
  ScoreTileLists(p, task, heads, thread, memory, shared);
  __syncthreads();
  WriteMasses(p, task, tile, heads, thread, memory, shared);
}

// grid = (key_ctas, tasks); the CTAs of a task divide its tiles evenly. Each merges Z for itself.
// One CTA of an SM is enough; for more the compiler would spill.
__global__ void __launch_bounds__(kScoreKeyThreads, 1)
    ScoreKeysKernel(const __grid_constant__ ScoreListsKernelParams p) {
  WaitForPreviousKernel();
  KeyShared& shared = SharedMemory<KeyShared>();
  int32_t* partitions = reinterpret_cast<int32_t*>(DynamicSharedMemory());  // [max_tiles]
  const int32_t heads = p.op.num_heads / p.op.num_selections;
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t warp = thread / kWarpSize, lane = thread % kWarpSize;
  const int64_t task = blockIdx.y;
  const ScoreTile* tiles = p.workspace.tiles + task * p.max_tiles;
  LoadPartitions<kScoreKeyThreads>(tiles, p.max_tiles, thread, partitions, shared);
  const int32_t cta_tiles = CeilDiv(shared.num_tiles, static_cast<int32_t>(gridDim.x));
  const int32_t begin = static_cast<int32_t>(blockIdx.x) * cta_tiles;
  const int32_t end = begin + cta_tiles < shared.num_tiles ? begin + cta_tiles : shared.num_tiles;
  if (begin >= end) return;
  const RetrievalRow& row = p.op.rows[task / p.op.num_selections];
  MergeHeads<kScoreKeyThreads>(p.workspace, p.max_tiles, task, heads, row, thread, partitions,
                               shared);
  const GroupRank rank = row.rank;
  const float* scores = p.workspace.scores + task * heads * p.workspace.stride;
  float* keys = p.op.keys + task * p.op.keys_stride;
  for (int32_t i = warp; i < (end - begin) * kScoreKeyParts; i += kScoreKeyWarps) {
    const int32_t tile = begin + i / kScoreKeyParts;
    const int32_t part = i % kScoreKeyParts * kScoreKeyLists;
    const int32_t first = tiles[tile].first_list, lists = tiles[tile].num_lists;
    const int32_t partition = partitions[tile];
    for (int32_t k = part + lane; k < part + kScoreKeyLists && k < lists; k += kWarpSize) {
      keys[first + k] = KeyOf(scores + first + k, p.workspace.stride, heads, rank, shared.max,
                              shared.weight_of_exp[partition]);
    }
  }
}

inline LaunchShape ScoreKeysShape(const ScoreListsPlan& plan) {
  LaunchShape shape;
  shape.grid_x = static_cast<uint32_t>(plan.max_tiles > 0 ? plan.key_ctas : 0);
  shape.grid_y = static_cast<uint32_t>(plan.num_rows * plan.num_selections);
  shape.threads = kScoreKeyThreads;
  shape.overlaps_previous = true;
  shape.dynamic_shared_bytes = static_cast<uint32_t>(plan.max_tiles * sizeof(int32_t));
  return shape;
}

}  // namespace semkv::cuda

#endif  // SEMKV_OPS_RETRIEVAL_SCORE_LISTS_KERNEL_CUH_
