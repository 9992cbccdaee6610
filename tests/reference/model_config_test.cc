#include "integration/reference/model_config.h"

#include "tests/reference/model_directory.h"

namespace semkv::reference {
namespace {

absl::StatusOr<ModelConfig> LoadConfig(const Json& json) {
  const TemporaryDirectory directory;
  directory.Write("config.json", json.dump());
  return ModelConfig::Load(directory.path());
}

Json WithField(const std::string& name, const Json& value) {
  Json json = SmallConfig();
  json[name] = value;
  return json;
}

TEST(ModelConfigTest, ReadsTheSmallModel) {
  const absl::StatusOr<ModelConfig> config = ModelConfig::Load(TinyModel() + "/");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->name, "semkv-tiny");
  EXPECT_EQ(config->vocab_size, 2048);
  EXPECT_EQ(config->num_layers, 4);
  EXPECT_EQ(config->num_kv_heads, 2);
  EXPECT_EQ(config->rope_theta, 500000.0);
  EXPECT_EQ(config->rope_factor, 0.0);
  EXPECT_TRUE(config->tie_word_embeddings);
  EXPECT_EQ(config->bos_token_id, 0);
  EXPECT_EQ(config->eos_token_ids, std::vector<int32_t>{1});
}

TEST(ModelConfigTest, ReadsLlama3ScalingUnderBothNames) {
  const Json rope = {{"rope_type", "llama3"},  {"factor", 8.0},
                     {"low_freq_factor", 1.0}, {"high_freq_factor", 4.0},
                     {"rope_theta", 3000.0},   {"original_max_position_embeddings", 1024}};
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    const absl::StatusOr<ModelConfig> config = LoadConfig(WithField(name, rope));
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->rope_factor, 8.0);
    EXPECT_EQ(config->rope_low_freq_factor, 1.0);
    EXPECT_EQ(config->rope_high_freq_factor, 4.0);
    EXPECT_EQ(config->rope_original_positions, 1024);
    EXPECT_EQ(config->rope_theta, 3000.0);
  }
}

TEST(ModelConfigTest, FillsInTheDefaultsOfTransformers) {
  Json json = SmallConfig();
  for (const char* name : {"num_key_value_heads", "rms_norm_eps", "rope_theta", "eos_token_id",
                           "max_position_embeddings", "tie_word_embeddings", "head_dim"}) {
    json.erase(name);
  }
  const absl::StatusOr<ModelConfig> config = LoadConfig(json);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->num_kv_heads, 4);
  EXPECT_EQ(config->head_dim, 8);
  EXPECT_EQ(config->max_position_embeddings, 2048);
  EXPECT_FLOAT_EQ(config->rms_norm_eps, 1e-6f);
  EXPECT_EQ(config->rope_theta, 10000.0);
  EXPECT_FALSE(config->tie_word_embeddings);
  EXPECT_TRUE(config->eos_token_ids.empty());
}

TEST(ModelConfigTest, NamesEachUnsupportedFieldAndItsValue) {
  const std::pair<std::string, Json> unsupported[] = {
      {"architectures", {"MistralForCausalLM"}},
      {"model_type", "qwen2"},
      {"hidden_act", "gelu"},
      {"attention_bias", true},
      {"mlp_bias", true},
      {"sliding_window", 4096},
      {"quantization_config", {{"bits", 4}}},
      {"partial_rotary_factor", 0.5},
      {"rope_scaling", {{"type", "linear"}, {"factor", 2.0}}},
      {"rope_parameters", {{"rope_type", "yarn"}, {"factor", 2.0}}},
      {"rope_parameters", {{"rope_type", "default"}, {"partial_rotary_factor", 0.5}}},
  };
  for (const auto& [name, value] : unsupported) {
    SCOPED_TRACE(name);
    ExpectError(LoadConfig(WithField(name, value)).status(), absl::StatusCode::kUnimplemented,
                {name, "config.json", "supports"});
  }
}

TEST(ModelConfigTest, NamesEachDamagedFieldAndItsValue) {
  const std::pair<std::string, Json> damaged[] = {
      {"vocab_size", 0},
      {"vocab_size", "many"},
      {"hidden_size", -1},
      {"hidden_size", 1.5},
      {"num_hidden_layers", 1e300},
      {"num_attention_heads", Json()},
      {"num_key_value_heads", 3},
      {"head_dim", 63},
      {"rope_theta", 0.0},
      {"bos_token_id", 258},
      {"eos_token_id", {0, -1}},
      {"rms_norm_eps", -1.0},
      {"tie_word_embeddings", 1},
      {"intermediate_size", uint64_t{1} << 63},
      {"rope_scaling", {{"rope_type", "llama3"}, {"factor", 8.0}}},
  };
  for (const auto& [name, value] : damaged) {
    SCOPED_TRACE(name);
    ExpectError(LoadConfig(WithField(name, value)).status(), absl::StatusCode::kDataLoss,
                {name, "config.json"});
  }
}

TEST(ModelConfigTest, TellsMissingFilesFromDamagedOnes) {
  const TemporaryDirectory directory;
  ExpectError(ModelConfig::Load(directory.path()).status(), absl::StatusCode::kNotFound,
              {"config.json"});
  for (const char* text : {"", "{", "[]", "{\"model_type\": \"\xff\"}"}) {
    directory.Write("config.json", text);
    ExpectError(ModelConfig::Load(directory.path()).status(), absl::StatusCode::kDataLoss,
                {"config.json"});
  }
}

}  // namespace
}  // namespace semkv::reference
