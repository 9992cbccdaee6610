// Merges results of attention over disjoint sets of tokens into that over all of them:
//
//   lse[r, h] = log(sum over i of exp(lse[i, r, h]))                       (natural logarithm)
//   o[r, h]   = sum over i of exp(lse[i, r, h] - lse[r, h]) * o[i, r, h]
//
// A *state* is what attention over some tokens leaves: o, normalised, and lse. States are added in
// their order, so that equal states give equal bits. A state with lse -inf has seen nothing: its o
// is not used, whatever it is. If no state has seen anything, out is 0 and lse -inf.
//
// NaN and infinities as in IEEE arithmetic: an lse of NaN or +inf makes out and lse of that head
// NaN; a NaN in o makes its channel NaN. Weights are float32: one below 2^-126 is 0, and then an
// infinite o becomes NaN.
//
// Source: Dao et al., "FlashDecoding"; Ye et al., "FlashInfer", MLSys 2025, section 2.2 (the
// attention state and its merge operator).

#ifndef SEMKV_OPS_ATTENTION_MERGE_STATES_H_
#define SEMKV_OPS_ATTENTION_MERGE_STATES_H_

#include <cstdint>

#include "semkv/types.h"

namespace semkv {

class ThreadPool;

struct MergeStatesParams {
  const void* o = nullptr;     // [num_states, num_rows, num_heads, head_dim], dtype
  const float* lse = nullptr;  // [num_states, num_rows, num_heads]
  void* out = nullptr;         // [num_rows, num_heads, head_dim], out_dtype; channels contiguous;
                               // overlaps nothing
  float* out_lse = nullptr;    // [num_rows, num_heads]; may be null
  DType dtype = DType::kFloat32;  // float32 or out_dtype
  DType out_dtype = DType::kFloat32;
  int64_t out_row = 0, out_head = 0;  // strides in elements
  int32_t num_states = 0;
  int32_t num_rows = 0;
  int32_t num_heads = 0;
  int32_t head_dim = 0;
};

// SIMD with run-time dispatch (Highway), rows and heads on the threads of `pool`. Allocates
// nothing. Any dtype of o.
void MergeStatesHost(const MergeStatesParams& params, ThreadPool& pool);

// The same in plain loops and float64: the specification.
void MergeStatesReference(const MergeStatesParams& params);

// Null when the CUDA form takes `params`, else the reason, naming the value: o is float32 or of
// out's dtype, head_dim a multiple of 8, o and the rows of out are at multiples of 16 bytes.
const char* MergeStatesCudaUnsupported(const MergeStatesParams& params);

}  // namespace semkv

#endif  // SEMKV_OPS_ATTENTION_MERGE_STATES_H_
