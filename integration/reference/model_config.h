// The parts of a Llama config.json that the reference engine needs.

#ifndef SEMKV_INTEGRATION_REFERENCE_MODEL_CONFIG_H_
#define SEMKV_INTEGRATION_REFERENCE_MODEL_CONFIG_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace semkv::reference {

struct ModelConfig {
  std::string name;  // the directory's last part
  int32_t vocab_size = 0;
  int32_t hidden_size = 0;
  int32_t intermediate_size = 0;
  int32_t num_layers = 0;
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  int32_t max_position_embeddings = 0;
  float rms_norm_eps = 0.0f;
  double rope_theta = 0.0;
  bool tie_word_embeddings = false;
  int32_t bos_token_id = -1;           // -1: none
  std::vector<int32_t> eos_token_ids;  // may be empty

  // rope_scaling "llama3"; factor 0: none.
  double rope_factor = 0.0, rope_low_freq_factor = 0.0, rope_high_freq_factor = 0.0;
  int32_t rope_original_positions = 0;

  // Errors: NOT_FOUND; DATA_LOSS; UNIMPLEMENTED names field and value (another architecture, other
  // activations, biases, sliding windows, other rope scalings, quantisation).
  static absl::StatusOr<ModelConfig> Load(const std::string& directory);
};

}  // namespace semkv::reference

#endif  // SEMKV_INTEGRATION_REFERENCE_MODEL_CONFIG_H_
