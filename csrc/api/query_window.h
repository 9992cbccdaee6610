// The last queries of a sequence, per layer and query head, remembered while attention runs: the
// observation window of SentenceKV's keep set (kept_prompt.h).
//
// Thread safety: thread-compatible.

#ifndef SEMKV_API_QUERY_WINDOW_H_
#define SEMKV_API_QUERY_WINDOW_H_

#include <cstdint>
#include <vector>

#include "semkv/types.h"

namespace semkv {

class QueryWindow {
 public:
  // Room for the last `capacity` queries; 0: none are remembered.
  QueryWindow(int32_t capacity, int32_t num_layers, int32_t num_heads, int32_t head_dim);

  // Queries of `num_tokens` tokens from `position` on, [num_tokens, num_heads, head_dim].
  struct Queries {
    const void* q = nullptr;
    DType dtype = DType::kFloat32;
    int64_t q_token = 0, q_head = 0;  // strides in elements
    int32_t position = 0;
    int32_t num_tokens = 0;
    float scale = 0.0f;  // of the attention they are for; folded into what is remembered
  };
  // A gap before them forgets what came earlier; the same tokens again replace what is remembered.
  // Allocates nothing.
  void Record(int32_t layer, const Queries& queries);

  int32_t capacity() const { return capacity_; }
  // How many consecutive tokens that end just before `end` are remembered at `layer`.
  int32_t NumKnown(int32_t layer, int32_t end) const {
    return capacity_ > 0 && layers_[layer].end == end ? layers_[layer].count : 0;
  }
  // The scaled queries of the last `count` <= NumKnown tokens, [count, num_heads, head_dim], oldest
  // first.
  void Read(int32_t layer, int32_t count, float* out) const;

 private:
  struct Layer {
    int32_t end = 0;    // one past the last token
    int32_t count = 0;  // at most capacity_
  };
  float* Row(int32_t layer, int32_t position);

  int32_t capacity_;
  int32_t num_heads_;
  int32_t head_dim_;
  std::vector<Layer> layers_;
  std::vector<float>
      rows_;  // [num_layers, capacity, num_heads, head_dim]; token t is at t % capacity
};

}  // namespace semkv

#endif  // SEMKV_API_QUERY_WINDOW_H_
