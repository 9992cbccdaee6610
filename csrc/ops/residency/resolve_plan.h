// How resolve on the GPU divides its work, and the memory that its CTAs meet in. Host code that
// needs no GPU and that the SIMT harness shares.

#ifndef SEMKV_OPS_RESIDENCY_RESOLVE_PLAN_H_
#define SEMKV_OPS_RESIDENCY_RESOLVE_PLAN_H_

#include <cstddef>
#include <cstdint>

#include "csrc/ops/residency/resolve.h"
#include "semkv/types.h"

namespace semkv {

constexpr int32_t kResolveThreads = 512;
constexpr int32_t kThreadPages = 4;  // wanted pages of a thread: 32 bytes
constexpr int32_t kResolveCtaPages = kResolveThreads * kThreadPages;
static_assert(kThreadPages == kWantedPageGroup && kResolveCtaPages == kMaxWantedPages);
constexpr int32_t kResolveMaxCtas = kResolveThreads;  // one thread of the last CTA counts for each

// A wanted page that a CTA did not find resident; `index` is its place in `wanted`.
struct ResolveCandidate {
  int32_t index = 0;
  int32_t home_page = 0;
};

struct ResolvePlan {
  int32_t cta_selections = 1;  // (row, selection) pairs of a CTA, all of whose pages it has
  int32_t num_ctas = 1;        // 1: one launch does everything
};

// For a shape that ResolveUnsupported accepts.
inline ResolvePlan PlanResolve(const ResolveShape& shape) {
  ResolvePlan plan;
  const int64_t selections = int64_t{shape.num_rows} * shape.num_selections;
  plan.cta_selections = kResolveCtaPages / shape.max_wanted;
  const int64_t ctas = CeilDiv(selections, int64_t{plan.cta_selections});
  plan.num_ctas = ctas < 1 ? 1 : static_cast<int32_t>(ctas);
  return plan;
}

// The workspace: a counter of CTAs, zero between launches; then, where there are several, each
// CTA's number of candidates, and the candidates, kResolveCtaPages for each.
constexpr size_t kResolveCounterBytes = 64;

inline size_t ResolveCountsBytes(const ResolvePlan& plan) {
  constexpr size_t kAlignment = 64;
  return CeilDiv(plan.num_ctas * sizeof(int32_t), kAlignment) * kAlignment;
}

inline size_t ResolveCudaWorkspaceBytes(const ResolvePlan& plan) {
  if (plan.num_ctas == 1) return kResolveCounterBytes;
  const size_t candidates = static_cast<size_t>(plan.num_ctas) * kResolveCtaPages;
  return kResolveCounterBytes + ResolveCountsBytes(plan) + candidates * sizeof(ResolveCandidate);
}

// Null when the CUDA form takes `params`, else the reason, naming the value. Beyond
// ResolveUnsupported: wanted, home_of_hot and stamps at multiples of 16 bytes.
const char* ResolveCudaUnsupported(const ResolveParams& params);

}  // namespace semkv

#endif  // SEMKV_OPS_RESIDENCY_RESOLVE_PLAN_H_
