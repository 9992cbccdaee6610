// Answers questions against prefilled sequences: feeds each question's tokens as decode steps, then
// decodes until a stop condition, any number of requests in one batch up to Engine's max_batch.

#ifndef SEMKV_INTEGRATION_REFERENCE_GENERATE_H_
#define SEMKV_INTEGRATION_REFERENCE_GENERATE_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "integration/reference/engine.h"
#include "integration/reference/sampler.h"
#include "semkv/semkv.h"

namespace semkv::reference {

struct GenerateRequest {
  semkv_sequence sequence;   // prefilled, and indexed if its policy is sparse
  std::vector<int32_t> ids;  // fed one by one under the sequence's policy; at least one
};

struct GenerateOptions {
  int32_t max_new_tokens = 256;
  bool stop_at_eos = true;        // ModelConfig::eos_token_ids
  std::vector<std::string> stop;  // stop once the text holds one of these; none is empty
  SamplerOptions sampler;         // request i draws with seed + i
  StepOptions step;               // the rows of a step are the requests still running, in order
  // Called for every token generated, with what it was chosen from, [vocab_size]; an error ends
  // everything. May be empty.
  std::function<absl::Status(size_t request, int32_t id, absl::Span<const float> logits)> on_token;
};

enum class StopReason { kEndOfText, kStopString, kMaxNewTokens, kSequenceFull };

struct Generation {
  std::vector<int32_t> ids;  // all that were generated, the one that stopped it included
  std::string text;          // their bytes, cut before the stop string
  StopReason reason = StopReason::kMaxNewTokens;
};

struct GenerateResult {
  std::vector<Generation> generations;  // by request
  int64_t num_steps = 0;                // of the batch
  StepTimes times;                      // sums over the steps
};

// The last token generated is not in its sequence: to go on, feed it first.
//
// Errors: INVALID_ARGUMENT for no or too many requests, a question without tokens, or options out
// of range; else those of Engine::Step.
absl::StatusOr<GenerateResult> Generate(Engine& engine, absl::Span<const GenerateRequest> requests,
                                        const GenerateOptions& options);

}  // namespace semkv::reference

#endif  // SEMKV_INTEGRATION_REFERENCE_GENERATE_H_
