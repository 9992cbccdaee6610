#include "csrc/ops/clustering/kmeans_assign.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "csrc/ops/clustering/kmeans_assign_vnni.h"
#include "tests/testing/random.h"
#include "tests/testing/simd_targets.h"

namespace semkv {
namespace {

// Points in tiles around a few places, centroids around the same places; the last group is padded.
struct Problem {
  Problem(uint64_t seed, int32_t num_tiles, int32_t num_groups, int32_t head_dim) {
    std::mt19937_64 rng(seed);
    params.num_tiles = num_tiles;
    params.num_groups = num_groups;
    params.head_dim = head_dim;
    const std::vector<float> places = testing::RandomNormal(rng, int64_t{num_groups} * head_dim);
    tiles = testing::RandomNormal(rng, int64_t{num_tiles} * head_dim * kTilePoints, 0.3f);
    centroids = testing::RandomNormal(rng, int64_t{num_groups} * 16 * head_dim, 0.3f);
    norms.assign(num_tiles * kTilePoints, 0.0f);
    for (int32_t tile = 0; tile < num_tiles; ++tile) {
      const float* place = places.data() + rng() % num_groups * head_dim;
      for (int32_t i = 0; i < head_dim * kTilePoints; ++i) {
        float& x = tiles[int64_t{tile} * head_dim * kTilePoints + i];
        x += place[i / kTilePoints];
        norms[tile * kTilePoints + i % kTilePoints] += x * x;
      }
    }
    for (int64_t i = 0; i < static_cast<int64_t>(centroids.size()); ++i) {
      const int64_t c = i / head_dim;
      centroids[i] += places[c / 16 * head_dim + i % head_dim];
      if (c + 3 >= num_groups * 16) centroids[i] = 0.0f;
    }
    SetOffsets();
  }

  void SetOffsets() {
    offsets.assign(params.num_groups * 16, 0.0f);
    for (int32_t c = 0; c < params.num_groups * 16; ++c) {
      for (int32_t d = 0; d < params.head_dim; ++d) {
        const float x = centroids[int64_t{c} * params.head_dim + d];
        offsets[c] += 0.5f * x * x;
      }
      if (c + 3 >= params.num_groups * 16) offsets[c] = std::numeric_limits<float>::infinity();
    }
  }

  // Moves the centroids of every other group; returns how far each group moved at most.
  std::vector<float> Move(std::mt19937_64& rng, float deviation) {
    std::vector<float> moved(params.num_groups, 0.0f);
    for (int32_t c = 0; c + 3 < params.num_groups * 16; ++c) {
      if (c / 16 % 2 == 0) continue;
      const std::vector<float> step = testing::RandomNormal(rng, params.head_dim, deviation);
      float squared = 0.0f;
      for (int32_t d = 0; d < params.head_dim; ++d) {
        centroids[int64_t{c} * params.head_dim + d] += step[d];
        squared += step[d] * step[d];
      }
      moved[c / 16] = std::max(moved[c / 16], std::sqrt(squared) * 1.0001f);
    }
    SetOffsets();
    return moved;
  }

  struct Result {
    std::vector<int32_t> labels;
    std::vector<float> lower;
  };
  KMeansAssignParams Bind(Result* result, const float* moved) {
    const size_t places = params.num_tiles * kTilePoints;
    result->labels.resize(places);
    result->lower.resize(places * params.num_groups);
    params.tiles = tiles.data();
    params.norms = norms.data();
    params.centroids = centroids.data();
    params.offsets = offsets.data();
    params.group_moved = moved;
    params.slack = 1e-5f * params.head_dim;
    params.labels = result->labels.data();
    params.lower = result->lower.data();
    params.codes = {};
    if (KMeansUsesCodes()) Encode();
    return params;
  }

  void Encode() {
    const int64_t row = 2 * KMeansCodePairs(params.head_dim);
    codes.resize(params.num_tiles * kTilePoints * row);
    code_scales.resize(norms.size());
    centroid_codes.resize(offsets.size() * row);
    centroid_scales.resize(offsets.size());
    for (int64_t tile = 0; tile < params.num_tiles; ++tile) {
      KMeansEncodeTile(tiles.data() + tile * params.head_dim * kTilePoints,
                       norms.data() + tile * kTilePoints, params.head_dim,
                       codes.data() + tile * kTilePoints * row,
                       code_scales.data() + tile * kTilePoints);
    }
    group_norms.resize(params.num_groups);
    group_scales.resize(params.num_groups);
    KMeansEncodeCentroids(centroids.data(), params.num_groups, params.head_dim,
                          centroid_codes.data(), centroid_scales.data(), group_norms.data(),
                          group_scales.data());
    params.codes = {codes.data(),           code_scales.data(), centroid_codes.data(),
                    centroid_scales.data(), group_norms.data(), group_scales.data()};
  }

  // In float64, of the centroid that a point was given.
  double Score(int64_t place, int32_t label) const {
    double score = -offsets[label];
    for (int64_t d = 0; d < params.head_dim; ++d) {
      const int64_t at = place / kTilePoints * params.head_dim + d;
      score += double{tiles[at * kTilePoints + place % kTilePoints]} *
               centroids[int64_t{label} * params.head_dim + d];
    }
    return score;
  }

  // The same labels but where float32 cannot tell two centroids apart.
  void ExpectReference(const Result& result) {
    Result expected;
    KMeansAssignReference(Bind(&expected, nullptr));
    int32_t differing = 0;
    for (size_t i = 0; i < expected.labels.size(); ++i) {
      differing += result.labels[i] != expected.labels[i];
      ASSERT_NEAR(Score(i, result.labels[i]), Score(i, expected.labels[i]), 2e-6 * (1 + norms[i]))
          << i;
    }
    EXPECT_LE(differing, static_cast<int32_t>(expected.labels.size() / 1000));
  }

  KMeansAssignParams params;
  std::vector<float> tiles, norms, centroids, offsets;
  std::vector<int16_t> codes, centroid_codes;
  std::vector<float> code_scales, centroid_scales, group_norms, group_scales;
};

TEST(KMeansAssignTest, EqualsTheReferenceOnEveryInstructionSet) {
  testing::ForEachSimdTarget([] {
    for (int32_t head_dim : {1, 7, 64, 80, 128, 256}) {
      Problem problem(head_dim, 5, 3, head_dim);
      Problem::Result result;
      EXPECT_EQ(KMeansAssignHost(problem.Bind(&result, nullptr)), 15);
      problem.ExpectReference(result);
    }
  });
}

// Norms that differ by 1e6, keys that are one channel, keys that are not there: the labels are
// those of float32 all the same.
TEST(KMeansAssignTest, PointsOfAllSizesEqualTheReference) {
  testing::ForEachSimdTarget([] {
    Problem problem(3, 8, 6, 96);
    for (int32_t place = 0; place < 8 * kTilePoints; ++place) {
      const int64_t tile = place / kTilePoints * problem.params.head_dim;
      const float factor = place % 5 == 4 ? 0.0f : std::pow(10.0f, place % 7 - 3);
      problem.norms[place] = 0.0f;
      for (int64_t d = 0; d < problem.params.head_dim; ++d) {
        float& x = problem.tiles[(tile + d) * kTilePoints + place % kTilePoints];
        x = place % 3 == 2 && d != place % 96 ? 0.0f : x * factor;
        problem.norms[place] += x * x;
      }
    }
    Problem::Result result;
    KMeansAssignHost(problem.Bind(&result, nullptr));
    problem.ExpectReference(result);
  });
}

// Every family of vectors against itself and the others; parallel ones make the greatest sums.
TEST(KMeansAssignTest, ScoresOfCodesAreAsNearAsPromised) {
  if (!KMeansUsesCodes()) GTEST_SKIP() << "no AVX-512 VNNI";
  for (int32_t head_dim : {1, 2, 31, 64, 128, 256, 1000}) {
    std::mt19937_64 rng(head_dim);
    const int64_t pairs = KMeansCodePairs(head_dim);
    std::vector<float> tile(head_dim * kTilePoints), norms(kTilePoints, 0.0f);
    std::vector<float> centroids = testing::RandomNormal(rng, kGroupCentroids * head_dim);
    for (int32_t c = 0; c < kGroupCentroids; ++c) {
      for (int32_t d = 0; d < head_dim; ++d) {
        float& x = centroids[c * head_dim + d];
        if (c % 4 == 1) x = 3.0f;                              // all channels alike
        if (c % 4 == 2) x = d == c % head_dim ? -1e4f : 0.0f;  // one channel
        if (c % 4 == 3) x = d == c % head_dim ? 100.0f : x;    // an outlier channel
        if (c == 0) x = 0.0f;
        for (int32_t lane : {c, c + kGroupCentroids}) {
          const float y = lane == c ? x : -0.5f * x;
          tile[d * kTilePoints + lane] = y;
          norms[lane] += y * y;
        }
      }
    }
    std::vector<int16_t> codes(kTilePoints * 2 * pairs),
        centroid_codes(kGroupCentroids * 2 * pairs);
    std::vector<float> scales(kTilePoints), centroid_scales(kGroupCentroids);
    KMeansEncodeTile(tile.data(), norms.data(), head_dim, codes.data(), scales.data());
    float group_norm, group_scale;
    KMeansEncodeCentroids(centroids.data(), 1, head_dim, centroid_codes.data(),
                          centroid_scales.data(), &group_norm, &group_scale);
    // One centroid at a time: the others are padding.
    for (int32_t c = 0; c < kGroupCentroids; ++c) {
      std::vector<float> offsets(kGroupCentroids, std::numeric_limits<float>::infinity());
      offsets[c] = 0.0f;
      KMeansBest best;
      ScoreGroupVnni(codes.data(), scales.data(), centroid_codes.data(), centroid_scales.data(),
                     offsets.data(), head_dim, 100, &best);
      for (int32_t lane = 0; lane < kTilePoints; ++lane) {
        double exact = 0.0;
        for (int32_t d = 0; d < head_dim; ++d) {
          exact += double{tile[d * kTilePoints + lane]} * centroids[c * head_dim + d];
        }
        const double most =
            0.501 * std::sqrt(head_dim) *
            (scales[lane] * std::sqrt(norms[c]) + centroid_scales[c] * std::sqrt(norms[lane]));
        ASSERT_NEAR(best.score[lane], exact, most) << head_dim << " " << c;
        ASSERT_EQ(best.label[lane], 100 + c);
        ASSERT_EQ(best.other[lane], -std::numeric_limits<float>::infinity());
      }
    }
  }
}

TEST(KMeansAssignTest, SkippedGroupsCannotWinWhileCentroidsMove) {
  testing::ForEachSimdTarget([] {
    for (uint64_t round = 0; round < 5u * testing::SoakFactor(); ++round) {
      const uint64_t seed = testing::TestSeed(9) + round;
      SEMKV_TRACE_SEED(seed);
      std::mt19937_64 rng(seed);
      Problem problem(seed, 24, 8, 64);
      Problem::Result result;
      KMeansAssignHost(problem.Bind(&result, nullptr));
      int64_t num_tests = 0;
      for (float deviation : {0.3f, 0.1f, 0.03f, 0.5f, 0.0f}) {
        const std::vector<float> moved = problem.Move(rng, deviation);
        num_tests += KMeansAssignHost(problem.Bind(&result, moved.data()));
        problem.ExpectReference(result);
      }
      EXPECT_LT(num_tests, 5 * 24 * 8 * 3 / 4);
    }
  });
}

TEST(KMeansAssignTest, LowestOfEqualCentroidsWins) {
  testing::ForEachSimdTarget([] {
    Problem problem(1, 2, 4, 16);
    for (int32_t c = 1; c < 61; ++c) {
      std::copy_n(problem.centroids.begin(), 16, problem.centroids.begin() + c * 16);
    }
    problem.SetOffsets();
    Problem::Result result;
    KMeansAssignHost(problem.Bind(&result, nullptr));
    EXPECT_EQ(result.labels, std::vector<int32_t>(64, 0));
    result.labels.assign(64, 60);
    const std::vector<float> moved(4, 100.0f);
    KMeansAssignHost(problem.Bind(&result, moved.data()));
    EXPECT_EQ(result.labels, std::vector<int32_t>(64, 0));
  });
}

}  // namespace
}  // namespace semkv
