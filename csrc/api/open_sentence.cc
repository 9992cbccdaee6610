#include "csrc/api/open_sentence.h"

#include <algorithm>

#include "csrc/ops/numeric/float_convert.h"

namespace semkv {

void OpenSentence::Start(int32_t num_layers, int64_t row_floats, int32_t first) {
  first_ = num_scanned_ = first;
  layers_.assign(num_layers, Layer());
  sums_.assign(num_layers * row_floats, 0.0f);
}

void OpenSentence::Advance(absl::Span<const uint8_t> closes, int32_t num_tokens) {
  // The newest token closes its sentence after its own step.
  const int32_t end = std::min(static_cast<int32_t>(closes.size()), num_tokens - 1);
  bool closed = false;
  for (; num_scanned_ < end; ++num_scanned_) closed |= closes[num_scanned_] != 0;
  if (!closed) return;
  first_ = num_tokens - 1;
  std::fill(layers_.begin(), layers_.end(), Layer());
  std::fill(sums_.begin(), sums_.end(), 0.0f);
}

void OpenSentence::AddAndMean(int32_t layer, int32_t num_tokens, const Query& query, float* mean) {
  Layer& state = layers_[layer];
  const int64_t row_floats = int64_t{query.num_heads} * query.head_dim;
  float* const sum = &sums_[layer * row_floats];
  const bool adds = state.last_tokens != num_tokens;
  if (adds) {
    state.last_tokens = num_tokens;
    ++state.num_added;
  }
  const float share = 1.0f / static_cast<float>(state.num_added);
  for (int32_t h = 0; h < query.num_heads; ++h) {
    for (int32_t c = 0; c < query.head_dim; ++c) {
      const int64_t at = int64_t{h} * query.head_dim + c;
      if (adds) sum[at] += LoadAsFloat(query.q, query.dtype, h * query.head_stride + c);
      mean[at] = sum[at] * share;
    }
  }
}

}  // namespace semkv
