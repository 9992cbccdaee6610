// What k-means on the GPU needs to know before it runs: upper bounds, and from them its workspace.
// Standard library only, C++17.

#ifndef SEMKV_OPS_CLUSTERING_KMEANS_PLAN_H_
#define SEMKV_OPS_CLUSTERING_KMEANS_PLAN_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "csrc/ops/clustering/kmeans.h"
#include "semkv/types.h"

namespace semkv {

constexpr int32_t kKMeansPartPoints = 512;        // of one CTA's sum of points
constexpr int32_t kKMeansListsAlignment = 64;     // lists of a step of assign
constexpr int32_t kKMeansSortBytes = 160 * 1024;  // of shared memory, for counters; sm_80 has 163
constexpr int32_t kKMeansMaxSortWarps = 32;
constexpr int32_t kKMeansWorkspaceAlignment = 256;  // bytes

// Channels of a 16-bit centroid, the last of them 0: an access of 16 bytes by each of four lanes.
SEMKV_HOST_DEVICE constexpr int32_t KMeansRowChannels(int32_t head_dim) {
  return CeilDiv(head_dim, 32) * 32;
}

struct KMeansPlan {
  int32_t num_problems = 0, head_dim = 0, max_points = 0, max_lists = 0, iterations = 0;
  int32_t max_lone = 0;
  int32_t max_parts = 0;        // per problem, for sums over points
  int32_t padded_lists = 0;     // max_lists, in whole steps of assign
  int32_t sort_warps = 0;       // each counts labels on its own
  int32_t lone_sort_warps = 0;  // of the sort that has lists of lone points too
};

// Why no plan can be made for these bounds; null when one can.
inline const char* KMeansCudaUnsupported(int32_t num_problems, int32_t head_dim, int32_t max_points,
                                         int32_t max_lists, int32_t iterations,
                                         int32_t max_lone = 0) {
  if (num_problems < 0 || num_problems > 65535) return "num_problems is not in 0..65535";
  if (head_dim != 64 && head_dim != 80 && head_dim != 96 && head_dim != 128 && head_dim != 256) {
    return "head_dim is not 64, 80, 96, 128 or 256";
  }
  if (max_points < 1 || max_points > kKMeansMaxPoints) return "max_points is not in 1..2^20";
  if (max_lists < 1 || max_lists > kKMeansMaxLists) return "max_lists is not in 1..8192";
  if (iterations < 0 || iterations > 1000) return "iterations is not in 0..1000";
  if (max_lone < 0 || max_lone > kKMeansMaxLists - max_lists) {
    return "max_lists and max_lone are together not in 1..8192";
  }
  return nullptr;
}

// Warps of a sort into num_lists lists and the two that follow: as many as have points, and
// counters of their own.
inline int32_t KMeansSortWarps(int32_t max_points, int32_t num_lists) {
  const int32_t counters_bytes = (num_lists + 2) * int32_t{sizeof(int32_t)};
  return std::clamp(std::min(kKMeansSortBytes / counters_bytes, CeilDiv(max_points, 32)), 1,
                    kKMeansMaxSortWarps);
}

// Host only. REQUIRES: KMeansCudaUnsupported of the same bounds is null.
inline KMeansPlan PlanKMeans(int32_t num_problems, int32_t head_dim, int32_t max_points,
                             int32_t max_lists, int32_t iterations, int32_t max_lone = 0) {
  KMeansPlan plan = {num_problems, head_dim, max_points, max_lists, iterations,
                     max_lone,     0,        0,          0,         0};
  plan.max_parts = CeilDiv(max_points, kKMeansPartPoints);
  plan.padded_lists = CeilDiv(max_lists, kKMeansListsAlignment) * kKMeansListsAlignment;
  plan.sort_warps = KMeansSortWarps(max_points, max_lists);
  plan.lone_sort_warps = KMeansSortWarps(max_points, max_lists + max_lone);
  return plan;
}

// What the kernels tell each other about a problem.
struct KMeansState {
  int32_t num_ordinary;  // points
  int32_t num_used;      // lists that get members: min(num_lists, num_ordinary)
  int32_t num_empty;     // of these, those without members
  int32_t changes;       // labels that the last assignment changed
  int32_t is_done;       // nothing moves any more: later iterations return at once
};

struct KMeansWorkspace {
  KMeansState* states = nullptr;   // [num_problems]
  float* part_sums = nullptr;      // [num_problems, max_parts, head_dim]
  int32_t* part_counts = nullptr;  // [num_problems, max_parts]: ordinary points
  float* centers = nullptr;        // [num_problems, head_dim]: mean point; cosine: its direction
  float* inverse_norms = nullptr;  // [num_problems, max_points]: 1 / |x|
  float* distances = nullptr;      // [num_problems, max_points], for lists that restart and, at
                                   // the end, for lone points
  uint16_t* rows = nullptr;        // [num_problems, padded_lists, row channels]: centroid - center
  float* biases = nullptr;         // [num_problems, padded_lists]; -infinity: no such list
  float* list_objectives = nullptr;  // [num_problems, max_lists]
};

// Carves `memory`, which may be null to ask for `bytes` alone.
inline KMeansWorkspace LayOutKMeansWorkspace(const KMeansPlan& plan, void* memory, size_t* bytes) {
  const int64_t problems = plan.num_problems;
  int64_t used = 0;
  const auto take = [&](int64_t count, size_t size) {
    const int64_t at = used;
    used += CeilDiv<int64_t>(count * static_cast<int64_t>(size), kKMeansWorkspaceAlignment) *
            kKMeansWorkspaceAlignment;
    // Null may be added to: only the sum of bytes is asked for then.
    // NOLINTNEXTLINE(performance-no-int-to-ptr)
    return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(memory) + at);
  };
  const auto take_floats = [&](int64_t count) {
    return static_cast<float*>(take(count, sizeof(float)));
  };
  KMeansWorkspace w;
  w.states = static_cast<KMeansState*>(take(problems, sizeof(KMeansState)));
  w.part_sums = take_floats(problems * plan.max_parts * plan.head_dim);
  w.part_counts = static_cast<int32_t*>(take(problems * plan.max_parts, sizeof(int32_t)));
  w.centers = take_floats(problems * plan.head_dim);
  w.inverse_norms = take_floats(problems * plan.max_points);
  w.distances = take_floats(problems * plan.max_points);
  w.rows = static_cast<uint16_t*>(
      take(problems * plan.padded_lists * KMeansRowChannels(plan.head_dim), sizeof(uint16_t)));
  w.biases = take_floats(problems * plan.padded_lists);
  w.list_objectives = take_floats(problems * plan.max_lists);
  *bytes = static_cast<size_t>(used);
  return w;
}

inline size_t KMeansCudaWorkspaceBytes(const KMeansPlan& plan) {
  size_t bytes = 0;
  LayOutKMeansWorkspace(plan, nullptr, &bytes);
  return bytes;
}

// Whether the kernels serve `params` by this plan.
inline bool KMeansPlanServes(const KMeansPlan& plan, const KMeansParams& p) {
  return p.num_problems == plan.num_problems && p.head_dim == plan.head_dim &&
         p.max_points == plan.max_points && p.max_lists == plan.max_lists &&
         p.iterations == plan.iterations && p.max_lone == plan.max_lone &&
         (p.dtype == DType::kFloat16 || p.dtype == DType::kBFloat16) &&
         KMeansCudaUnsupported(p.num_problems, p.head_dim, p.max_points, p.max_lists, p.iterations,
                               p.max_lone) == nullptr;
}

}  // namespace semkv

#endif  // SEMKV_OPS_CLUSTERING_KMEANS_PLAN_H_
