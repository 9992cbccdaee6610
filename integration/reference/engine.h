// A small decoder engine for Llama checkpoints that uses semkv only through semkv.h, as a user's
// engine would: chunked prefill, paged KV, batched decode. It exists to run the main job, to
// measure policies and to be read; it is not a fast server.
//
// Thread safety: thread-compatible. One Engine owns one semkv_context.

#ifndef SEMKV_INTEGRATION_REFERENCE_ENGINE_H_
#define SEMKV_INTEGRATION_REFERENCE_ENGINE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "integration/reference/model_config.h"
#include "integration/reference/tokenizer.h"
#include "semkv/semkv.h"

namespace semkv::reference {

struct EngineOptions {
  int32_t num_threads = 0;          // 0: all cores
  int32_t max_sequence_tokens = 0;  // 0: the model's max_position_embeddings
  int32_t pool_tokens = 0;          // KV pool over all sequences; 0: max_sequence_tokens * 5 / 4
  int32_t max_sequences = 16;
  int32_t max_batch = 8;
  int32_t max_budget = 4096;           // most tokens that any policy attends to in a step, at most
                                       // max_sequence_tokens
  int32_t query_window = 0;            // semkv_options.query_window
  int32_t prefill_chunk = 512;         // tokens
  int32_t kv_dtype = SEMKV_DTYPE_F32;  // of the pool
};

// Called once per layer of a decode step, after attention. `lse` and `dense_lse` are [num_rows,
// num_heads]; dense_lse is null unless StepOptions::measure_mass. exp(lse - dense_lse) is the share
// of the attention mass that the selection captured. semkv_select_result(plan, ...) gives what was
// selected.
struct LayerObservation {
  int32_t layer;
  semkv_plan* plan;
  int32_t num_rows;
  const float* lse;
  const float* dense_lse;
};

struct StepOptions {
  bool measure_mass = false;  // also attend densely with the same queries, for the observer
  std::function<absl::Status(const LayerObservation&)> observer;  // may be empty
};

// What a Step spent, in nanoseconds of wall time.
struct StepTimes {
  int64_t total_ns = 0;  // everything, measure_mass and the observer included
  int64_t select_ns = 0;
  int64_t attend_ns = 0;  // without measure_mass
};

class Engine {
 public:
  // Loads a Hugging Face Llama directory: config.json, model.safetensors or shards with
  // model.safetensors.index.json, tokenizer.json. Weights become float32: 4 bytes per parameter.
  // Sets the process-wide number of OpenBLAS threads to options.num_threads.
  //
  // Errors: NOT_FOUND names a missing file; DATA_LOSS a file that is cut off or damaged;
  // UNIMPLEMENTED names the config field and value that is not supported; INVALID_ARGUMENT for
  // options; RESOURCE_EXHAUSTED if the pool does not fit memory.
  static absl::StatusOr<std::unique_ptr<Engine>> Load(const std::string& directory,
                                                      const EngineOptions& options);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  const ModelConfig& config() const;
  const Tokenizer& tokenizer() const;
  semkv_context* context() const;
  const EngineOptions& options() const;  // with the defaults filled in

  // Runs `ids` through the model after what `sequence` already holds, chunk by chunk, dense, and
  // writes the logits of the last token, [vocab_size], unless `logits` is empty. Does not index:
  // call semkv_index. `progress(done, total)` is called after every chunk; may be empty.
  //
  // Errors: INVALID_ARGUMENT for an empty prompt or an id outside the vocabulary (names both
  // numbers); OUT_OF_RANGE beyond max_sequence_tokens; RESOURCE_EXHAUSTED if the pool is full. The
  // sequence then holds the chunks that were finished.
  absl::Status Prefill(semkv_sequence sequence, absl::Span<const int32_t> ids,
                       absl::Span<float> logits,
                       const std::function<void(int64_t done, int64_t total)>& progress = {});

  // One decode step of a batch: token ids[r] goes to sequences[r]; logits [num_rows, vocab_size].
  // Each row is read under its sequence's policy, and observed (semkv_observe) afterwards.
  // Allocates nothing, beyond what the lists of semkv_observe need.
  //
  // Errors: INVALID_ARGUMENT for more than max_batch rows, a sequence given twice, spans of other
  // sizes, or an id outside the vocabulary; OUT_OF_RANGE if a sequence is full. Nothing has changed
  // then. RESOURCE_EXHAUSTED if the pool is full, or what the observer returns: the sequences of
  // the step may then hold a token without keys and must be released.
  absl::Status Step(absl::Span<const semkv_sequence> sequences, absl::Span<const int32_t> ids,
                    absl::Span<float> logits, const StepOptions& options = {});

  const StepTimes& last_step_times() const;

 private:
  struct Rep;
  explicit Engine(std::unique_ptr<Rep> rep);
  std::unique_ptr<Rep> rep_;
};

}  // namespace semkv::reference

#endif  // SEMKV_INTEGRATION_REFERENCE_ENGINE_H_
