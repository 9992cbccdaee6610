// The CUDA form of batched k-means, executed by the SIMT harness over the cases of every form.

#include "tests/ops/clustering/kmeans_simt.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "tests/ops/clustering/kmeans_cases.h"
#include "tests/simt/launch.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using testing::KMeansCase;
using testing::KMeansData;
using testing::KMeansInput;
using testing::KMeansSimt;
using testing::Result;
using testing::RunReference;
using testing::RunSimt;

void ExpectSimtIsAsGoodAsReference(KMeansInput& input) {
  const Result expected = RunReference(input);
  testing::ExpectResult(input);
  const Result result = RunSimt(input);
  testing::ExpectResult(input);
  for (size_t i = 0; i < expected.objectives.size(); ++i) {
    const float best = expected.objectives[i];
    EXPECT_NEAR(result.objectives[i], best, 0.005 * best + 1e-3) << "problem " << i;
  }
}

TEST(KMeansSimtTest, LabelsOfExactProductsEqualTheReference) {
  std::mt19937_64 rng(1);
  for (int32_t head_dim : testing::kKMeansHeadDims) {
    for (DType dtype : {DType::kFloat16, DType::kBFloat16}) {
      SCOPED_TRACE(head_dim);
      KMeansCase c;
      c.head_dim = head_dim;
      c.dtype = dtype;
      c.data = KMeansData::kIntegers;
      c.iterations = 0;
      c.sizes = {{300, 70}, {40, 33}, {2, 1}};
      KMeansInput input(c, rng);
      const Result expected = RunReference(input);
      const Result result = RunSimt(input);
      EXPECT_EQ(result.labels, expected.labels);
      EXPECT_EQ(result.offsets, expected.offsets);
      EXPECT_EQ(result.members, expected.members);
      EXPECT_EQ(result.centroids, expected.centroids);
      for (size_t i = 0; i < expected.objectives.size(); ++i) {
        EXPECT_NEAR(result.objectives[i], expected.objectives[i], 1e-6 * expected.objectives[i]);
      }
    }
  }
}

TEST(KMeansSimtTest, MovedCentroidsEqualTheReference) {
  std::mt19937_64 rng(2);
  for (KMeansMetric metric : {KMeansMetric::kCenteredL2, KMeansMetric::kCosine}) {
    KMeansCase c;
    c.head_dim = 80;
    c.dtype = DType::kFloat16;
    c.metric = metric;
    c.data = KMeansData::kIntegers;
    c.iterations = 1;
    c.sizes = {{200, 3}, {500, 40}};
    KMeansInput input(c, rng);
    const Result expected = RunReference(input);
    const Result result = RunSimt(input);
    for (size_t i = 0; i < expected.centroids.size(); ++i) {
      ASSERT_NEAR(result.centroids[i], expected.centroids[i], 2e-6) << i;
    }
    EXPECT_EQ(result.iterations_done, expected.iterations_done);
  }
}

TEST(KMeansSimtTest, OddSizesInOneBatch) {
  std::mt19937_64 rng(3);
  for (DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    KMeansCase c;
    c.dtype = dtype;
    c.head_dim = dtype == DType::kFloat16 ? 64 : 128;
    c.iterations = 3;
    c.sizes = testing::OddSizes();
    KMeansInput input(c, rng);
    ExpectSimtIsAsGoodAsReference(input);
  }
}

// A label that falls to the other side may end a small problem in another local optimum, better or
// worse; on the average there is no difference.
TEST(KMeansSimtTest, RandomCases) {
  const uint64_t seed = testing::TestSeed(4);
  double sum = 0.0;
  int32_t count = 0;
  for (int round = 0; round < 24 * testing::SoakFactor(); ++round) {
    SEMKV_TRACE_SEED(seed + round);
    std::mt19937_64 rng(seed + round);
    KMeansInput input(testing::RandomKMeansCase(rng), rng);
    if (round % 2 == 0) testing::AddExtraordinaryPoints(input, rng);
    const Result expected = RunReference(input);
    testing::ExpectResult(input);
    const Result result = RunSimt(input);
    testing::ExpectResult(input);
    for (size_t i = 0; i < expected.objectives.size(); ++i) {
      if (expected.objectives[i] < 1e-3f) continue;
      sum += result.objectives[i] / expected.objectives[i];
      ++count;
    }
  }
  EXPECT_NEAR(sum / count, 1.0, 0.01);
}

TEST(KMeansSimtTest, ObjectiveIsWithinHalfAPercentOfTheReference) {
  std::mt19937_64 rng(5);
  for (KMeansMetric metric : {KMeansMetric::kCenteredL2, KMeansMetric::kCosine}) {
    for (DType dtype : {DType::kFloat16, DType::kBFloat16}) {
      KMeansCase c;
      c.dtype = dtype;
      c.metric = metric;
      c.iterations = 6;
      c.sizes = {{1024, 32}};
      KMeansInput input(c, rng);
      ExpectSimtIsAsGoodAsReference(input);
    }
  }
}

TEST(KMeansSimtTest, AnOffsetChannelCostsNothing) {
  std::mt19937_64 rng(6);
  KMeansCase c;
  c.dtype = DType::kFloat16;
  c.data = KMeansData::kIntegers;
  c.iterations = 2;
  c.sizes = {{256, 16}};
  KMeansInput input(c, rng);
  const Result without = RunSimt(input);
  // Exact in float16 and in sums.
  for (int32_t i = 0; i < 256; ++i) input.Set(0, i, 5, input.Get(0, i, 5) + 1024.0f);
  const Result with = RunSimt(input);
  EXPECT_EQ(with.labels, without.labels);
  EXPECT_NEAR(with.objectives[0], without.objectives[0], 1e-5 * without.objectives[0]);
}

TEST(KMeansSimtTest, EqualPointsAreOneListAndLowestCentroidsWin) {
  std::mt19937_64 rng(7);
  KMeansCase c;
  c.iterations = 3;
  c.sizes = {{70, 5}, {600, 20}};
  KMeansInput input(c, rng);
  for (int32_t i = 1; i < 70; ++i) input.CopyPoint(0, 0, i);
  // 4 different points, 150 times each: 16 lists stay without members.
  for (int32_t i = 4; i < 600; ++i) input.CopyPoint(1, i % 4, i);
  const Result expected = RunReference(input);
  const Result result = RunSimt(input);
  testing::ExpectResult(input);
  EXPECT_EQ(result.labels, expected.labels);
  EXPECT_EQ(result.offsets, expected.offsets);
  for (int32_t i = 0; i < 70; ++i) EXPECT_EQ(input.Label(0, i), 0);
}

TEST(KMeansSimtTest, ListsWithoutMembersRestartAtTheFarthestPoints) {
  std::mt19937_64 rng(8);
  for (KMeansMetric metric : {KMeansMetric::kCenteredL2, KMeansMetric::kCosine}) {
    KMeansCase c;
    c.dtype = DType::kFloat16;
    c.metric = metric;
    c.data = KMeansData::kNormal;
    c.iterations = 2;
    c.draws = false;
    c.sizes = {{300, 10}};
    KMeansInput input(c, rng);
    // First centroids are points 0, 30, 60, ...: all but one are equal.
    for (int32_t i = 60; i < 300; i += 30) input.CopyPoint(0, 30, i);
    const Result expected = RunReference(input);
    const Result result = RunSimt(input);
    testing::ExpectResult(input);
    EXPECT_EQ(result.labels, expected.labels);
    for (int32_t list = 0; list < 10; ++list) {
      EXPECT_LT(input.Offset(0, list), input.Offset(0, list + 1)) << list;
    }
  }
}

TEST(KMeansSimtTest, OfEquallyFarPointsTheLowestRestartsAList) {
  std::mt19937_64 rng(21);
  KMeansCase c;
  c.iterations = 1;
  c.draws = false;
  c.sizes = {{40, 3}};
  KMeansInput input(c, rng);
  for (int32_t i = 0; i < 40; ++i) {
    input.SetAll(0, i, 0.0f);
    input.Set(0, i, 0, 4.0f);
  }
  // The first centroids, points 0, 13 and 26, are equal, and these two as far from them.
  input.Set(0, 5, 1, 8.0f);
  input.Set(0, 15, 1, -8.0f);
  const Result expected = RunReference(input);
  EXPECT_EQ(RunSimt(input).labels, expected.labels);
  EXPECT_EQ(input.Label(0, 5), 1);
  EXPECT_EQ(input.Label(0, 15), 2);
}

TEST(KMeansSimtTest, PointsThatAreNotOrdinaryHarmNoOthers) {
  std::mt19937_64 rng(9);
  KMeansCase c;
  c.dtype = DType::kBFloat16;
  c.iterations = 2;
  c.sizes = {{320, 12}, {40, 3}, {10, 2}, {10, 2}};
  KMeansInput input(c, rng);
  testing::AddExtraordinaryPoints(input, rng);
  for (int32_t i = 0; i < 10; ++i) input.SetAll(2, i, 0.0f);
  for (int32_t i = 0; i < 10; ++i) input.Set(3, i, 7, std::nanf(""));
  const Result expected = RunReference(input);
  const Result result = RunSimt(input);
  testing::ExpectResult(input);
  EXPECT_EQ(result.iterations_done, expected.iterations_done);
  // The ordinary points alone are clustered in the same way.
  KMeansInput alone(c, rng);
  for (int32_t problem = 0; problem < 4; ++problem) {
    std::vector<int32_t> ordinary;
    for (int32_t i = 0; i < input.problems[problem].num_points; ++i) {
      if (input.Label(problem, i) < c.sizes[problem].num_lists) ordinary.push_back(i);
    }
    for (size_t i = 0; i < ordinary.size(); ++i) {
      for (int32_t d = 0; d < c.head_dim; ++d) {
        alone.Set(problem, static_cast<int64_t>(i), d, input.Get(problem, ordinary[i], d));
      }
    }
    alone.problems[problem].num_points = static_cast<int32_t>(ordinary.size());
  }
  alone.draws = input.draws;
  const Result clean = RunSimt(alone);
  for (int32_t problem = 0; problem < 4; ++problem) {
    int32_t at = 0;
    for (int32_t i = 0; i < input.problems[problem].num_points; ++i) {
      if (input.Label(problem, i) >= c.sizes[problem].num_lists) continue;
      EXPECT_EQ(input.Label(problem, i), alone.Label(problem, at++)) << problem << ", " << i;
    }
  }
}

// Less the mean, a centroid of float16's largest number is beyond float16.
TEST(KMeansSimtTest, TheLargestNumbersOfFloat16) {
  std::mt19937_64 rng(14);
  KMeansCase c;
  c.dtype = DType::kFloat16;
  c.data = KMeansData::kNormal;
  c.draws = false;
  c.sizes = {{64, 2}};
  KMeansInput input(c, rng);
  for (int32_t i = 0; i < 64; ++i) input.Set(0, i, 3, i == 32 ? 65504.0f : -65504.0f);
  RunSimt(input);
  for (int32_t i = 0; i < 64; ++i) EXPECT_EQ(input.Label(0, i), i == 32 ? 1 : 0) << i;
}

TEST(KMeansSimtTest, ADoneProblemStaysAsItIs) {
  std::mt19937_64 rng(10);
  KMeansCase c;
  c.dtype = DType::kFloat16;
  c.iterations = 1;
  c.sizes = {{64, 2}, {300, 12}};
  KMeansInput input(c, rng);
  // Two places far apart: settled after the first move.
  for (int32_t i = 0; i < 64; ++i) {
    for (int32_t d = 0; d < 64; ++d) {
      input.Set(0, i, d, (i < 32 ? 4.0f : -4.0f) + 0.125f * static_cast<float>((i + d) % 5));
    }
  }
  const Result once = RunSimt(input);
  input.params.iterations = 8;
  const Result more = RunSimt(input);
  EXPECT_EQ(more.iterations_done[0], 1);
  EXPECT_GT(more.iterations_done[1], 1);
  EXPECT_EQ(more.objectives[0], once.objectives[0]);
  for (int32_t i = 0; i < 2 * 64; ++i) EXPECT_EQ(more.centroids[i], once.centroids[i]);
  EXPECT_LT(more.objectives[1], once.objectives[1]);
  EXPECT_EQ(more.iterations_done, RunReference(input).iterations_done);
}

// A problem is done when few labels change, not when none do: its centroids stay those that its
// labels are the nearest of.
TEST(KMeansSimtTest, ALabelThatChangedLastMovesNoCentroid) {
  KMeansCase c;
  c.dtype = DType::kFloat16;
  c.iterations = 60;
  c.sizes = {{1500, 12}};
  for (uint64_t seed = 1; seed < 100; ++seed) {
    std::mt19937_64 rng(seed);
    KMeansInput input(c, rng);
    const Result last = RunReference(input);
    input.params.iterations = last.iterations_done[0] - 1;
    if (last.iterations_done[0] > 20 || RunReference(input).labels == last.labels) continue;
    input.params.iterations = last.iterations_done[0];
    const Result exactly = RunSimt(input);
    input.params.iterations += 2;
    const Result more = RunSimt(input);
    ASSERT_EQ(more.iterations_done, last.iterations_done) << "seed " << seed;
    EXPECT_EQ(more.labels, exactly.labels);
    EXPECT_EQ(more.centroids, exactly.centroids);
    return;
  }
  FAIL() << "no such problem";
}

TEST(KMeansSimtTest, EveryScheduleGivesTheSameBits) {
  std::mt19937_64 rng(11);
  KMeansCase c;
  c.head_dim = 96;
  c.iterations = 2;
  c.sizes = {{530, 40, 30}, {90, 6, 20}};
  KMeansInput input(c, rng);
  for (int32_t i = 1; i < 30; ++i) input.CopyPoint(1, 0, 3 * i);
  const Result first = RunSimt(input, 1);
  for (uint64_t seed : {100, 200, 300, 400}) {
    const Result other = RunSimt(input, seed);
    EXPECT_EQ(other.labels, first.labels);
    EXPECT_EQ(other.offsets, first.offsets);
    EXPECT_EQ(other.members, first.members);
    EXPECT_EQ(other.centroids, first.centroids);
    EXPECT_EQ(other.objectives, first.objectives);
  }
}

TEST(KMeansSimtTest, ManyListsAndManyPoints) {
  std::mt19937_64 rng(12);
  KMeansCase c;
  c.iterations = 1;
  c.dtype = DType::kFloat16;
  c.sizes = {{700, 600}};
  // Counters of 8,192 lists leave room for few warps of sort.
  KMeansInput many_lists(c, rng);
  many_lists.params.max_lists = 8192;
  many_lists.draws.resize(8192);
  ExpectSimtIsAsGoodAsReference(many_lists);
  EXPECT_EQ(KMeansSimt(many_lists, 1).plan().sort_warps, 4);
  // As do those of few lists and many lone points.
  c.sizes = {{700, 20, 650}};
  KMeansInput many_lone(c, rng);
  many_lone.params.max_lone = 8192 - 20;
  ExpectSimtIsAsGoodAsReference(many_lone);
  EXPECT_EQ(KMeansSimt(many_lone, 1).plan().sort_warps, 22);
  EXPECT_EQ(KMeansSimt(many_lone, 1).plan().lone_sort_warps, 4);
  // Above 65,535 points offsets and members are 32-bit numbers.
  c.sizes = {{300, 9, 20}, {130, 7, 0}};
  c.more_points = 65536;
  KMeansInput wide(c, rng);
  ExpectSimtIsAsGoodAsReference(wide);
}

// Of equally far points the lowest leave, whatever warp they fall to.
TEST(KMeansSimtTest, LonePointsOfExactDistancesEqualTheReference) {
  std::mt19937_64 rng(15);
  for (int32_t head_dim : {64, 80, 256}) {
    SCOPED_TRACE(head_dim);
    const DType dtype = head_dim == 80 ? DType::kBFloat16 : DType::kFloat16;
    KMeansInput input(testing::ExactLoneCase(head_dim, dtype), rng);
    testing::AddExtraordinaryPairs(input);
    // In the others no point is off its centroid, or none ordinary.
    for (int32_t i = 0; i < 64 && head_dim != 80; ++i) {
      input.SetAll(3, i, head_dim == 64 ? 2.0f : 0.0f);
    }
    const Result expected = RunReference(input);
    testing::ExpectResult(input);
    const Result result = RunSimt(input);
    EXPECT_EQ(result.labels, expected.labels);
    EXPECT_EQ(result.offsets, expected.offsets);
    EXPECT_EQ(result.members, expected.members);
    EXPECT_EQ(result.centroids, expected.centroids);
  }
}

TEST(KMeansSimtTest, LonePointsAreTheFarthestAndNothingElseChanges) {
  std::mt19937_64 rng(16);
  for (KMeansMetric metric : {KMeansMetric::kCenteredL2, KMeansMetric::kCosine}) {
    KMeansCase c;
    c.metric = metric;
    c.iterations = 3;
    c.sizes = {{400, 16, 24}, {130, 9, 0}, {257, 30, 64}, {60, 40, 60}};
    KMeansInput input(c, rng);
    testing::AddExtraordinaryPoints(input, rng);
    const std::vector<KMeansProblem> problems = input.problems;
    for (KMeansProblem& problem : input.problems) problem.num_lone = 0;
    const Result trained = RunSimt(input);
    input.problems = problems;
    const Result lone = RunSimt(input);
    testing::ExpectResult(input);
    testing::ExpectFarthestLeft(input, trained.labels);
    EXPECT_EQ(lone.centroids, trained.centroids);
    EXPECT_EQ(lone.objectives, trained.objectives);
    EXPECT_EQ(lone.iterations_done, trained.iterations_done);
  }
}

// What is within rounding of a long point is far off for a short one.
TEST(KMeansSimtTest, PointsWithinRoundingOfTheirCentroidsAreNotLone) {
  std::mt19937_64 rng(18);
  KMeansCase c;
  c.head_dim = 256;
  c.dtype = DType::kFloat16;
  c.iterations = 1;
  c.sizes = {{20, 1, 5}, {20, 1, 5}};
  KMeansInput input(c, rng);
  for (int32_t i = 0; i < 20; ++i) {
    input.SetAll(0, i, 1024.0f);
    input.Set(0, i, 7, i % 2 == 0 ? 1024.0f : 1025.0f);
    input.SetAll(1, i, 0x1p-14f);
    input.Set(1, i, 7, i % 2 == 0 ? 0x1p-14f : 0x1p-13f);
  }
  const Result expected = RunReference(input);
  EXPECT_EQ(RunSimt(input).labels, expected.labels);
  for (int32_t i = 0; i < 20; ++i) {
    EXPECT_EQ(input.Label(0, i), 0) << i;
    EXPECT_EQ(input.Label(1, i), i < 5 ? 1 + i : 0) << i;
  }
}

TEST(KMeansSimtTest, LonePointsAreThreeLaunches) {
  std::mt19937_64 rng(17);
  KMeansCase c;
  for (int32_t num_lone : {0, 5}) {
    c.sizes = {{100, 8, num_lone}};
    KMeansInput input(c, rng);
    KMeansSimt simt(input, 1);
    EXPECT_EQ(simt.Run(), "");
    EXPECT_EQ(simt.num_launches(), 4 * c.iterations + 7 + (num_lone > 0 ? 3 : 0));
  }
}

// Points once, lists once per tile of points (so that up to 256 points nothing is moved twice),
// labels once; of a move also the lists' ends and the center for each list.
TEST(KMeansSimtTest, AssignAndMoveTransferWhatTheyMust) {
  if (!simt::kMemoryHooks) GTEST_SKIP() << "bytes are not counted in this build";
  std::mt19937_64 rng(13);
  for (int32_t head_dim : {64, 96, 128, 256}) {
    for (const KMeansCase::Size& size : {KMeansCase::Size{256, 80}, KMeansCase::Size{700, 20}}) {
      SCOPED_TRACE(head_dim);
      KMeansCase c;
      c.dtype = DType::kFloat16;
      c.head_dim = head_dim;
      c.iterations = 0;
      c.sizes = {size};
      KMeansInput input(c, rng);
      KMeansSimt simt(input, 1);
      ASSERT_EQ(simt.Run(), "");
      const int64_t row = 2 * head_dim, n = size.num_points, k = size.num_lists;
      const simt::LaunchReport assign = simt.Assign();
      for (const auto& [width, count] : assign.traffic.at("points 0").accesses) {
        EXPECT_EQ(width, 16) << count;
      }
      EXPECT_EQ(assign.traffic.at("points 0").read_bytes, n * row);
      const double assign_floor = n * (row + 2) + CeilDiv<int64_t>(n, 256) * k * (row + 4);
      EXPECT_LE(assign.Bytes(), 1.1 * assign_floor);
      const simt::LaunchReport move = simt.Move();
      // A centroid is written as float32 and as 16-bit row.
      const double move_floor = n * (row + 2) + k * 3 * row;
      EXPECT_LE(move.Bytes(), (n / k >= 32 ? 1.1 : 2.0) * move_floor);
      std::printf("head_dim %d, %d points, %d lists: assign %.3f, move %.3f of the floor\n",
                  head_dim, size.num_points, size.num_lists, assign.Bytes() / assign_floor,
                  move.Bytes() / move_floor);
    }
  }
}

}  // namespace
}  // namespace semkv
