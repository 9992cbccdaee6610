// Runs the CUDA form of k-means in the SIMT harness.

#ifndef SEMKV_TESTS_OPS_CLUSTERING_KMEANS_SIMT_H_
#define SEMKV_TESTS_OPS_CLUSTERING_KMEANS_SIMT_H_

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "csrc/ops/clustering/kmeans_kernel.cuh"
#include "tests/ops/clustering/kmeans_cases.h"
#include "tests/simt/launch.h"

namespace semkv::testing {

// Every array is a buffer of its own, so that an access behind one is an error; what the kernels
// only read is read-only.
class KMeansSimt {
 public:
  KMeansSimt(KMeansInput& input, uint64_t seed)
      : input_(input),
        plan_(PlanKMeans(input.params.num_problems, input.params.head_dim, input.params.max_points,
                         input.params.max_lists, input.params.iterations, input.params.max_lone)),
        memory_(KMeansCudaWorkspaceBytes(plan_) + kKMeansWorkspaceAlignment, std::byte{0xff}) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(memory_.data());
    const uintptr_t aligned =
        CeilDiv<uintptr_t>(at, kKMeansWorkspaceAlignment) * kKMeansWorkspaceAlignment;
    run_ = cuda::MakeKMeansLaunch(input.params, plan_, reinterpret_cast<void*>(aligned));
    options_.seed = seed;
    AddInputs();
    AddOutputs();
    AddWorkspace();
  }

  const KMeansPlan& plan() const { return plan_; }
  int32_t num_launches() const { return num_launches_; }  // of Run

  // Returns the first error; "" when all went well.
  std::string Run() {
    std::string errors;
    cuda::LaunchKMeans(
        run_, [&](auto* kernel, const LaunchShape& shape, const cuda::KMeansLaunch& launch) {
          errors = LaunchOne(kernel, shape, launch).Errors();
          ++options_.seed;
          ++num_launches_;
          return errors.empty();
        });
    return errors;
  }

  // After Run: what another assignment moves.
  simt::LaunchReport Assign() {
    simt::LaunchReport report;
    const auto launch = [&](auto* kernel, const LaunchShape& shape, const cuda::KMeansLaunch& run) {
      report = LaunchOne(kernel, shape, run);
      return true;
    };
    if (input_.params.dtype == DType::kFloat16) {
      cuda::LaunchAssign<DType::kFloat16>(run_, launch);
    } else {
      cuda::LaunchAssign<DType::kBFloat16>(run_, launch);
    }
    return report;
  }

  // Of float16.
  simt::LaunchReport Move() {
    return LaunchOne(&cuda::KMeansMoveKernel<DType::kFloat16>,
                     cuda::KMeansShape(plan_.max_lists, plan_.num_problems, cuda::kListsThreads),
                     run_);
  }

 private:
  template <typename Kernel>
  simt::LaunchReport LaunchOne(Kernel* kernel, const LaunchShape& shape,
                               const cuda::KMeansLaunch& launch) {
    if (IsEmpty(shape)) return {};
    return simt::Launch(shape, options_, [&] { kernel(launch); });
  }

  template <typename T>
  void Add(const std::string& name, const T* data, int64_t count, simt::Access access) {
    options_.buffers.push_back({name, data, count * static_cast<int64_t>(sizeof(T)), access});
  }

  void AddInputs() {
    using simt::Access;
    Add("problems", input_.problems.data(), plan_.num_problems, Access::kRead);
    if (!input_.draws.empty()) Add("draws", input_.draws.data(), plan_.max_lists, Access::kRead);
    for (size_t i = 0; i < input_.points.size(); ++i) {
      Add("points " + std::to_string(i), input_.points[i].data(),
          static_cast<int64_t>(input_.points[i].size()), Access::kRead);
    }
  }

  void AddOutputs() {
    const auto add = [&](const std::string& name, const auto& x) {
      Add(name, x.data(), static_cast<int64_t>(x.size()), simt::Access::kReadWrite);
    };
    add("labels", input_.labels);
    add("offsets", input_.offsets);
    add("members", input_.members);
    add("centroids", input_.centroids);
    add("objectives", input_.objectives);
    add("iterations_done", input_.iterations_done);
  }

  void AddWorkspace() {
    const KMeansWorkspace& w = run_.workspace;
    const int64_t problems = plan_.num_problems;
    const auto add = [&](const std::string& name, const auto* data, int64_t count) {
      Add(name, data, problems * count, simt::Access::kReadWrite);
    };
    add("states", w.states, 1);
    add("part_sums", w.part_sums, plan_.max_parts * plan_.head_dim);
    add("part_counts", w.part_counts, plan_.max_parts);
    add("centers", w.centers, plan_.head_dim);
    add("inverse_norms", w.inverse_norms, plan_.max_points);
    add("distances", w.distances, plan_.max_points);
    add("rows", w.rows, plan_.padded_lists * KMeansRowChannels(plan_.head_dim));
    add("biases", w.biases, plan_.padded_lists);
    add("list_objectives", w.list_objectives, plan_.max_lists);
  }

  KMeansInput& input_;
  const KMeansPlan plan_;
  std::vector<std::byte> memory_;
  cuda::KMeansLaunch run_;
  simt::LaunchOptions options_;
  int32_t num_launches_ = 0;
};

// What a run wrote.
struct Result {
  explicit Result(const KMeansInput& input)
      : labels(input.labels),
        offsets(input.offsets),
        members(input.members),
        centroids(input.centroids),
        objectives(input.objectives),
        iterations_done(input.iterations_done) {}

  std::vector<uint16_t> labels;
  std::vector<uint8_t> offsets, members;
  std::vector<float> centroids, objectives;
  std::vector<int32_t> iterations_done;
};

inline Result RunReference(KMeansInput& input) {
  input.Reset();
  KMeansReference(input.params);
  return Result(input);
}

inline Result RunSimt(KMeansInput& input, uint64_t seed = 1) {
  input.Reset();
  EXPECT_EQ(KMeansSimt(input, seed).Run(), "");
  return Result(input);
}

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_OPS_CLUSTERING_KMEANS_SIMT_H_
