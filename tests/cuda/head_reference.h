// Attention of one query head over tokens that tests know, in float64.

#ifndef SEMKV_TESTS_CUDA_HEAD_REFERENCE_H_
#define SEMKV_TESTS_CUDA_HEAD_REFERENCE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "csrc/ops/numeric/float_convert.h"
#include "tests/cuda/device_context_shape.h"

namespace semkv::testing {

class HeadReference {
 public:
  // `tokens`: of each keys and values of every layer, [num_layers, 2, token_floats]. The query is
  // head h of row q_row of q, in the dtype of the shape's args.
  HeadReference(const DeviceContextShape& shape, const std::vector<std::vector<float>>& tokens,
                int32_t layer, int32_t h, const std::vector<uint8_t>& q, int64_t q_row)
      : tokens_(tokens), token_floats_(shape.token_floats()) {
    const int64_t d = shape.head_dim, kv_head = int64_t{h} * shape.num_kv_heads / shape.num_heads;
    first_ = layer * 2 * token_floats_ + kv_head * d;
    for (int64_t c = 0; c < d; ++c) {
      query_.push_back(LoadAsFloat(q.data(), static_cast<DType>(shape.args_dtype()),
                                   q_row * shape.query_floats() + h * d + c));
    }
  }

  std::vector<double> Scores(const std::vector<int32_t>& positions) const {
    std::vector<double> scores;
    for (int32_t position : positions) {
      const float* const key = tokens_[position].data() + first_;
      double dot = 0;
      for (size_t c = 0; c < query_.size(); ++c) dot += double{key[c]} * query_[c];
      scores.push_back(dot / std::sqrt(static_cast<double>(query_.size())));
    }
    return scores;
  }

  // Softmax attention over the given positions.
  std::vector<double> Attend(const std::vector<int32_t>& positions) const {
    const std::vector<double> scores = Scores(positions);
    const double max = scores.empty() ? 0 : *std::max_element(scores.begin(), scores.end());
    std::vector<double> out(query_.size());
    double sum = 0;
    for (size_t i = 0; i < positions.size(); ++i) {
      const double weight = std::exp(scores[i] - max);
      const float* const value = tokens_[positions[i]].data() + first_ + token_floats_;
      for (size_t c = 0; c < out.size(); ++c) out[c] += weight * value[c];
      sum += weight;
    }
    for (double& x : out) x /= sum > 0 ? sum : 1;
    return out;
  }

  // The share that `positions` have of the attention to `all`, every token in order.
  double Mass(const std::vector<int32_t>& all, const std::vector<int32_t>& positions) const {
    const std::vector<double> scores = Scores(all);
    double max = -INFINITY, sum = 0, taken = 0;
    for (double score : scores) max = std::isnan(score) ? max : std::max(max, score);
    const auto weight = [&](double score) { return std::isnan(score) ? 0 : std::exp(score - max); };
    for (double score : scores) sum += weight(score);
    for (int32_t position : positions) taken += weight(scores[position]);
    return taken / sum;
  }

 private:
  const std::vector<std::vector<float>>& tokens_;
  const int64_t token_floats_;
  int64_t first_ = 0;  // of the head's key in a token; its value is token_floats on
  std::vector<float> query_;
};

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_CUDA_HEAD_REFERENCE_H_
