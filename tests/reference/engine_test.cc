// Engine and Generate: batches, chunks, limits, stop conditions, allocations.

#include "integration/reference/engine.h"

#include <cmath>

#include "integration/reference/generate.h"
#include "tests/reference/model_directory.h"
#include "tests/testing/count_allocations.h"

namespace semkv::reference {
namespace {

class EngineTest : public ::testing::Test {
 protected:
  EngineTest() { WriteSmallModel(directory_); }

  static EngineOptions SmallOptions() {
    EngineOptions options;
    options.num_threads = 1;
    options.max_sequence_tokens = 128;
    options.pool_tokens = 1024;
    options.prefill_chunk = 32;
    options.max_batch = 4;
    options.max_budget = 256;
    return options;
  }
  std::unique_ptr<Engine> Load(const EngineOptions& options = SmallOptions()) {
    absl::StatusOr<std::unique_ptr<Engine>> engine = Engine::Load(directory_.path(), options);
    EXPECT_TRUE(engine.ok()) << engine.status();
    return engine.ok() ? *std::move(engine) : nullptr;
  }
  static semkv_sequence NewSequence(const Engine& engine) {
    semkv_sequence sequence = 0;
    EXPECT_EQ(semkv_sequence_create(engine.context(), 0, &sequence), SEMKV_OK);
    semkv_policy policy;
    EXPECT_EQ(semkv_policy_init(&policy, SEMKV_POLICY_DENSE), SEMKV_OK);
    EXPECT_EQ(semkv_sequence_set_policy(engine.context(), sequence, &policy), SEMKV_OK);
    return sequence;
  }
  static std::vector<int32_t> RandomIds(size_t n, uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<int32_t> ids(n);
    for (int32_t& id : ids) id = static_cast<int32_t>(random() % 256);
    return ids;
  }
  static std::vector<float> PrefillLogits(Engine& engine, const std::vector<int32_t>& ids) {
    std::vector<float> logits(engine.config().vocab_size);
    const semkv_sequence sequence = NewSequence(engine);
    const absl::Status status = engine.Prefill(sequence, ids, absl::MakeSpan(logits));
    EXPECT_TRUE(status.ok()) << status;
    semkv_sequence_release(engine.context(), sequence);
    return logits;
  }
  static void ExpectNear(absl::Span<const float> a, absl::Span<const float> b) {
    ASSERT_EQ(a.size(), b.size());
    float largest = 0.0f;
    for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
    EXPECT_LE(largest, 1e-4f);
  }

  TemporaryDirectory directory_;
};

TEST_F(EngineTest, PrefillsEquallyInChunksOfEverySize) {
  const std::vector<int32_t> ids = RandomIds(97, 1);
  const std::vector<float> whole = PrefillLogits(*Load(), ids);
  for (const int32_t chunk : {1, 7, 16, 96, 97, 500}) {
    SCOPED_TRACE(chunk);
    EngineOptions options = SmallOptions();
    options.prefill_chunk = chunk;
    ExpectNear(whole, PrefillLogits(*Load(options), ids));
  }
}

TEST_F(EngineTest, DecodesABatchLikeItsRowsAlone) {
  const std::unique_ptr<Engine> engine = Load();
  const size_t vocab = engine->config().vocab_size;
  std::vector<semkv_sequence> batch, alone;
  for (uint32_t r = 0; r < 4; ++r) {
    const std::vector<int32_t> ids = RandomIds(5 + 17 * r, r);
    for (std::vector<semkv_sequence>* list : {&batch, &alone}) {
      list->push_back(NewSequence(*engine));
      ASSERT_TRUE(engine->Prefill(list->back(), ids, {}).ok());
    }
  }
  std::vector<float> together(4 * vocab), single(vocab);
  for (uint32_t step = 0; step < 5; ++step) {
    const std::vector<int32_t> ids = RandomIds(4, 100 + step);
    ASSERT_TRUE(engine->Step(batch, ids, absl::MakeSpan(together)).ok());
    for (size_t r = 0; r < 4; ++r) {
      ASSERT_TRUE(engine->Step({alone[r]}, {ids[r]}, absl::MakeSpan(single)).ok());
      ExpectNear(absl::MakeConstSpan(together).subspan(r * vocab, vocab), single);
    }
  }
}

TEST_F(EngineTest, DecodesLikePrefill) {
  const std::unique_ptr<Engine> engine = Load();
  const std::vector<int32_t> ids = RandomIds(40, 2);
  const semkv_sequence sequence = NewSequence(*engine);
  std::vector<float> logits(engine->config().vocab_size);
  for (const int32_t id : ids) {
    ASSERT_TRUE(engine->Step({sequence}, {id}, absl::MakeSpan(logits)).ok());
  }
  ExpectNear(PrefillLogits(*engine, ids), logits);
}

TEST_F(EngineTest, ContinuesAPrefillWhereTheSequenceEnds) {
  const std::unique_ptr<Engine> engine = Load();
  const std::vector<int32_t> ids = RandomIds(60, 3);
  const semkv_sequence sequence = NewSequence(*engine);
  std::vector<float> logits(engine->config().vocab_size);
  std::vector<int64_t> progress;
  const auto note = [&](int64_t done, int64_t total) {
    progress.push_back(done);
    EXPECT_EQ(total, 50);
  };
  ASSERT_TRUE(engine->Prefill(sequence, absl::MakeConstSpan(ids).first(10), {}).ok());
  ASSERT_TRUE(
      engine->Prefill(sequence, absl::MakeConstSpan(ids).subspan(10), absl::MakeSpan(logits), note)
          .ok());
  EXPECT_EQ(progress, (std::vector<int64_t>{32, 50}));
  ExpectNear(PrefillLogits(*engine, ids), logits);
}

TEST_F(EngineTest, AllocatesNothingInASteadyDenseStep) {
  const std::unique_ptr<Engine> engine = Load();
  const std::vector<semkv_sequence> sequences = {NewSequence(*engine), NewSequence(*engine)};
  for (const semkv_sequence sequence : sequences) {
    ASSERT_TRUE(engine->Prefill(sequence, RandomIds(20, 4), {}).ok());
  }
  std::vector<float> logits(2 * engine->config().vocab_size);
  const std::vector<int32_t> ids = {1, 2};
  const StepOptions options;
  ASSERT_TRUE(engine->Step(sequences, ids, absl::MakeSpan(logits), options).ok());
  const int64_t before = testing::NumAllocations();
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(engine->Step(sequences, ids, absl::MakeSpan(logits), options).ok());
  }
  EXPECT_EQ(testing::NumAllocations() - before, 0);
}

TEST_F(EngineTest, ShowsEveryLayerToTheObserver) {
  const std::unique_ptr<Engine> engine = Load();
  const semkv_sequence sequence = NewSequence(*engine);
  ASSERT_TRUE(engine->Prefill(sequence, RandomIds(20, 5), {}).ok());
  std::vector<float> logits(engine->config().vocab_size);
  std::vector<int32_t> layers;
  StepOptions options;
  options.measure_mass = true;
  options.observer = [&](const LayerObservation& observation) {
    layers.push_back(observation.layer);
    EXPECT_EQ(observation.num_rows, 1);
    for (int h = 0; h < 4; ++h) EXPECT_NEAR(observation.lse[h], observation.dense_lse[h], 1e-5f);
    return absl::OkStatus();
  };
  ASSERT_TRUE(engine->Step({sequence}, {3}, absl::MakeSpan(logits), options).ok());
  EXPECT_EQ(layers, (std::vector<int32_t>{0, 1}));
  EXPECT_GT(engine->last_step_times().total_ns, engine->last_step_times().attend_ns);
  options.observer = [](const LayerObservation&) { return absl::CancelledError("enough"); };
  EXPECT_EQ(engine->Step({sequence}, {3}, absl::MakeSpan(logits), options).code(),
            absl::StatusCode::kCancelled);
}

TEST_F(EngineTest, NamesWhatAPromptExceeds) {
  const std::unique_ptr<Engine> engine = Load();
  const semkv_sequence sequence = NewSequence(*engine);
  std::vector<float> logits(engine->config().vocab_size);
  ExpectError(engine->Prefill(sequence, {}, {}), absl::StatusCode::kInvalidArgument, {"0"});
  ExpectError(engine->Prefill(sequence, {5, 258}, {}), absl::StatusCode::kInvalidArgument,
              {"258", "vocabulary of 258"});
  ExpectError(engine->Prefill(sequence, {-1}, {}), absl::StatusCode::kInvalidArgument, {"-1"});
  ExpectError(engine->Prefill(sequence, {1}, absl::MakeSpan(logits).first(3)),
              absl::StatusCode::kInvalidArgument, {"3", "258"});
  ExpectError(engine->Prefill(sequence, RandomIds(129, 6), {}), absl::StatusCode::kOutOfRange,
              {"129", "128"});
  EXPECT_EQ(engine->Prefill(sequence + 1000, {1}, {}).code(), absl::StatusCode::kNotFound);
}

TEST_F(EngineTest, NamesWhatAStepExceedsAndChangesNothing) {
  const std::unique_ptr<Engine> engine = Load();
  const semkv_sequence sequence = NewSequence(*engine);
  std::vector<float> logits(5 * 258);
  const auto one = absl::MakeSpan(logits).first(258);
  const auto invalid = absl::StatusCode::kInvalidArgument;
  ExpectError(engine->Step({}, {}, {}), invalid, {"0 rows", "4"});
  ExpectError(engine->Step(std::vector<semkv_sequence>(5, sequence), RandomIds(5, 7),
                           absl::MakeSpan(logits)),
              invalid, {"5 rows", "4"});
  ExpectError(engine->Step({sequence, sequence}, {1, 2}, absl::MakeSpan(logits).first(516)),
              invalid, {"more than once"});
  ExpectError(engine->Step({sequence}, {1}, absl::MakeSpan(logits)), invalid, {"1290", "258"});
  ExpectError(engine->Step({sequence}, {258}, one), invalid, {"258"});
  ASSERT_TRUE(engine->Prefill(sequence, RandomIds(128, 8), {}).ok());
  ExpectError(engine->Step({sequence}, {1}, one), absl::StatusCode::kOutOfRange, {"128"});
  int32_t length = 0;
  EXPECT_EQ(semkv_sequence_length(engine->context(), sequence, &length), SEMKV_OK);
  EXPECT_EQ(length, 128);
}

TEST_F(EngineTest, NamesOptionsThatCannotWork) {
  const auto error = [this](auto change) {
    EngineOptions options = SmallOptions();
    change(options);
    return Engine::Load(directory_.path(), options).status();
  };
  const auto invalid = absl::StatusCode::kInvalidArgument;
  ExpectError(error([](EngineOptions& o) { o.max_sequence_tokens = 513; }), invalid,
              {"513", "512"});
  ExpectError(error([](EngineOptions& o) { o.pool_tokens = 100; }), invalid, {"100", "128"});
  ExpectError(error([](EngineOptions& o) { o.max_batch = 0; }), invalid, {"max_batch is 0"});
  ExpectError(error([](EngineOptions& o) { o.prefill_chunk = -1; }), invalid, {"prefill_chunk"});
}

TEST_F(EngineTest, NamesWhatAModelDirectoryLacks) {
  Json config = SmallConfig();
  config["hidden_size"] = 64;
  directory_.Write("config.json", config.dump());
  ExpectError(Engine::Load(directory_.path(), SmallOptions()).status(), absl::StatusCode::kDataLoss,
              {"model.embed_tokens.weight", "[258, 32]", "[258, 64]"});
  config = SmallConfig();
  config["tie_word_embeddings"] = false;
  directory_.Write("config.json", config.dump());
  ExpectError(Engine::Load(directory_.path(), SmallOptions()).status(), absl::StatusCode::kNotFound,
              {"lm_head.weight"});
  std::filesystem::remove(directory_.path() + "/tokenizer.json");
  ExpectError(Engine::Load(directory_.path(), SmallOptions()).status(), absl::StatusCode::kNotFound,
              {"tokenizer.json"});
}

TEST_F(EngineTest, GeneratesABatchLikeItsRequestsAlone) {
  const std::unique_ptr<Engine> engine = Load();
  GenerateOptions options;
  options.max_new_tokens = 12;
  options.stop_at_eos = false;
  options.sampler.temperature = 0.8f;
  const auto request = [&](uint32_t i) {
    const semkv_sequence sequence = NewSequence(*engine);
    EXPECT_TRUE(engine->Prefill(sequence, RandomIds(10 + i, 20 + i), {}).ok());
    return GenerateRequest{sequence, RandomIds(1 + 3 * i, 30 + i)};
  };
  std::vector<GenerateRequest> requests;
  for (uint32_t i = 0; i < 3; ++i) requests.push_back(request(i));
  const auto together = Generate(*engine, requests, options);
  ASSERT_TRUE(together.ok()) << together.status();
  EXPECT_EQ(together->num_steps, 7 + 11);  // the longest question, then one less than its answer
  for (uint32_t i = 0; i < 3; ++i) {
    options.sampler.seed = i;  // request i draws with seed + i
    const auto alone = Generate(*engine, {request(i)}, options);
    ASSERT_TRUE(alone.ok()) << alone.status();
    EXPECT_EQ(alone->generations[0].ids, together->generations[i].ids);
    EXPECT_EQ(alone->generations[0].ids.size(), 12u);
    EXPECT_EQ(alone->generations[0].reason, StopReason::kMaxNewTokens);
  }
}

TEST_F(EngineTest, StopsAtStringsAndWhenTheSequenceIsFull) {
  const std::unique_ptr<Engine> engine = Load();
  GenerateOptions options;
  options.max_new_tokens = 1000;
  options.stop_at_eos = false;
  options.sampler.temperature = 1.0f;
  const auto full = Generate(*engine, {{NewSequence(*engine), {1, 2, 3}}}, options);
  ASSERT_TRUE(full.ok()) << full.status();
  EXPECT_EQ(full->generations[0].reason, StopReason::kSequenceFull);
  EXPECT_EQ(full->generations[0].ids.size(), 126u);  // the last of them is not in the sequence

  const std::string stop = full->generations[0].text.substr(20, 3);
  options.stop = {stop};
  std::vector<int32_t> seen;
  options.on_token = [&](size_t, int32_t id, absl::Span<const float>) {
    seen.push_back(id);
    return absl::OkStatus();
  };
  const auto cut = Generate(*engine, {{NewSequence(*engine), {1, 2, 3}}}, options);
  ASSERT_TRUE(cut.ok()) << cut.status();
  EXPECT_EQ(cut->generations[0].reason, StopReason::kStopString);
  EXPECT_EQ(cut->generations[0].text,
            full->generations[0].text.substr(0, full->generations[0].text.find(stop)));
  EXPECT_EQ(cut->generations[0].ids, seen);
}

TEST_F(EngineTest, StopsAtTheEndOfText) {
  // Every token ends the text.
  Json config = SmallConfig();
  config["eos_token_id"] = Json::array();
  for (int id = 0; id < 258; ++id) config["eos_token_id"].push_back(id);
  directory_.Write("config.json", config.dump());
  const std::unique_ptr<Engine> engine = Load();
  const auto result = Generate(*engine, {{NewSequence(*engine), {1}}}, GenerateOptions());
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->generations[0].reason, StopReason::kEndOfText);
  EXPECT_EQ(result->generations[0].ids.size(), 1u);
}

TEST_F(EngineTest, NamesGenerateOptionsThatCannotWork) {
  const std::unique_ptr<Engine> engine = Load();
  const GenerateRequest request = {NewSequence(*engine), {1}};
  const auto invalid = absl::StatusCode::kInvalidArgument;
  ExpectError(Generate(*engine, {}, {}).status(), invalid, {"0 requests", "4"});
  ExpectError(Generate(*engine, {{request.sequence, {}}}, {}).status(), invalid, {"request 0"});
  GenerateOptions options;
  options.max_new_tokens = 0;
  ExpectError(Generate(*engine, {request}, options).status(), invalid, {"max_new_tokens is 0"});
  options = GenerateOptions();
  options.stop = {""};
  ExpectError(Generate(*engine, {request}, options).status(), invalid, {"stop string"});
  options = GenerateOptions();
  options.sampler.top_p = 2.0f;
  ExpectError(Generate(*engine, {request}, options).status(), invalid, {"top_p is 2"});
}

}  // namespace
}  // namespace semkv::reference
