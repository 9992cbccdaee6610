// Policies: names, defaults, validation, and what each means for the index and the decode step.

#ifndef SEMKV_API_POLICY_H_
#define SEMKV_API_POLICY_H_

#include <algorithm>
#include <cstdint>

#include "absl/status/status.h"
#include "csrc/ops/retrieval/inverted_lists.h"
#include "semkv/semkv.h"

namespace semkv {

// Defaults of a kind. Requires 0 <= kind < SEMKV_NUM_POLICIES.
semkv_policy DefaultPolicy(int32_t kind);

// "hybrid", ...; null for a number that is no policy.
const char* PolicyName(int32_t kind);
// The number of a name, or -1.
int32_t PolicyKind(const char* name);

// "sparse", "dense_policy", ...; null for a number that is no SEMKV_ROW_* reason.
const char* RowReasonName(int32_t reason);

// Errors: INVALID_ARGUMENT names the field and both numbers.
absl::Status ValidatePolicy(const semkv_policy& policy);

inline bool UsesSentences(const semkv_policy& policy) {
  return policy.kind == SEMKV_POLICY_HYBRID || policy.kind == SEMKV_POLICY_SENTENCE ||
         policy.kind == SEMKV_POLICY_SENTENCEKV;
}

// Does the policy read inverted lists, so that semkv_index must have been called?
inline bool UsesLists(const semkv_policy& policy) {
  return policy.kind != SEMKV_POLICY_DENSE && policy.kind != SEMKV_POLICY_WINDOW;
}

// Does semkv_index put prompt tokens out of reach (SentenceKV's keep set)?
inline bool KeepsTokens(const semkv_policy& policy) {
  return policy.kind == SEMKV_POLICY_SENTENCEKV && policy.keep_factor > 0.0f;
}

// Do both policies build the same lists, so that one's serve the other?
bool SameLists(const semkv_policy& a, const semkv_policy& b);

// Number of first layers attended densely in a model of `num_layers`.
inline int32_t DenseLayers(const semkv_policy& policy, int32_t num_layers) {
  if (policy.dense_layers >= 0) return policy.dense_layers;
  return num_layers >= 12 ? 2 : 0;
}

// RetrievalRow::rank_weight of sentences. Beside clusters a sentence's mean says less of its tokens
// than a cluster's of theirs (docs/papers.md, "What sentences weigh").
inline float SentenceWeight(const semkv_policy& policy) {
  return policy.kind == SEMKV_POLICY_HYBRID ? 0.5f : 1.0f;
}

// The least that RecentTokens chooses; a budget must hold them beside the sinks.
inline constexpr int32_t kLeastRecent = 16;

// Number of last tokens always attended. Small budgets keep room for lists.
inline int32_t RecentTokens(const semkv_policy& policy) {
  constexpr int32_t kMost = 64;
  if (policy.recent >= 0) return policy.recent;
  const int32_t room = policy.budget - policy.sinks;
  if (policy.kind == SEMKV_POLICY_WINDOW) return room;
  return std::min(std::clamp(policy.budget / 8, kLeastRecent, kMost), room);
}

}  // namespace semkv

#endif  // SEMKV_API_POLICY_H_
