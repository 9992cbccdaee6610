#include "csrc/ops/attention/merge_states.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "csrc/ops/numeric/float_convert.h"

namespace semkv {
namespace {

constexpr double kLowest = -std::numeric_limits<double>::infinity();

void MergeHead(const MergeStatesParams& p, int32_t r, int32_t h) {
  const int64_t heads = int64_t{p.num_rows} * p.num_heads;
  const int64_t row_head = int64_t{r} * p.num_heads + h;
  const auto lse_of = [&](int32_t i) -> double { return p.lse[i * heads + row_head]; };
  double max = kLowest;
  for (int32_t i = 0; i < p.num_states; ++i) max = std::fmax(max, lse_of(i));
  const double base = max == kLowest ? 0.0 : max;
  double sum = 0.0;
  for (int32_t i = 0; i < p.num_states; ++i) sum += std::exp(lse_of(i) - base);
  for (int32_t c = 0; c < p.head_dim; ++c) {
    double out = 0.0;
    for (int32_t i = 0; i < p.num_states; ++i) {
      if (lse_of(i) == kLowest) continue;
      const int64_t channel = (i * heads + row_head) * p.head_dim + c;
      out += std::exp(lse_of(i) - base) * LoadAsFloat(p.o, p.dtype, channel);
    }
    StoreFromFloat(p.out, p.out_dtype, r * p.out_row + h * p.out_head + c,
                   static_cast<float>(sum == 0.0 ? 0.0 : out / sum));
  }
  if (p.out_lse != nullptr) p.out_lse[row_head] = static_cast<float>(max + std::log(sum));
}

}  // namespace

void MergeStatesReference(const MergeStatesParams& params) {
  for (int32_t r = 0; r < params.num_rows; ++r) {
    for (int32_t h = 0; h < params.num_heads; ++h) MergeHead(params, r, h);
  }
}

}  // namespace semkv
