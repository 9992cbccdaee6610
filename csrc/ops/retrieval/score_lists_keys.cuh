// The pieces of score_lists on the GPU that turn scores and tiles' shares of Z into keys, for its
// second launch and for the kernel that selects by them at once.

#ifndef SEMKV_OPS_RETRIEVAL_SCORE_LISTS_KEYS_CUH_
#define SEMKV_OPS_RETRIEVAL_SCORE_LISTS_KEYS_CUH_

#include <cmath>
#include <cstdint>

#include "csrc/ops/cuda/launch_shape.h"
#include "csrc/ops/cuda/warp_reduce.cuh"
#include "csrc/ops/retrieval/inverted_lists.h"
#include "csrc/ops/retrieval/score_lists_plan.h"

namespace semkv::cuda {

// Infinite scores: inf - inf is no number, but equal scores have a difference of 0.
__device__ inline float ExpBelow(float score, float maximum) {
  return score == maximum ? 1.0f : expf(score - maximum);
}

// What the second launch needs of Z, per head. In dynamic shared memory: the partition of every
// tile, -1 behind the last one.
struct KeyShared {
  float max[kScoreMaxHeads];
  float weight_of_exp[2][kScoreMaxHeads];  // rank_weight / Z, per partition
  int32_t num_tiles;
};

// Per CTA of kThreads.
template <int32_t kThreads>
__device__ inline void LoadPartitions(const ScoreTile* tiles, int32_t max_tiles, int32_t thread,
                                      int32_t* partitions, KeyShared& shared) {
  for (int32_t i = thread; i < max_tiles; i += kThreads) {
    partitions[i] = tiles[i].num_lists > 0 ? tiles[i].partition : -1;
  }
  if (thread == 0) shared.num_tiles = 0;
  __syncthreads();
  for (int32_t i = thread; i < max_tiles; i += kThreads) {
    const bool last = i + 1 == max_tiles || partitions[i + 1] < 0;
    if (last && partitions[i] >= 0) shared.num_tiles = i + 1;
  }
  __syncthreads();
}

// Of some tiles: the greatest score, and each partition's sum of size x exp(score - maximum).
struct HeadMass {
  float max;
  float sums[2];
};

__device__ inline HeadMass MergeMasses(const HeadMass& a, const HeadMass& b) {
  const float maximum = fmaxf(a.max, b.max);
  const float of_a = ExpBelow(a.max, maximum), of_b = ExpBelow(b.max, maximum);
  return {maximum, {a.sums[0] * of_a + b.sums[0] * of_b, a.sums[1] * of_a + b.sums[1] * of_b}};
}

// Per warp: Z of a head over all tiles, merged in an order that only their number decides.
__device__ inline void MergeHead(const ScoreMass* masses, const int32_t* partitions, int32_t h,
                                 const RetrievalRow& row, int32_t lane, KeyShared& shared) {
  HeadMass total = {-INFINITY, {0.0f, 0.0f}};
  for (int32_t i = lane; i < shared.num_tiles; i += kWarpSize) {
    const float sum = masses[i].sum;
    const bool is_first = partitions[i] == 0;
    total = MergeMasses(total, {masses[i].max, {is_first ? sum : 0.0f, is_first ? 0.0f : sum}});
  }
  for (int32_t mask = kWarpSize / 2; mask > 0; mask /= 2) {
    total = MergeMasses(total, {__shfl_xor_sync(kAllLanes, total.max, mask),
                                {__shfl_xor_sync(kAllLanes, total.sums[0], mask),
                                 __shfl_xor_sync(kAllLanes, total.sums[1], mask)}});
  }
  if (lane == 0) {
    const float z = fmaxf(total.sums[0], total.sums[1]);
    shared.max[h] = total.max;
    shared.weight_of_exp[0][h] = row.rank_weight[0] / z;
    shared.weight_of_exp[1][h] = row.rank_weight[1] / z;
  }
}

// Per thread: the key of a list, whose scores lie `stride` apart.
__device__ inline float KeyOf(const float* scores, int64_t stride, int32_t heads, GroupRank rank,
                              const float* max, const float* weight_of_exp) {
  float key = 0.0f;
  bool dead = false;
  for (int32_t h = 0; h < heads; ++h) {
    const float score = scores[h * stride];
    const float share = ExpBelow(score, max[h]) * weight_of_exp[h];
    key = rank == GroupRank::kShareSum ? key + share : fmaxf(key, share);
    dead = dead || score != score;
  }
  return dead ? -1.0f : key;
}

// Per CTA of kThreads: Z of every head. Behind a barrier.
template <int32_t kThreads>
__device__ inline void MergeHeads(const ScoreWorkspace& workspace, int32_t max_tiles, int64_t task,
                                  int32_t heads, const RetrievalRow& row, int32_t thread,
                                  const int32_t* partitions, KeyShared& shared) {
  for (int32_t h = thread / kWarpSize; h < heads; h += kThreads / kWarpSize) {
    const ScoreMass* masses = workspace.masses + (task * heads + h) * max_tiles;
    MergeHead(masses, partitions, h, row, thread % kWarpSize, shared);
  }
  __syncthreads();
}

}  // namespace semkv::cuda

#endif  // SEMKV_OPS_RETRIEVAL_SCORE_LISTS_KEYS_CUH_
