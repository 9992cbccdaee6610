#include "integration/reference/command/measurement.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <iterator>

namespace semkv::command {
namespace {

double LogSumExp(absl::Span<const float> logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (float logit : logits) sum += std::exp(logit - top);
  return top + std::log(sum);
}

}  // namespace

double KlDivergence(absl::Span<const float> reference, absl::Span<const float> logits) {
  assert(reference.size() == logits.size() && !logits.empty());
  const double reference_lse = LogSumExp(reference);
  const double lse = LogSumExp(logits);
  double divergence = 0.0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double log_p = reference[i] - reference_lse;
    divergence += std::exp(log_p) * (log_p - (logits[i] - lse));
  }
  // Rounding leaves about -1e-17 for equal distributions.
  return std::max(divergence, 0.0);
}

int32_t ArgMax(absl::Span<const float> logits) {
  assert(!logits.empty());
  return static_cast<int32_t>(
      std::distance(logits.begin(), std::max_element(logits.begin(), logits.end())));
}

double Mean(absl::Span<const double> values) {
  if (values.empty()) return 0.0;
  double sum = 0.0;
  for (double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

double Quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0.0;
  std::sort(values.begin(), values.end());
  const double rank = q * static_cast<double>(values.size() - 1);
  const size_t below = static_cast<size_t>(rank);
  const size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (rank - static_cast<double>(below)) * (values[above] - values[below]);
}

double CapturedMass(float lse, float dense_lse) {
  return std::min(1.0, std::exp(static_cast<double>(lse) - static_cast<double>(dense_lse)));
}

int64_t KvGeometry::TokenBytes() const {
  const int64_t element = kv_dtype == SEMKV_DTYPE_F32 ? 4 : 2;
  return 2 * element * num_layers * num_kv_heads * head_dim;
}

double KvGeometry::IndexShare(int64_t index_bytes, int64_t num_tokens) const {
  constexpr int64_t kBytes16 = 2;
  const int64_t elements = 2 * num_tokens * num_layers * num_kv_heads * head_dim;
  return static_cast<double>(index_bytes) / static_cast<double>(kBytes16 * elements);
}

ReadSummary SummarizeReads(const semkv_stats& before, const semkv_stats& after,
                           const KvGeometry& geometry, int64_t num_tokens, int64_t context_tokens) {
  ReadSummary summary;
  if (num_tokens == 0) return summary;
  int64_t dense_pairs = 0;
  int64_t pairs = 0;
  for (int32_t reason = 0; reason < SEMKV_NUM_ROW_REASONS; ++reason) {
    const int64_t count =
        static_cast<int64_t>(after.layer_rows[reason] - before.layer_rows[reason]);
    if (reason == SEMKV_ROW_REQUESTED) continue;
    pairs += count;
    if (reason == SEMKV_ROW_SPARSE) continue;
    dense_pairs += count;
    if (reason == SEMKV_ROW_DENSE_POLICY || count == 0) continue;
    summary.fallbacks[semkv_row_reason_name(reason)] = count;
  }
  const double tokens = static_cast<double>(num_tokens);
  const double context = static_cast<double>(context_tokens) / tokens;
  const double dense_share =
      pairs == 0 ? 0.0 : static_cast<double>(dense_pairs) / static_cast<double>(pairs);
  const double attended = static_cast<double>(after.attended_tokens - before.attended_tokens);
  const double selections = static_cast<double>(after.selections - before.selections);
  const double sparse_attended = selections == 0.0 ? 0.0 : attended / selections;
  summary.attended_tokens_mean = dense_share * context + (1.0 - dense_share) * sparse_attended;
  summary.dense_kv_bytes_per_token = context * static_cast<double>(geometry.TokenBytes());
  summary.kv_bytes_per_token =
      dense_share * summary.dense_kv_bytes_per_token +
      static_cast<double>(after.kv_bytes_read - before.kv_bytes_read) / tokens;
  summary.index_bytes_per_token =
      static_cast<double>(after.index_bytes_read - before.index_bytes_read) / tokens;
  return summary;
}

const char* KvDtypeName(int32_t kv_dtype) {
  switch (kv_dtype) {
    case SEMKV_DTYPE_F16:
      return "f16";
    case SEMKV_DTYPE_BF16:
      return "bf16";
    default:
      return "f32";
  }
}

}  // namespace semkv::command
