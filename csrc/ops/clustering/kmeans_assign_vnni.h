// Scores of k-means by AVX-512 VNNI (csrc/ops/vnni.h): points and centroids as int16 codes, each
// vector with a scale of its own. Sums of products are exact; what is lost is in the codes.
//
// The scale makes the largest channel at most 32,767 and the norm at most 46,000, so that by
// Cauchy-Schwarz no sum of products, nor any part of one, leaves int32 (46,000^2 < 2^31, with room
// for rounding).
//
// Thread safety: reentrant; one thread.

#ifndef SEMKV_OPS_CLUSTERING_KMEANS_ASSIGN_VNNI_H_
#define SEMKV_OPS_CLUSTERING_KMEANS_ASSIGN_VNNI_H_

#include <cstdint>

#include "csrc/ops/clustering/kmeans_assign.h"

namespace semkv {

// The best score of every point of a tile, and whose it is (the lowest of equals).
struct KMeansBest {
  alignas(64) float score[kTilePoints];
  alignas(64) int32_t label[kTilePoints];
  alignas(64) float error[kTilePoints];  // by how much the score may be off
  alignas(64) float other[kTilePoints];  // no other centroid has a score above this
};

// score = scale of point * scale of centroid * (codes . codes) - offset, for the points of a tile
// and the centroids of a group, numbered from `first_label`. What is not above -infinity leaves
// label 0. Neither `best->error` is written, nor what scores may be off counted into `other`.
//
// points: [KMeansCodePairs(head_dim), 32, 2]; point_scales: [32]; centroids:
// [16, KMeansCodePairs(head_dim), 2]; centroid_scales, offsets: [16].
//
// REQUIRES: HasVnni().
void ScoreGroupVnni(const int16_t* points, const float* point_scales, const int16_t* centroids,
                    const float* centroid_scales, const float* offsets, int32_t head_dim,
                    int32_t first_label, KMeansBest* best);

}  // namespace semkv

#endif  // SEMKV_OPS_CLUSTERING_KMEANS_ASSIGN_VNNI_H_
