// The forward pass of a Llama decoder over tokens of one or more sequences. Keys and values go to
// semkv, attention comes from it; everything else is here.
//
// Thread safety: thread-compatible.

#ifndef SEMKV_INTEGRATION_REFERENCE_TRANSFORMER_H_
#define SEMKV_INTEGRATION_REFERENCE_TRANSFORMER_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "integration/reference/engine.h"
#include "integration/reference/model_config.h"
#include "integration/reference/rope.h"
#include "integration/reference/weights.h"
#include "semkv/semkv.h"

namespace semkv::reference {

// The tokens of one forward pass, appended to their sequences and planned.
struct TokenBatch {
  absl::Span<const int32_t> ids;
  absl::Span<const int32_t> positions;  // [ids.size()]
  absl::Span<const int32_t> slots;      // [ids.size()], from semkv_sequence_append
  semkv_plan* plan;                     // after semkv_plan_step for these tokens
  bool prefill;                         // attend densely and select nothing
};

class Transformer {
 public:
  // Reserves for passes of up to `max_tokens` tokens, of which up to `max_rows` may be decode rows.
  // Borrows everything for its life.
  Transformer(const ModelConfig& config, const ModelWeights& weights, const RopeTable& rope,
              semkv_context* context, int32_t max_tokens, int32_t max_rows);

  // Runs all layers; the hidden states stay inside until the next pass. Adds to times.select_ns and
  // times.attend_ns. The observer is called on decode passes only.
  absl::Status Forward(const TokenBatch& batch, const StepOptions& options, StepTimes& times);
  // Logits, [num_rows, vocab_size], of the pass's tokens from `first_row` on.
  void Logits(int32_t first_row, int32_t num_rows, float* logits);

 private:
  void ProjectQkv(const LayerWeights& layer, const TokenBatch& batch);
  absl::Status WriteKv(int32_t layer, const TokenBatch& batch);
  absl::Status Attend(int32_t layer, const TokenBatch& batch, const StepOptions& options,
                      StepTimes& times);
  absl::Status Observe(int32_t layer, const TokenBatch& batch, const StepOptions& options,
                       semkv_attend_args args);
  void Mlp(const LayerWeights& layer, int32_t num_tokens);
  void Normalize(const std::vector<float>& weight, int32_t first_row, int32_t num_rows);

  const ModelConfig& config_;
  const ModelWeights& weights_;
  const RopeTable& rope_;
  semkv_context* const context_;
  const int32_t q_width_;    // num_heads * head_dim
  const int32_t qkv_width_;  // (num_heads + 2 * num_kv_heads) * head_dim

  std::vector<float> hidden_;      // [max_tokens, hidden_size]: the residual stream
  std::vector<float> normalized_;  // [max_tokens, hidden_size]
  std::vector<float> qkv_;         // [max_tokens, qkv_width_]
  std::vector<float> attended_;    // [max_tokens, q_width_]
  std::vector<float> gate_up_;     // [max_tokens, 2 * intermediate_size]
  std::vector<float> lse_;         // [max_rows, num_heads]
  std::vector<float> dense_lse_;   // [max_rows, num_heads]
  std::vector<float> dense_out_;   // [max_rows, q_width_]: measured only for dense_lse_
};

}  // namespace semkv::reference

#endif  // SEMKV_INTEGRATION_REFERENCE_TRANSFORMER_H_
