// The arithmetic of one list in float64 and plain loops: shared by the references of the retrieval
// operations.

#ifndef SEMKV_OPS_RETRIEVAL_LIST_REFERENCE_H_
#define SEMKV_OPS_RETRIEVAL_LIST_REFERENCE_H_

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "csrc/ops/numeric/float_convert.h"
#include "csrc/ops/retrieval/score_lists.h"

namespace semkv {

// Query head `head` of `row`; all NaN if a channel is not finite.
inline std::vector<double> LoadQueryReference(const ScoreListsParams& p, int32_t row,
                                              int32_t head) {
  std::vector<double> query(p.head_dim);
  bool finite = true;
  for (int32_t c = 0; c < p.head_dim; ++c) {
    query[c] = LoadAsFloat(p.q, p.q_dtype, row * p.q_row + head * p.q_head + c);
    finite = finite && std::isfinite(query[c]);
  }
  if (!finite) std::fill(query.begin(), query.end(), std::numeric_limits<double>::quiet_NaN());
  return query;
}

// What kInt4 lists are multiplied with.
inline std::vector<double> RoundedQueryReference(const std::vector<double>& query) {
  float largest = 0.0f;
  for (double x : query) largest = std::max(largest, std::abs(static_cast<float>(x)));
  const float step = Int4QueryStep(largest);
  const float inverse = step > kLeastQueryStep ? 1.0f / step : 0.0f;
  std::vector<double> rounded;
  for (double x : query) {
    const double multiple = std::nearbyint(static_cast<float>(x) * inverse);
    rounded.push_back(std::isnan(x) ? x : double{step} * multiple);
  }
  return rounded;
}

// dot(query, centroid of list i), or Quest's bound.
inline double ListDotReference(const ListsView& view, int32_t head_dim, int32_t i,
                               const std::vector<double>& query) {
  const int64_t first = int64_t{i} * head_dim;
  double sum = 0;
  std::vector<double> rounded;
  if (view.form == CentroidForm::kInt4) rounded = RoundedQueryReference(query);
  for (int32_t c = 0; c < head_dim; ++c) {
    switch (view.form) {
      case CentroidForm::kInt8: {
        const double x = static_cast<const int8_t*>(view.centroids)[first + c];
        sum += query[c] * (view.center[c] + view.scales[i] * x);
        break;
      }
      case CentroidForm::kInt4: {
        const uint8_t* const row = static_cast<const uint8_t*>(view.centroids) +
                                   int64_t{i} * CentroidRowBytes(view.form, head_dim);
        sum +=
            query[c] * view.center[c] + rounded[c] * view.scales[i] * Int4Code(row[Int4Byte(c)], c);
        break;
      }
      case CentroidForm::kBFloat16: {
        const double x = FloatFromBFloat16(static_cast<const uint16_t*>(view.centroids)[first + c]);
        sum += query[c] * (view.center[c] + x);
        break;
      }
      case CentroidForm::kFloat32:
        sum += query[c] * static_cast<const float*>(view.centroids)[first + c];
        break;
      case CentroidForm::kBounds: {
        const uint16_t* const least = static_cast<const uint16_t*>(view.centroids) + 2 * first + c;
        const double at_least = query[c] * FloatFromBFloat16(least[0]);
        const double at_greatest = query[c] * FloatFromBFloat16(least[head_dim]);
        sum += std::isnan(at_least) || at_least > at_greatest ? at_least : at_greatest;
        break;
      }
    }
  }
  return sum;
}

}  // namespace semkv

#endif  // SEMKV_OPS_RETRIEVAL_LIST_REFERENCE_H_
