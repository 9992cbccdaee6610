#include "integration/reference/weights.h"

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <new>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "integration/reference/safetensors.h"
#include "integration/reference/status_macros.h"

namespace semkv::reference {

namespace {

absl::Status ReadVector(const Safetensors& tensors, const std::string& name, int64_t size,
                        std::vector<float>& values) {
  SEMKV_RETURN_IF_ERROR(tensors.Check(name, {size}));
  values.resize(size);
  return tensors.Read(name, {size}, absl::MakeSpan(values));
}

struct Part {
  std::string name;
  int64_t rows;
};

// Reads matrices of `columns` columns, the later ones below the earlier ones.
absl::Status ReadStacked(const Safetensors& tensors, std::initializer_list<Part> parts,
                         int64_t columns, std::vector<float>& values) {
  int64_t rows = 0;
  for (const Part& part : parts) {  // memory is taken only for shapes that the file confirms
    SEMKV_RETURN_IF_ERROR(tensors.Check(part.name, {part.rows, columns}));
    rows += part.rows;
  }
  values.resize(rows * columns);
  absl::Span<float> rest = absl::MakeSpan(values);
  for (const Part& part : parts) {
    const int64_t size = part.rows * columns;
    SEMKV_RETURN_IF_ERROR(tensors.Read(part.name, {part.rows, columns}, rest.first(size)));
    rest.remove_prefix(size);
  }
  return absl::OkStatus();
}

absl::Status ReadLayer(const Safetensors& tensors, const ModelConfig& config, int32_t layer,
                       LayerWeights& weights) {
  const std::string base = absl::StrCat("model.layers.", layer, ".");
  const std::string attention = base + "self_attn.";
  const std::string mlp = base + "mlp.";
  const int64_t hidden = config.hidden_size;
  const int64_t inner = config.intermediate_size;
  const int64_t q_rows = int64_t{config.num_heads} * config.head_dim;
  const int64_t kv_rows = int64_t{config.num_kv_heads} * config.head_dim;

  SEMKV_RETURN_IF_ERROR(
      ReadVector(tensors, base + "input_layernorm.weight", hidden, weights.attention_norm));
  SEMKV_RETURN_IF_ERROR(
      ReadVector(tensors, base + "post_attention_layernorm.weight", hidden, weights.mlp_norm));
  SEMKV_RETURN_IF_ERROR(ReadStacked(tensors,
                                    {{attention + "q_proj.weight", q_rows},
                                     {attention + "k_proj.weight", kv_rows},
                                     {attention + "v_proj.weight", kv_rows}},
                                    hidden, weights.qkv));
  SEMKV_RETURN_IF_ERROR(
      ReadStacked(tensors, {{attention + "o_proj.weight", hidden}}, q_rows, weights.output));
  SEMKV_RETURN_IF_ERROR(
      ReadStacked(tensors, {{mlp + "gate_proj.weight", inner}, {mlp + "up_proj.weight", inner}},
                  hidden, weights.gate_up));
  return ReadStacked(tensors, {{mlp + "down_proj.weight", hidden}}, inner, weights.down);
}

absl::StatusOr<ModelWeights> ReadModel(const Safetensors& tensors, const ModelConfig& config) {
  ModelWeights weights;
  SEMKV_RETURN_IF_ERROR(ReadStacked(tensors, {{"model.embed_tokens.weight", config.vocab_size}},
                                    config.hidden_size, weights.embedding));
  SEMKV_RETURN_IF_ERROR(
      ReadVector(tensors, "model.norm.weight", config.hidden_size, weights.final_norm));
  if (!config.tie_word_embeddings) {
    SEMKV_RETURN_IF_ERROR(ReadStacked(tensors, {{"lm_head.weight", config.vocab_size}},
                                      config.hidden_size, weights.untied_head));
  }
  for (int32_t layer = 0; layer < config.num_layers; ++layer) {
    SEMKV_RETURN_IF_ERROR(ReadLayer(tensors, config, layer, weights.layers.emplace_back()));
  }
  return weights;
}

}  // namespace

absl::StatusOr<ModelWeights> ModelWeights::Load(const std::string& directory,
                                                const ModelConfig& config) {
  SEMKV_ASSIGN_OR_RETURN(const std::unique_ptr<Safetensors> tensors, Safetensors::Open(directory));
  try {
    return ReadModel(*tensors, config);
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(
        absl::StrCat(directory, ": memory ran out while the weights of ", config.num_layers,
                     " layers were converted to float32, 4 bytes per parameter"));
  }
}

}  // namespace semkv::reference
