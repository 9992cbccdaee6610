// Rotary position embedding: the sines and cosines of every position, computed once.
//
// Thread safety: immutable.
// Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, in the
// half-split pairing of Hugging Face's Llama (channel i with i + head_dim / 2); frequency scaling
// of Llama 3.1 as in its model card's reference code.

#ifndef SEMKV_INTEGRATION_REFERENCE_ROPE_H_
#define SEMKV_INTEGRATION_REFERENCE_ROPE_H_

#include <cstdint>
#include <vector>

#include "integration/reference/model_config.h"

namespace semkv::reference {

class RopeTable {
 public:
  // Angles are computed in double: in float32 the angle of position 100,000 is off by 0.004. Takes
  // 4 * head_dim bytes per position.
  RopeTable(const ModelConfig& config, int32_t num_positions);

  // Rotates `num_heads` consecutive heads, [num_heads, head_dim], in place.
  // REQUIRES: 0 <= position < num_positions.
  void Rotate(int32_t position, int32_t num_heads, float* x) const;

 private:
  int32_t half_;               // head_dim / 2
  std::vector<float> cosine_;  // [num_positions, half_]
  std::vector<float> sine_;
};

}  // namespace semkv::reference

#endif  // SEMKV_INTEGRATION_REFERENCE_ROPE_H_
