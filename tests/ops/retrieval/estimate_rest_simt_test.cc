// The CUDA form of estimate_rest, executed by the SIMT harness over the cases of every form.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "csrc/ops/retrieval/estimate_rest_kernel.cuh"
#include "tests/ops/retrieval/estimate_rest_cases.h"
#include "tests/ops/retrieval/score_lists_cases.h"
#include "tests/ops/retrieval/simt_buffers.h"
#include "tests/simt/launch.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using testing::Estimate;
using testing::EstimateInput;
using testing::NumTasks;
using testing::RetrievalCase;
using testing::TightPlan;

std::vector<simt::Buffer> Buffers(const EstimateRestParams& p, int64_t q_bytes,
                                  const std::vector<float>& workspace) {
  const ScoreListsParams& score = p.score;
  const int64_t rows = int64_t{score.num_rows} * score.num_heads;
  testing::BufferList list;
  list.Add("workspace", workspace.data(), static_cast<int64_t>(workspace.size()),
           simt::Access::kReadWrite);
  AddScoreBuffers(score, q_bytes, list);
  list.Add("positions", p.positions, NumTasks(score) * p.positions_stride);
  list.Add("counts", p.counts, NumTasks(score));
  list.Add("rest_out", p.rest_out, rows * score.head_dim, simt::Access::kReadWrite);
  list.Add("rest_lse", p.rest_lse, rows, simt::Access::kReadWrite);
  for (int32_t v = 0; v < score.view_begin[NumTasks(score)]; ++v) {
    const ListsView& view = score.views[v];
    const std::string at = std::to_string(v);
    list.Add("members " + at, view.members, view.offsets[view.nlist]);
    list.Add("excluded " + at, view.excluded, view.num_excluded);
    list.Add("value means " + at, view.value_means, int64_t{view.nlist} * score.head_dim);
  }
  return list.Take();
}

struct EstimateReports {
  simt::LaunchReport tiles, join;
};

// Both launches, as EstimateRestCuda, into estimate.rest; the workspace holds garbage before.
EstimateReports EstimateSimt(EstimateInput& estimate, const ScoreListsPlan& plan, uint64_t seed) {
  const EstimateRestParams p = estimate.Params();
  EXPECT_TRUE(cuda::ScoreListsCudaServes(p.score, plan));
  std::vector<float> workspace(EstimateRestCudaWorkspaceBytes(plan) / sizeof(float), testing::kNan);
  simt::LaunchOptions options;
  options.seed = seed;
  options.buffers = Buffers(p, static_cast<int64_t>(estimate.input.q().size()), workspace);
  const auto kernel_params = cuda::MakeEstimateRestKernelParams(p, plan, workspace.data());
  EstimateReports reports;
  reports.tiles = simt::Launch(cuda::EstimateTilesShape(plan), options,
                               [&] { cuda::EstimateTilesKernel(kernel_params); });
  EXPECT_EQ(reports.tiles.Errors(), "");
  reports.join = simt::Launch(cuda::EstimateJoinShape(plan), options,
                              [&] { cuda::EstimateJoinKernel(kernel_params); });
  EXPECT_EQ(reports.join.Errors(), "");
  return reports;
}

void ExpectSimtEqualsReference(EstimateInput& estimate) {
  const Estimate expected = estimate.Expected();
  EstimateSimt(estimate, TightPlan(estimate.Params().score), 1);
  testing::ExpectEstimateNear(estimate.rest, expected);
}

class EstimateRestSimtCaseTest : public ::testing::TestWithParam<RetrievalCase> {};

TEST_P(EstimateRestSimtCaseTest, EqualsTheReferenceForEitherPartition) {
  for (int32_t partition : {0, 1}) {
    EstimateInput estimate(GetParam(), partition);
    ExpectSimtEqualsReference(estimate);
  }
}

TEST_P(EstimateRestSimtCaseTest, DoesNotDependOnTheSchedule) {
  RetrievalCase c = GetParam();
  c.contexts = {std::min(c.contexts[0], 1500), 64};
  EstimateInput estimate(c, 1);
  const ScoreListsPlan plan = TightPlan(estimate.Params().score);
  EstimateSimt(estimate, plan, 1);
  const Estimate first = estimate.rest;
  for (uint64_t seed : {2, 3}) {
    estimate.Expected();
    EstimateSimt(estimate, plan, seed);
    EXPECT_EQ(estimate.rest.out, first.out) << seed;
    EXPECT_EQ(estimate.rest.lse, first.lse) << seed;
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, EstimateRestSimtCaseTest,
                         ::testing::ValuesIn(testing::RetrievalCases()),
                         [](const auto& info) { return info.param.name; });

TEST(EstimateRestSimtTest, OddInputsAreTheReferences) {
  testing::ForEachOddEstimate(&ExpectSimtEqualsReference);
}

TEST(EstimateRestSimtTest, EqualsTheReferenceOnRandomRaggedRows) {
  const uint64_t seed = testing::TestSeed(3);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (int round = 0; round < 20 * testing::SoakFactor(); ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    EstimateInput estimate(testing::RandomScoreCase(rng), static_cast<int32_t>(rng() % 2));
    ExpectSimtEqualsReference(estimate);
  }
}

// Lists of one token, as many as a context has, at the borders of tiles; a tile of which each list
// was read among them.
TEST(EstimateRestSimtTest, TilesMayHoldAnyNumberOfLists) {
  RetrievalCase c;
  c.num_heads = 2;
  c.num_selections = 1;
  c.head_dim = 16;
  c.sentence_tokens = 1;
  c.cluster_tokens = 0;
  c.num_sinks = c.num_recent = 1;
  c.budget = 8;
  c.contexts = {1, 9, 31, 32, 33, 255, 256, 257, 513, 1024};
  EstimateInput estimate(c, 0);
  ExpectSimtEqualsReference(estimate);
}

TEST(EstimateRestSimtTest, LooseBoundsAndNoListsChangeNothing) {
  RetrievalCase c;
  c.contexts = {1600, 90};
  EstimateInput estimate(c, 1);
  EstimateSimt(estimate, TightPlan(estimate.Params().score), 1);
  const Estimate tight = estimate.rest;
  const ScoreListsPlan loose =
      PlanScoreLists(2, c.num_heads, c.num_selections, c.head_dim, CentroidForm::kBounds,
                     3 * estimate.input.max_lists(), 70);
  ASSERT_GT(loose.max_tiles, 64);
  estimate.Expected();
  EstimateSimt(estimate, loose, 1);
  EXPECT_EQ(estimate.rest.out, tight.out);
  EXPECT_EQ(estimate.rest.lse, tight.lse);
  for (ListsView& view : estimate.input.views()) view.nlist = 0;
  estimate.Expected();
  EstimateSimt(estimate, loose, 1);
  EXPECT_EQ(estimate.rest.out, std::vector<float>(tight.out.size(), 0.0f));
  EXPECT_EQ(estimate.rest.lse, std::vector<float>(tight.lse.size(), -testing::kInfinity));
  const ScoreListsPlan none = TightPlan(estimate.Params().score);
  EXPECT_EQ(EstimateRestCudaWorkspaceBytes(none), 0u);
  estimate.Expected();
  EstimateSimt(estimate, none, 1);
  EXPECT_EQ(estimate.rest.out, std::vector<float>(tight.out.size(), 0.0f));
  EXPECT_EQ(estimate.rest.lse, std::vector<float>(tight.lse.size(), -testing::kInfinity));
}

// Whole segments of the library's sizes, most of them unread. What is above the floor: a selection
// that every tile looks through, and the tiles' states.
TEST(EstimateRestSimtTest, MovesAtMostASeventhMoreThanItMust) {
  if (!simt::kMemoryHooks) GTEST_SKIP() << "no traffic is counted in this build";
  for (int32_t partition : {0, 1}) {
    RetrievalCase c;
    c.contexts = {16384};
    c.num_heads = 4;
    c.num_selections = 1;
    c.head_dim = 128;
    c.q_dtype = DType::kBFloat16;
    c.segment_tokens = 8192;
    c.budget = 1024;
    EstimateInput estimate(c, partition);
    const EstimateReports reports = EstimateSimt(estimate, TightPlan(estimate.Params().score), 1);
    const int64_t state_bytes = c.num_heads * (c.head_dim + 1) * int64_t{sizeof(float)};
    int64_t floor = static_cast<int64_t>(estimate.input.q().size()) + 4 * c.budget + state_bytes;
    for (const ListsView& view : estimate.input.views()) {
      if (view.partition != partition) continue;
      // Vectors, scales, places, mean values; members; the center.
      floor += view.nlist * int64_t{128 + 4 + 2 + 256} + 4 * 128;
      if (view.members != nullptr) floor += 2 * int64_t{view.offsets[view.nlist]};
    }
    for (const auto& [name, traffic] : reports.tiles.traffic) {
      if (name != "q" && name.rfind("cent", 0) != 0 && name.rfind("value", 0) != 0) continue;
      for (const auto& [width, accesses] : traffic.accesses) EXPECT_EQ(width, 16) << name;
    }
    const double over_floor = 1.0 * (reports.tiles.Bytes() + reports.join.Bytes()) / floor;
    RecordProperty("over_floor_of_partition_" + std::to_string(partition),
                   std::to_string(over_floor));
    EXPECT_LE(over_floor, 1.14);
  }
}

// The largest shape that is served has to fit a CTA of sm_90.
TEST(EstimateRestSimtTest, TheMostHeadsOfTheWidestKindFit) {
  RetrievalCase c;
  c.contexts = {700};
  c.num_heads = kScoreMaxHeads;
  c.num_selections = 1;
  c.head_dim = kScoreMaxHeadDim;
  EstimateInput estimate(c, 1);
  ExpectSimtEqualsReference(estimate);
}

}  // namespace
}  // namespace semkv
