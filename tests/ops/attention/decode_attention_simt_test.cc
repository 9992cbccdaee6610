// The CUDA form of decode attention, executed by the SIMT harness over the cases of every form.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "csrc/ops/attention/decode_attention_kernel.cuh"
#include "csrc/ops/attention/decode_attention_plan.h"
#include "tests/ops/attention/decode_problem.h"
#include "tests/simt/launch.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using testing::AttentionResult;
using testing::AttentionShape;
using testing::DecodeProblem;
using testing::PoolLayout;
using testing::RandomQueries;
using testing::RandomTokens;
using testing::ResultsNear;
using testing::TokenRows;
using SlotList = std::vector<int32_t>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr DType kDTypes[] = {DType::kFloat16, DType::kBFloat16};

// A GPU so small that the tests' rows are cut into few parts, or as large as wanted.
DecodeAttentionPlan PlanFor(const DecodeAttentionParams& p, int32_t max_row_tokens,
                            int32_t num_multiprocessors) {
  DecodeAttentionBounds bounds;
  bounds.num_rows = p.num_rows;
  bounds.max_row_tokens = max_row_tokens;
  bounds.num_heads = p.num_heads;
  bounds.num_kv_heads = p.num_kv_heads;
  bounds.num_selections = p.num_selections;
  bounds.head_dim = p.head_dim;
  bounds.num_multiprocessors = num_multiprocessors;
  return PlanDecodeAttention(bounds);
}

struct SimtRun {
  AttentionResult result;
  simt::LaunchReport report;
};

// Everything in the workspace but the counters is poison before; the counters must be zero after.
SimtRun RunSimt(DecodeProblem& problem, const DecodeAttentionPlan& plan, uint64_t seed) {
  const DecodeAttentionParams& p = problem.params;
  EXPECT_EQ(DecodeAttentionCudaUnsupported(p), nullptr);
  EXPECT_TRUE(PlanServes(plan, p));
  testing::AlignedBytes workspace(DecodeAttentionCudaWorkspaceBytes(plan));
  std::memset(workspace.data(), 0xff, workspace.size());
  std::memset(workspace.data(), 0, DecodeCounterBytes(plan));
  simt::LaunchOptions options;
  options.seed = seed;
  for (const testing::Memory& m : problem.AllMemory()) {
    options.buffers.push_back(
        {m.name, m.data, m.bytes, m.is_output ? simt::Access::kReadWrite : simt::Access::kRead});
  }
  if (p.rest_out != nullptr) {
    const int64_t heads = int64_t{p.num_rows} * p.num_heads;
    options.buffers.push_back({"rest", p.rest_out, heads * p.head_dim * 4, simt::Access::kRead});
    options.buffers.push_back({"rest lse", p.rest_lse, heads * 4, simt::Access::kRead});
  }
  options.buffers.push_back({"workspace", workspace.data(), static_cast<int64_t>(workspace.size()),
                             simt::Access::kReadWrite});
  const cuda::DecodeAttentionLaunch launch = cuda::MakeDecodeLaunch(p, plan, workspace.data());
  SimtRun run;
  run.result = problem.Run([&] {
    run.report =
        cuda::DispatchDecodeAttention(p, plan, [&](auto* kernel, const LaunchShape& shape) {
          return simt::Launch(shape, options, [&] { kernel(launch); });
        });
  });
  EXPECT_EQ(run.report.Errors(), "");
  EXPECT_TRUE(workspace.GuardIntact());
  const uint8_t* counters = static_cast<const uint8_t*>(workspace.data());
  EXPECT_TRUE(std::all_of(counters, counters + DecodeCounterBytes(plan), [](uint8_t x) {
    return x == 0;
  })) << "the workspace is not ready for the next launch";
  return run;
}

DecodeProblem DenseProblem(std::mt19937_64& rng, const AttentionShape& shape,
                           PoolLayout layout = PoolLayout::kRowPairs, int32_t page_tokens = 16) {
  DecodeProblem problem(shape, 1, RandomQueries(rng, shape, 1));
  problem.SetDense(rng, {RandomTokens(rng, shape)}, layout, page_tokens);
  return problem;
}

void ExpectSimtEqualsReference(DecodeProblem& problem, int32_t max_row_tokens,
                               int32_t num_multiprocessors) {
  const DecodeAttentionPlan plan = PlanFor(problem.params, max_row_tokens, num_multiprocessors);
  const AttentionResult expected = problem.RunReference();
  EXPECT_TRUE(
      ResultsNear(RunSimt(problem, plan, max_row_tokens).result, expected, problem.params.q_dtype));
}

class DecodeAttentionSimtShapeTest : public ::testing::TestWithParam<DType> {};

// Every shape of the table that the CUDA form serves; of the long rows, which take the harness
// long, one head size or heads.
TEST_P(DecodeAttentionSimtShapeTest, EqualsTheReference) {
  const uint64_t seed = testing::TestSeed(1);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (const AttentionShape& shape : testing::AttentionShapes()) {
    if (shape.dtype != GetParam()) continue;
    if (shape.num_tokens == 1000 && shape.head_dim != 64 && shape.num_heads != 16) continue;
    if (shape.num_tokens == 4097 && (shape.head_dim != 128 || shape.dtype != DType::kBFloat16)) {
      continue;
    }
    SCOPED_TRACE(testing::ShapeName(shape));
    DecodeProblem problem = DenseProblem(rng, shape);
    ExpectSimtEqualsReference(problem, shape.num_tokens, 1 + shape.num_tokens / 100);
  }
}

INSTANTIATE_TEST_SUITE_P(DTypes, DecodeAttentionSimtShapeTest, ::testing::ValuesIn(kDTypes),
                         [](const auto& info) { return testing::DTypeName(info.param); });

}  // namespace
}  // namespace semkv
