#include "csrc/api/query_window.h"

#include <algorithm>

#include "csrc/ops/numeric/float_convert.h"

namespace semkv {

QueryWindow::QueryWindow(int32_t capacity, int32_t num_layers, int32_t num_heads, int32_t head_dim)
    : capacity_(capacity), num_heads_(num_heads), head_dim_(head_dim) {
  if (capacity == 0) return;
  layers_.resize(num_layers);
  rows_.resize(int64_t{num_layers} * capacity * num_heads * head_dim);
}

float* QueryWindow::Row(int32_t layer, int32_t position) {
  const int64_t row = int64_t{layer} * capacity_ + position % capacity_;
  return &rows_[row * num_heads_ * head_dim_];
}

void QueryWindow::Record(int32_t layer, const Queries& queries) {
  if (capacity_ == 0) return;
  Layer& state = layers_[layer];
  const int32_t end = queries.position + queries.num_tokens;
  const int32_t begin = state.end - state.count;
  const bool joins = queries.position >= begin && queries.position <= state.end;
  state.count = std::min(capacity_, joins ? end - begin : queries.num_tokens);
  state.end = end;
  for (int32_t i = std::max(0, queries.num_tokens - capacity_); i < queries.num_tokens; ++i) {
    float* out = Row(layer, queries.position + i);
    for (int32_t h = 0; h < num_heads_; ++h) {
      const int64_t from = i * queries.q_token + h * queries.q_head;
      for (int32_t c = 0; c < head_dim_; ++c) {
        *out++ = LoadAsFloat(queries.q, queries.dtype, from + c) * queries.scale;
      }
    }
  }
}

void QueryWindow::Read(int32_t layer, int32_t count, float* out) const {
  const int64_t row_floats = int64_t{num_heads_} * head_dim_;
  for (int32_t i = 0; i < count; ++i) {
    const int32_t position = layers_[layer].end - count + i;
    const int64_t row = int64_t{layer} * capacity_ + position % capacity_;
    std::copy_n(&rows_[row * row_floats], row_floats, out + i * row_floats);
  }
}

}  // namespace semkv
