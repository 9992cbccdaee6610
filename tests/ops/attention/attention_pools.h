// Pools, guarded outputs and SIMD targets for tests of attention.

#ifndef SEMKV_TESTS_OPS_ATTENTION_ATTENTION_POOLS_H_
#define SEMKV_TESTS_OPS_ATTENTION_ATTENTION_POOLS_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "csrc/ops/attention/decode_attention_bf16.h"
#include "csrc/ops/numeric/float_convert.h"
#include "hwy/highway.h"
#include "hwy/targets.h"
#include "semkv/types.h"

namespace semkv::testing {

enum class PoolLayout {
  kRowPairs,    // [page][kv_head][token][2][d]: semkv's own
  kTokenMajor,  // K and V apart, [page][token][kv_head][d]
  kHeadMajor,   // K and V apart, [page][kv_head][token][d], odd gaps between rows
};
constexpr PoolLayout kPoolLayouts[] = {PoolLayout::kRowPairs, PoolLayout::kTokenMajor,
                                       PoolLayout::kHeadMajor};

// Storage of one pool. Slots that were never written hold NaN, so a read of one shows. A pool of
// e4m3 has scales that are no powers of two, with which normally distributed numbers do not
// saturate.
class TestPool {
 public:
  TestPool(PoolLayout layout, DType dtype, int32_t num_pages, int32_t page_tokens,
           int32_t num_kv_heads, int32_t head_dim)
      : head_dim_(head_dim) {
    const int64_t d = head_dim, p = page_tokens, g = num_kv_heads;
    switch (layout) {
      case PoolLayout::kRowPairs:
        SetStrides(g * p * 2 * d, p * 2 * d, 2 * d);
        break;
      case PoolLayout::kTokenMajor:
        SetStrides(p * g * d, d, g * d);
        break;
      case PoolLayout::kHeadMajor:
        SetStrides(g * (p * (d + 3) + 5), p * (d + 3) + 5, d + 3);
        break;
    }
    const int64_t elements = num_pages * view_.k_page * (layout == PoolLayout::kRowPairs ? 1 : 2);
    storage_.assign(elements * DTypeBytes(dtype), 0xff);
    const int64_t v = layout == PoolLayout::kRowPairs ? d : num_pages * view_.k_page;
    view_.k = storage_.data();
    view_.v = storage_.data() + v * DTypeBytes(dtype);
    view_.page_tokens = page_tokens;
    view_.num_pages = num_pages;
    view_.dtype = dtype;
    if (dtype != DType::kFloat8E4M3) return;
    view_.k_scale = 0.0137f;
    view_.v_scale = 2.3f;
  }

  const KvView& view() const { return view_; }
  const std::vector<uint8_t>& storage() const { return storage_; }

  void Write(int32_t slot, int32_t head, const float* k, const float* v) {
    for (int32_t c = 0; c < head_dim_; ++c) {
      StoreFromFloat(view_.k, view_.dtype, KeyOffset(view_, slot, head) + c, k[c] / view_.k_scale);
      StoreFromFloat(view_.v, view_.dtype, ValueOffset(view_, slot, head) + c,
                     v[c] / view_.v_scale);
    }
  }

 private:
  void SetStrides(int64_t page, int64_t head, int64_t token) {
    view_.k_page = view_.v_page = page;
    view_.k_head = view_.v_head = head;
    view_.k_token = view_.v_token = token;
  }

  int32_t head_dim_;
  KvView view_;
  std::vector<uint8_t> storage_;
};

// Bytes between guards that must survive.
class GuardedBytes {
 public:
  explicit GuardedBytes(size_t size) : size_(size), bytes_(size + 2 * kGuard, kPattern) {}
  void* data() { return bytes_.data() + kGuard; }
  size_t size() const { return size_; }
  bool GuardsIntact() const {
    const auto is_pattern = [](uint8_t x) { return x == kPattern; };
    return std::all_of(bytes_.begin(), bytes_.begin() + kGuard, is_pattern) &&
           std::all_of(bytes_.end() - kGuard, bytes_.end(), is_pattern);
  }

 private:
  static constexpr size_t kGuard = 256;
  static constexpr uint8_t kPattern = 0xa5;
  size_t size_;
  std::vector<uint8_t> bytes_;
};

// Workspace: 64-byte aligned, with guards behind it.
class AlignedBytes {
 public:
  explicit AlignedBytes(size_t size) : size_(size), bytes_(size + kAlignment + kGuard, kPattern) {}
  void* data() {
    const uintptr_t address = reinterpret_cast<uintptr_t>(bytes_.data());
    return bytes_.data() + (kAlignment - address % kAlignment) % kAlignment;
  }
  size_t size() const { return size_; }
  bool GuardIntact() {
    const uint8_t* guard = static_cast<uint8_t*>(data()) + size_;
    return std::all_of(guard, guard + kGuard, [](uint8_t x) { return x == kPattern; });
  }

 private:
  static constexpr size_t kAlignment = 64;
  static constexpr size_t kGuard = 64;
  static constexpr uint8_t kPattern = 0xcd;
  size_t size_;
  std::vector<uint8_t> bytes_;
};

// Calls f() under every SIMD target of decode_attention_piece.cc that this processor has.
template <typename F>
void ForEachTarget(const F& f) {
  hwy::SetSupportedTargetsForTest(0);
  const int64_t supported = hwy::SupportedTargets();
  for (int64_t target : {HWY_EMU128, HWY_AVX2, HWY_AVX3}) {
    if (target != HWY_EMU128 && (supported & target) == 0) continue;
    SCOPED_TRACE(std::string("target ") + hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(target);
    f();
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

// The same for decode attention, and once more with bf16 dot products where there are some.
template <typename F>
void ForEachDecodeTarget(const F& f) {
  SetBf16DotForTest(Bf16Dot::kNever);
  ForEachTarget(f);
  SetBf16DotForTest(Bf16Dot::kWhereAvailable);
  if (UsesBf16Dot()) {
    SCOPED_TRACE("with bf16 dot products");
    f();
  }
  SetBf16DotForTest(Bf16Dot::kWhereFaster);
}

// NaN and infinity in the same places, everything else within `tolerance` of max(1, |expected|);
// reports the worst position.
inline ::testing::AssertionResult AllNear(const std::vector<float>& actual,
                                          const std::vector<float>& expected, float tolerance) {
  if (actual.size() != expected.size()) return ::testing::AssertionFailure() << "sizes differ";
  float worst = 0.0f;
  size_t at = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    if (std::isfinite(actual[i]) != std::isfinite(expected[i]) ||
        std::isnan(actual[i]) != std::isnan(expected[i])) {
      return ::testing::AssertionFailure()
             << "at " << i << ": " << actual[i] << ", expected " << expected[i];
    }
    if (!std::isfinite(expected[i])) continue;
    const float error = std::abs(actual[i] - expected[i]) / std::max(1.0f, std::abs(expected[i]));
    if (error > worst) worst = error, at = i;
  }
  if (worst <= tolerance) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "error " << worst << " at " << at << ": " << actual[at]
                                       << ", expected " << expected[at];
}

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_OPS_ATTENTION_ATTENTION_POOLS_H_
