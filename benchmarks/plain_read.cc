#include "benchmarks/plain_read.h"

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "csrc/ops/parallel/thread_pool.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "benchmarks/plain_read.cc"
#include "hwy/foreach_target.h"
//
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace semkv {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Ahead of the hardware's own prefetcher, which stops at 4 KiB pages.
constexpr size_t kAhead = 4096;

uint64_t ReadAll(const void* data, size_t bytes) {
  const hn::ScalableTag<uint64_t> d;
  const size_t step = hn::Lanes(d);
  const uint64_t* x = static_cast<const uint64_t*>(data);
  const size_t n = bytes / sizeof(uint64_t);
  auto sum0 = hn::Zero(d), sum1 = hn::Zero(d), sum2 = hn::Zero(d), sum3 = hn::Zero(d);
  for (size_t i = 0; i < n; i += 4 * step) {
    for (size_t line = 0; line < 4 * step; line += 8) {
      __builtin_prefetch(reinterpret_cast<const char*>(x + i + line) + kAhead);
    }
    sum0 = hn::Xor(sum0, hn::LoadU(d, x + i));
    sum1 = hn::Xor(sum1, hn::LoadU(d, x + i + step));
    sum2 = hn::Xor(sum2, hn::LoadU(d, x + i + 2 * step));
    sum3 = hn::Xor(sum3, hn::LoadU(d, x + i + 3 * step));
  }
  const auto sum = hn::Xor(hn::Xor(sum0, sum1), hn::Xor(sum2, sum3));
  uint64_t lanes[hn::MaxLanes(hn::ScalableTag<uint64_t>())];
  hn::StoreU(sum, d, lanes);
  uint64_t result = 0;
  for (size_t i = 0; i < step; ++i) result ^= lanes[i];
  return result;
}

}  // namespace HWY_NAMESPACE
}  // namespace semkv
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace semkv {

HWY_EXPORT(ReadAll);

uint64_t PlainRead(const void* data, size_t bytes) {
  return HWY_DYNAMIC_DISPATCH(ReadAll)(data, bytes);
}

uint64_t PlainRead(const void* data, size_t bytes, ThreadPool& pool) {
  constexpr size_t kShare = size_t{1} << 20;
  std::atomic<uint64_t> result{0};
  pool.Run(static_cast<int64_t>((bytes + kShare - 1) / kShare), [&](int64_t i, int) {
    const size_t begin = i * kShare;
    const size_t size = begin + kShare <= bytes ? kShare : bytes - begin;
    result.fetch_xor(PlainRead(static_cast<const char*>(data) + begin, size));
  });
  return result.load();
}

}  // namespace semkv
#endif  // HWY_ONCE
