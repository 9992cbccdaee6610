// One assignment step of k-means: the nearest centroid of every point, exactly, without looking at
// centroids that cannot be the nearest.
//
//   label[x] = argmax over c of x . c - offset[c]     (lowest c of equals)
//
// With offset[c] = |c|^2 / 2 that is the nearest centroid in L2; with unit points, unit centroids
// and offset 1/2 it is the most similar one in cosine.
//
// Points lie in *tiles* of 32, channel-major, so that a vector register holds one channel of
// several points and the running argmax needs no horizontal step; no points x centroids matrix
// exists. Centroids lie in *groups* of 16 neighbours (the caller orders them). Per point and group,
// `lower` bounds the distance to every centroid of the group from below. A tile first tests the
// groups that hold the labels of its points, then every group whose bound, less what the group's
// centroids moved since, is below the distance found so far for at least one point. A test is exact
// and renews the bound. So the cost falls as centroids settle, most where the points of a tile are
// alike (the caller sorts points by label), and the result is that of testing everything.
//
// Source: the bounds are those of Ding et al., "Yinyang K-Means", ICML 2015, sections 3-4, at the
// granularity of a tile; unlike there a point's own group is always tested, which makes the bound
// of a group independent of the labels.
//
// No alignment is asked for; tiles at a multiple of 64 bytes are read faster.
//
// Thread safety: reentrant; one thread.

#ifndef SEMKV_OPS_CLUSTERING_KMEANS_ASSIGN_H_
#define SEMKV_OPS_CLUSTERING_KMEANS_ASSIGN_H_

#include <cstdint>

namespace semkv {

constexpr int32_t kTilePoints = 32;
constexpr int32_t kGroupCentroids = 16;
constexpr int32_t kMaxCentroids = 8192;

// A second form of points and centroids, of which KMeansAssignHost makes scores in half the time
// where the processor can (KMeansUsesCodes). A score is then off by some 1e-5 of |x| |c|: bounds
// allow for the most that it can be, and points for which it may decide between two centroids are
// done again in float32.
struct KMeansCodes {
  const int16_t* points = nullptr;      // [num_tiles, KMeansCodePairs(head_dim), 32, 2]; null: none
  const float* point_scales = nullptr;  // [num_tiles, 32]
  const int16_t* centroids = nullptr;   // [num_groups * 16, KMeansCodePairs(head_dim), 2]
  const float* centroid_scales = nullptr;  // [num_groups * 16]
  const float* group_norms = nullptr;      // [num_groups]: the greatest of its centroids
  const float* group_scales = nullptr;     // [num_groups]: the same
};

constexpr int64_t KMeansCodePairs(int32_t head_dim) { return (int64_t{head_dim} + 1) / 2; }
// Whether this processor serves them; the two below require it.
bool KMeansUsesCodes();
// tile: [head_dim, 32]; norms: [32], squared, finite; codes: [pairs, 32, 2]; scales: [32].
void KMeansEncodeTile(const float* tile, const float* norms, int32_t head_dim, int16_t* codes,
                      float* scales);
// centroids: [num_groups * 16, head_dim]; codes: [num_groups * 16, pairs, 2]; scales:
// [num_groups * 16]; group_norms, group_scales: [num_groups].
void KMeansEncodeCentroids(const float* centroids, int32_t num_groups, int32_t head_dim,
                           int16_t* codes, float* scales, float* group_norms, float* group_scales);

struct KMeansAssignParams {
  int32_t num_tiles = 0;
  int32_t num_groups = 0;  // at most kMaxCentroids / kGroupCentroids
  int32_t head_dim = 0;
  const float* tiles = nullptr;  // [num_tiles, head_dim, 32]; fill the last with copies of a point
  const float* norms = nullptr;  // [num_tiles, 32]: |x|^2
  const float* centroids = nullptr;  // [num_groups * 16, head_dim]
  const float* offsets = nullptr;    // [num_groups * 16]; infinity for padding (its centroid is 0)
  const float* group_moved = nullptr;  // [num_groups]: no centroid of the group moved further since
                                       // the last call; null: `labels` and `lower` say nothing yet
  float slack = 0.0f;                  // rounding error allowed for in a squared distance
  KMeansCodes codes;
  int32_t* labels = nullptr;  // in, out: [num_tiles, 32]
  float* lower = nullptr;     // in, out: [num_tiles, num_groups, 32]
};

// Returns how many (tile, group) pairs were tested, of num_tiles * num_groups.
int64_t KMeansAssignHost(const KMeansAssignParams& params);
// Tests everything; leaves `lower` alone and reads no codes.
void KMeansAssignReference(const KMeansAssignParams& params);

}  // namespace semkv

#endif  // SEMKV_OPS_CLUSTERING_KMEANS_ASSIGN_H_
