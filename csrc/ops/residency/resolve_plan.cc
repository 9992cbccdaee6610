#include "csrc/ops/residency/resolve_plan.h"

#include <cstdint>
#include <limits>

namespace semkv {
namespace {

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

bool IsAligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

int64_t MostWanted(const ResolveShape& shape) {
  return int64_t{shape.num_rows} * shape.num_selections * shape.max_wanted;
}

}  // namespace

int64_t NeededHotPages(const ResolveShape& shape) {
  const int64_t wanted = MostWanted(shape);
  const int64_t steps = int64_t{shape.keep_steps} + 1;
  const int64_t home_pages = shape.num_home_pages;
  // A division, since the product may not fit 64 bits.
  const int64_t pages = wanted > home_pages / steps ? home_pages : wanted * steps;
  return CeilDiv(pages, int64_t{kClockGroup}) * kClockGroup;
}

const char* ResolveUnsupported(const ResolveShape& shape) {
  if (shape.max_wanted < kThreadPages || shape.max_wanted > kResolveCtaPages ||
      shape.max_wanted % kThreadPages != 0) {
    return "max_wanted is not a multiple of 4 in [4, 2048]";
  }
  if (shape.page_tokens < 1 || shape.page_tokens > kMaxListPageTokens ||
      (shape.page_tokens & (shape.page_tokens - 1)) != 0) {
    return "page_tokens is not a power of two in [1, 32]";
  }
  if (shape.num_rows < 0 || shape.num_selections < 0 || shape.max_slots < 0 ||
      shape.keep_steps < 0 || shape.num_home_pages < 0) {
    return "a negative size";
  }
  const int64_t selections = int64_t{shape.num_rows} * shape.num_selections;
  if (selections > int64_t{kResolveMaxCtas} * (kResolveCtaPages / shape.max_wanted)) {
    return "num_rows * num_selections is above 512 * (2048 / max_wanted)";
  }
  if (selections * shape.max_slots > kMaxInt32) {
    return "num_rows * num_selections * max_slots is above 2^31 - 1";
  }
  if (shape.num_hot_pages < kClockGroup || shape.num_hot_pages % kClockGroup != 0) {
    return "num_hot_pages is not a positive multiple of 4";
  }
  if (int64_t{shape.num_hot_pages} * shape.page_tokens > kMaxInt32) {
    return "num_hot_pages * page_tokens is above 2^31 - 1";
  }
  if (shape.num_hot_pages < NeededHotPages(shape)) return "num_hot_pages is below NeededHotPages";
  return nullptr;
}

const char* ResolveCudaUnsupported(const ResolveParams& params) {
  const char* reason = ResolveUnsupported(params.shape);
  if (reason != nullptr) return reason;
  if (!IsAligned(params.wanted)) return "wanted is not aligned to 16 bytes";
  if (!IsAligned(params.residency.home_of_hot) || !IsAligned(params.residency.stamps)) {
    return "home_of_hot or stamps is not aligned to 16 bytes";
  }
  return nullptr;
}

}  // namespace semkv
