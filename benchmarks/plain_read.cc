#include "benchmarks/plain_read.h"

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "csrc/ops/parallel/thread_pool.h"
#include "csrc/ops/prefetch_level.h"

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

// Rows ahead; 8 to 32 serve alike.
constexpr size_t kRowsAhead = 16;
constexpr size_t kLine = 64;

using D = hn::ScalableTag<uint64_t>;

// Four sums side by side, so that no load waits for another.
class Sums {
 public:
  HWY_INLINE Sums() : sum0_(hn::Zero(D())), sum1_(sum0_), sum2_(sum0_), sum3_(sum0_) {}

  // Reads `bytes` bytes, a multiple of four vectors; asks for what is `ahead` bytes further.
  HWY_INLINE void Add(const char* data, size_t bytes, size_t ahead) {
    const D d;
    constexpr size_t kVectors = 4;
    const size_t vector = hn::Lanes(d) * sizeof(uint64_t);
    for (size_t i = 0; i < bytes; i += kVectors * vector) {
      for (size_t line = 0; ahead > 0 && line < kVectors * vector; line += kLine) {
        __builtin_prefetch(data + i + line + ahead);
      }
      const uint64_t* const x = reinterpret_cast<const uint64_t*>(data + i);
      const size_t step = hn::Lanes(d);
      sum0_ = hn::Xor(sum0_, hn::LoadU(d, x));
      sum1_ = hn::Xor(sum1_, hn::LoadU(d, x + step));
      sum2_ = hn::Xor(sum2_, hn::LoadU(d, x + 2 * step));
      sum3_ = hn::Xor(sum3_, hn::LoadU(d, x + 3 * step));
    }
  }

  uint64_t Total() const {
    const D d;
    const auto sum = hn::Xor(hn::Xor(sum0_, sum1_), hn::Xor(sum2_, sum3_));
    uint64_t lanes[hn::MaxLanes(D())];
    hn::StoreU(sum, d, lanes);
    uint64_t result = 0;
    for (size_t i = 0; i < hn::Lanes(d); ++i) result ^= lanes[i];
    return result;
  }

 private:
  hn::Vec<D> sum0_, sum1_, sum2_, sum3_;
};

uint64_t ReadAll(const void* data, size_t bytes) {
  Sums sums;
  sums.Add(static_cast<const char*>(data), bytes, kAhead);
  return sums.Total();
}

uint64_t ReadRows(const void* data, const int64_t* offsets, size_t num_rows, size_t row_bytes) {
  const char* const base = static_cast<const char*>(data);
  const bool into_l2 = PrefetchesIntoL2();  // as the kernels, or they would be faster
  Sums sums;
  for (size_t i = 0; i < num_rows; ++i) {
    const char* const next = base + offsets[i + kRowsAhead < num_rows ? i + kRowsAhead : i];
    for (size_t line = 0; line < row_bytes; line += kLine) {
      if (into_l2) {
        __builtin_prefetch(next + line, 0, 2);
      } else {
        __builtin_prefetch(next + line);
      }
    }
    sums.Add(base + offsets[i], row_bytes, 0);
  }
  return sums.Total();
}

}  // namespace HWY_NAMESPACE
}  // namespace semkv
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace semkv {

HWY_EXPORT(ReadAll);
HWY_EXPORT(ReadRows);

uint64_t PlainReadRows(const void* data, const int64_t* offsets, size_t num_rows,
                       size_t row_bytes) {
  return HWY_DYNAMIC_DISPATCH(ReadRows)(data, offsets, num_rows, row_bytes);
}

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
