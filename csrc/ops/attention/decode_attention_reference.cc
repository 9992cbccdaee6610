#include "csrc/ops/attention/decode_attention.h"

#include <cmath>
#include <cstdint>
#include <limits>

#include "csrc/ops/numeric/float_convert.h"

namespace semkv {
namespace {

constexpr double kLowest = -std::numeric_limits<double>::infinity();
constexpr int32_t kMaxHeadDim = 256;

// What one query head has seen: the greatest score, the sum of exp(score - max), and the sum of
// exp(score - max) * value.
struct State {
  double max = kLowest;
  double sum = 0.0;
  double out[kMaxHeadDim] = {};
};

template <typename Value>
void Add(double score, int32_t head_dim, const Value& value, State& state) {
  if (score == kLowest) return;
  if (score > state.max) {
    const double rescale = std::exp(state.max - score);
    state.sum *= rescale;
    for (int32_t c = 0; c < head_dim; ++c) state.out[c] *= rescale;
    state.max = score;
  }
  const double weight = std::exp(score - state.max);
  state.sum += weight;
  for (int32_t c = 0; c < head_dim; ++c) state.out[c] += weight * value(c);
}

void AddToken(const DecodeAttentionParams& p, const KvView& view, int32_t slot, int32_t r,
              int32_t h, State& state) {
  const int32_t g = h / (p.num_heads / p.num_kv_heads);
  const int64_t q = r * p.q_row + h * p.q_head;
  const int64_t k = KeyOffset(view, slot, g);
  const int64_t v = ValueOffset(view, slot, g);
  double score = 0.0;
  for (int32_t c = 0; c < p.head_dim; ++c) {
    score += static_cast<double>(LoadAsFloat(p.q, p.q_dtype, q + c)) *
             LoadAsFloat(view.k, view.dtype, k + c);
  }
  score *= double{p.scale} * view.k_scale;
  if (p.logit_cap != 0.0f) score = p.logit_cap * std::tanh(score / p.logit_cap);
  Add(
      score, p.head_dim,
      [&](int32_t c) { return double{view.v_scale} * LoadAsFloat(view.v, view.dtype, v + c); },
      state);
}

void AddSlots(const DecodeAttentionParams& p, const KvView& view, const SlotLists& lists, int32_t r,
              int32_t h, State& state) {
  if (lists.slots == nullptr) return;
  const int32_t s = h / (p.num_heads / p.num_selections);
  const int32_t* slots = lists.slots + r * lists.row_stride + s * lists.selection_stride;
  const int32_t count = lists.counts[static_cast<int64_t>(r) * p.num_selections + s];
  for (int32_t i = 0; i < count; ++i) AddToken(p, view, slots[i], r, h, state);
}

void AddBlocks(const DecodeAttentionParams& p, int32_t r, int32_t h, State& state) {
  const int32_t* blocks = p.block_table + r * p.block_table_stride;
  for (int32_t t = 0; t < p.row_tokens[r]; ++t) {
    const int32_t page_tokens = p.position.page_tokens;
    const int32_t slot = blocks[t / page_tokens] * page_tokens + t % page_tokens;
    AddToken(p, p.position, slot, r, h, state);
  }
}

void AddRest(const DecodeAttentionParams& p, int32_t r, int32_t h, State& state) {
  if (p.rest_lse == nullptr) return;
  const int64_t head = static_cast<int64_t>(r) * p.num_heads + h;
  const float* rest = p.rest_out + head * p.head_dim;
  Add(
      p.rest_lse[head], p.head_dim, [&](int32_t c) { return rest[c]; }, state);
}

}  // namespace

void DecodeAttentionReference(const DecodeAttentionParams& p) {
  for (int32_t r = 0; r < p.num_rows; ++r) {
    const bool is_dense = p.row_tokens != nullptr && p.row_tokens[r] >= 0;
    for (int32_t h = 0; h < p.num_heads; ++h) {
      State state;
      if (is_dense) {
        AddBlocks(p, r, h, state);
      } else {
        AddSlots(p, p.position, p.position_slots, r, h, state);
        AddSlots(p, p.list, p.list_slots, r, h, state);
        AddRest(p, r, h, state);
      }
      const double inverse = state.sum == 0.0 ? 0.0 : 1.0 / state.sum;
      for (int32_t c = 0; c < p.head_dim; ++c) {
        StoreFromFloat(p.out, p.q_dtype, r * p.out_row + h * p.out_head + c,
                       static_cast<float>(state.out[c] * inverse));
      }
      if (p.lse != nullptr) {
        p.lse[static_cast<int64_t>(r) * p.num_heads + h] =
            static_cast<float>(state.max + std::log(state.sum));
      }
    }
  }
}

}  // namespace semkv
