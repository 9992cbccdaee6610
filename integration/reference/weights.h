// The weights of a Llama checkpoint in memory, as float32.
//
// They are converted when they are loaded, whatever the file holds, because the host's GEMM takes
// float32 only: 4 bytes per parameter (1.2 billion parameters take 4.9 GB), and the mapped file may
// be dropped afterwards. Matrices that are applied to the same input lie on top of each other.
//
// Thread safety: immutable.

#ifndef SEMKV_INTEGRATION_REFERENCE_WEIGHTS_H_
#define SEMKV_INTEGRATION_REFERENCE_WEIGHTS_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "integration/reference/model_config.h"

namespace semkv::reference {

// Matrices are [outputs, inputs], row-major, as in the file.
struct LayerWeights {
  std::vector<float> attention_norm;  // [hidden_size]
  std::vector<float> qkv;       // [(num_heads + 2 * num_kv_heads) * head_dim, hidden_size]: q, k, v
  std::vector<float> output;    // [hidden_size, num_heads * head_dim]
  std::vector<float> mlp_norm;  // [hidden_size]
  std::vector<float> gate_up;   // [2 * intermediate_size, hidden_size]: gate, up
  std::vector<float> down;      // [hidden_size, intermediate_size]
};

struct ModelWeights {
  std::vector<float> embedding;  // [vocab_size, hidden_size]
  std::vector<LayerWeights> layers;
  std::vector<float> final_norm;   // [hidden_size]
  std::vector<float> untied_head;  // [vocab_size, hidden_size]; empty if the embedding serves

  const std::vector<float>& head() const { return untied_head.empty() ? embedding : untied_head; }

  // Errors: NOT_FOUND names a missing file or tensor; DATA_LOSS a damaged file or a tensor of
  // another shape, with both; UNIMPLEMENTED a dtype; RESOURCE_EXHAUSTED if memory runs out.
  static absl::StatusOr<ModelWeights> Load(const std::string& directory, const ModelConfig& config);
};

}  // namespace semkv::reference

#endif  // SEMKV_INTEGRATION_REFERENCE_WEIGHTS_H_
