#include <algorithm>
#include <cmath>

#include "csrc/ops/cache/list_means.h"
#include "csrc/ops/retrieval/inverted_lists.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "csrc/ops/cache/list_codes_host.cc"
#include <hwy/foreach_target.h>

#include "csrc/ops/numeric/float_convert-inl.h"

HWY_BEFORE_NAMESPACE();
namespace semkv {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

template <class D>
HWY_INLINE hn::Vec<D> LoadCentered(D d, const float* mean, const float* center, int32_t c) {
  const auto x = hn::LoadU(d, mean + c);
  return center != nullptr ? hn::Sub(x, hn::LoadU(d, center + c)) : x;
}

// Calls f(d, channel) for vectors, then for single channels.
template <class F>
HWY_INLINE void ForEachVector(int32_t head_dim, const F& f) {
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> d1;
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(d));
  int32_t c = 0;
  for (; c + lanes <= head_dim; c += lanes) f(d, c);
  for (; c < head_dim; ++c) f(d1, c);
}

float GreatestMagnitude(const float* mean, const float* center, int32_t head_dim) {
  float greatest = 0.0f;
  ForEachVector(head_dim, [&](auto d, int32_t c) HWY_ATTR {
    const auto x = hn::Abs(LoadCentered(d, mean, center, c));
    greatest = std::max(greatest, hn::GetLane(hn::MaxOfLanes(d, x)));
  });
  return greatest;
}

void EncodeList(const float* mean, const float* center, int32_t head_dim, float greatest_code,
                int8_t* codes, float* scale) {
  // Below this a scale loses bits to underflow; a vector so short is as good as zero.
  constexpr float kLeastMagnitude = 1e-30f;
  const float greatest = GreatestMagnitude(mean, center, head_dim);
  if (greatest < kLeastMagnitude) {
    *scale = 0.0f;
    std::fill_n(codes, head_dim, int8_t{0});
    return;
  }
  *scale = greatest / greatest_code;
  const float step = *scale;
  ForEachVector(head_dim, [&](auto d, int32_t c) HWY_ATTR {
    const hn::Rebind<int8_t, decltype(d)> d8;
    const auto x = hn::Div(LoadCentered(d, mean, center, c), hn::Set(d, step));
    hn::StoreU(hn::DemoteTo(d8, hn::NearestInt(x)), d8, codes + c);
  });
}

void EncodeBFloat16List(const float* mean, const float* center, int32_t head_dim, uint16_t* codes) {
  ForEachVector(head_dim, [&](auto d, int32_t c) HWY_ATTR {
    Element<DType::kBFloat16>::Store(d, LoadCentered(d, mean, center, c), codes + c);
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace semkv
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace semkv {
namespace {

HWY_EXPORT(EncodeList);
HWY_EXPORT(EncodeBFloat16List);

}  // namespace

void EncodeInt8(const float* means, const float* center, int32_t nlist, int32_t head_dim,
                int8_t* codes, float* scales) {
  for (int32_t i = 0; i < nlist; ++i) {
    const int64_t row = int64_t{i} * head_dim;
    HWY_DYNAMIC_DISPATCH(EncodeList)
    (means + row, center, head_dim, GreatestCode(CentroidForm::kInt8), codes + row, scales + i);
  }
}

constexpr int32_t kMaxHeadDim = 256;

void EncodeInt4(const float* means, const float* center, int32_t nlist, int32_t head_dim,
                uint8_t* codes, float* scales) {
  const int64_t row_bytes = CentroidRowBytes(CentroidForm::kInt4, head_dim);
  int8_t code[kMaxHeadDim] = {};  // 0 behind head_dim
  for (int32_t i = 0; i < nlist; ++i) {
    HWY_DYNAMIC_DISPATCH(EncodeList)
    (means + int64_t{i} * head_dim, center, head_dim, GreatestCode(CentroidForm::kInt4), code,
     scales + i);
    uint8_t* const to = codes + i * row_bytes;
    for (int32_t c = 0; c < head_dim; c += kInt4Block) {
      for (int32_t j = c; j < c + kInt4Block / 2; ++j) {
        to[Int4Byte(j)] = static_cast<uint8_t>((code[j] & 15) | code[j + kInt4Block / 2] << 4);
      }
    }
  }
}

void EncodeBFloat16(const float* means, const float* center, int32_t nlist, int32_t head_dim,
                    uint16_t* codes) {
  for (int32_t i = 0; i < nlist; ++i) {
    const int64_t row = int64_t{i} * head_dim;
    HWY_DYNAMIC_DISPATCH(EncodeBFloat16List)(means + row, center, head_dim, codes + row);
  }
}

}  // namespace semkv

#endif  // HWY_ONCE
