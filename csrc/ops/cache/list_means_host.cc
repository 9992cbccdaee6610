#include "csrc/ops/cache/list_means.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "csrc/ops/numeric/float_convert.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "csrc/ops/cache/list_means_host.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace semkv {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// Members summed before they join the total: 32 rows of 128 channels stay in L1 while their slabs
// are walked, and short partial sums keep float32 exact enough for 65,535 members.
constexpr int kBlockMembers = 32;
constexpr int kSlabVectors = 4;

enum class Keep { kAll, kFinite };

struct Block {
  const float* rows[kBlockMembers];
  int num_rows = 0;
};

bool IsFinite(const float* row, int32_t head_dim) {
  const hn::ScalableTag<float> d;
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(d));
  int32_t c = 0;
  // x * 0 is NaN for NaN and infinity, and 0 otherwise; sums keep a NaN.
  auto zeros = hn::Zero(d);
  for (; c + lanes <= head_dim; c += lanes) {
    zeros = hn::MulAdd(hn::LoadU(d, row + c), hn::Zero(d), zeros);
  }
  bool finite = hn::AllTrue(d, hn::Eq(zeros, hn::Zero(d)));
  for (; c < head_dim; ++c) finite = finite && std::isfinite(row[c]);
  return finite;
}

Block TakeBlock(const ListMeansParams& params, int32_t begin, int32_t end, Keep keep) {
  Block block;
  for (int32_t m = begin; m < end; ++m) {
    const int64_t token = params.members != nullptr ? params.members[m] : m;
    const float* row = params.keys + token * params.head_dim;
    if (keep == Keep::kFinite && !IsFinite(row, params.head_dim)) continue;
    block.rows[block.num_rows++] = row;
  }
  return block;
}

// Calls f(d, integral constant of vectors, channel) for slabs that cover the channels: groups of
// vectors, then vectors, then single channels.
template <class F>
HWY_INLINE void ForEachSlab(int32_t head_dim, const F& f) {
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> d1;
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(d));
  int32_t c = 0;
  for (; c + kSlabVectors * lanes <= head_dim; c += kSlabVectors * lanes) {
    f(d, std::integral_constant<int, kSlabVectors>{}, c);
  }
  for (; c + lanes <= head_dim; c += lanes) f(d, std::integral_constant<int, 1>{}, c);
  for (; c < head_dim; ++c) f(d1, std::integral_constant<int, 1>{}, c);
}

template <int kVectors, class D>
HWY_INLINE void AddBlock(D d, const Block& block, int32_t c, float* total) {
  const int lanes = static_cast<int>(hn::Lanes(d));
  hn::Vec<D> sum[kVectors];
  for (int v = 0; v < kVectors; ++v) sum[v] = hn::Zero(d);
  for (int m = 0; m < block.num_rows; ++m) {
    const float* row = block.rows[m] + c;
    for (int v = 0; v < kVectors; ++v) sum[v] = hn::Add(sum[v], hn::LoadU(d, row + v * lanes));
  }
  for (int v = 0; v < kVectors; ++v) {
    float* p = total + c + v * lanes;
    hn::StoreU(hn::Add(hn::LoadU(d, p), sum[v]), d, p);
  }
}

template <int kVectors, class D>
HWY_INLINE float SquaredDistance(D d, const Block& block, int32_t c, const float* mean) {
  const int lanes = static_cast<int>(hn::Lanes(d));
  hn::Vec<D> center[kVectors], sum[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    center[v] = hn::LoadU(d, mean + c + v * lanes);
    sum[v] = hn::Zero(d);
  }
  for (int m = 0; m < block.num_rows; ++m) {
    const float* row = block.rows[m] + c;
    for (int v = 0; v < kVectors; ++v) {
      const auto x = hn::Sub(hn::LoadU(d, row + v * lanes), center[v]);
      sum[v] = hn::MulAdd(x, x, sum[v]);
    }
  }
  for (int v = 1; v < kVectors; ++v) sum[0] = hn::Add(sum[0], sum[v]);
  return hn::GetLane(hn::SumOfLanes(d, sum[0]));
}

// The sum of list i's members into `total`; returns how many there were.
int32_t SumList(const ListMeansParams& params, int32_t i, Keep keep, float* total) {
  std::fill_n(total, params.head_dim, 0.0f);
  int32_t count = 0;
  const int32_t end = params.offsets[i + 1];
  for (int32_t m = params.offsets[i]; m < end; m += kBlockMembers) {
    const Block block = TakeBlock(params, m, std::min(m + kBlockMembers, end), keep);
    count += block.num_rows;
    ForEachSlab(params.head_dim, [&](auto d, auto vectors, int32_t c) HWY_ATTR {
      AddBlock<decltype(vectors)::value>(d, block, c, total);
    });
  }
  return count;
}

float ListVariance(const ListMeansParams& params, int32_t i, Keep keep, const float* mean,
                   int32_t count) {
  double sum = 0.0;
  const int32_t end = params.offsets[i + 1];
  for (int32_t m = params.offsets[i]; m < end; m += kBlockMembers) {
    const Block block = TakeBlock(params, m, std::min(m + kBlockMembers, end), keep);
    ForEachSlab(params.head_dim, [&](auto d, auto vectors, int32_t c) HWY_ATTR {
      sum += SquaredDistance<decltype(vectors)::value>(d, block, c, mean);
    });
  }
  return count > 0 ? static_cast<float>(sum / count) : 0.0f;
}

void ListMeans(const ListMeansParams& params) {
  for (int32_t i = 0; i < params.nlist; ++i) {
    float* mean = params.means + int64_t{i} * params.head_dim;
    // A sum is finite only if every member is: the check costs one look at the sum, and only lists
    // that fail it look at their members one by one.
    Keep keep = Keep::kAll;
    int32_t count = SumList(params, i, keep, mean);
    if (!IsFinite(mean, params.head_dim)) {
      keep = Keep::kFinite;
      count = SumList(params, i, keep, mean);
    }
    if (count > 0) {
      for (int32_t c = 0; c < params.head_dim; ++c) mean[c] /= static_cast<float>(count);
    }
    if (params.variances != nullptr) {
      params.variances[i] = ListVariance(params, i, keep, mean, count);
    }
  }
}

// Widens [least, greatest] by the block's rows.
template <int kVectors, class D>
HWY_INLINE void WidenBounds(D d, const Block& block, int32_t c, float* least, float* greatest) {
  const int lanes = static_cast<int>(hn::Lanes(d));
  for (int v = 0; v < kVectors; ++v) {
    const int32_t at = c + v * lanes;
    auto low = hn::LoadU(d, least + at);
    auto high = hn::LoadU(d, greatest + at);
    for (int m = 0; m < block.num_rows; ++m) {
      const auto x = hn::LoadU(d, block.rows[m] + at);
      low = hn::Min(low, x);
      high = hn::Max(high, x);
    }
    hn::StoreU(low, d, least + at);
    hn::StoreU(high, d, greatest + at);
  }
}

void WidenList(const ListMeansParams& params, int32_t i, int32_t channel, int32_t num_channels,
               float* least, float* greatest) {
  const int32_t end = params.offsets[i + 1];
  for (int32_t m = params.offsets[i]; m < end; m += kBlockMembers) {
    Block block = TakeBlock(params, m, std::min(m + kBlockMembers, end), Keep::kFinite);
    for (int r = 0; r < block.num_rows; ++r) block.rows[r] += channel;
    ForEachSlab(num_channels, [&](auto d, auto vectors, int32_t c) HWY_ATTR {
      WidenBounds<decltype(vectors)::value>(d, block, c, least, greatest);
    });
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace semkv
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace semkv {
namespace {

HWY_EXPORT(ListMeans);
HWY_EXPORT(WidenList);

// Channels whose bounds are kept as float32 on the stack before they are rounded.
constexpr int32_t kBoundChannels = 256;

}  // namespace

void ListMeansHost(const ListMeansParams& params) { HWY_DYNAMIC_DISPATCH(ListMeans)(params); }

void ListBounds(const ListMeansParams& params, uint16_t* bounds) {
  float least[kBoundChannels], greatest[kBoundChannels];
  for (int32_t i = 0; i < params.nlist; ++i) {
    uint16_t* low = bounds + int64_t{i} * 2 * params.head_dim;
    uint16_t* high = low + params.head_dim;
    for (int32_t c = 0; c < params.head_dim; c += kBoundChannels) {
      const int32_t n = std::min(kBoundChannels, params.head_dim - c);
      std::fill_n(least, n, std::numeric_limits<float>::infinity());
      std::fill_n(greatest, n, -std::numeric_limits<float>::infinity());
      HWY_DYNAMIC_DISPATCH(WidenList)(params, i, c, n, least, greatest);
      for (int32_t j = 0; j < n; ++j) {
        if (least[j] > greatest[j]) least[j] = greatest[j] = 0.0f;  // a list without members
        low[c + j] = BFloat16Below(least[j]);
        high[c + j] = BFloat16Above(greatest[j]);
      }
    }
  }
}

}  // namespace semkv

#endif  // HWY_ONCE
