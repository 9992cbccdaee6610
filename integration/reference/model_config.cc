#include "integration/reference/model_config.h"

#include <filesystem>
#include <limits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "integration/reference/json_file.h"
#include "integration/reference/status_macros.h"

namespace semkv::reference {

namespace {

// Far above any model, and small enough that products of two sizes fit int64.
constexpr int64_t kMaxSize = int64_t{1} << 30;

absl::Status Unsupported(const std::string& field, const Json& value,
                         const std::string& supported) {
  return absl::UnimplementedError(absl::StrCat("\"", field, "\" is ", JsonExcerpt(value),
                                               "; the reference engine supports ", supported));
}

// Refuses everything that would change the forward pass and is not computed.
absl::Status CheckSupported(const Json& json) {
  const Json& architectures = JsonMember(json, "architectures");
  if (!architectures.is_null() && architectures != Json::array({"LlamaForCausalLM"})) {
    return Unsupported("architectures", architectures, "[\"LlamaForCausalLM\"]");
  }
  const Json& model_type = JsonMember(json, "model_type");
  if (model_type != "llama") return Unsupported("model_type", model_type, "\"llama\"");
  const Json& activation = JsonMember(json, "hidden_act");
  if (!activation.is_null() && activation != "silu" && activation != "swish") {
    return Unsupported("hidden_act", activation, "\"silu\"");
  }
  for (const char* bias : {"attention_bias", "mlp_bias"}) {
    SEMKV_ASSIGN_OR_RETURN(const bool has_bias, BoolMember(json, bias, false));
    if (has_bias) return Unsupported(bias, JsonMember(json, bias), "false");
  }
  for (const char* feature : {"sliding_window", "quantization_config", "compression_config"}) {
    const Json& value = JsonMember(json, feature);
    if (!value.is_null()) return Unsupported(feature, value, "none");
  }
  SEMKV_ASSIGN_OR_RETURN(const double partial, NumberMember(json, "partial_rotary_factor", 1.0));
  if (partial != 1.0) {
    return Unsupported("partial_rotary_factor", JsonMember(json, "partial_rotary_factor"), "1");
  }
  return absl::OkStatus();
}

absl::Status ReadSizes(const Json& json, ModelConfig& config) {
  struct Size {
    const char* name;
    int64_t fallback;  // 0: required
    int32_t* target;
  };
  const Size sizes[] = {
      {"vocab_size", 0, &config.vocab_size},
      {"hidden_size", 0, &config.hidden_size},
      {"intermediate_size", 0, &config.intermediate_size},
      {"num_hidden_layers", 0, &config.num_layers},
      {"num_attention_heads", 0, &config.num_heads},
      {"max_position_embeddings", 2048, &config.max_position_embeddings},
  };
  for (const Size& size : sizes) {
    SEMKV_ASSIGN_OR_RETURN(const int64_t value,
                           IntMember(json, size.name, size.fallback, 1, kMaxSize));
    if (value == 0) return absl::DataLossError(absl::StrCat("\"", size.name, "\" is missing"));
    *size.target = static_cast<int32_t>(value);
  }
  SEMKV_ASSIGN_OR_RETURN(config.num_kv_heads,
                         IntMember(json, "num_key_value_heads", config.num_heads, 1, kMaxSize));
  if (config.num_heads % config.num_kv_heads != 0) {
    return absl::DataLossError(absl::StrCat("\"num_attention_heads\" is ", config.num_heads,
                                            ", no multiple of \"num_key_value_heads\" ",
                                            config.num_kv_heads));
  }
  SEMKV_ASSIGN_OR_RETURN(const int64_t head_dim, IntMember(json, "head_dim", 0, 1, kMaxSize));
  if (head_dim == 0 && config.hidden_size % config.num_heads != 0) {
    return absl::DataLossError(absl::StrCat("\"hidden_size\" is ", config.hidden_size,
                                            ", no multiple of \"num_attention_heads\" ",
                                            config.num_heads, ", and there is no \"head_dim\""));
  }
  config.head_dim =
      head_dim != 0 ? static_cast<int32_t>(head_dim) : config.hidden_size / config.num_heads;
  if (config.head_dim % 2 != 0) {
    return absl::DataLossError(
        absl::StrCat("\"head_dim\" is ", config.head_dim, "; rotation needs an even number"));
  }
  if (int64_t{config.num_heads} * config.head_dim > kMaxSize) {
    return absl::DataLossError(absl::StrCat("\"num_attention_heads\" is ", config.num_heads, " of ",
                                            config.head_dim, " channels; at most ", kMaxSize,
                                            " channels in all"));
  }
  return absl::OkStatus();
}

// Newer files hold everything in "rope_parameters", older ones in "rope_theta" and "rope_scaling".
absl::Status ReadRope(const Json& json, ModelConfig& config) {
  const Json& parameters = JsonMember(json, "rope_parameters");
  const std::string field = parameters.is_null() ? "rope_scaling" : "rope_parameters";
  const Json& rope = parameters.is_null() ? JsonMember(json, "rope_scaling") : parameters;
  if (!rope.is_null() && !rope.is_object()) return Unsupported(field, rope, "an object");

  SEMKV_ASSIGN_OR_RETURN(const double theta, NumberMember(json, "rope_theta", 10000.0));
  SEMKV_ASSIGN_OR_RETURN(config.rope_theta, NumberMember(rope, "rope_theta", theta));
  if (config.rope_theta <= 0.0) {
    return absl::DataLossError(absl::StrCat("\"rope_theta\" is ", config.rope_theta, ", not > 0"));
  }
  SEMKV_ASSIGN_OR_RETURN(const double partial, NumberMember(rope, "partial_rotary_factor", 1.0));
  if (partial != 1.0) return Unsupported(field + ".partial_rotary_factor", rope, "1");

  SEMKV_ASSIGN_OR_RETURN(const std::string old_type, StringMember(rope, "type", "default"));
  SEMKV_ASSIGN_OR_RETURN(const std::string type, StringMember(rope, "rope_type", old_type));
  if (type == "default") return absl::OkStatus();
  if (type != "llama3") {
    return Unsupported(field + ".rope_type", Json(type), "\"default\" and \"llama3\"");
  }
  SEMKV_ASSIGN_OR_RETURN(config.rope_factor, NumberMember(rope, "factor", 0.0));
  SEMKV_ASSIGN_OR_RETURN(config.rope_low_freq_factor, NumberMember(rope, "low_freq_factor", 0.0));
  SEMKV_ASSIGN_OR_RETURN(config.rope_high_freq_factor, NumberMember(rope, "high_freq_factor", 0.0));
  SEMKV_ASSIGN_OR_RETURN(config.rope_original_positions,
                         IntMember(rope, "original_max_position_embeddings", 0, 1, kMaxSize));
  if (config.rope_factor < 1.0 || config.rope_low_freq_factor <= 0.0 ||
      config.rope_high_freq_factor <= config.rope_low_freq_factor ||
      config.rope_original_positions == 0) {
    return absl::DataLossError(
        absl::StrCat("\"", field,
                     "\" llama3 needs factor >= 1, 0 < low_freq_factor < high_freq_factor and "
                     "original_max_position_embeddings >= 1, but has ",
                     JsonExcerpt(rope)));
  }
  return absl::OkStatus();
}

absl::Status ReadSpecialIds(const Json& json, ModelConfig& config) {
  const int64_t last = config.vocab_size - 1;
  SEMKV_ASSIGN_OR_RETURN(config.bos_token_id, IntMember(json, "bos_token_id", -1, 0, last));
  const Json& eos = JsonMember(json, "eos_token_id");
  const Json list = eos.is_array() ? eos : eos.is_null() ? Json::array() : Json::array({eos});
  for (const Json& id : list) {
    const Json member = {{"eos_token_id", id}};
    SEMKV_ASSIGN_OR_RETURN(const int64_t value, IntMember(member, "eos_token_id", -1, 0, last));
    if (value >= 0) config.eos_token_ids.push_back(static_cast<int32_t>(value));
  }
  return absl::OkStatus();
}

absl::StatusOr<ModelConfig> ReadConfig(const Json& json) {
  ModelConfig config;
  SEMKV_RETURN_IF_ERROR(CheckSupported(json));
  SEMKV_RETURN_IF_ERROR(ReadSizes(json, config));
  SEMKV_RETURN_IF_ERROR(ReadRope(json, config));
  SEMKV_RETURN_IF_ERROR(ReadSpecialIds(json, config));
  SEMKV_ASSIGN_OR_RETURN(const double eps, NumberMember(json, "rms_norm_eps", 1e-6));
  if (eps < 0.0)
    return absl::DataLossError(absl::StrCat("\"rms_norm_eps\" is ", eps, ", not >= 0"));
  config.rms_norm_eps = static_cast<float>(eps);
  SEMKV_ASSIGN_OR_RETURN(config.tie_word_embeddings,
                         BoolMember(json, "tie_word_embeddings", false));
  return config;
}

}  // namespace

absl::StatusOr<ModelConfig> ModelConfig::Load(const std::string& directory) {
  const std::filesystem::path path = std::filesystem::path(directory) / "config.json";
  SEMKV_ASSIGN_OR_RETURN(const Json json, ReadJsonFile(path.string()));
  absl::StatusOr<ModelConfig> config = ReadConfig(json);
  if (!config.ok()) {
    return absl::Status(config.status().code(),
                        absl::StrCat(path.string(), ": ", config.status().message()));
  }
  // "models/x/" has an empty last part.
  const std::filesystem::path full = std::filesystem::path(directory).lexically_normal();
  config->name =
      full.has_filename() ? full.filename().string() : full.parent_path().filename().string();
  return config;
}

}  // namespace semkv::reference
