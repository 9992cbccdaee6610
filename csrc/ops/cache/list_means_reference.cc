#include "csrc/ops/cache/list_means.h"

#include <cmath>
#include <vector>

namespace semkv {
namespace {

bool IsFinite(const float* key, int32_t head_dim) {
  for (int32_t d = 0; d < head_dim; ++d) {
    if (!std::isfinite(key[d])) return false;
  }
  return true;
}

std::vector<const float*> FiniteMembers(const ListMeansParams& params, int32_t i) {
  std::vector<const float*> keys;
  for (int32_t m = params.offsets[i]; m < params.offsets[i + 1]; ++m) {
    const int64_t token = params.members != nullptr ? params.members[m] : m;
    const float* key = params.keys + token * params.head_dim;
    if (IsFinite(key, params.head_dim)) keys.push_back(key);
  }
  return keys;
}

}  // namespace

void ListMeansReference(const ListMeansParams& params) {
  for (int32_t i = 0; i < params.nlist; ++i) {
    const std::vector<const float*> keys = FiniteMembers(params, i);
    double variance = 0.0;
    for (int32_t d = 0; d < params.head_dim; ++d) {
      double sum = 0.0;
      for (const float* key : keys) sum += key[d];
      const double mean = keys.empty() ? 0.0 : sum / static_cast<double>(keys.size());
      for (const float* key : keys) variance += (key[d] - mean) * (key[d] - mean);
      params.means[int64_t{i} * params.head_dim + d] = static_cast<float>(mean);
    }
    if (!keys.empty()) variance /= static_cast<double>(keys.size());
    if (params.variances != nullptr) params.variances[i] = static_cast<float>(variance);
  }
}

}  // namespace semkv
