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

// What the second launch needs of Z, per partition and head. In dynamic shared memory: the
// partition of every tile, -1 behind the last one.
struct KeyShared {
  float max[2][kScoreMaxHeads];
  float weight_of_exp[2][kScoreMaxHeads];  // rank_weight / Z
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

__device__ inline ScoreMass MergeMasses(const ScoreMass& a, const ScoreMass& b) {
  const float maximum = fmaxf(a.max, b.max);
  return {maximum, a.sum * ExpBelow(a.max, maximum) + b.sum * ExpBelow(b.max, maximum)};
}

// Per warp: Z of a head over the tiles of a partition, merged in an order that only their number
// decides.
__device__ inline void MergeHead(const ScoreMass* masses, const int32_t* partitions, int32_t h,
                                 int32_t partition, float rank_weight, int32_t lane,
                                 KeyShared& shared) {
  ScoreMass total = {-INFINITY, 0.0f};
  for (int32_t i = lane; i < shared.num_tiles; i += kWarpSize) {
    if (partitions[i] != partition) continue;
    total = MergeMasses(total, {masses[i].max, masses[i].sum});
  }
  for (int32_t mask = kWarpSize / 2; mask > 0; mask /= 2) {
    total = MergeMasses(total, {__shfl_xor_sync(kAllLanes, total.max, mask),
                                __shfl_xor_sync(kAllLanes, total.sum, mask)});
  }
  if (lane == 0) {
    shared.max[partition][h] = total.max;
    shared.weight_of_exp[partition][h] = rank_weight / total.sum;
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

// Per CTA of kThreads: Z of every partition and head. Behind a barrier.
template <int32_t kThreads>
__device__ inline void MergeHeads(const ScoreWorkspace& workspace, int32_t max_tiles, int64_t task,
                                  int32_t heads, const RetrievalRow& row, int32_t thread,
                                  const int32_t* partitions, KeyShared& shared) {
  for (int32_t i = thread / kWarpSize; i < 2 * heads; i += kThreads / kWarpSize) {
    const ScoreMass* masses = workspace.masses + (task * heads + i / 2) * max_tiles;
    MergeHead(masses, partitions, i / 2, i % 2, row.rank_weight[i % 2], thread % kWarpSize, shared);
  }
  __syncthreads();
}

}  // namespace semkv::cuda

#endif  // SEMKV_OPS_RETRIEVAL_SCORE_LISTS_KEYS_CUH_
