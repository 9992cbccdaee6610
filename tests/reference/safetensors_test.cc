#include "integration/reference/safetensors.h"

#include <cmath>
#include <limits>

#include "integration/reference/weights.h"
#include "tests/reference/model_directory.h"

namespace semkv::reference {
namespace {

absl::StatusOr<std::unique_ptr<Safetensors>> OpenBytes(const std::string& file) {
  const TemporaryDirectory directory;
  directory.Write("model.safetensors", file);
  return Safetensors::Open(directory.path());  // the mapping outlives the directory
}

absl::Status OpenHeader(const std::string& header, size_t data_bytes) {
  return OpenBytes(SafetensorsFile(header, std::string(data_bytes, '\0'))).status();
}

TEST(SafetensorsTest, ConvertsEveryDtypeToFloat32) {
  const uint16_t half[] = {0x3c00, 0xc000, 0x0001, 0x8000, 0x7c00, 0x7e00, 0x7bff, 0x0400};
  const uint16_t brain[] = {0x3f80, 0xc000, 0x0001, 0x8000};
  const float single[] = {1.5f, -2.25f};
  std::string data(reinterpret_cast<const char*>(half), sizeof(half));
  data.append(reinterpret_cast<const char*>(brain), sizeof(brain));
  data.append(reinterpret_cast<const char*>(single), sizeof(single));
  const auto tensors = OpenBytes(SafetensorsFile(
      R"({"h":{"dtype":"F16","shape":[2,4],"data_offsets":[0,16]},
          "b":{"dtype":"BF16","shape":[4],"data_offsets":[16,24]},
          "s":{"dtype":"F32","shape":[2],"data_offsets":[24,32]}})",
      data));
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  std::vector<float> h(8), b(4), s(2);
  ASSERT_TRUE((*tensors)->Read("h", {2, 4}, absl::MakeSpan(h)).ok());
  ASSERT_TRUE((*tensors)->Read("b", {4}, absl::MakeSpan(b)).ok());
  ASSERT_TRUE((*tensors)->Read("s", {2}, absl::MakeSpan(s)).ok());
  EXPECT_EQ(h[0], 1.0f);
  EXPECT_EQ(h[1], -2.0f);
  EXPECT_EQ(h[2], 0x1p-24f);
  EXPECT_TRUE(h[3] == 0.0f && std::signbit(h[3]));
  EXPECT_EQ(h[4], std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(h[5]));
  EXPECT_EQ(h[6], 65504.0f);
  EXPECT_EQ(h[7], 0x1p-14f);
  EXPECT_EQ(b[0], 1.0f);
  EXPECT_EQ(b[1], -2.0f);
  EXPECT_EQ(b[2], 0x1p-133f);
  EXPECT_EQ(s[1], -2.25f);
}

TEST(SafetensorsTest, NamesTensorAndBothNumbersOfADamagedHeader) {
  const auto code = absl::StatusCode::kDataLoss;
  ExpectError(OpenHeader(R"({"w":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8), code,
              {"\"w\"", "F32[3]", "12", "8"});
  ExpectError(OpenHeader(R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 4), code,
              {"\"w\"", "[0, 8)", "holds 4"});
  ExpectError(OpenHeader(R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 12), code,
              {"describes 8", "holds 12"});
  ExpectError(OpenHeader(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
                             "b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
                         12),
              code, {"\"b\"", "4", "8"});
  ExpectError(OpenHeader(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12), code,
              {"\"a\"", "4", "0"});
  ExpectError(OpenHeader(R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8), code,
              {"\"w\"", "[8, 0)"});
  ExpectError(OpenHeader(R"({"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,8]}})", 8), code,
              {"\"w\"", "[-1]"});
  ExpectError(OpenHeader(R"({"w":{"dtype":"F32","shape":[4294967296,4294967296],
                             "data_offsets":[0,0]}})",
                         0),
              code, {"\"w\"", "elements"});
  ExpectError(OpenHeader(R"({"w":{"dtype":"F32","shape":2,"data_offsets":[0,8]}})", 8), code,
              {"\"w\"", "shape"});
  ExpectError(OpenHeader(R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0]}})", 8), code,
              {"\"w\"", "data_offsets"});
  ExpectError(OpenHeader(R"({"w":7})", 0), code, {"\"w\""});
  ExpectError(OpenHeader("[1]", 0), code, {"JSON object"});
  ExpectError(OpenHeader(R"({"w":{"dtype":"Q4","shape":[2],"data_offsets":[0,8]}})", 8),
              absl::StatusCode::kUnimplemented, {"\"w\"", "Q4"});
}

TEST(SafetensorsTest, SaysWhatTheFileHoldsIfItsHeaderDoesNotFit) {
  ExpectError(OpenBytes("abc").status(), absl::StatusCode::kDataLoss, {"cut off", "3", "8"});
  ExpectError(OpenBytes("").status(), absl::StatusCode::kDataLoss, {"cut off", "0"});
  const std::string huge("\xff\xff\xff\xff\xff\xff\xff\xff{}", 10);
  ExpectError(OpenBytes(huge).status(), absl::StatusCode::kDataLoss, {"18446744073709551615", "2"});
  const TemporaryDirectory empty;
  ExpectError(Safetensors::Open(empty.path()).status(), absl::StatusCode::kNotFound,
              {"model.safetensors"});
}

TEST(SafetensorsTest, NamesMissingTensorsOtherShapesAndOtherDtypes) {
  const auto tensors = OpenBytes(SafetensorsFile(
      R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
          "i":{"dtype":"I64","shape":[1],"data_offsets":[8,16]}})",
      std::string(16, '\0')));
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  std::vector<float> values(3);
  ExpectError((*tensors)->Read("x", {3}, absl::MakeSpan(values)), absl::StatusCode::kNotFound,
              {"\"x\""});
  ExpectError((*tensors)->Read("w", {3}, absl::MakeSpan(values)), absl::StatusCode::kDataLoss,
              {"model.safetensors", "\"w\"", "[2]", "[3]"});
  ExpectError((*tensors)->Read("i", {1}, absl::MakeSpan(values).first(1)),
              absl::StatusCode::kUnimplemented, {"\"i\"", "I64"});
}

TEST(SafetensorsTest, ReadsShardsAndNamesMissingOnes) {
  const TemporaryDirectory directory;
  directory.CopyFrom(FixturePath("random24"));
  const absl::StatusOr<ModelConfig> config = ModelConfig::Load(directory.path());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_TRUE(ModelWeights::Load(directory.path(), *config).ok());
  std::filesystem::remove(directory.path() + "/model-00002-of-00003.safetensors");
  ExpectError(ModelWeights::Load(directory.path(), *config).status(), absl::StatusCode::kNotFound,
              {"model-00002-of-00003.safetensors"});
}

TEST(SafetensorsTest, KeepsShardsInTheirDirectory) {
  const TemporaryDirectory directory;
  for (const Json& shard : {Json("../x"), Json("/etc/x"), Json(""), Json(3), Json("..")}) {
    directory.Write("model.safetensors.index.json", Json{{"weight_map", {{"w", shard}}}}.dump());
    ExpectError(Safetensors::Open(directory.path()).status(), absl::StatusCode::kDataLoss,
                {"\"w\"", shard.dump()});
  }
  directory.Write("model.safetensors.index.json", "{}");
  ExpectError(Safetensors::Open(directory.path()).status(), absl::StatusCode::kDataLoss,
              {"weight_map"});
}

TEST(SafetensorsTest, RefusesATensorInTwoShards) {
  const TemporaryDirectory directory;
  const std::string shard = SafetensorsFile(
      R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", std::string(4, '\0'));
  directory.Write("a.safetensors", shard);
  directory.Write("b.safetensors", shard);
  directory.Write("model.safetensors.index.json",
                  R"({"weight_map": {"w": "a.safetensors", "x": "b.safetensors"}})");
  ExpectError(Safetensors::Open(directory.path()).status(), absl::StatusCode::kDataLoss,
              {"a.safetensors", "b.safetensors", "\"w\""});
}

// Whatever is cut off, loading fails with a status that names the file.
TEST(SafetensorsTest, RefusesEveryTruncation) {
  const TemporaryDirectory directory;
  WriteSmallModel(directory);
  const std::string whole = SmallWeights();
  const absl::StatusOr<ModelConfig> config = ModelConfig::Load(directory.path());
  ASSERT_TRUE(config.ok()) << config.status();
  ASSERT_TRUE(ModelWeights::Load(directory.path(), *config).ok());
  std::mt19937 random(11);
  for (size_t i = 0; i < 150; ++i) {
    const size_t size = i < 50 ? i : random() % whole.size();
    directory.Write("model.safetensors", whole.substr(0, size));
    SCOPED_TRACE(size);
    ExpectError(ModelWeights::Load(directory.path(), *config).status(), absl::StatusCode::kDataLoss,
                {"model.safetensors"});
  }
}

// Whatever is damaged, loading ends with a status: weights cannot tell a flipped bit, headers
// often.
TEST(SafetensorsTest, SurvivesFlippedBits) {
  const TemporaryDirectory directory;
  WriteSmallModel(directory);
  const std::string whole = SmallWeights();
  uint64_t header_bytes = 0;
  whole.copy(reinterpret_cast<char*>(&header_bytes), sizeof(header_bytes));
  const absl::StatusOr<ModelConfig> config = ModelConfig::Load(directory.path());
  ASSERT_TRUE(config.ok()) << config.status();
  std::mt19937 random(13);
  int refused = 0;
  for (int i = 0; i < 300; ++i) {
    std::string damaged = whole;
    for (int flips = 1 + random() % 3; flips > 0; --flips) {
      damaged[random() % (header_bytes + 8)] ^= static_cast<char>(1 << random() % 8);
    }
    directory.Write("model.safetensors", damaged);
    const absl::Status status = ModelWeights::Load(directory.path(), *config).status();
    if (status.ok()) continue;
    ++refused;
    EXPECT_NE(status.message().find("model.safetensors"), std::string::npos) << status;
  }
  EXPECT_GT(refused, 250);
}

}  // namespace
}  // namespace semkv::reference
