// What both trainers of kmeans.h share: argument checks and unit vectors.

#ifndef SEMKV_FAISS_INDEX_KMEANS_INPUT_H_
#define SEMKV_FAISS_INDEX_KMEANS_INPUT_H_

#include <cstdint>

#include "absl/status/status.h"
#include "faiss_index/kmeans.h"

namespace semkv {

absl::Status CheckKMeans(int32_t num_points, int32_t head_dim, const KMeansOptions& options);

// out = x / |x|; a vector shorter than 1e-6 keeps its direction and stays short, so that nothing is
// divided by zero. Returns |out|^2.
float WriteUnit(const float* x, int64_t head_dim, float* out);

}  // namespace semkv

#endif  // SEMKV_FAISS_INDEX_KMEANS_INPUT_H_
