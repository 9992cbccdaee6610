#include "csrc/ops/retrieval/keep_tokens.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "csrc/ops/numeric/float_convert.h"

namespace semkv {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

struct Head {
  std::vector<std::vector<double>> keys;  // [num_tokens, head_dim]
  std::vector<bool> finite;               // [num_tokens]
};

Head LoadHead(const KeepTokensParams& p, int32_t kv_head) {
  Head head;
  head.keys.resize(p.num_tokens, std::vector<double>(p.head_dim));
  head.finite.resize(p.num_tokens, true);
  const int32_t page_tokens = p.position.page_tokens;
  for (int32_t t = 0; t < p.num_tokens; ++t) {
    const int32_t slot = p.block_table[t / page_tokens] * page_tokens + t % page_tokens;
    for (int32_t c = 0; c < p.head_dim; ++c) {
      const int64_t at = KeyOffset(p.position, slot, kv_head) + c;
      head.keys[t][c] = LoadAsFloat(p.position.k, p.position.dtype, at);
      if (!std::isfinite(head.keys[t][c])) head.finite[t] = false;
    }
  }
  return head;
}

// Adds the attention of window query `j` of head `h` to alpha, [num_tokens].
void AddQuery(const KeepTokensParams& p, const Head& head, int32_t h, int32_t j,
              std::vector<double>* alpha) {
  const int32_t last = p.num_tokens - p.num_window + j;
  std::vector<double> logits(last + 1, kNever);
  for (int32_t t = 0; t <= last; ++t) {
    if (!head.finite[t]) continue;
    double dot = 0;
    for (int32_t c = 0; c < p.head_dim; ++c) {
      dot += p.q[(int64_t{j} * p.num_heads + h) * p.head_dim + c] * head.keys[t][c];
    }
    if (std::isfinite(static_cast<float>(dot))) logits[t] = dot * p.scale;
  }
  const double greatest = *std::max_element(logits.begin(), logits.end());
  if (greatest == kNever) return;
  double sum = 0;
  for (double logit : logits) sum += std::exp(logit - greatest);
  for (int32_t t = 0; t <= last; ++t) (*alpha)[t] += std::exp(logits[t] - greatest) / sum;
}

}  // namespace

void KeepTokensReference(const KeepTokensParams& p) {
  const int32_t scored = p.num_tokens - p.num_window;
  for (int32_t h = 0; h < p.num_heads; ++h) {
    const Head head = LoadHead(p, h / (p.num_heads / p.num_kv_heads));
    std::vector<double> alpha(p.num_tokens);
    for (int32_t j = 0; j < p.num_window; ++j) AddQuery(p, head, h, j, &alpha);
    std::vector<double> pooled(scored, -1.0);
    for (int32_t i = 0; i < scored; ++i) {
      if (p.alpha != nullptr) p.alpha[int64_t{h} * scored + i] = static_cast<float>(alpha[i]);
      if (!head.finite[i]) continue;
      const int32_t first = std::max(0, i - p.pool_width / 2);
      const int32_t end = std::min(scored, i + p.pool_width / 2 + 1);
      pooled[i] = *std::max_element(alpha.begin() + first, alpha.begin() + end);
    }
    std::vector<int32_t> order(scored);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return pooled[a] > pooled[b]; });
    order.resize(p.num_kept - p.num_window);
    for (int32_t t = scored; t < p.num_tokens; ++t) order.push_back(t);
    std::sort(order.begin(), order.end());
    std::copy(order.begin(), order.end(), p.kept + int64_t{h} * p.num_kept);
  }
}

}  // namespace semkv
