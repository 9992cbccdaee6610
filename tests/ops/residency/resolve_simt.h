// Runs resolve's CUDA form in the SIMT harness.

#ifndef SEMKV_TESTS_OPS_RESIDENCY_RESOLVE_SIMT_H_
#define SEMKV_TESTS_OPS_RESIDENCY_RESOLVE_SIMT_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "csrc/ops/residency/resolve_kernel.cuh"
#include "tests/ops/residency/resolve_cases.h"
#include "tests/simt/launch.h"

namespace semkv::testing {

// The workspace's counter must be zero after, and a guard behind it intact. The element behind each
// array of the state is none of the kernel's.
inline std::vector<simt::LaunchReport> ResolveSimt(const ResolveShape& shape,
                                                   const ResolveStep& step, ResolveState& state,
                                                   uint64_t seed) {
  const auto in = [](const std::string& name, const auto& data) {
    return simt::Buffer{name, data.data(), static_cast<int64_t>(data.size() * sizeof(data[0])),
                        simt::Access::kRead};
  };
  const auto out = [](const std::string& name, const auto& data) {
    return simt::Buffer{name, data.data(),
                        static_cast<int64_t>((data.size() - 1) * sizeof(data[0])),
                        simt::Access::kReadWrite};
  };
  const ResolvePlan plan = PlanResolve(shape);
  std::vector<uint64_t> workspace(ResolveCudaWorkspaceBytes(plan) / 8 + 1, ~uint64_t{0});
  std::fill_n(workspace.begin(), kResolveCounterBytes / 8, 0);
  simt::LaunchOptions options;
  options.seed = seed;
  options.buffers = {in("wanted", step.wanted),
                     in("wanted counts", step.wanted_counts),
                     in("step", step.step),
                     out("map", state.hot_of_home),
                     out("home of hot", state.home_of_hot),
                     out("stamps", state.stamps),
                     out("hand", state.hand),
                     out("unplaced", state.num_unplaced),
                     out("misses", state.misses),
                     out("miss count", state.num_misses),
                     out("slots", state.slots),
                     out("slot counts", state.slot_counts),
                     out("workspace", workspace)};
  const cuda::ResolveLaunch launch =
      cuda::MakeResolveLaunch(step.Params(shape, state), plan, workspace.data());
  std::vector<simt::LaunchReport> reports;
  cuda::DispatchResolve(plan, std::string(), [&](auto* kernel, const LaunchShape& launch_shape) {
    reports.push_back(simt::Launch(launch_shape, options, [&] { kernel(launch); }));
    return reports.back().Errors();
  });
  for (const simt::LaunchReport& report : reports) EXPECT_EQ(report.Errors(), "");
  EXPECT_TRUE(std::all_of(workspace.begin(), workspace.begin() + kResolveCounterBytes / 8,
                          [](uint64_t x) { return x == 0; }))
      << "the workspace is not ready for the next launch";
  EXPECT_EQ(workspace.back(), ~uint64_t{0});
  return reports;
}

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_OPS_RESIDENCY_RESOLVE_SIMT_H_
