// Chooses the next token from logits: greedy, or by temperature, top-k and top-p with a seed.
//
// Thread safety: thread-compatible. Equal seeds give equal choices on every platform.

#ifndef SEMKV_INTEGRATION_REFERENCE_SAMPLER_H_
#define SEMKV_INTEGRATION_REFERENCE_SAMPLER_H_

#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace semkv::reference {

struct SamplerOptions {
  float temperature = 0.0f;  // 0: greedy, and the rest is not used
  int32_t top_k = 0;         // keep the k most likely tokens; 0: all
  float top_p = 1.0f;        // then the fewest of them whose probability reaches p; in (0, 1]
  uint64_t seed = 0;

  // Errors: INVALID_ARGUMENT names the field and its value.
  absl::Status Validate() const;
};

class Sampler {
 public:
  // Reserves for `vocab_size` logits: Sample allocates nothing. REQUIRES: options.Validate().ok().
  Sampler(const SamplerOptions& options, int32_t vocab_size);

  // The id chosen; ties go to the lowest id. NaN counts as minus infinity.
  // REQUIRES: 0 < logits.size() <= vocab_size.
  int32_t Sample(absl::Span<const float> logits);

 private:
  SamplerOptions options_;
  std::mt19937_64 random_;
  std::vector<std::pair<float, int32_t>> candidates_;  // logit, then probability; id
};

// The id of the largest logit, the lowest of equals.
int32_t GreedyToken(absl::Span<const float> logits);

}  // namespace semkv::reference

#endif  // SEMKV_INTEGRATION_REFERENCE_SAMPLER_H_
