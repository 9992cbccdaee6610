// How score_lists divides its work on the GPU: into tiles, each a run of lists of one view whose
// centroids lie in a CTA's shared memory together. The plan comes from upper bounds, on the host
// and once a step; which view a tile lies in the CTAs find themselves. Standard library only,
// C++17.

#ifndef SEMKV_OPS_RETRIEVAL_SCORE_LISTS_PLAN_H_
#define SEMKV_OPS_RETRIEVAL_SCORE_LISTS_PLAN_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "csrc/ops/retrieval/inverted_lists.h"
#include "semkv/types.h"

namespace semkv {

constexpr int32_t kScoreMaxHeads = 64;  // query heads per selection
constexpr int32_t kScoreMaxHeadDim = 256;
constexpr int64_t kScoreMaxTasks = 65535;         // (row, selection) pairs of a launch
constexpr int32_t kScoreTileLists = 256;          // at most
constexpr int32_t kScoreTileBytes = 48 * 1024;    // of shared memory
constexpr int32_t kScoreTileAlignment = 32;       // lists; tiles of a view begin at multiples of it
constexpr int32_t kScoreWorkspaceAlignment = 64;  // bytes

// Distance of rows in shared memory: 64 modulo 128 bytes, so that 8 lanes that read 64 bytes of two
// neighbouring rows read every bank once.
SEMKV_HOST_DEVICE constexpr int32_t ScorePitch(int32_t row_bytes) {
  return (row_bytes + 63) / 128 * 128 + 64;
}

// Most lists of a tile.
SEMKV_HOST_DEVICE constexpr int32_t ScoreTileLists(CentroidForm form, int32_t head_dim) {
  const int32_t fit = kScoreTileBytes / ScorePitch(CentroidRowBytes(form, head_dim));
  const int32_t whole = fit / kScoreTileAlignment * kScoreTileAlignment;
  return whole < kScoreTileLists ? whole : kScoreTileLists;
}

struct ScoreListsPlan {
  int32_t num_rows = 0, num_heads = 0, num_selections = 0, head_dim = 0;
  int32_t max_lists = 0;  // per (row, selection)
  int32_t max_tiles = 0;  // likewise
  int32_t key_ctas = 0;   // of the second launch, per (row, selection)
};

// Upper bounds: `max_lists` lists in `max_views` views per (row, selection), none wider than
// `form`.
inline ScoreListsPlan PlanScoreLists(int32_t num_rows, int32_t num_heads, int32_t num_selections,
                                     int32_t head_dim, CentroidForm form, int32_t max_lists,
                                     int32_t max_views) {
  const int32_t tile = ScoreTileLists(form, head_dim);
  // A view's last tile may hold a single list.
  const int64_t tiles = (max_lists + int64_t{max_views} * (tile - 1)) / tile;
  ScoreListsPlan plan = {num_rows, num_heads, num_selections, head_dim, max_lists, 0, 0};
  plan.max_tiles = static_cast<int32_t>(std::min<int64_t>(tiles, max_lists));
  // 4 lists a thread. Every CTA reads 8 bytes per head and tile for Z, where a list has 4 bytes per
  // head: that many CTAs read a tenth more than their lists.
  plan.key_ctas = std::clamp(CeilDiv(max_lists, 2048), 1, std::max(tile / 20, 1));
  return plan;
}

// What the first launch leaves for the second, per (row, selection).
struct alignas(16) ScoreTile {
  int32_t first_list;  // list id
  int32_t num_lists;   // 0: no such tile
  int32_t partition;
  int32_t unused;
};

// max of a head's scores over a tile, and sum of size * exp(score - max).
struct alignas(8) ScoreMass {
  float max, sum;
};

struct ScoreWorkspace {
  float* scores = nullptr;  // [tasks, heads, stride]; NaN: the list is never selected
  int64_t stride = 0;
  ScoreTile* tiles = nullptr;   // [tasks, max_tiles]
  ScoreMass* masses = nullptr;  // [tasks, heads, max_tiles]
};

// Carves `memory`, which may be null to ask for `bytes` alone.
inline ScoreWorkspace LayOutScoreWorkspace(const ScoreListsPlan& plan, void* memory,
                                           size_t* bytes) {
  const int64_t tasks = int64_t{plan.num_rows} * plan.num_selections;
  const int64_t rows = int64_t{plan.num_rows} * plan.num_heads;
  int64_t used = 0;
  const auto take = [&](int64_t piece) {
    const int64_t at = used;
    used += CeilDiv<int64_t>(piece, kScoreWorkspaceAlignment) * kScoreWorkspaceAlignment;
    // Null may be added to: only the sum of bytes is asked for then.
    // NOLINTNEXTLINE(performance-no-int-to-ptr)
    return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(memory) + at);
  };
  ScoreWorkspace w;
  w.stride = CeilDiv<int64_t>(plan.max_lists, 32) * 32;  // a warp's access is whole lines
  w.scores = static_cast<float*>(take(rows * w.stride * int64_t{sizeof(float)}));
  w.tiles = static_cast<ScoreTile*>(take(tasks * plan.max_tiles * int64_t{sizeof(ScoreTile)}));
  w.masses = static_cast<ScoreMass*>(take(rows * plan.max_tiles * int64_t{sizeof(ScoreMass)}));
  *bytes = static_cast<size_t>(used);
  return w;
}

inline size_t ScoreListsCudaWorkspaceBytes(const ScoreListsPlan& plan) {
  size_t bytes = 0;
  LayOutScoreWorkspace(plan, nullptr, &bytes);
  return bytes;
}

}  // namespace semkv

#endif  // SEMKV_OPS_RETRIEVAL_SCORE_LISTS_PLAN_H_
