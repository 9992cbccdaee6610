// Decode passes over the engine: greedy or sampled answers, and teacher-forced passes that measure
// how a policy's distributions and attention differ from dense ones. The same for `semkv run` and
// `semkv evaluate`.
//
// Thread safety: as the Engine, thread-compatible.

#ifndef SEMKV_INTEGRATION_REFERENCE_COMMAND_DECODING_H_
#define SEMKV_INTEGRATION_REFERENCE_COMMAND_DECODING_H_

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "integration/reference/command/measurement.h"
#include "integration/reference/engine.h"
#include "integration/reference/sampler.h"
#include "semkv/semkv.h"

namespace semkv::command {

// A sequence that is released with its owner. Move-only; must not outlive the context.
class OwnedSequence {
 public:
  OwnedSequence(semkv_context* context, semkv_sequence id) : context_(context), id_(id) {}
  OwnedSequence(OwnedSequence&& other) noexcept
      : context_(other.context_), id_(std::exchange(other.id_, 0)) {}
  OwnedSequence& operator=(OwnedSequence&&) = delete;
  ~OwnedSequence() {
    if (id_ != 0) semkv_sequence_release(context_, id_);
  }

  semkv_sequence id() const { return id_; }

 private:
  semkv_context* context_;
  semkv_sequence id_;  // 0: moved from
};

// An empty sequence under the dense policy.
absl::StatusOr<OwnedSequence> CreateDenseSequence(semkv_context* context);
absl::StatusOr<OwnedSequence> ForkSequence(semkv_context* context, semkv_sequence parent);
// PutUnderPolicy of a fork. `index_ms`: wall time of building its lists; may be null.
absl::StatusOr<OwnedSequence> ForkUnderPolicy(semkv_context* context, semkv_sequence parent,
                                              const semkv_policy& policy, double* index_ms);
// Reads `sequence` under `policy` from now on, its inverted lists built.
absl::Status PutUnderPolicy(semkv_context* context, semkv_sequence sequence,
                            const semkv_policy& policy);
absl::StatusOr<semkv_stats> ReadStats(semkv_context* context);

KvGeometry GeometryOf(const reference::ModelConfig& config, int32_t kv_dtype);

struct DecodeOptions {
  int32_t max_new_tokens = 32;
  std::string stop;  // characters
  reference::SamplerOptions sampler;
};

struct DecodedAnswer {
  std::vector<int32_t> ids;   // the stopping token included
  std::vector<float> logits;  // [ids.size(), vocab_size], what each id was chosen from
  int64_t num_steps = 0;
  int64_t context_tokens = 0;  // summed over the steps
  int64_t total_ns = 0;
  int64_t select_ns = 0;
};

// Feeds `question` (not empty) token by token to `sequence`, then decodes.
// Errors: the engine's; INTERNAL if a logit is not finite.
absl::StatusOr<DecodedAnswer> DecodeAnswer(reference::Engine* engine, semkv_sequence sequence,
                                           absl::Span<const int32_t> question,
                                           const DecodeOptions& options);

using LayerObserver = std::function<absl::Status(const reference::LayerObservation&)>;

// One row of a teacher-forced batch. The last answer token is predicted but not fed.
struct ForcedRow {
  semkv_sequence sequence = 0;         // holds the document
  absl::Span<const int32_t> question;  // not empty
  absl::Span<const int32_t> answer;    // not empty
};

struct ForcedResult {
  std::vector<float> logits;          // [answer.size(), vocab_size]
  std::vector<double> captured_mass;  // of every answer token, sparse layer and query head
  int64_t num_steps = 0;
  int64_t context_tokens = 0;  // summed over the steps
};

struct ForcedOptions {
  bool measure_mass = false;  // of the steps that predict answer tokens
  LayerObserver observer;     // called for every layer of every step; may be empty
};

// Runs the rows, at most the engine's max_batch, side by side, aligned where their answers begin.
// Errors: the engine's; INTERNAL if a logit is not finite.
absl::StatusOr<std::vector<ForcedResult>> FeedForced(reference::Engine* engine,
                                                     absl::Span<const ForcedRow> rows,
                                                     const ForcedOptions& options);

}  // namespace semkv::command

#endif  // SEMKV_INTEGRATION_REFERENCE_COMMAND_DECODING_H_
