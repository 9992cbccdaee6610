// Runs decode attention's CUDA form in the SIMT harness.

#ifndef SEMKV_TESTS_OPS_ATTENTION_DECODE_ATTENTION_SIMT_H_
#define SEMKV_TESTS_OPS_ATTENTION_DECODE_ATTENTION_SIMT_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
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

// Pools of e4m3 are allowed half of what others are: weights are float16 whatever q is, which
// leaves bfloat16 one unit of the last place where the reference's out, rounded too, is beyond a
// tie.
inline ::testing::AssertionResult SimtNear(const AttentionResult& actual,
                                           const AttentionResult& expected,
                                           const DecodeAttentionParams& p) {
  const float share = StoredDType(p) == DType::kFloat8E4M3 ? 0.5f : 1.0f;
  return ResultsNear(actual, expected, p.q_dtype, share);
}

inline void ExpectSimtEqualsReference(DecodeProblem& problem, int32_t max_row_tokens,
                                      int32_t num_multiprocessors) {
  const DecodeAttentionPlan plan = PlanFor(problem.params, max_row_tokens, num_multiprocessors);
  const AttentionResult expected = problem.RunReference();
  EXPECT_TRUE(SimtNear(RunSimt(problem, plan, max_row_tokens).result, expected, problem.params));
}

// A single row of `tokens` tokens in `splits` parts moves at most a tenth more than any form must:
// queries, keys and values once per KV head, the output, and `id_bytes` of page ids or slots.
inline void ExpectFloor(DecodeProblem& problem, int32_t tokens, int64_t id_bytes, int32_t splits) {
  const DecodeAttentionParams& p = problem.params;
  const DecodeAttentionPlan plan = PlanFor(p, tokens, splits);
  EXPECT_EQ(plan.max_splits, splits);
  const simt::LaunchReport report = RunSimt(problem, plan, 1).report;
  if (!simt::kMemoryHooks) return;
  const int64_t heads = int64_t{p.num_heads} * p.head_dim * 2 * 2 + int64_t{p.num_heads} * 4;
  const int64_t kv_bytes = int64_t{tokens} * p.num_kv_heads * p.head_dim * 2 *
                           static_cast<int64_t>(DTypeBytes(StoredDType(p)));
  const int64_t floor = heads + kv_bytes + id_bytes;
  EXPECT_GE(report.Bytes(), floor);
  EXPECT_LE(report.Bytes(), 1.1 * floor);
  for (const char* name : {"q", "out", "position", "list"}) {
    if (report.traffic.count(name) == 0) continue;
    for (const auto& [width, accesses] : report.traffic.at(name).accesses) {
      EXPECT_EQ(width, 16) << name;
    }
  }
}

// The same of a dense row and of slots in both pools.
inline void ExpectFloors(std::mt19937_64& rng, const AttentionShape& shape, int32_t splits) {
  const int32_t tokens = shape.num_tokens;
  DecodeProblem dense = DenseProblem(rng, shape);
  ExpectFloor(dense, tokens, tokens / 16 * 4, splits);
  DecodeProblem sparse = TwoPoolsProblem(rng, shape, tokens / 3, tokens - tokens / 3);
  ExpectFloor(sparse, tokens, int64_t{tokens} * 4, splits);
}

// Attention over A and B is attention over A with B's state as the rest, wherever B begins in a row
// of 400 tokens.
inline void ExpectRestMerges(std::mt19937_64& rng, bool is_e4m3, const std::vector<size_t>& cuts) {
  const AttentionShape shape{8, 2, 128, 400, DType::kFloat16, is_e4m3};
  DecodeProblem problem(shape, 1, RandomQueries(rng, shape, 1));
  problem.MakePools(PoolLayout::kRowPairs, KvDType(shape), KvDType(shape), 400, 16);
  const SlotList slots = Permutation(rng, 400);
  WriteBoth(problem, RandomTokens(rng, shape), slots);
  problem.SetSlots(2, {slots, slots}, {});
  const AttentionResult whole = problem.RunReference();
  for (size_t cut : cuts) {
    SCOPED_TRACE(cut);
    const SlotList a = Slice(slots, 0, cut), b = Slice(slots, cut, 400);
    problem.params.rest_out = problem.params.rest_lse = nullptr;
    problem.SetSlots(2, {b, b}, {});
    const AttentionResult rest = problem.RunReference();
    problem.params.rest_out = rest.out.data();
    problem.params.rest_lse = rest.lse.data();
    problem.SetSlots(2, {a, a}, {});
    const AttentionResult merged = RunSimt(problem, PlanFor(problem.params, 400, 8), 1).result;
    EXPECT_TRUE(SimtNear(merged, problem.RunReference(), problem.params));
    EXPECT_TRUE(AllNear(merged.out, whole.out, 2e-3f));
  }
}

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_OPS_ATTENTION_DECODE_ATTENTION_SIMT_H_
