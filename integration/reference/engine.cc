#include "integration/reference/engine.h"

#include <cblas.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <limits>
#include <new>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "integration/reference/rope.h"
#include "integration/reference/semkv_status.h"
#include "integration/reference/status_macros.h"
#include "integration/reference/transformer.h"
#include "integration/reference/weights.h"

namespace semkv::reference {

namespace {

struct DestroyContext {
  void operator()(semkv_context* context) const { semkv_context_destroy(context); }
};
struct DestroyPlan {
  void operator()(semkv_plan* plan) const { semkv_plan_destroy(plan); }
};

// Replaces what means "default" and refuses what cannot work.
absl::StatusOr<EngineOptions> Resolve(EngineOptions options, const ModelConfig& config) {
  const int32_t positions = config.max_position_embeddings;
  if (options.num_threads == 0) {
    options.num_threads = std::max<int32_t>(1, std::thread::hardware_concurrency());
  }
  if (options.max_sequence_tokens == 0) options.max_sequence_tokens = positions;
  if (options.max_sequence_tokens > positions) {
    return absl::InvalidArgumentError(absl::StrCat("max_sequence_tokens is ",
                                                   options.max_sequence_tokens, ", the model has ",
                                                   positions, " positions"));
  }
  if (options.pool_tokens == 0) {
    options.pool_tokens = static_cast<int32_t>(std::min<int64_t>(
        int64_t{options.max_sequence_tokens} * 5 / 4, std::numeric_limits<int32_t>::max()));
  }
  const std::pair<const char*, int32_t> positive[] = {
      {"num_threads", options.num_threads},
      {"max_sequence_tokens", options.max_sequence_tokens},
      {"max_sequences", options.max_sequences},
      {"max_batch", options.max_batch},
      {"max_budget", options.max_budget},
      {"prefill_chunk", options.prefill_chunk}};
  for (const auto& [name, value] : positive) {
    if (value < 1)
      return absl::InvalidArgumentError(absl::StrCat(name, " is ", value, ", not >= 1"));
  }
  if (options.pool_tokens < options.max_sequence_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("pool_tokens is ", options.pool_tokens,
                                                   ", less than max_sequence_tokens ",
                                                   options.max_sequence_tokens));
  }
  // A row is read sparsely only when it is longer than its budget.
  options.max_budget = std::min(options.max_budget, options.max_sequence_tokens);
  return options;
}

absl::StatusOr<semkv_context*> CreateContext(const ModelConfig& config,
                                             const EngineOptions& options) {
  semkv_options semkv = {};
  SEMKV_RETURN_IF_ERROR(SemkvStatus(semkv_options_init(&semkv)));
  semkv.num_layers = config.num_layers;
  semkv.num_heads = config.num_heads;
  semkv.num_kv_heads = config.num_kv_heads;
  semkv.head_dim = config.head_dim;
  semkv.kv_dtype = options.kv_dtype;
  semkv.num_pages = static_cast<int32_t>((int64_t{options.pool_tokens} + semkv.page_tokens - 1) /
                                         semkv.page_tokens);
  semkv.max_sequences = options.max_sequences;
  semkv.max_sequence_tokens = options.max_sequence_tokens;
  semkv.num_threads = options.num_threads;
  semkv.query_window = options.query_window;
  semkv_context* context = nullptr;
  SEMKV_RETURN_IF_ERROR(SemkvStatus(semkv_context_create(&semkv, &context)));
  return context;
}

// Tells semkv the bytes of every id, for sentence ends. Ids that the model has and the tokenizer
// has not decode to nothing.
absl::Status SetVocabulary(semkv_context* context, const Tokenizer& tokenizer, int32_t vocab_size) {
  std::string bytes;
  std::vector<int64_t> offsets = {0};
  for (int32_t id = 0; id < vocab_size; ++id) {
    absl::StrAppend(&bytes, tokenizer.TokenBytes(id));
    offsets.push_back(static_cast<int64_t>(bytes.size()));
  }
  return SemkvStatus(semkv_vocabulary_set(context, vocab_size, bytes.data(), offsets.data()));
}

int64_t ElapsedNs(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() -
                                                              begin)
      .count();
}

}  // namespace

struct Engine::Rep {
  ModelConfig config;
  EngineOptions options;
  std::unique_ptr<Tokenizer> tokenizer;
  ModelWeights weights;
  std::optional<RopeTable> rope;
  std::unique_ptr<semkv_context, DestroyContext> context;
  std::unique_ptr<semkv_plan, DestroyPlan> plan;  // of prefill and decode; before its context
  std::optional<Transformer> transformer;
  std::vector<int32_t> positions;  // [max(prefill_chunk, max_batch)]
  std::vector<int32_t> slots;      // [max(prefill_chunk, max_batch)]
  StepTimes times;

  absl::Status Reserve();
  absl::StatusOr<int32_t> Length(semkv_sequence sequence) const;
  absl::Status CheckIds(absl::Span<const int32_t> ids) const;
  absl::Status CheckStep(absl::Span<const semkv_sequence> sequences, absl::Span<const int32_t> ids,
                         absl::Span<const float> logits) const;
  absl::Status PrefillChunk(semkv_sequence sequence, int32_t first_position,
                            absl::Span<const int32_t> ids);
};

// Creates everything that is sized by the options, once config, tokenizer and weights are there.
absl::Status Engine::Rep::Reserve() {
  if (tokenizer->vocabulary_size() > config.vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("the tokenizer has ids up to ", tokenizer->vocabulary_size() - 1,
                     ", the model's vocab_size is ", config.vocab_size));
  }
  // OpenBLAS has one thread pool per process: the last engine loaded sets its size.
  openblas_set_num_threads(options.num_threads);
  SEMKV_ASSIGN_OR_RETURN(semkv_context* const created, CreateContext(config, options));
  context.reset(created);
  SEMKV_RETURN_IF_ERROR(SetVocabulary(context.get(), *tokenizer, config.vocab_size));
  semkv_plan* new_plan = nullptr;
  SEMKV_RETURN_IF_ERROR(SemkvStatus(
      semkv_plan_create(context.get(), options.max_batch, options.max_budget, &new_plan)));
  plan.reset(new_plan);

  const int32_t max_tokens = std::max(options.prefill_chunk, options.max_batch);
  try {
    rope.emplace(config, options.max_sequence_tokens);
    transformer.emplace(config, weights, *rope, context.get(), max_tokens, options.max_batch);
    positions.resize(max_tokens);
    slots.resize(max_tokens);
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "memory ran out for the buffers of ", max_tokens, " tokens per pass and the rotations of ",
        options.max_sequence_tokens, " positions"));
  }
  return absl::OkStatus();
}

absl::StatusOr<int32_t> Engine::Rep::Length(semkv_sequence sequence) const {
  int32_t length = 0;
  SEMKV_RETURN_IF_ERROR(SemkvStatus(semkv_sequence_length(context.get(), sequence, &length)));
  return length;
}

absl::Status Engine::Rep::CheckIds(absl::Span<const int32_t> ids) const {
  for (const int32_t id : ids) {
    if (id < 0 || id >= config.vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("token id ", id, " is outside the vocabulary of ", config.vocab_size));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Load(const std::string& directory,
                                                     const EngineOptions& options) {
  auto rep = std::make_unique<Rep>();
  SEMKV_ASSIGN_OR_RETURN(rep->config, ModelConfig::Load(directory));
  SEMKV_ASSIGN_OR_RETURN(rep->options, Resolve(options, rep->config));
  const std::filesystem::path tokenizer = std::filesystem::path(directory) / "tokenizer.json";
  SEMKV_ASSIGN_OR_RETURN(rep->tokenizer, Tokenizer::Load(tokenizer.string()));
  SEMKV_ASSIGN_OR_RETURN(rep->weights, ModelWeights::Load(directory, rep->config));
  SEMKV_RETURN_IF_ERROR(rep->Reserve());
  return std::unique_ptr<Engine>(new Engine(std::move(rep)));
}

Engine::Engine(std::unique_ptr<Rep> rep) : rep_(std::move(rep)) {}

Engine::~Engine() = default;

const ModelConfig& Engine::config() const { return rep_->config; }
const Tokenizer& Engine::tokenizer() const { return *rep_->tokenizer; }
semkv_context* Engine::context() const { return rep_->context.get(); }
const EngineOptions& Engine::options() const { return rep_->options; }
const StepTimes& Engine::last_step_times() const { return rep_->times; }

absl::Status Engine::Rep::PrefillChunk(semkv_sequence sequence, int32_t first_position,
                                       absl::Span<const int32_t> ids) {
  const int32_t n = static_cast<int32_t>(ids.size());
  for (int32_t t = 0; t < n; ++t) positions[t] = first_position + t;
  SEMKV_RETURN_IF_ERROR(
      SemkvStatus(semkv_sequence_append(context.get(), sequence, n, ids.data(), slots.data())));
  SEMKV_RETURN_IF_ERROR(SemkvStatus(semkv_plan_step(plan.get(), 1, &sequence, &n)));
  const TokenBatch batch = {ids, absl::MakeConstSpan(positions).first(n),
                            absl::MakeConstSpan(slots).first(n), plan.get(), true};
  StepTimes ignored;
  return transformer->Forward(batch, StepOptions(), ignored);
}

absl::Status Engine::Prefill(semkv_sequence sequence, absl::Span<const int32_t> ids,
                             absl::Span<float> logits,
                             const std::function<void(int64_t, int64_t)>& progress) {
  if (ids.empty()) return absl::InvalidArgumentError("the prompt has 0 tokens, needed is 1");
  const size_t vocab_size = static_cast<size_t>(rep_->config.vocab_size);
  if (!logits.empty() && logits.size() != vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("room for ", logits.size(), " logits, needed are 0 or ", vocab_size));
  }
  SEMKV_RETURN_IF_ERROR(rep_->CheckIds(ids));
  SEMKV_ASSIGN_OR_RETURN(const int32_t length, rep_->Length(sequence));
  const int64_t total = static_cast<int64_t>(ids.size());
  if (length + total > rep_->options.max_sequence_tokens) {
    return absl::OutOfRangeError(absl::StrCat("the sequence holds ", length, " tokens and ", total,
                                              " more exceed max_sequence_tokens ",
                                              rep_->options.max_sequence_tokens));
  }
  int64_t last_chunk = 0;
  for (int64_t done = 0; done < total; done += last_chunk) {
    last_chunk = std::min<int64_t>(rep_->options.prefill_chunk, total - done);
    SEMKV_RETURN_IF_ERROR(rep_->PrefillChunk(sequence, static_cast<int32_t>(length + done),
                                             ids.subspan(done, last_chunk)));
    if (progress) progress(done + last_chunk, total);
  }
  if (!logits.empty()) {
    rep_->transformer->Logits(static_cast<int32_t>(last_chunk) - 1, 1, logits.data());
  }
  return absl::OkStatus();
}

absl::Status Engine::Rep::CheckStep(absl::Span<const semkv_sequence> sequences,
                                    absl::Span<const int32_t> ids,
                                    absl::Span<const float> logits) const {
  const size_t rows = sequences.size();
  if (rows == 0 || rows > static_cast<size_t>(options.max_batch)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the step has ", rows, " rows, not 1 to max_batch ", options.max_batch));
  }
  if (ids.size() != rows || logits.size() != rows * config.vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("the step has ", rows, " rows, ", ids.size(), " ids and room for ",
                     logits.size(), " logits, needed are ", rows * config.vocab_size));
  }
  for (size_t r = 0; r < rows; ++r) {
    if (std::count(sequences.begin(), sequences.end(), sequences[r]) > 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("sequence ", sequences[r], " is in the step more than once"));
    }
    SEMKV_ASSIGN_OR_RETURN(const int32_t length, Length(sequences[r]));
    if (length >= options.max_sequence_tokens) {
      return absl::OutOfRangeError(absl::StrCat("sequence ", sequences[r], " holds ", length,
                                                " tokens, max_sequence_tokens is ",
                                                options.max_sequence_tokens));
    }
  }
  return CheckIds(ids);
}

absl::Status Engine::Step(absl::Span<const semkv_sequence> sequences, absl::Span<const int32_t> ids,
                          absl::Span<float> logits, const StepOptions& options) {
  const auto begin = std::chrono::steady_clock::now();
  Rep& rep = *rep_;
  SEMKV_RETURN_IF_ERROR(rep.CheckStep(sequences, ids, logits));
  const int32_t rows = static_cast<int32_t>(sequences.size());
  rep.times = StepTimes();
  for (int32_t r = 0; r < rows; ++r) {
    SEMKV_ASSIGN_OR_RETURN(rep.positions[r], rep.Length(sequences[r]));
    SEMKV_RETURN_IF_ERROR(SemkvStatus(
        semkv_sequence_append(rep.context.get(), sequences[r], 1, &ids[r], &rep.slots[r])));
  }
  SEMKV_RETURN_IF_ERROR(
      SemkvStatus(semkv_plan_step(rep.plan.get(), rows, sequences.data(), nullptr)));
  const TokenBatch batch = {ids, absl::MakeConstSpan(rep.positions).first(rows),
                            absl::MakeConstSpan(rep.slots).first(rows), rep.plan.get(), false};
  SEMKV_RETURN_IF_ERROR(rep.transformer->Forward(batch, options, rep.times));
  rep.transformer->Logits(0, rows, logits.data());
  for (const semkv_sequence sequence : sequences) {
    SEMKV_RETURN_IF_ERROR(SemkvStatus(semkv_observe(rep.context.get(), sequence)));
  }
  rep.times.total_ns = ElapsedNs(begin);
  return absl::OkStatus();
}

}  // namespace semkv::reference
