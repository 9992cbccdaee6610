// estimate_rest on the GPU: one kernel makes a state of attention (merge_states.h) of every tile of
// lists, a second joins those of a query head. Tiles are those of score_lists, found and loaded and
// multiplied by its pieces; every sum has a fixed order, so results do not depend on the schedule.

#ifndef SEMKV_OPS_RETRIEVAL_ESTIMATE_REST_KERNEL_CUH_
#define SEMKV_OPS_RETRIEVAL_ESTIMATE_REST_KERNEL_CUH_

#include <cmath>
#include <cstdint>

#include "csrc/ops/cuda/copy_async.cuh"
#include "csrc/ops/cuda/dependent_launch.cuh"
#include "csrc/ops/cuda/launch_shape.h"
#include "csrc/ops/cuda/shared_memory.cuh"
#include "csrc/ops/cuda/vector_access.cuh"
#include "csrc/ops/cuda/warp_reduce.cuh"
#include "csrc/ops/retrieval/estimate_rest.h"
#include "csrc/ops/retrieval/estimate_rest_plan.h"
#include "csrc/ops/retrieval/score_lists_tile.cuh"

namespace semkv::cuda {

constexpr int32_t kEstimateSegmentTokens = 1 << 16;  // members have 16 bits
constexpr int32_t kEstimateDoneWords = kEstimateSegmentTokens / 32;
constexpr int32_t kEstimateUnit = 8;   // channels of an access of 16 bytes
constexpr int32_t kEstimateAhead = 4;  // mean values that a lane has in flight

// What the kernels get. All pointers are device pointers.
struct EstimateRestKernelParams {
  ScoreListsKernelParams score;
  EstimateStates states;
  const int32_t* positions = nullptr;
  const int32_t* counts = nullptr;
  int64_t positions_stride = 0;
  float* rest_out = nullptr;
  float* rest_lse = nullptr;
  int32_t max_tiles = 0;
};

// Static shared memory. In dynamic shared memory, where scores will be: a bit per token of the
// tile's segment that is in the selection, or never is, kEstimateDoneWords.
struct EstimateShared {
  ScoreShared score;
  int32_t unread[kScoreTileLists];    // members of the tile's lists that are not
  float inverse_sum[kScoreMaxHeads];  // of weights
};

__device__ inline bool IsEstimated(const EstimateRestKernelParams& p, int64_t task,
                                   const TileView& tile) {
  return tile.tile.num_lists > 0 && tile.form != CentroidForm::kBounds &&
         tile.view->value_means != nullptr && p.counts[task] >= 0;
}

// Where the states of the task's query heads are, the first of them.
__device__ inline int64_t FirstState(const ScoreListsParams& p, int64_t task, int64_t tile) {
  const int64_t row = task / p.num_selections;
  const int64_t selection = task % p.num_selections;
  return (tile * p.num_rows + row) * p.num_heads + selection * (p.num_heads / p.num_selections);
}

// ------------------------------ how much of a list is unread

__device__ inline void MarkDone(int32_t token, uint32_t* done) {
  if (token < 0 || token >= kEstimateSegmentTokens) return;
  atomicOr(done + token / 32, 1u << (token % 32));
}

// Per CTA. The whole selection is looked at: a search for the segment's part would be a chain of
// loads, and these are all asked for at once.
__device__ inline void MarkSelected(const EstimateRestKernelParams& p, int64_t task,
                                    const ListsView& view, int32_t thread, uint32_t* done) {
  const int32_t* positions = p.positions + task * p.positions_stride;
  const int32_t count = p.counts[task];
  for (int32_t i = thread; i < count; i += kScoreThreads) {
    MarkDone(positions[i] - view.first_position, done);
  }
  for (int32_t i = thread; i < view.num_excluded; i += kScoreThreads) {
    MarkDone(view.excluded[i], done);
  }
}

// Per thread: tokens of [begin, end) that are not done.
__device__ inline int32_t CountRange(const uint32_t* done, int32_t begin, int32_t end) {
  int32_t unread = 0;
  while (begin < end) {
    const int32_t in_word = 32 - begin % 32 < end - begin ? 32 - begin % 32 : end - begin;
    const uint32_t bits = 0xffffffffu >> (32 - in_word) << (begin % 32);
    unread += __popc(~done[begin / 32] & bits);
    begin += in_word;
  }
  return unread;
}

// Per CTA, a thread to a list.
__device__ inline void CountUnread(const EstimateRestKernelParams& p, int64_t task, int32_t thread,
                                   const uint32_t* done, EstimateShared& shared) {
  const ListsView& view = *shared.score.view.view;
  const int32_t num_tokens =
      p.score.op.rows[task / p.score.op.num_selections].num_tokens - view.first_position;
  for (int32_t i = thread; i < shared.score.view.tile.num_lists; i += kScoreThreads) {
    const int32_t begin = shared.score.offsets[i], end = shared.score.offsets[i + 1];
    if (view.members == nullptr) {
      shared.unread[i] = CountRange(done, begin, end < num_tokens ? end : num_tokens);
      continue;
    }
    int32_t unread = 0;
    for (int32_t j = begin; j < end; ++j) {
      const int32_t token = view.members[j];
      if (token < num_tokens) unread += ~done[token / 32] >> (token % 32) & 1u;
    }
    shared.unread[i] = unread;
  }
}

// ------------------------------ weights

// Per CTA: turns dots into scores; -inf for what is not estimated.
__device__ inline void ScoreUnread(const ScoreListsParams& p, int32_t thread,
                                   const ScoreMemory& memory, const EstimateShared& shared) {
  const TileView& view = shared.score.view;
  const int32_t heads = p.num_heads / p.num_selections;
  for (int32_t i = thread; i < view.tile.num_lists; i += kScoreThreads) {
    const float scale = HasScales(view.form) ? view.scales[view.first + i] : 1.0f;
    for (int32_t h = 0; h < heads; ++h) {
      float* at = memory.scores + h * kScoreTileLists + i;
      const float score = fmaf(*at, shared.score.multiplier[h] * scale, shared.score.center_dot[h]);
      const bool counts = shared.unread[i] > 0 && score - score == 0.0f;
      *at = counts ? score : -INFINITY;
    }
  }
}

// Per CTA, a warp to a head: turns scores into weights and writes the log of their sum.
__device__ inline void WeighTile(const EstimateRestKernelParams& p, int64_t first_state,
                                 int32_t thread, const ScoreMemory& memory,
                                 EstimateShared& shared) {
  const int32_t heads = p.score.op.num_heads / p.score.op.num_selections;
  const int32_t lists = shared.score.view.tile.num_lists;
  const int32_t lane = thread % kWarpSize;
  for (int32_t h = thread / kWarpSize; h < heads; h += kScoreWarps) {
    float* scores = memory.scores + h * kScoreTileLists;
    float maximum = -INFINITY;
    for (int32_t i = lane; i < lists; i += kWarpSize) maximum = fmaxf(maximum, scores[i]);
    maximum = WarpMax(maximum);
    const float base = maximum == -INFINITY ? 0.0f : maximum;
    float sum = 0.0f;
    for (int32_t i = lane; i < lists; i += kWarpSize) {
      scores[i] = static_cast<float>(shared.unread[i]) * expf(scores[i] - base);
      sum += scores[i];
    }
    sum = WarpSum(sum);
    if (lane != 0) continue;
    p.states.lse[first_state + h] = maximum == -INFINITY ? -INFINITY : maximum + logf(sum);
    shared.inverse_sum[h] = sum > 0.0f ? 1.0f / sum : 0.0f;
  }
}

// ------------------------------ mean values

// The lanes that read one mean value are a group, as many of a warp as it has lanes for.
struct EstimateLane {
  int32_t group, num_groups;  // of the CTA
  int32_t channel;            // the first of the lane's
  bool is_idle;

  __device__ EstimateLane(int32_t head_dim, int32_t thread) {
    const int32_t lanes = head_dim / kEstimateUnit, lane = thread % kWarpSize;
    const int32_t of_warp = kWarpSize / lanes;
    group = thread / kWarpSize * of_warp + lane / lanes;
    num_groups = kScoreWarps * of_warp;
    channel = lane % lanes * kEstimateUnit;
    is_idle = lane / lanes >= of_warp;
  }
};

using EstimateSums = float[kScoreBlockHeads][kEstimateUnit];

__device__ inline void StoreUnit(const float (&x)[kEstimateUnit], float* to) {
  for (int32_t i = 0; i < kEstimateUnit; i += 4) {
    Store(to + i,
          Vec16{{FloatBits(x[i]), FloatBits(x[i + 1]), FloatBits(x[i + 2]), FloatBits(x[i + 3])}});
  }
}

// Per lane: adds a list's mean value by its weight for the heads [block, block + 4).
__device__ inline void AddMeanValue(const Vec16& unit, int32_t list, int32_t block, int32_t heads,
                                    const ScoreMemory& memory, EstimateSums& sums) {
  float x[kEstimateUnit];
  ListUnit<CentroidForm::kBFloat16>::Unpack(unit, x);
  for (int32_t h = 0; h < kScoreBlockHeads; ++h) {
    const int32_t head = block + h < heads ? block + h : heads - 1;
    const float weight = memory.scores[head * kScoreTileLists + list];
    for (int32_t i = 0; i < kEstimateUnit; ++i) sums[h][i] = fmaf(weight, x[i], sums[h][i]);
  }
}

// Per lane: its group's share of the tile. Mean values of lists without unread members are not
// read.
__device__ inline void SumGroup(int32_t head_dim, int32_t heads, int32_t block,
                                const EstimateLane& lane, const ScoreMemory& memory,
                                const EstimateShared& shared, EstimateSums& sums) {
  const TileView& tile = shared.score.view;
  const uint16_t* values = tile.view->value_means + int64_t{tile.first} * head_dim + lane.channel;
  const int32_t lists = lane.is_idle ? 0 : tile.tile.num_lists;
  for (int32_t first = lane.group; first < lists; first += kEstimateAhead * lane.num_groups) {
    Vec16 units[kEstimateAhead];
    for (int32_t a = 0; a < kEstimateAhead; ++a) {
      const int32_t list = first + a * lane.num_groups;
      units[a] = Vec16{};
      if (list < lists && shared.unread[list] > 0) {
        units[a] = LoadStreaming(values + int64_t{list} * head_dim);
      }
    }
    for (int32_t a = 0; a < kEstimateAhead; ++a) {
      const int32_t list = first + a * lane.num_groups;
      if (list < lists) AddMeanValue(units[a], list, block, heads, memory, sums);
    }
  }
}

// Per CTA: the tile's mean of values by weight, 4 heads at a time; groups meet where the centroids
// were.
__device__ inline void WriteValues(const EstimateRestKernelParams& p, int64_t first_state,
                                   int32_t thread, const ScoreMemory& memory,
                                   const EstimateShared& shared) {
  const int32_t head_dim = p.score.op.head_dim;
  const int32_t heads = p.score.op.num_heads / p.score.op.num_selections;
  const EstimateLane lane(head_dim, thread);
  float* groups = reinterpret_cast<float*>(memory.tile);  // [num_groups, 4, head_dim]
  for (int32_t block = 0; block < heads; block += kScoreBlockHeads) {
    EstimateSums sums = {};
    SumGroup(head_dim, heads, block, lane, memory, shared, sums);
    __syncthreads();
    for (int32_t h = 0; h < kScoreBlockHeads && !lane.is_idle; ++h) {
      float* to = groups + (lane.group * kScoreBlockHeads + h) * head_dim + lane.channel;
      StoreUnit(sums[h], to);
    }
    __syncthreads();
    const int32_t block_heads = heads - block < kScoreBlockHeads ? heads - block : kScoreBlockHeads;
    for (int32_t at = 4 * thread; at < block_heads * head_dim; at += 4 * kScoreThreads) {
      const float scale = shared.inverse_sum[block + at / head_dim];
      float sum[4] = {};
      for (int32_t g = 0; g < lane.num_groups; ++g) {
        const Vec16 part = Load(groups + g * kScoreBlockHeads * head_dim + at);
        for (int32_t i = 0; i < 4; ++i) sum[i] += FloatFromBits(part.words[i]);
      }
      StoreGlobal(p.states.out + (first_state + block) * head_dim + at,
                  Vec16{{FloatBits(sum[0] * scale), FloatBits(sum[1] * scale),
                         FloatBits(sum[2] * scale), FloatBits(sum[3] * scale)}});
    }
  }
}

// ------------------------------ the kernel

// grid = (max_tiles, tasks); a CTA has one tile. A tile that is not estimated leaves an lse of -inf
// and no value. Shared memory has room for 3 CTAs of an SM; left alone, ptxas spills for a fourth.
__global__ void __launch_bounds__(kScoreThreads, 3)
    EstimateTilesKernel(const __grid_constant__ EstimateRestKernelParams p) {
  WaitForPreviousKernel();
  EstimateShared& shared = SharedMemory<EstimateShared>();
  const ScoreListsParams& op = p.score.op;
  const int32_t heads = op.num_heads / op.num_selections;
  const ScoreMemory memory = ScoreMemoryAt(DynamicSharedMemory(), heads, op.head_dim);
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int64_t task = blockIdx.y;
  const int64_t first_state = FirstState(op, task, blockIdx.x);
  TileView& view = shared.score.view;
  if (thread < kWarpSize) FindTile(op, task, static_cast<int32_t>(blockIdx.x), thread, view);
  __syncthreads();
  if (!IsEstimated(p, task, view)) {
    for (int32_t h = thread; h < heads; h += kScoreThreads) {
      p.states.lse[first_state + h] = -INFINITY;
    }
    return;
  }
  BeginTile(view, op.head_dim, thread, memory);
  for (int32_t i = thread; i <= view.tile.num_lists; i += kScoreThreads) {
    shared.score.offsets[i] = view.offsets[view.first + i];
  }
  uint32_t* done = reinterpret_cast<uint32_t*>(memory.scores);
  for (int32_t i = 4 * thread; i < kEstimateDoneWords; i += 4 * kScoreThreads) {
    Store(done + i, Vec16{});
  }
  LoadQueries(p.score, task, heads, thread, memory.query);
  __syncthreads();
  MarkSelected(p, task, *view.view, thread, done);
  PrepareQueries(op, heads, thread, memory, shared.score);
  CopyAsyncWait<0>();
  __syncthreads();
  CountUnread(p, task, thread, done, shared);
  __syncthreads();
  DotCenters(op, heads, thread, memory, shared.score);
  DotTile(heads, op.head_dim, thread, memory, view);
  __syncthreads();
  ScoreUnread(op, thread, memory, shared);
  __syncthreads();
  WeighTile(p, first_state, thread, memory, shared);
  __syncthreads();
  WriteValues(p, first_state, thread, memory, shared);
}

// ------------------------------ joining tiles

// Static shared memory. In dynamic shared memory: the tiles that have a state, [max_tiles].
struct EstimateJoinShared {
  alignas(16) float sums[kScoreThreads * kEstimateUnit];  // [num_groups, head_dim]
  float weights[kScoreThreads];                           // of each group, summed
  float max;                                              // of the tiles' lse
  int32_t num_tiles;
};

constexpr int64_t kNoState = -1;

// The head's state of a tile.
__device__ inline int64_t StateOf(const EstimateRestKernelParams& p, int64_t row_head,
                                  int64_t tile) {
  return tile * p.score.op.num_rows * p.score.op.num_heads + row_head;
}

// Per warp: which tiles have a state, ascending.
__device__ inline void FindStates(const EstimateRestKernelParams& p, int64_t row_head, int32_t lane,
                                  int32_t* tiles, EstimateJoinShared& shared) {
  float maximum = -INFINITY;
  int32_t count = 0;
  for (int32_t first = 0; first < p.max_tiles; first += kWarpSize) {
    const int32_t tile = first + lane;
    const float x = tile < p.max_tiles ? p.states.lse[StateOf(p, row_head, tile)] : -INFINITY;
    const uint32_t found = __ballot_sync(kAllLanes, x > -INFINITY);
    if (x > -INFINITY) tiles[count + __popc(found & ((1u << lane) - 1))] = tile;
    count += __popc(found);
    maximum = fmaxf(maximum, x);
  }
  maximum = WarpMax(maximum);
  if (lane != 0) return;
  shared.max = maximum;
  shared.num_tiles = count;
}

// Per lane: adds its group's tiles, by weight, to `sums`; returns the sum of weights.
__device__ inline float SumStates(const EstimateRestKernelParams& p, int64_t row_head,
                                  const EstimateLane& lane, const int32_t* tiles,
                                  const EstimateJoinShared& shared, float (&sums)[kEstimateUnit]) {
  float total = 0.0f;
  const int32_t num_tiles = lane.is_idle ? 0 : shared.num_tiles;
  for (int32_t first = lane.group; first < num_tiles; first += kEstimateAhead * lane.num_groups) {
    int64_t states[kEstimateAhead];
    float weights[kEstimateAhead];
    for (int32_t a = 0; a < kEstimateAhead; ++a) {
      const int32_t k = first + a * lane.num_groups;
      states[a] = k < num_tiles ? StateOf(p, row_head, tiles[k]) : kNoState;
      weights[a] = k < num_tiles ? p.states.lse[states[a]] : -INFINITY;
    }
    Vec16 units[kEstimateAhead][2] = {};
    for (int32_t a = 0; a < kEstimateAhead; ++a) {
      if (states[a] == kNoState) continue;
      const float* from = p.states.out + states[a] * p.score.op.head_dim + lane.channel;
      units[a][0] = LoadStreaming(from);
      units[a][1] = LoadStreaming(from + 4);
    }
    for (float& weight : weights) weight = expf(weight - shared.max);
    for (int32_t a = 0; a < kEstimateAhead; ++a) {
      total += weights[a];
      for (int32_t i = 0; i < kEstimateUnit; ++i) {
        sums[i] = fmaf(weights[a], FloatFromBits(units[a][i / 4].words[i % 4]), sums[i]);
      }
    }
  }
  return total;
}

// grid = (num_heads, num_rows); a CTA has one query head. With 64 registers, which the bound
// allows, all loads of SumStates are in flight; left alone, ptxas saves some and makes loads wait.
__global__ void __launch_bounds__(kScoreThreads, 8)
    EstimateJoinKernel(const __grid_constant__ EstimateRestKernelParams p) {
  WaitForPreviousKernel();
  EstimateJoinShared& shared = SharedMemory<EstimateJoinShared>();
  int32_t* tiles = reinterpret_cast<int32_t*>(DynamicSharedMemory());
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t head_dim = p.score.op.head_dim;
  const int64_t row_head = int64_t{blockIdx.y} * p.score.op.num_heads + blockIdx.x;
  if (thread < kWarpSize) FindStates(p, row_head, thread, tiles, shared);
  __syncthreads();
  const EstimateLane lane(head_dim, thread);
  float sums[kEstimateUnit] = {};
  const float weight = SumStates(p, row_head, lane, tiles, shared, sums);
  if (!lane.is_idle) {
    StoreUnit(sums, shared.sums + lane.group * head_dim + lane.channel);
    if (lane.channel == 0) shared.weights[lane.group] = weight;
  }
  __syncthreads();
  float total = 0.0f;
  for (int32_t g = 0; g < lane.num_groups; ++g) total += shared.weights[g];
  const float scale = total > 0.0f ? 1.0f / total : 0.0f;
  for (int32_t c = thread; c < head_dim; c += kScoreThreads) {
    float sum = 0.0f;
    for (int32_t g = 0; g < lane.num_groups; ++g) sum += shared.sums[g * head_dim + c];
    p.rest_out[row_head * head_dim + c] = sum * scale;
  }
  if (thread == 0) p.rest_lse[row_head] = total > 0.0f ? shared.max + logf(total) : -INFINITY;
}

// ------------------------------ launch

inline EstimateRestKernelParams MakeEstimateRestKernelParams(const EstimateRestParams& params,
                                                             const ScoreListsPlan& plan,
                                                             void* workspace) {
  EstimateRestKernelParams p;
  p.score = MakeScoreListsKernelParams(params.score, plan, nullptr);
  p.states = LayOutEstimateStates(plan, workspace);
  p.positions = params.positions;
  p.counts = params.counts;
  p.positions_stride = params.positions_stride;
  p.rest_out = params.rest_out;
  p.rest_lse = params.rest_lse;
  p.max_tiles = plan.max_tiles;
  return p;
}

inline LaunchShape EstimateTilesShape(const ScoreListsPlan& plan) {
  LaunchShape shape = ScoreTilesShape(plan);
  const ScoreLayout layout = LayOutScoreShared(plan.num_heads / plan.num_selections, plan.head_dim);
  const int32_t with_done = layout.scores + kEstimateDoneWords * int32_t{sizeof(uint32_t)};
  shape.dynamic_shared_bytes =
      static_cast<uint32_t>(with_done > layout.bytes ? with_done : layout.bytes);
  return shape;
}

inline LaunchShape EstimateJoinShape(const ScoreListsPlan& plan) {
  LaunchShape shape;
  shape.grid_x = static_cast<uint32_t>(plan.num_heads);
  shape.grid_y = static_cast<uint32_t>(plan.num_rows);
  shape.threads = kScoreThreads;
  shape.overlaps_previous = true;
  shape.dynamic_shared_bytes = static_cast<uint32_t>(plan.max_tiles * sizeof(int32_t));
  return shape;
}

}  // namespace semkv::cuda

#endif  // SEMKV_OPS_RETRIEVAL_ESTIMATE_REST_KERNEL_CUH_
