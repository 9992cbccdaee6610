// The engine against transformers in float32: fixtures of tools/make_fixtures.py.

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "integration/reference/engine.h"
#include "integration/reference/generate.h"
#include "integration/reference/semkv_status.h"
#include "tests/reference/model_directory.h"

namespace semkv::reference {
namespace {

// Measured: 4e-5. The order of sums differs, and angles are in double here.
constexpr float kTolerance = 2e-4f;

EngineOptions TestOptions() {
  EngineOptions options;
  options.num_threads = 1;
  options.max_sequence_tokens = 1024;
  options.prefill_chunk = 128;
  return options;
}

// A sequence that ends with its scope, read densely.
class ScopedSequence {
 public:
  explicit ScopedSequence(const Engine& engine) : context_(engine.context()) {
    EXPECT_EQ(semkv_sequence_create(context_, 0, &id_), SEMKV_OK) << semkv_last_error();
    semkv_policy policy;
    EXPECT_EQ(semkv_policy_init(&policy, SEMKV_POLICY_DENSE), SEMKV_OK);
    EXPECT_EQ(semkv_sequence_set_policy(context_, id_, &policy), SEMKV_OK) << semkv_last_error();
  }
  ~ScopedSequence() { semkv_sequence_release(context_, id_); }
  ScopedSequence(const ScopedSequence&) = delete;
  ScopedSequence& operator=(const ScopedSequence&) = delete;
  semkv_sequence id() const { return id_; }

 private:
  semkv_context* context_;
  semkv_sequence id_ = 0;
};

float LargestDifference(const Json& expected, const std::vector<float>& logits) {
  float largest = 0.0f;
  for (const char* group : {"top", "some"}) {
    const std::vector<int32_t> indices = expected[group]["indices"];
    const std::vector<float> values = expected[group]["values"];
    for (size_t i = 0; i < indices.size(); ++i) {
      largest = std::max(largest, std::abs(logits[indices[i]] - values[i]));
    }
  }
  return largest;
}

// Prefill all but `decoded` tokens, decode those; compare the last logits.
void ExpectLogits(Engine& engine, const Json& item, size_t decoded) {
  const std::vector<int32_t> ids = item["ids"];
  if (ids.size() <= decoded) return;
  const ScopedSequence sequence(engine);
  std::vector<float> logits(engine.config().vocab_size);
  const absl::Span<const int32_t> prompt = absl::MakeConstSpan(ids).first(ids.size() - decoded);
  absl::Status status = engine.Prefill(sequence.id(), prompt, absl::MakeSpan(logits));
  ASSERT_TRUE(status.ok()) << status;
  for (size_t i = prompt.size(); i < ids.size(); ++i) {
    status = engine.Step({sequence.id()}, {ids[i]}, absl::MakeSpan(logits));
    ASSERT_TRUE(status.ok()) << status;
  }
  const float difference = LargestDifference(item["logits"], logits);
  std::printf("%s, %zu of them decoded: largest difference %.2g\n",
              item["name"].get<std::string>().c_str(), decoded, difference);
  EXPECT_LE(difference, kTolerance);
  double sum = 0.0;
  for (const float logit : logits) sum += logit;
  EXPECT_NEAR(sum, item["logits"]["sum"].get<double>(), kTolerance * 100);
}

void ExpectContinuation(Engine& engine, const Json& item) {
  const Json& greedy = item["greedy"];
  if (greedy["margin"].get<float>() < 2 * kTolerance) return;
  const std::vector<int32_t> ids = item["ids"];
  const std::vector<int32_t> expected = greedy["ids"];
  const ScopedSequence sequence(engine);
  if (ids.size() > 1) {
    const absl::Status status =
        engine.Prefill(sequence.id(), absl::MakeConstSpan(ids).first(ids.size() - 1), {});
    ASSERT_TRUE(status.ok()) << status;
  }
  GenerateOptions options;
  options.stop_at_eos = false;
  options.max_new_tokens = static_cast<int32_t>(expected.size());
  const auto result = Generate(engine, {{sequence.id(), {ids.back()}}}, options);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->generations[0].ids, expected);
}

void ExpectCases(Engine& engine, const Json& cases) {
  for (const Json& item : cases) {
    SCOPED_TRACE(item["name"].dump());
    ExpectLogits(engine, item, 0);
    ExpectLogits(engine, item, 1);
    ExpectLogits(engine, item, 16);
    ExpectContinuation(engine, item);
  }
}

TEST(LogitsTest, EqualThoseOfTransformersForTheSmallModel) {
  const auto engine = Engine::Load(TinyModel(), TestOptions());
  ASSERT_TRUE(engine.ok()) << engine.status();
  ExpectCases(**engine, (*ReadJsonFile(FixturePath("tiny_logits.json")))["cases"]);
}

TEST(LogitsTest, EqualThoseOfTransformersFor24LayersWithLlama3Rotation) {
  const TemporaryDirectory directory;
  directory.CopyFrom(FixturePath("random24"));
  directory.Write("tokenizer.json", ByteTokenizer().dump());
  const auto engine = Engine::Load(directory.path(), TestOptions());
  ASSERT_TRUE(engine.ok()) << engine.status();
  ExpectCases(**engine, (*ReadJsonFile(FixturePath("random24/logits.json")))["cases"]);
}

}  // namespace
}  // namespace semkv::reference
