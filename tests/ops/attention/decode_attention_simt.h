// Runs decode attention's CUDA form in the SIMT harness.

#ifndef SEMKV_TESTS_OPS_ATTENTION_DECODE_ATTENTION_SIMT_H_
#define SEMKV_TESTS_OPS_ATTENTION_DECODE_ATTENTION_SIMT_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "csrc/ops/attention/decode_attention_kernel.cuh"
#include "tests/ops/attention/decode_cases.h"
#include "tests/simt/launch.h"

namespace semkv::testing {

constexpr DType kCudaDTypes[] = {DType::kFloat16, DType::kBFloat16};

struct SimtRun {
  AttentionResult result;
  simt::LaunchReport report;
};

// Launches once. Everything in the workspace but the counters is poison before; the counters must
// be zero after. `more`: memory that is not the problem's own.
inline simt::LaunchReport LaunchSimt(const DecodeProblem& problem, const DecodeAttentionPlan& plan,
                                     uint64_t seed, const std::vector<Memory>& more = {}) {
  const DecodeAttentionParams& p = problem.params;
  EXPECT_EQ(DecodeAttentionCudaUnsupported(p), nullptr);
  EXPECT_TRUE(PlanServes(plan, p));
  AlignedBytes workspace(DecodeAttentionCudaWorkspaceBytes(plan));
  std::memset(workspace.data(), 0xff, workspace.size());
  std::memset(workspace.data(), 0, DecodeCounterBytes(plan));
  std::vector<Memory> memory = problem.AllMemory();
  memory.insert(memory.end(), more.begin(), more.end());
  memory.push_back({"workspace", workspace.data(), static_cast<int64_t>(workspace.size()), true});
  if (p.rest_out != nullptr) {
    const int64_t heads = int64_t{p.num_rows} * p.num_heads;
    memory.push_back({"rest", p.rest_out, heads * p.head_dim * 4, false});
    memory.push_back({"rest lse", p.rest_lse, heads * 4, false});
  }
  simt::LaunchOptions options;
  options.seed = seed;
  for (const Memory& m : memory) {
    options.buffers.push_back(
        {m.name, m.data, m.bytes, m.is_output ? simt::Access::kReadWrite : simt::Access::kRead});
  }
  const cuda::DecodeAttentionLaunch launch = cuda::MakeDecodeLaunch(p, plan, workspace.data());
  const simt::LaunchReport report =
      cuda::DispatchDecodeAttention(p, plan, [&](auto* kernel, const LaunchShape& shape) {
        return simt::Launch(shape, options, [&] { kernel(launch); });
      });
  EXPECT_EQ(report.Errors(), "");
  EXPECT_TRUE(workspace.GuardIntact());
  const uint8_t* counters = static_cast<const uint8_t*>(workspace.data());
  EXPECT_TRUE(std::all_of(counters, counters + DecodeCounterBytes(plan), [](uint8_t x) {
    return x == 0;
  })) << "the workspace is not ready for the next launch";
  return report;
}

inline SimtRun RunSimt(DecodeProblem& problem, const DecodeAttentionPlan& plan, uint64_t seed) {
  SimtRun run;
  run.result = problem.Run([&] { run.report = LaunchSimt(problem, plan, seed); });
  return run;
}

inline void ExpectSimtEqualsReference(DecodeProblem& problem, int32_t max_row_tokens,
                                      int32_t num_multiprocessors) {
  const DecodeAttentionPlan plan = PlanFor(problem.params, max_row_tokens, num_multiprocessors);
  const AttentionResult expected = problem.RunReference();
  EXPECT_TRUE(
      ResultsNear(RunSimt(problem, plan, max_row_tokens).result, expected, problem.params.q_dtype));
}

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_OPS_ATTENTION_DECODE_ATTENTION_SIMT_H_
