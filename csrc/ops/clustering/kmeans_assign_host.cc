#include "csrc/ops/clustering/kmeans_assign.h"

#include <cstdint>
#include <limits>

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

// Best score and its centroid, per point of a tile.
struct Best {
  alignas(64) float score[kTilePoints];
  alignas(64) int32_t label[kTilePoints];
};

// The scores of 2 vectors of points with kBlock centroids, folded into a running maximum.
HWY_INLINE void ScoreBlock(const KMeansAssignParams& params, const float* HWY_RESTRICT points,
                           int32_t first, Best* best, int32_t lane) {
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

// Tests one group for all points of a tile: folds it into `best` and renews its lower bounds.
void TestGroup(const KMeansAssignParams& params, int64_t tile, int32_t group, Best* best) {
  const F32 f;
  const I32 i;
  const float* points = params.tiles + tile * params.head_dim * kTilePoints;
  float* lower = params.lower + (tile * params.num_groups + group) * kTilePoints;
  Best own;
  for (int32_t lane = 0; lane < kTilePoints; lane += kLanes) {
    hn::Store(hn::Set(f, -std::numeric_limits<float>::infinity()), f, own.score + lane);
    hn::Store(hn::Zero(i), i, own.label + lane);
  }
  for (int32_t lane = 0; lane < kTilePoints; lane += kStep) {
    for (int32_t c = 0; c < kGroupCentroids; c += kBlock) {
      ScoreBlock(params, points + lane, group * kGroupCentroids + c, &own, lane);
    }
  }
  for (int32_t lane = 0; lane < kTilePoints; lane += kLanes) {
    const auto score = hn::Load(f, own.score + lane);
    const auto label = hn::Load(i, own.label + lane);
    const auto best_score = hn::Load(f, best->score + lane);
    const auto best_label = hn::Load(i, best->label + lane);
    // Groups are tested in any order; the lowest centroid of equals must win all the same.
    const auto wins =
        hn::Or(hn::Gt(score, best_score),
               hn::And(hn::Eq(score, best_score), hn::RebindMask(f, hn::Lt(label, best_label))));
    hn::Store(hn::IfThenElse(wins, score, best_score), f, best->score + lane);
    hn::Store(hn::IfThenElse(hn::RebindMask(i, wins), label, best_label), i, best->label + lane);
    const auto norm = hn::LoadU(f, params.norms + tile * kTilePoints + lane);
    const auto squared = hn::NegMulAdd(hn::Set(f, 2.0f), score, norm);
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

// upper[lane] = distance to the best centroid found so far, rounded up by the slack.
HWY_INLINE void UpperBounds(const KMeansAssignParams& params, int64_t tile, const Best& best,
                            float* upper) {
  const F32 f;
  for (int32_t lane = 0; lane < kTilePoints; lane += kLanes) {
    const auto norm = hn::LoadU(f, params.norms + tile * kTilePoints + lane);
    const auto squared = hn::NegMulAdd(hn::Set(f, 2.0f), hn::Load(f, best.score + lane), norm);
    const auto safe = hn::Max(hn::Zero(f), hn::Add(squared, hn::Set(f, params.slack)));
    hn::Store(hn::Sqrt(safe), f, upper + lane);
  }
}

// Tests the groups of the tile's labels, then those that their bounds do not rule out.
int64_t AssignTile(const KMeansAssignParams& params, int64_t tile, Best* best) {
  const F32 f;
  bool tested[kMaxCentroids / kGroupCentroids] = {};
  const int32_t* labels = params.labels + tile * kTilePoints;
  int64_t num_tested = 0;
  for (int32_t lane = 0; lane < kTilePoints; ++lane) {
    const int32_t group = labels[lane] / kGroupCentroids;
    if (tested[group]) continue;
    tested[group] = true;
    TestGroup(params, tile, group, best);
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
    TestGroup(params, tile, group, best);
    UpperBounds(params, tile, *best, upper);
    ++num_tested;
  }
  return num_tested;
}

int64_t Assign(const KMeansAssignParams& params) {
  const F32 f;
  const I32 i;
  int64_t num_tested = 0;
  for (int64_t tile = 0; tile < params.num_tiles; ++tile) {
    Best best;
    for (int32_t lane = 0; lane < kTilePoints; lane += kLanes) {
      hn::Store(hn::Set(f, -std::numeric_limits<float>::infinity()), f, best.score + lane);
      hn::Store(hn::Zero(i), i, best.label + lane);
    }
    if (params.group_moved != nullptr) {
      num_tested += AssignTile(params, tile, &best);
    } else {
      for (int32_t group = 0; group < params.num_groups; ++group) {
        TestGroup(params, tile, group, &best);
      }
      num_tested += params.num_groups;
    }
    for (int32_t lane = 0; lane < kTilePoints; lane += kLanes) {
      const int64_t at = tile * kTilePoints + lane;
      const auto norm = hn::LoadU(f, params.norms + at);
      const auto squared = hn::NegMulAdd(hn::Set(f, 2.0f), hn::Load(f, best.score + lane), norm);
      hn::StoreU(hn::Max(hn::Zero(f), squared), f, params.distances + at);
      hn::StoreU(hn::Load(i, best.label + lane), i, params.labels + at);
    }
  }
  return num_tested;
}

}  // namespace HWY_NAMESPACE
}  // namespace semkv
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace semkv {

HWY_EXPORT(Assign);

int64_t KMeansAssignHost(const KMeansAssignParams& params) {
  return HWY_DYNAMIC_DISPATCH(Assign)(params);
}

}  // namespace semkv
#endif  // HWY_ONCE
