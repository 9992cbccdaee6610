// The CUDA form of merge_states, executed by the SIMT harness over the cases of every form.

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "csrc/ops/attention/merge_states_kernel.cuh"
#include "tests/ops/attention/merge_states_cases.h"
#include "tests/simt/launch.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using testing::MergeStatesCase;
using testing::MergeStatesProblem;

simt::LaunchReport MergeStatesSimt(MergeStatesProblem& problem, uint64_t seed) {
  const auto buffer = [](const std::string& name, const auto& data, simt::Access access) {
    return simt::Buffer{name, data.data(), static_cast<int64_t>(data.size() * sizeof(data[0])),
                        access};
  };
  simt::LaunchOptions options;
  options.seed = seed;
  options.buffers = {buffer("o", problem.o, simt::Access::kRead),
                     buffer("lse", problem.lse, simt::Access::kRead),
                     buffer("out", problem.out, simt::Access::kReadWrite),
                     buffer("out lse", problem.out_lse, simt::Access::kReadWrite)};
  EXPECT_EQ(MergeStatesCudaUnsupported(problem.params), nullptr);
  return cuda::DispatchMergeStates(problem.params, [&](auto* kernel, const LaunchShape& shape) {
    return simt::Launch(shape, options, [&] { kernel(problem.params); });
  });
}

// States and their lse once, out and its lse once.
int64_t FloorBytes(const MergeStatesParams& p) {
  const int64_t heads = int64_t{p.num_rows} * p.num_heads;
  return heads * (p.num_states * (p.head_dim * DTypeBytes(p.dtype) + 4) +
                  p.head_dim * DTypeBytes(p.out_dtype) + 4);
}

void ExpectTraffic(const MergeStatesParams& p, const simt::LaunchReport& report) {
  if (!simt::kMemoryHooks || FloorBytes(p) == 0) return;
  EXPECT_GE(report.Bytes(), FloorBytes(p));
  // Below, the lse that are read twice weigh more.
  if (p.head_dim >= 64) {
    EXPECT_LE(report.Bytes(), 1.1 * FloorBytes(p));
  }
  for (const char* name : {"o", "out"}) {
    for (const auto& [width, count] : report.traffic.at(name).accesses) EXPECT_EQ(width, 16);
  }
}

void ExpectSimtEqualsReference(const MergeStatesCase& c, std::mt19937_64& rng) {
  MergeStatesProblem problem(c, rng);
  MergeStatesProblem expected = problem;
  expected.Reset();
  MergeStatesReference(expected.params);
  problem.Reset();
  const simt::LaunchReport report = MergeStatesSimt(problem, rng());
  EXPECT_EQ(report.Errors(), "");
  testing::ExpectMerged(expected, problem.out, problem.out_lse);
  ExpectTraffic(problem.params, report);
}

TEST(MergeStatesSimtTest, EqualsTheReference) {
  const uint64_t seed = testing::TestSeed(51);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (const MergeStatesCase& c : testing::MergeStatesCases()) {
    SCOPED_TRACE(Name(c));
    ExpectSimtEqualsReference(c, rng);
  }
}

TEST(MergeStatesSimtTest, RandomCasesEqualTheReference) {
  const uint64_t seed = testing::TestSeed(52);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (int round = 0; round < 40 * testing::SoakFactor(); ++round) {
    const MergeStatesCase c = testing::RandomMergeStatesCase(rng);
    SCOPED_TRACE(Name(c));
    ExpectSimtEqualsReference(c, rng);
    if (HasFailure()) return;
  }
}

// The two halves of a decode step: GPU and CPU, or hits and misses; 8 sequences of Llama-3-8B.
TEST(MergeStatesSimtTest, TwoStatesOfAStepMoveLittleMoreThanTheFloor) {
  std::mt19937_64 rng(53);
  for (const testing::MergeDTypes& d : testing::kMergeDTypes) {
    MergeStatesProblem problem({d.dtype, d.out_dtype, 2, 8, 32, 128, 0}, rng);
    const simt::LaunchReport report = MergeStatesSimt(problem, 1);
    EXPECT_EQ(report.Errors(), "");
    ExpectTraffic(problem.params, report);
  }
}

TEST(MergeStatesSimtTest, LseOfTheResultIsOptional) {
  std::mt19937_64 rng(54);
  MergeStatesProblem problem({DType::kFloat32, DType::kFloat16, 2, 2, 3, 64, 0}, rng);
  problem.params.out_lse = nullptr;
  EXPECT_EQ(MergeStatesSimt(problem, 1).Errors(), "");
  for (float lse : problem.out_lse) EXPECT_EQ(lse, MergeStatesProblem::kNoLse);
}

}  // namespace
}  // namespace semkv
