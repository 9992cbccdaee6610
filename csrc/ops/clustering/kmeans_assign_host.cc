#include "csrc/ops/clustering/kmeans_assign.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "csrc/ops/clustering/kmeans_assign_vnni.h"
#include "csrc/ops/vnni.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "csrc/ops/clustering/kmeans_assign_host.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace semkv {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::CappedTag<float, 16>;
using I32 = hn::RebindToSigned<F32>;
constexpr int32_t kLanes = static_cast<int32_t>(hn::MaxLanes(F32()));
// A block is 2 vectors of points by kBlock centroids, in registers: 16 of the 32 that AVX-512 has,
// 8 of the 16 of AVX2; either hides the latency of FMA (4 cycles, 2 ports).
constexpr int32_t kBlock = kLanes >= 16 ? 8 : 4;
constexpr int32_t kStep = 2 * kLanes;
static_assert(kTilePoints % kStep == 0 && kGroupCentroids % kBlock == 0);

// The scores of 2 vectors of points with kBlock centroids, folded into a running maximum.
HWY_INLINE void ScoreBlock(const KMeansAssignParams& params, const float* HWY_RESTRICT points,
                           int32_t first, KMeansBest* best, int32_t lane) {
  const F32 f;
  const I32 i;
  using V = hn::Vec<F32>;
  const float* HWY_RESTRICT centroids = params.centroids + int64_t{first} * params.head_dim;
  V acc0[kBlock], acc1[kBlock];
  for (int32_t c = 0; c < kBlock; ++c) {
    acc0[c] = acc1[c] = hn::Set(f, -params.offsets[first + c]);
  }
  const int64_t head_dim = params.head_dim;
  for (int64_t d = 0; d < head_dim; ++d) {
    const V x0 = hn::LoadU(f, points + d * kTilePoints);
    const V x1 = hn::LoadU(f, points + d * kTilePoints + kLanes);
#pragma GCC unroll 8
    for (int32_t c = 0; c < kBlock; ++c) {
      const V y = hn::Set(f, centroids[c * head_dim + d]);
      acc0[c] = hn::MulAdd(x0, y, acc0[c]);
      acc1[c] = hn::MulAdd(x1, y, acc1[c]);
    }
  }
  V best0 = hn::Load(f, best->score + lane), best1 = hn::Load(f, best->score + lane + kLanes);
  auto label0 = hn::Load(i, best->label + lane), label1 = hn::Load(i, best->label + lane + kLanes);
#pragma GCC unroll 8
  for (int32_t c = 0; c < kBlock; ++c) {
    const auto label = hn::Set(i, first + c);
    const auto above0 = hn::Gt(acc0[c], best0), above1 = hn::Gt(acc1[c], best1);
    best0 = hn::Max(best0, acc0[c]);
    best1 = hn::Max(best1, acc1[c]);
    label0 = hn::IfThenElse(hn::RebindMask(i, above0), label, label0);
    label1 = hn::IfThenElse(hn::RebindMask(i, above1), label, label1);
  }
  hn::Store(best0, f, best->score + lane);
  hn::Store(best1, f, best->score + lane + kLanes);
  hn::Store(label0, i, best->label + lane);
  hn::Store(label1, i, best->label + lane + kLanes);
}

void Clear(KMeansBest* best) {
  const F32 f;
  const auto nothing = hn::Set(f, -std::numeric_limits<float>::infinity());
  for (int32_t lane = 0; lane < kTilePoints; lane += kLanes) {
    hn::Store(nothing, f, best->score + lane);
    hn::Store(nothing, f, best->other + lane);
    hn::Store(hn::Zero(f), f, best->error + lane);
    hn::Store(hn::Zero(I32()), I32(), best->label + lane);
  }
}

// Best of one group, for all points of a tile.
void ScoreGroup(const KMeansAssignParams& params, int64_t tile, int32_t group, KMeansBest* best) {
  const float* points = params.tiles + tile * params.head_dim * kTilePoints;
  Clear(best);
  for (int32_t lane = 0; lane < kTilePoints; lane += kStep) {
    for (int32_t c = 0; c < kGroupCentroids; c += kBlock) {
      ScoreBlock(params, points + lane, group * kGroupCentroids + c, best, lane);
    }
  }
}

// The same from codes, `best->other` too, of which float32 has no need.
void ScoreGroupOfCodes(const KMeansAssignParams& params, int64_t tile, int32_t group,
                       KMeansBest* best) {
  const KMeansCodes& codes = params.codes;
  const int64_t vector = 2 * KMeansCodePairs(params.head_dim);
  const int32_t first = group * kGroupCentroids;
  ScoreGroupVnni(codes.points + tile * kTilePoints * vector,
                 codes.point_scales + tile * kTilePoints, codes.centroids + first * vector,
                 codes.centroid_scales + first, params.offsets + first, params.head_dim, first,
                 best);
}

// By how much scores of codes may be off, for the points from `lane` on and the centroids of a
// group. A code is off by at most half its scale, so codes of d channels by sqrt(d) / 2 scales:
// that times the other vector's norm, for either (and a little for the product of both), whatever
// the vectors.
HWY_INLINE hn::Vec<F32> CodeError(const KMeansAssignParams& params, int64_t tile, int32_t lane,
                                  int32_t group) {
  const F32 f;
  const KMeansCodes& codes = params.codes;
  const float channels = 0.501f * std::sqrt(static_cast<float>(params.head_dim));
  const auto norm = hn::Sqrt(hn::LoadU(f, params.norms + tile * kTilePoints + lane));
  const auto scale = hn::LoadU(f, codes.point_scales + tile * kTilePoints + lane);
  const auto of_point = hn::Mul(scale, hn::Set(f, channels * codes.group_norms[group]));
  return hn::MulAdd(norm, hn::Set(f, channels * codes.group_scales[group]), of_point);
}

HWY_INLINE hn::Vec<F32> SquaredOf(const KMeansAssignParams& params, int64_t tile, int32_t lane,
                                  hn::Vec<F32> score) {
  const F32 f;
  const auto norm = hn::LoadU(f, params.norms + tile * kTilePoints + lane);
  return hn::NegMulAdd(hn::Set(f, 2.0f), score, norm);
}

// Tests one group for all points of a tile: folds it into `best` and renews its lower bounds.
void TestGroup(const KMeansAssignParams& params, int64_t tile, int32_t group, bool by_codes,
               KMeansBest* best) {
  const F32 f;
  const I32 i;
  float* lower = params.lower + (tile * params.num_groups + group) * kTilePoints;
  KMeansBest own;
  if (by_codes) {
    ScoreGroupOfCodes(params, tile, group, &own);
  } else {
    ScoreGroup(params, tile, group, &own);
  }
  for (int32_t lane = 0; lane < kTilePoints; lane += kLanes) {
    const auto error = by_codes ? CodeError(params, tile, lane, group) : hn::Zero(f);
    const auto score = hn::Load(f, own.score + lane);
    const auto label = hn::Load(i, own.label + lane);
    const auto best_score = hn::Load(f, best->score + lane);
    const auto best_label = hn::Load(i, best->label + lane);
    const auto best_error = hn::Load(f, best->error + lane);
    // Groups are tested in any order; the lowest centroid of equals must win all the same.
    const auto wins =
        hn::Or(hn::Gt(score, best_score),
               hn::And(hn::Eq(score, best_score), hn::RebindMask(f, hn::Lt(label, best_label))));
    const auto loser = hn::IfThenElse(wins, hn::Add(best_score, best_error), hn::Add(score, error));
    const auto others =
        hn::Max(hn::Add(hn::Load(f, own.other + lane), error), hn::Load(f, best->other + lane));
    hn::Store(hn::Max(others, loser), f, best->other + lane);
    hn::Store(hn::IfThenElse(wins, score, best_score), f, best->score + lane);
    hn::Store(hn::IfThenElse(wins, error, best_error), f, best->error + lane);
    hn::Store(hn::IfThenElse(hn::RebindMask(i, wins), label, best_label), i, best->label + lane);
    const auto squared = SquaredOf(params, tile, lane, hn::Add(score, error));
    const auto safe = hn::Max(hn::Zero(f), hn::Sub(squared, hn::Set(f, params.slack)));
    hn::StoreU(hn::Sqrt(safe), f, lower + lane);
  }
}

// Whether some point of the tile may have its nearest centroid in the group; `upper` holds the
// distances found so far.
HWY_INLINE bool GroupMayWin(const float* lower, const float* upper) {
  const F32 f;
  auto any = hn::Lt(hn::LoadU(f, lower), hn::Load(f, upper));
  for (int32_t lane = kLanes; lane < kTilePoints; lane += kLanes) {
    any = hn::Or(any, hn::Lt(hn::LoadU(f, lower + lane), hn::Load(f, upper + lane)));
  }
  return !hn::AllFalse(f, any);
}

// upper[lane] = distance to the best centroid found so far, rounded up by all that it may be off.
HWY_INLINE void UpperBounds(const KMeansAssignParams& params, int64_t tile, const KMeansBest& best,
                            float* upper) {
  const F32 f;
  for (int32_t lane = 0; lane < kTilePoints; lane += kLanes) {
    const auto score = hn::Sub(hn::Load(f, best.score + lane), hn::Load(f, best.error + lane));
    const auto squared = SquaredOf(params, tile, lane, score);
    const auto safe = hn::Max(hn::Zero(f), hn::Add(squared, hn::Set(f, params.slack)));
    hn::Store(hn::Sqrt(safe), f, upper + lane);
  }
}

using TestedGroups = bool[kMaxCentroids / kGroupCentroids];

// The best of the tested centroids for one point of a tile, in float32. row: [head_dim], scratch.
void ScorePoint(const KMeansAssignParams& params, int64_t tile, int32_t lane,
                const TestedGroups& tested, float* row, KMeansBest* best) {
  const F32 f;
  const float* points = params.tiles + tile * params.head_dim * kTilePoints;
  for (int32_t d = 0; d < params.head_dim; ++d) row[d] = points[d * kTilePoints + lane];
  best->score[lane] = -std::numeric_limits<float>::infinity();
  best->label[lane] = 0;
  for (int32_t c = 0; c < params.num_groups * kGroupCentroids; ++c) {
    if (!tested[c / kGroupCentroids]) continue;
    const float* centroid = params.centroids + int64_t{c} * params.head_dim;
    auto sums = hn::Zero(f);
    int32_t d = 0;
    for (; d + kLanes <= params.head_dim; d += kLanes) {
      sums = hn::MulAdd(hn::LoadU(f, row + d), hn::LoadU(f, centroid + d), sums);
    }
    float score = hn::GetLane(hn::SumOfLanes(f, sums)) - params.offsets[c];
    for (; d < params.head_dim; ++d) score += row[d] * centroid[d];
    if (score > best->score[lane]) {
      best->score[lane] = score;
      best->label[lane] = c;
    }
  }
}

// Does again in float32 what scores of codes leave in doubt: a few points one by one, more of them
// with the tile, which costs about as much as eight points.
void ResolveTies(const KMeansAssignParams& params, int64_t tile, const TestedGroups& tested,
                 float* row, KMeansBest* best) {
  constexpr int kFewTies = 8;
  int32_t ties[kTilePoints];
  int num_ties = 0;
  for (int32_t lane = 0; lane < kTilePoints; ++lane) {
    const bool is_clear = best->score[lane] - best->error[lane] - params.slack > best->other[lane];
    if (!is_clear) ties[num_ties++] = lane;
  }
  if (num_ties <= kFewTies) {
    for (int n = 0; n < num_ties; ++n) ScorePoint(params, tile, ties[n], tested, row, best);
    return;
  }
  Clear(best);
  for (int32_t group = 0; group < params.num_groups; ++group) {
    if (tested[group]) TestGroup(params, tile, group, false, best);
  }
}

// Tests the groups of the tile's labels, then those that their bounds do not rule out.
int64_t TestLikelyGroups(const KMeansAssignParams& params, int64_t tile, bool by_codes,
                         TestedGroups& tested, KMeansBest* best) {
  const F32 f;
  const int32_t* labels = params.labels + tile * kTilePoints;
  int64_t num_tested = 0;
  for (int32_t lane = 0; lane < kTilePoints; ++lane) {
    const int32_t group = labels[lane] / kGroupCentroids;
    if (tested[group]) continue;
    tested[group] = true;
    TestGroup(params, tile, group, by_codes, best);
    ++num_tested;
  }
  alignas(64) float upper[kTilePoints];
  UpperBounds(params, tile, *best, upper);
  for (int32_t group = 0; group < params.num_groups; ++group) {
    if (tested[group]) continue;
    float* lower = params.lower + (tile * params.num_groups + group) * kTilePoints;
    const auto moved = hn::Set(f, params.group_moved[group]);
    for (int32_t lane = 0; lane < kTilePoints; lane += kLanes) {
      hn::StoreU(hn::Sub(hn::LoadU(f, lower + lane), moved), f, lower + lane);
    }
    if (!GroupMayWin(lower, upper)) continue;
    tested[group] = true;
    TestGroup(params, tile, group, by_codes, best);
    UpperBounds(params, tile, *best, upper);
    ++num_tested;
  }
  return num_tested;
}

int64_t AssignTile(const KMeansAssignParams& params, int64_t tile, float* row, KMeansBest* best) {
  const bool by_codes = params.codes.points != nullptr;
  TestedGroups tested = {};
  int64_t num_tested = params.num_groups;
  Clear(best);
  if (params.group_moved != nullptr) {
    num_tested = TestLikelyGroups(params, tile, by_codes, tested, best);
  } else {
    for (int32_t group = 0; group < params.num_groups; ++group) {
      tested[group] = true;
      TestGroup(params, tile, group, by_codes, best);
    }
  }
  if (by_codes) ResolveTies(params, tile, tested, row, best);
  return num_tested;
}

int64_t Assign(const KMeansAssignParams& params) {
  int64_t num_tested = 0;
  std::vector<float> row(params.head_dim);
  for (int64_t tile = 0; tile < params.num_tiles; ++tile) {
    KMeansBest best;
    num_tested += AssignTile(params, tile, row.data(), &best);
    std::copy_n(best.label, kTilePoints, params.labels + tile * kTilePoints);
  }
  return num_tested;
}

bool UsesCodes() { return HWY_TARGET == HWY_AVX3 && HasVnni(); }

}  // namespace HWY_NAMESPACE
}  // namespace semkv
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace semkv {

HWY_EXPORT(Assign);
HWY_EXPORT(UsesCodes);

bool KMeansUsesCodes() { return HWY_DYNAMIC_DISPATCH(UsesCodes)(); }

int64_t KMeansAssignHost(const KMeansAssignParams& params) {
  return HWY_DYNAMIC_DISPATCH(Assign)(params);
}

}  // namespace semkv
#endif  // HWY_ONCE
