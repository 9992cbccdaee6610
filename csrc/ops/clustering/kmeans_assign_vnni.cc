#include "csrc/ops/clustering/kmeans_assign_vnni.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "csrc/ops/vnni.h"

namespace semkv {
namespace {

constexpr int kLanes = 16;  // points of a register
constexpr int kBlock = 8;   // centroids at a time: 16 of the 32 registers hold their sums
static_assert(kTilePoints == 2 * kLanes && kGroupCentroids % kBlock == 0);

constexpr float kGreatestCode = 32767.0f;
constexpr float kGreatestNorm = 46000.0f;

// What 16 points have so far.
struct BestOfLanes {
  __m512 score, other;
  __m512i label;
};

SEMKV_VNNI_INLINE void Fold(__m512 score, int32_t label, BestOfLanes* best) {
  const __mmask16 is_above = _mm512_cmp_ps_mask(score, best->score, _CMP_GT_OQ);
  best->other = _mm512_max_ps(best->other, _mm512_min_ps(score, best->score));
  best->score = _mm512_max_ps(best->score, score);
  best->label = _mm512_mask_mov_epi32(best->label, is_above, _mm512_set1_epi32(label));
}

SEMKV_VNNI_INLINE void ScoreBlock(const int16_t* points, const __m512* point_scales,
                                  const int16_t* centroids, const float* centroid_scales,
                                  const float* offsets, int64_t num_pairs, int32_t first_label,
                                  BestOfLanes* best) {
  __m512i sums[kBlock][2];
#pragma GCC unroll 8
  for (int c = 0; c < kBlock; ++c) sums[c][0] = sums[c][1] = _mm512_setzero_si512();
  for (int64_t pair = 0; pair < num_pairs; ++pair) {
    const __m512i x0 = _mm512_loadu_si512(points + pair * 2 * kTilePoints);
    const __m512i x1 = _mm512_loadu_si512(points + pair * 2 * kTilePoints + 2 * kLanes);
#pragma GCC unroll 8
    for (int c = 0; c < kBlock; ++c) {
      int32_t codes;
      std::memcpy(&codes, centroids + (c * num_pairs + pair) * 2, sizeof(codes));
      const __m512i y = _mm512_set1_epi32(codes);
      sums[c][0] = _mm512_dpwssd_epi32(sums[c][0], x0, y);
      sums[c][1] = _mm512_dpwssd_epi32(sums[c][1], x1, y);
    }
  }
#pragma GCC unroll 8
  for (int c = 0; c < kBlock; ++c) {
    const __m512 scale = _mm512_set1_ps(centroid_scales[c]);
    const __m512 offset = _mm512_set1_ps(offsets[c]);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m512 score = _mm512_fmsub_ps(_mm512_cvtepi32_ps(sums[c][half]),
                                           _mm512_mul_ps(point_scales[half], scale), offset);
      Fold(score, first_label + c, &best[half]);
    }
  }
}

// 1 / scale of a vector of this largest channel and norm; 0 if it is zero.
float CodesPerUnit(float greatest, float norm) {
  return greatest > 0.0f ? std::min(kGreatestCode / greatest, kGreatestNorm / norm) : 0.0f;
}

// Codes of 16 points' (or of 16 pairs') two channels, the first of a pair in the lower half.
SEMKV_VNNI_INLINE __m512i PackPairs(__m512 first, __m512 second) {
  const __m512i low = _mm512_and_epi32(_mm512_cvtps_epi32(first), _mm512_set1_epi32(0xffff));
  return _mm512_or_epi32(low, _mm512_slli_epi32(_mm512_cvtps_epi32(second), 16));
}

SEMKV_VNNI void EncodeLanes(const float* tile, const float* norms, int32_t head_dim, int16_t* codes,
                            float* scales) {
  __m512 greatest = _mm512_setzero_ps();
  for (int64_t d = 0; d < head_dim; ++d) {
    greatest = _mm512_max_ps(greatest, _mm512_abs_ps(_mm512_loadu_ps(tile + d * kTilePoints)));
  }
  alignas(64) float of_lane[kLanes];
  _mm512_store_ps(of_lane, greatest);
  for (int lane = 0; lane < kLanes; ++lane) {
    of_lane[lane] = CodesPerUnit(of_lane[lane], std::sqrt(norms[lane]));
    scales[lane] = of_lane[lane] > 0.0f ? 1.0f / of_lane[lane] : 0.0f;
  }
  const __m512 codes_per_unit = _mm512_load_ps(of_lane);
  for (int64_t pair = 0; pair < KMeansCodePairs(head_dim); ++pair) {
    const float* const channels = tile + 2 * pair * kTilePoints;
    const bool has_second = 2 * pair + 1 < head_dim;
    const __m512 second =
        has_second ? _mm512_loadu_ps(channels + kTilePoints) : _mm512_setzero_ps();
    const __m512i packed = PackPairs(_mm512_mul_ps(_mm512_loadu_ps(channels), codes_per_unit),
                                     _mm512_mul_ps(second, codes_per_unit));
    _mm512_storeu_si512(codes + pair * 2 * kTilePoints, packed);
  }
}

}  // namespace

SEMKV_VNNI void ScoreGroupVnni(const int16_t* points, const float* point_scales,
                               const int16_t* centroids, const float* centroid_scales,
                               const float* offsets, int32_t head_dim, int32_t first_label,
                               KMeansBest* best) {
  const int64_t num_pairs = KMeansCodePairs(head_dim);
  const __m512 nothing = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  BestOfLanes found[2];
  for (BestOfLanes& half : found) half = {nothing, nothing, _mm512_setzero_si512()};
  const __m512 scales[2] = {_mm512_loadu_ps(point_scales), _mm512_loadu_ps(point_scales + kLanes)};
  for (int c = 0; c < kGroupCentroids; c += kBlock) {
    ScoreBlock(points, scales, centroids + c * num_pairs * 2, centroid_scales + c, offsets + c,
               num_pairs, first_label + c, found);
  }
  for (int half = 0; half < 2; ++half) {
    _mm512_store_ps(best->score + half * kLanes, found[half].score);
    _mm512_store_ps(best->other + half * kLanes, found[half].other);
    _mm512_store_si512(best->label + half * kLanes, found[half].label);
  }
}

void KMeansEncodeTile(const float* tile, const float* norms, int32_t head_dim, int16_t* codes,
                      float* scales) {
  for (int lane = 0; lane < kTilePoints; lane += kLanes) {
    EncodeLanes(tile + lane, norms + lane, head_dim, codes + 2 * lane, scales + lane);
  }
}

void KMeansEncodeCentroids(const float* centroids, int32_t num_groups, int32_t head_dim,
                           int16_t* codes, float* scales, float* group_norms, float* group_scales) {
  const int64_t row = 2 * KMeansCodePairs(head_dim);
  std::fill_n(group_norms, num_groups, 0.0f);
  std::fill_n(group_scales, num_groups, 0.0f);
  for (int64_t c = 0; c < int64_t{num_groups} * kGroupCentroids; ++c) {
    const float* const x = centroids + c * head_dim;
    float greatest = 0.0f, squared = 0.0f;
    for (int64_t d = 0; d < head_dim; ++d) {
      greatest = std::max(greatest, std::abs(x[d]));
      squared += x[d] * x[d];
    }
    const float norm = std::sqrt(squared), codes_per_unit = CodesPerUnit(greatest, norm);
    scales[c] = codes_per_unit > 0.0f ? 1.0f / codes_per_unit : 0.0f;
    for (int64_t d = 0; d < head_dim; ++d) {
      codes[c * row + d] = static_cast<int16_t>(std::lrintf(x[d] * codes_per_unit));
    }
    if (row > head_dim) codes[c * row + head_dim] = 0;
    const int64_t group = c / kGroupCentroids;
    group_norms[group] = std::max(group_norms[group], norm);
    group_scales[group] = std::max(group_scales[group], scales[c]);
  }
}

}  // namespace semkv

#else  // not x86-64

namespace semkv {

void ScoreGroupVnni(const int16_t*, const float*, const int16_t*, const float*, const float*,
                    int32_t, int32_t, KMeansBest*) {}
void KMeansEncodeTile(const float*, const float*, int32_t, int16_t*, float*) {}
void KMeansEncodeCentroids(const float*, int32_t, int32_t, int16_t*, float*, float*, float*) {}

}  // namespace semkv

#endif
