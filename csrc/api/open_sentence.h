// The queries of the sentence that a sequence is writing: their running mean ranks sentences
// (policy.mean_query) and their number decides SentenceKV's warm-up steps (policy.warm_up).
//
// A sentence begins with the first step after its predecessor is known to have closed. Whether a
// token closes is often known only when the next one comes; that is in time, because the next one's
// step is the first to ask. The closing token's query belongs to the sentence that it closes.
//
// Thread safety: thread-compatible.

#ifndef SEMKV_API_OPEN_SENTENCE_H_
#define SEMKV_API_OPEN_SENTENCE_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "semkv/types.h"

namespace semkv {

class OpenSentence {
 public:
  // Begins at position `first` without queries. `row_floats`: num_heads * head_dim; 0 keeps no
  // sums.
  void Start(int32_t num_layers, int64_t row_floats, int32_t first);

  // The step of token num_tokens - 1 begins; `closes` are the flags of the tokens whose fate is
  // known. May be called more than once per step. Allocates nothing.
  void Advance(absl::Span<const uint8_t> closes, int32_t num_tokens);

  // Queries of the sentence, that of token num_tokens - 1 included.
  int32_t NumQueries(int32_t num_tokens) const { return num_tokens - first_; }

  // mean = mean of the sentence's queries that were added at `layer`, [num_heads, head_dim], after
  // adding `q` of token num_tokens - 1; once per step, however often it is called.
  struct Query {
    const void* q = nullptr;
    DType dtype = DType::kFloat32;
    int64_t head_stride = 0;
    int32_t num_heads = 0;
    int32_t head_dim = 0;
  };
  void AddAndMean(int32_t layer, int32_t num_tokens, const Query& query, float* mean);

 private:
  struct Layer {
    int32_t num_added = 0;
    int32_t last_tokens = 0;  // num_tokens of the last query added
  };

  int32_t first_ = 0;        // position of the first query
  int32_t num_scanned_ = 0;  // tokens whose flag was read
  std::vector<Layer> layers_;
  std::vector<float> sums_;  // [num_layers, num_heads, head_dim]
};

}  // namespace semkv

#endif  // SEMKV_API_OPEN_SENTENCE_H_
