// k-means on the GPU: the launches of a run, in their order. Nothing of a run depends on the host
// after it was enqueued: a problem that is done has a flag, on which later CTAs end at once.

#ifndef SEMKV_OPS_CLUSTERING_KMEANS_KERNEL_CUH_
#define SEMKV_OPS_CLUSTERING_KMEANS_KERNEL_CUH_

#include <cstdint>
#include <type_traits>

#include "csrc/ops/clustering/kmeans_assign_kernel.cuh"
#include "csrc/ops/clustering/kmeans_begin_kernel.cuh"
#include "csrc/ops/clustering/kmeans_lists_kernel.cuh"
#include "csrc/ops/clustering/kmeans_lone_kernel.cuh"
#include "csrc/ops/clustering/kmeans_sort_kernel.cuh"

namespace semkv::cuda {

// `workspace` holds KMeansCudaWorkspaceBytes.
inline KMeansLaunch MakeKMeansLaunch(const KMeansParams& params, const KMeansPlan& plan,
                                     void* workspace) {
  size_t unused = 0;
  return {params, plan, LayOutKMeansWorkspace(plan, workspace, &unused), 0};
}

inline LaunchShape KMeansShape(int32_t grid_x, int32_t grid_y, int32_t threads, int32_t bytes = 0) {
  LaunchShape shape;
  shape.grid_x = static_cast<uint32_t>(grid_x);
  shape.grid_y = static_cast<uint32_t>(grid_y);
  shape.threads = static_cast<uint32_t>(threads);
  shape.dynamic_shared_bytes = static_cast<uint32_t>(bytes);
  return shape;
}

// Launch: bool(kernel, shape, KMeansLaunch); false ends the run, and is then returned.
template <DType kDType, typename Launch>
bool LaunchAssign(const KMeansLaunch& run, const Launch& launch) {
  const auto with = [&](auto constant) {
    constexpr int32_t kHeadDim = decltype(constant)::value;
    const LaunchShape shape =
        KMeansShape(CeilDiv(run.plan.max_points, kAssignPoints), run.plan.num_problems,
                    kAssignThreads, AssignLayout<kHeadDim>::kBytes);
    return launch(&KMeansAssignKernel<kDType, kHeadDim>, shape, run);
  };
  switch (run.plan.head_dim) {
    case 64:
      return with(std::integral_constant<int32_t, 64>{});
    case 80:
      return with(std::integral_constant<int32_t, 80>{});
    case 96:
      return with(std::integral_constant<int32_t, 96>{});
    case 128:
      return with(std::integral_constant<int32_t, 128>{});
    default:
      return with(std::integral_constant<int32_t, 256>{});
  }
}

// Counters of so many lists, and the two that follow, for each warp.
inline LaunchShape KMeansSortShape(int32_t problems, int32_t num_warps, int32_t num_lists) {
  const int32_t bytes = num_warps * (num_lists + 2) * int32_t{sizeof(int32_t)};
  return KMeansShape(problems, 1, num_warps * kWarpSize, bytes);
}

template <typename Launch>
bool LaunchSort(const KMeansLaunch& run, const Launch& launch) {
  const KMeansPlan& plan = run.plan;
  return launch(&KMeansSortKernel,
                KMeansSortShape(plan.num_problems, plan.sort_warps, plan.max_lists), run);
}

template <DType kDType, typename Launch>
bool LaunchLone(const KMeansLaunch& run, const Launch& launch) {
  const KMeansPlan& plan = run.plan;
  if (plan.max_lone == 0) return true;
  return launch(&KMeansDistancesKernel<kDType>,
                KMeansShape(plan.max_parts, plan.num_problems, kDistancesThreads), run) &&
         launch(&KMeansLoneKernel, KMeansShape(plan.num_problems, 1, kLoneThreads), run) &&
         launch(&KMeansLoneSortKernel,
                KMeansSortShape(plan.num_problems, plan.lone_sort_warps,
                                plan.max_lists + plan.max_lone),
                run);
}

template <DType kDType, typename Launch>
bool LaunchKMeansOf(KMeansLaunch run, const Launch& launch) {
  const KMeansPlan& plan = run.plan;
  const int32_t problems = plan.num_problems;
  const LaunchShape lists = KMeansShape(plan.max_lists, problems, kListsThreads);
  bool ok = launch(&KMeansPointsKernel<kDType>,
                   KMeansShape(plan.max_parts, problems, kBeginThreads), run) &&
            launch(&KMeansMeanKernel, KMeansShape(problems, 1, kBeginThreads), run) &&
            launch(&KMeansInitKernel<kDType>,
                   KMeansShape(plan.padded_lists / kBeginWarps, problems, kBeginThreads), run);
  ok = ok && LaunchAssign<kDType>(run, launch) && LaunchSort(run, launch);
  for (int32_t i = 1; ok && i <= plan.iterations; ++i) {
    run.iteration = i;
    ok = launch(&KMeansMoveKernel<kDType>, lists, run) &&
         launch(&KMeansRestartKernel<kDType>, KMeansShape(problems, 1, kRestartThreads), run) &&
         LaunchAssign<kDType>(run, launch) && LaunchSort(run, launch);
  }
  return ok && launch(&KMeansMeasureKernel<kDType>, lists, run) &&
         launch(&KMeansObjectiveKernel, KMeansShape(problems, 1, kWarpSize), run) &&
         LaunchLone<kDType>(run, launch);
}

// All launches of a run that KMeansPlanServes.
template <typename Launch>
bool LaunchKMeans(const KMeansLaunch& run, const Launch& launch) {
  if (run.op.dtype == DType::kFloat16) return LaunchKMeansOf<DType::kFloat16>(run, launch);
  return LaunchKMeansOf<DType::kBFloat16>(run, launch);
}

}  // namespace semkv::cuda

#endif  // SEMKV_OPS_CLUSTERING_KMEANS_KERNEL_CUH_
