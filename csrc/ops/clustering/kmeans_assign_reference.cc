#include "csrc/ops/clustering/kmeans_assign.h"

#include <limits>

namespace semkv {

void KMeansAssignReference(const KMeansAssignParams& params) {
  for (int64_t tile = 0; tile < params.num_tiles; ++tile) {
    const float* points = params.tiles + tile * params.head_dim * kTilePoints;
    for (int32_t lane = 0; lane < kTilePoints; ++lane) {
      float best = -std::numeric_limits<float>::infinity();
      int32_t label = 0;
      for (int32_t c = 0; c < params.num_groups * kGroupCentroids; ++c) {
        const float* centroid = params.centroids + int64_t{c} * params.head_dim;
        float score = -params.offsets[c];
        for (int32_t d = 0; d < params.head_dim; ++d) {
          score += points[d * kTilePoints + lane] * centroid[d];
        }
        if (score > best) {
          best = score;
          label = c;
        }
      }
      params.labels[tile * kTilePoints + lane] = label;
    }
  }
}

}  // namespace semkv
