// Model directories for the tests: those of the repository, and temporary ones to damage.

#ifndef SEMKV_TESTS_REFERENCE_MODEL_DIRECTORY_H_
#define SEMKV_TESTS_REFERENCE_MODEL_DIRECTORY_H_

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "integration/reference/json_file.h"

namespace semkv::reference {

// SEMKV_SOURCE_DIR comes from CMake.
inline std::string TinyModel() { return SEMKV_SOURCE_DIR "/models/semkv-tiny"; }
inline std::string FixturePath(const std::string& name) {
  return SEMKV_SOURCE_DIR "/tests/reference/fixtures/" + name;
}

inline std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  return std::string((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
}

// A directory that lives as long as the object.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string name = (std::filesystem::temp_directory_path() / "semkv_reference_XXXXXX").string();
    EXPECT_NE(mkdtemp(name.data()), nullptr) << name;
    path_ = name;
  }
  ~TemporaryDirectory() { std::filesystem::remove_all(path_); }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  const std::string& path() const { return path_; }
  void Write(const std::string& name, const std::string& text) const {
    std::ofstream(path_ + "/" + name, std::ios::binary) << text;
  }
  void CopyFrom(const std::string& directory) const {
    std::filesystem::copy(directory, path_, std::filesystem::copy_options::recursive);
  }

 private:
  std::string path_;
};

// A config.json that the engine takes; tests change one field of it.
inline Json SmallConfig() {
  return Json::parse(R"({
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 258,
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true,
    "attention_bias": false, "mlp_bias": false, "bos_token_id": 256, "eos_token_id": [257]})");
}

// A tokenizer.json of the 256 bytes and two special tokens: id 256 "<|bos|>", 257 "<|eos|>".
inline Json ByteTokenizer() {
  Json vocabulary = Json::object();
  int32_t next = 0x100;
  for (int32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
    const int32_t code = printable ? byte : next++;
    std::string token;
    if (code < 0x80) {
      token = static_cast<char>(code);
    } else {
      token = {static_cast<char>(0xc0 | code >> 6), static_cast<char>(0x80 | (code & 0x3f))};
    }
    vocabulary[token] = byte;
  }
  Json json = Json::parse(R"({"normalizer": null, "truncation": null, "padding": null,
    "added_tokens": [{"id": 256, "content": "<|bos|>", "normalized": false, "special": true},
                     {"id": 257, "content": "<|eos|>", "normalized": false, "special": true}],
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
    "decoder": {"type": "ByteLevel"}, "model": {"type": "BPE", "merges": []}})");
  json["model"]["vocab"] = vocabulary;
  return json;
}

// A safetensors file: header length, header, data.
inline std::string SafetensorsFile(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  std::string file(reinterpret_cast<const char*>(&length), sizeof(length));
  return file + header + data;
}

// The F32 weights of SmallConfig, random, by name.
inline std::map<std::string, std::vector<int64_t>> SmallShapes() {
  std::map<std::string, std::vector<int64_t>> shapes = {{"model.embed_tokens.weight", {258, 32}},
                                                        {"model.norm.weight", {32}}};
  for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
    shapes[layer + "input_layernorm.weight"] = {32};
    shapes[layer + "post_attention_layernorm.weight"] = {32};
    shapes[layer + "self_attn.q_proj.weight"] = {256, 32};
    shapes[layer + "self_attn.k_proj.weight"] = {128, 32};
    shapes[layer + "self_attn.v_proj.weight"] = {128, 32};
    shapes[layer + "self_attn.o_proj.weight"] = {32, 256};
    shapes[layer + "mlp.gate_proj.weight"] = {48, 32};
    shapes[layer + "mlp.up_proj.weight"] = {48, 32};
    shapes[layer + "mlp.down_proj.weight"] = {32, 48};
  }
  return shapes;
}

inline std::string SmallWeights() {
  std::mt19937 random(7);
  Json header = {{"__metadata__", {{"format", "pt"}}}};
  std::string data;
  for (const auto& [name, shape] : SmallShapes()) {
    int64_t size = 1;
    for (const int64_t extent : shape) size *= extent;
    header[name] = {{"dtype", "F32"},
                    {"shape", shape},
                    {"data_offsets", {data.size(), data.size() + size * sizeof(float)}}};
    for (int64_t i = 0; i < size; ++i) {
      const float value = static_cast<float>(random() % 2000) / 1000.0f - 1.0f;
      data.append(reinterpret_cast<const char*>(&value), sizeof(value));
    }
  }
  return SafetensorsFile(header.dump(), data);
}

inline void WriteSmallModel(const TemporaryDirectory& directory) {
  directory.Write("config.json", SmallConfig().dump());
  directory.Write("tokenizer.json", ByteTokenizer().dump());
  directory.Write("model.safetensors", SmallWeights());
}

// A failure with this code whose message holds every one of `parts`.
inline void ExpectError(const absl::Status& status, absl::StatusCode code,
                        const std::vector<std::string>& parts) {
  EXPECT_EQ(status.code(), code) << status;
  for (const std::string& part : parts) {
    EXPECT_NE(status.message().find(part), std::string::npos)
        << "\"" << part << "\" is not in: " << status;
  }
}

}  // namespace semkv::reference

#endif  // SEMKV_TESTS_REFERENCE_MODEL_DIRECTORY_H_
