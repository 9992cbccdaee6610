// The CUDA form of score_lists, executed by the SIMT harness over the cases of every form.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "csrc/ops/retrieval/score_lists_kernel.cuh"
#include "tests/ops/retrieval/score_lists_cases.h"
#include "tests/ops/retrieval/simt_buffers.h"
#include "tests/simt/launch.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using testing::ExpectKeysNear;
using testing::FirstChannel;
using testing::kInfinity;
using testing::kNan;
using testing::kPoison;
using testing::NumLists;
using testing::RetrievalCase;
using testing::RetrievalInput;
using testing::SmallScoreInput;
using testing::TightPlan;

std::vector<simt::Buffer> Buffers(const ScoreListsParams& p, const std::vector<uint8_t>& workspace,
                                  int64_t q_bytes) {
  testing::BufferList list;
  list.Add("workspace", workspace.data(), static_cast<int64_t>(workspace.size()),
           simt::Access::kReadWrite);
  AddScoreBuffers(p, q_bytes, list);
  return list.Take();
}

struct ScoreReports {
  simt::LaunchReport tiles, keys;
};

// Both launches, as ScoreListsCuda, into p.keys; the workspace holds garbage before.
ScoreReports ScoreListsSimt(const ScoreListsParams& p, const ScoreListsPlan& plan, int64_t q_bytes,
                            uint64_t seed) {
  EXPECT_TRUE(cuda::ScoreListsCudaServes(p, plan));
  std::vector<uint8_t> memory(ScoreListsCudaWorkspaceBytes(plan) + 1, 0xff);
  simt::LaunchOptions options;
  options.seed = seed;
  options.buffers = Buffers(p, memory, q_bytes);
  if (!memory.empty()) --options.buffers[0].bytes;
  const cuda::ScoreListsKernelParams kernel_params =
      cuda::MakeScoreListsKernelParams(p, plan, memory.data());
  ScoreReports reports;
  reports.tiles = simt::Launch(cuda::ScoreTilesShape(plan), options,
                               [&] { cuda::ScoreTilesKernel(kernel_params); });
  EXPECT_EQ(reports.tiles.Errors(), "");
  reports.keys = simt::Launch(cuda::ScoreKeysShape(plan), options,
                              [&] { cuda::ScoreKeysKernel(kernel_params); });
  EXPECT_EQ(reports.keys.Errors(), "");
  return reports;
}

std::vector<float> SimtKeys(RetrievalInput& input, uint64_t seed) {
  std::fill(input.keys.begin(), input.keys.end(), kPoison);
  const ScoreListsParams p = input.Score();
  ScoreListsSimt(p, TightPlan(p), static_cast<int64_t>(input.q().size()), seed);
  return input.keys;
}

void ExpectSimtEqualsReference(RetrievalInput& input, double relative) {
  const std::vector<float> expected = testing::ReferenceKeys(input);
  ExpectKeysNear(SimtKeys(input, 1), expected, relative);
}

class ScoreListsSimtCaseTest : public ::testing::TestWithParam<RetrievalCase> {};

TEST_P(ScoreListsSimtCaseTest, EqualsTheReference) {
  RetrievalInput input(GetParam(), 1);
  ExpectSimtEqualsReference(input, 1e-4);
}

TEST_P(ScoreListsSimtCaseTest, DoesNotDependOnTheSchedule) {
  RetrievalCase c = GetParam();
  c.contexts = {std::min(c.contexts[0], 1500), 64};
  RetrievalInput input(c, 2);
  const std::vector<float> keys = SimtKeys(input, 1);
  for (uint64_t seed : {2, 3}) {
    const std::vector<float> again = SimtKeys(input, seed);
    EXPECT_EQ(std::memcmp(again.data(), keys.data(), keys.size() * sizeof(float)), 0) << seed;
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, ScoreListsSimtCaseTest,
                         ::testing::ValuesIn(testing::RetrievalCases()),
                         [](const auto& info) { return info.param.name; });

TEST(ScoreListsSimtTest, EqualsTheReferenceOnRandomRaggedRows) {
  const uint64_t seed = testing::TestSeed(3);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (int round = 0; round < 20 * testing::SoakFactor(); ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    RetrievalInput input(testing::RandomScoreCase(rng), rng());
    ExpectSimtEqualsReference(input, 2e-4);
  }
}

// Lists of one token each, so that a context is as many lists: one less and one more than a tile
// and its parts.
TEST(ScoreListsSimtTest, TilesMayHoldAnyNumberOfLists) {
  for (CentroidForm form : {CentroidForm::kInt8, CentroidForm::kInt4, CentroidForm::kFloat32}) {
    RetrievalCase c;
    c.num_heads = 2;
    c.num_selections = 1;
    c.head_dim = 16;
    c.form = form;
    c.sentence_tokens = 1;
    c.cluster_tokens = 20;
    c.contexts = {1, 31, 32, 33, 255, 256, 257, 513, 1024};
    ASSERT_EQ(ScoreTileLists(form, c.head_dim), 256);
    RetrievalInput input(c, 5);
    ExpectSimtEqualsReference(input, 1e-4);
  }
}

TEST(ScoreListsSimtTest, ThereMayBeMoreViewsThanAWarpHasLanesAndEmptyOnes) {
  RetrievalCase c;
  c.contexts = {700, 40};
  c.num_heads = 2;
  c.num_selections = 1;
  c.segment_tokens = 20;
  RetrievalInput input(c, 6);
  ASSERT_GT(input.views().size(), 64u);
  for (size_t v : {0, 5, 31, 32, 69}) input.views()[v].nlist = 0;
  ExpectSimtEqualsReference(input, 1e-4);
}

TEST(ScoreListsSimtTest, LooseBoundsAndNoListsChangeNothing) {
  RetrievalCase c;
  c.contexts = {600, 90};
  RetrievalInput input(c, 7);
  const std::vector<float> keys = SimtKeys(input, 1);
  const ScoreListsParams p = input.Score();
  const int64_t q_bytes = static_cast<int64_t>(input.q().size());
  const ScoreListsPlan loose = PlanScoreLists(2, c.num_heads, c.num_selections, c.head_dim,
                                              CentroidForm::kBounds, 3 * input.max_lists(), 20);
  std::fill(input.keys.begin(), input.keys.end(), kPoison);
  ScoreListsSimt(p, loose, q_bytes, 1);
  EXPECT_EQ(input.keys, keys);
  for (ListsView& view : input.views()) view.nlist = 0;
  std::fill(input.keys.begin(), input.keys.end(), kPoison);
  ScoreListsSimt(p, loose, q_bytes, 1);
  EXPECT_EQ(input.keys, std::vector<float>(keys.size(), kPoison));
  EXPECT_EQ(cuda::ScoreTilesShape(TightPlan(p)).grid_x, 0u);
}

TEST(ScoreListsSimtTest, QueriesMayBeginAnywhere) {
  for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    RetrievalCase c;
    c.contexts = {300, 90};
    c.q_dtype = dtype;
    RetrievalInput input(c, 8);
    const std::vector<float> keys = SimtKeys(input, 1);
    ScoreListsParams p = input.Score();
    const int64_t bytes = DTypeBytes(dtype), row = c.head_dim * bytes;
    const int64_t heads = 2 * c.num_heads;
    std::vector<uint8_t> q(heads * (row + bytes));
    for (int64_t h = 0; h < heads; ++h) {
      std::memcpy(q.data() + h * (row + bytes), input.q().data() + h * row, row);
    }
    p.q = q.data();
    p.q_head = c.head_dim + 1;
    p.q_row = c.num_heads * p.q_head;
    std::fill(input.keys.begin(), input.keys.end(), kPoison);
    ScoreListsSimt(p, TightPlan(p), static_cast<int64_t>(q.size()), 1);
    EXPECT_EQ(input.keys, keys);
  }
}

std::vector<float> Keys(SmallScoreInput input) {
  const ScoreListsParams p = input.Params();
  ScoreListsReference(p);
  const std::vector<float> expected = input.keys;
  std::fill(input.keys.begin(), input.keys.end(), kPoison);
  ScoreListsSimt(p, TightPlan(p), static_cast<int64_t>(input.q.size() * sizeof(float)), 1);
  ExpectKeysNear(input.keys, expected, 1e-4);
  return input.keys;
}

TEST(ScoreListsSimtTest, NumbersThatAreNotFiniteAndEmptyListsAreTheReferences) {
  EXPECT_EQ(Keys(testing::NotANumberCase())[1], -1.0f);
  EXPECT_EQ(Keys(testing::EmptyListCase())[1], -1.0f);
  EXPECT_EQ(Keys(testing::InfiniteScoresCase()), (std::vector<float>{0.0f, 0.25f, 0.25f, 0.0f}));
  EXPECT_EQ(Keys(testing::ZeroQueryCase()), std::vector<float>(4, 0.25f));
  for (float bad : {kNan, kInfinity, -kInfinity}) {
    EXPECT_EQ(Keys(testing::QueryNotFiniteCase(bad)), std::vector<float>(3, -1.0f));
  }
  for (VarianceTerm term : {VarianceTerm::kBounded, VarianceTerm::kHalf, VarianceTerm::kNone}) {
    Keys(testing::VarianceCase(term));
  }
  // All scores -inf: they share the mass; the maximum that they leave is no number's.
  SmallScoreInput low(FirstChannel({-kInfinity, -kInfinity}));
  low.q[0] = 1.0f;
  EXPECT_EQ(Keys(low), std::vector<float>(2, 0.5f));
}

// Infinite maxima that meet only where tiles are merged.
TEST(ScoreListsSimtTest, InfiniteScoresOfDifferentTilesShareTheMass) {
  for (float last : {kInfinity, -kInfinity, 0.0f}) {
    std::vector<float> scores(600, -kInfinity);
    scores[599] = last;
    scores[300] = kNan;
    SmallScoreInput input(FirstChannel(scores));
    input.q[0] = 1.0f;
    const std::vector<float> keys = Keys(input);
    EXPECT_EQ(keys[300], -1.0f);
    EXPECT_NEAR(keys[599], last == -kInfinity ? 1.0f / 599 : 1.0f, 1e-6);
  }
}

// Bounds of any sign with a query of any sign: 0, infinite and NaN too.
TEST(ScoreListsSimtTest, BoundsThatAreNotFiniteAreTheReferences) {
  const std::vector<float> values = {0.0f, 1.0f, -2.0f, kInfinity, -kInfinity, kNan};
  std::vector<uint16_t> bounds;
  for (float least : values) {
    for (float greatest : values) {
      std::vector<uint16_t> list(2 * 16, 0);
      list[3] = BFloat16FromFloat(least);
      list[16 + 3] = BFloat16FromFloat(greatest);
      bounds.insert(bounds.end(), list.begin(), list.end());
    }
  }
  for (float x : {0.0f, 1.0f, -1.0f}) {
    SmallScoreInput input(std::vector<float>(16 * 36, 0.0f));
    input.q[3] = x;
    ScoreListsParams p = input.Params();
    input.view.form = CentroidForm::kBounds;
    input.view.centroids = bounds.data();
    ScoreListsReference(p);
    const std::vector<float> expected = input.keys;
    ScoreListsSimt(p, TightPlan(p), 64, 1);
    ExpectKeysNear(input.keys, expected, 1e-5);
  }
}

// Whole segments of the library's sizes. Each launch against what it must read and write itself:
// the scores between the launches are one's output and the other's input.
TEST(ScoreListsSimtTest, MovesAtMostATenthMoreThanItMust) {
  if (!simt::kMemoryHooks) GTEST_SKIP() << "no traffic is counted in this build";
  for (CentroidForm form :
       {CentroidForm::kInt8, CentroidForm::kInt4, CentroidForm::kBFloat16, CentroidForm::kBounds}) {
    RetrievalCase c;
    c.contexts = {16384};
    c.num_heads = 4;
    c.num_selections = 1;
    c.head_dim = 128;
    c.form = form;
    c.q_dtype = DType::kBFloat16;
    c.segment_tokens = 8192;
    RetrievalInput input(c, 9);
    const ScoreListsParams p = input.Score();
    const ScoreReports reports =
        ScoreListsSimt(p, TightPlan(p), static_cast<int64_t>(input.q().size()), 1);
    const int64_t lists = NumLists(p, 0);
    const int64_t score_bytes = lists * c.num_heads * 4;
    int64_t floor = score_bytes + static_cast<int64_t>(input.q().size());
    for (const ListsView& view : input.views()) {
      const int64_t extra =
          (view.scales != nullptr ? 4 : 0) + 2 + (form == CentroidForm::kBounds ? 0 : 4);
      floor += view.nlist * (CentroidRowBytes(form, 128) + extra) + 2 +
               (view.center != nullptr ? 4 * 128 : 0);
    }
    EXPECT_LE(reports.tiles.Bytes(), 1.1 * floor);
    EXPECT_LE(reports.keys.Bytes(), 1.1 * (score_bytes + 4 * lists));
    for (const auto& [name, traffic] : reports.tiles.traffic) {
      if (name != "q" && name.rfind("cent", 0) != 0) continue;
      for (const auto& [width, accesses] : traffic.accesses) EXPECT_EQ(width, 16) << name;
    }
    const std::string of_form = "_of_form_" + std::to_string(static_cast<int>(form));
    RecordProperty("tiles_over_floor" + of_form,
                   std::to_string(1.0 * reports.tiles.Bytes() / floor));
    RecordProperty("keys_over_floor" + of_form,
                   std::to_string(1.0 * reports.keys.Bytes() / (score_bytes + 4 * lists)));
    RecordProperty("both_per_list" + of_form,
                   std::to_string(1.0 * (reports.tiles.Bytes() + reports.keys.Bytes()) / lists));
  }
}

TEST(ScoreListsSimtTest, OtherGeometryThanThePlansIsRefused) {
  const ScoreListsPlan plan = PlanScoreLists(1, 8, 2, 64, CentroidForm::kInt8, 10, 1);
  ScoreListsParams p;
  p.num_rows = 1;
  p.num_heads = 8;
  p.num_selections = 2;
  p.head_dim = 64;
  EXPECT_TRUE(cuda::ScoreListsCudaServes(p, plan));
  p.num_heads = 6;
  EXPECT_FALSE(cuda::ScoreListsCudaServes(p, plan));
  p.num_heads = 8;
  p.head_dim = 72;
  EXPECT_FALSE(
      cuda::ScoreListsCudaServes(p, PlanScoreLists(1, 8, 2, 72, CentroidForm::kInt8, 10, 1)));
  p.head_dim = 64;
  p.num_heads = 130;
  EXPECT_FALSE(
      cuda::ScoreListsCudaServes(p, PlanScoreLists(1, 130, 2, 64, CentroidForm::kInt8, 10, 1)));
  p.num_heads = 8;
  p.num_rows = 32767;
  EXPECT_TRUE(
      cuda::ScoreListsCudaServes(p, PlanScoreLists(32767, 8, 2, 64, CentroidForm::kInt8, 10, 1)));
  p.num_rows = 32768;
  EXPECT_FALSE(
      cuda::ScoreListsCudaServes(p, PlanScoreLists(32768, 8, 2, 64, CentroidForm::kInt8, 10, 1)));
}

// The largest shape that is served has to fit a CTA of sm_90.
TEST(ScoreListsSimtTest, TheMostHeadsOfTheWidestKindFit) {
  RetrievalCase c;
  c.contexts = {40};
  c.num_heads = kScoreMaxHeads;
  c.num_selections = 1;
  c.head_dim = kScoreMaxHeadDim;
  RetrievalInput input(c, 10);
  ExpectSimtEqualsReference(input, 1e-4);
}

}  // namespace
}  // namespace semkv
