#include "csrc/ops/attention/prefill_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "csrc/ops/numeric/float_convert.h"

namespace semkv {
namespace {

int32_t SlotOf(const PrefillAttentionParams& p, int32_t r, int32_t position) {
  const int32_t page = p.block_table[r * p.block_table_stride + position / p.position.page_tokens];
  return page * p.position.page_tokens + position % p.position.page_tokens;
}

// Query `token` of q, which sees the first `num_tokens` tokens of row r.
void AttendQuery(const PrefillAttentionParams& p, int32_t r, int32_t h, int32_t token,
                 int32_t num_tokens) {
  const int32_t g = h / (p.num_heads / p.num_kv_heads);
  const int64_t q = token * p.q_token + h * p.q_head;
  std::vector<double> s(num_tokens);
  double greatest = -std::numeric_limits<double>::infinity();
  for (int32_t t = 0; t < num_tokens; ++t) {
    const int64_t k = KeyOffset(p.position, SlotOf(p, r, t), g);
    for (int32_t d = 0; d < p.head_dim; ++d) {
      s[t] += static_cast<double>(LoadAsFloat(p.q, p.q_dtype, q + d)) *
              LoadAsFloat(p.position.k, p.position.dtype, k + d);
    }
    s[t] *= p.scale;
    if (p.logit_cap != 0.0f) s[t] = p.logit_cap * std::tanh(s[t] / p.logit_cap);
    greatest = std::max(greatest, s[t]);
  }
  double sum = 0.0;
  std::vector<double> o(p.head_dim);
  for (int32_t t = 0; t < num_tokens; ++t) {
    const double weight = std::exp(s[t] - greatest);
    const int64_t v = ValueOffset(p.position, SlotOf(p, r, t), g);
    sum += weight;
    for (int32_t d = 0; d < p.head_dim; ++d) {
      o[d] += weight * LoadAsFloat(p.position.v, p.position.dtype, v + d);
    }
  }
  const int64_t out = token * p.out_token + h * p.out_head;
  for (int32_t d = 0; d < p.head_dim; ++d) {
    StoreFromFloat(p.out, p.q_dtype, out + d, static_cast<float>(o[d] / sum));
  }
  if (p.lse != nullptr) {
    p.lse[int64_t{token} * p.num_heads + h] = static_cast<float>(greatest + std::log(sum));
  }
}

}  // namespace

void PrefillAttentionReference(const PrefillAttentionParams& params) {
  for (int32_t r = 0; r < params.num_rows; ++r) {
    const int32_t begin = params.query_start[r], end = params.query_start[r + 1];
    for (int32_t token = begin; token < end; ++token) {
      for (int32_t h = 0; h < params.num_heads; ++h) {
        AttendQuery(params, r, h, token, params.row_tokens[r] - (end - token) + 1);
      }
    }
  }
}

}  // namespace semkv
