// What `semkv run` measures, as plain data, and the arithmetic behind it. Reports read these
// structs and nothing else, so they can be tested without a model.
//
// Thread safety: pure functions and plain values.

#ifndef SEMKV_INTEGRATION_REFERENCE_COMMAND_MEASUREMENT_H_
#define SEMKV_INTEGRATION_REFERENCE_COMMAND_MEASUREMENT_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "semkv/semkv.h"

namespace semkv::command {

// Sum over x of p(x) * (ln p(x) - ln q(x)), p = softmax(reference), q = softmax(logits), in double.
// Both spans [vocab_size], finite. Never negative.
double KlDivergence(absl::Span<const float> reference, absl::Span<const float> logits);

// Index of the largest value, the first of equals. `logits` is not empty.
int32_t ArgMax(absl::Span<const float> logits);

// 0 for no values.
double Mean(absl::Span<const double> values);

// Linear interpolation between the two nearest ranks, as numpy.quantile does. `q` in [0, 1]; 0 for
// no values.
double Quantile(std::vector<double> values, double q);

// Share of the attention mass that a selection captured: exp(lse - dense_lse), at most 1.
double CapturedMass(float lse, float dense_lse);

// Bytes of keys and values of one token over all layers.
struct KvGeometry {
  int32_t num_layers = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  int32_t kv_dtype = SEMKV_DTYPE_F32;

  int64_t TokenBytes() const;
  // `index_bytes` as a share of what `num_tokens` >= 1 tokens take at 16 bits, whatever kv_dtype
  // is.
  double IndexShare(int64_t index_bytes, int64_t num_tokens) const;
};

// What a pass of decode steps read, dense (row, layer) pairs included with their whole context.
struct ReadSummary {
  double attended_tokens_mean = 0.0;  // per (layer, KV head) and step
  double kv_bytes_per_token = 0.0;
  double index_bytes_per_token = 0.0;
  double dense_kv_bytes_per_token = 0.0;     // what dense attention would have read
  std::map<std::string, int64_t> fallbacks;  // (row, layer) pairs by reason, those above 0
};

// From the counters before and after the pass. `context_tokens` is the sum over the pass's
// `num_tokens` decoded tokens of the tokens each could see. Pairs attended densely because the
// policy is dense, or because the measurement itself asked for it, are no fallbacks.
ReadSummary SummarizeReads(const semkv_stats& before, const semkv_stats& after,
                           const KvGeometry& geometry, int64_t num_tokens, int64_t context_tokens);

struct Question {
  std::string text;      // as asked, without the template
  std::string expected;  // may be empty: not known
};

struct BudgetPoint {
  int32_t budget = 0;
  double captured_mass_mean = 0.0;
};

// One decode step of the teacher-forced pass: what the y axis of a selection map shows.
struct MapStep {
  int32_t question = 0;
  bool is_answer = false;  // the step's token belongs to the answer
  std::string token;       // bytes of the token that was fed
};

// The document cut into equal runs of tokens: what the x axis of a selection map shows.
struct MapBin {
  int32_t first_position = 0;
  int32_t num_tokens = 0;
  std::string text;  // beginning of the run
};

struct PolicyMeasurement {
  std::string name;
  std::vector<std::string> answers;     // [num_questions]
  std::vector<bool> agrees_with_dense;  // [num_questions]: the same token ids
  double mean_kl_to_dense = 0.0;
  double captured_mass_mean = 1.0;
  double captured_mass_p5 = 1.0;
  ReadSummary reads;
  double ms_per_token = 0.0;
  double select_ms_per_token = 0.0;
  double index_build_ms = 0.0;
  int64_t index_bytes = 0;
  std::vector<BudgetPoint> budget_sweep;  // ascending; may be empty
  // [num_layers][num_steps * num_bins]: share of the bin's tokens that was read, mean over KV
  // heads; empty unless maps were asked for.
  std::vector<std::vector<float>> maps;
};

struct RunMeasurement {
  std::string model;
  std::string version;
  std::string document;  // name of the prompt file
  KvGeometry geometry;
  int32_t context_tokens = 0;
  int32_t budget = 0;
  int32_t threads = 0;
  double prefill_ms = 0.0;
  std::vector<Question> questions;
  std::vector<PolicyMeasurement> policies;
  std::vector<MapStep> steps;
  std::vector<MapBin> bins;
  // [num_questions]: bins where the dense answer's text stands in the document.
  std::vector<std::vector<int32_t>> answer_bins;
};

// "f32", "f16" or "bf16".
const char* KvDtypeName(int32_t kv_dtype);

}  // namespace semkv::command

#endif  // SEMKV_INTEGRATION_REFERENCE_COMMAND_MEASUREMENT_H_
