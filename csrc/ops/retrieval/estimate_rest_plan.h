// What estimate_rest on the GPU needs beside the plan of score_lists, whose tiles are its own:
// room for one state of attention (merge_states.h) of every tile. Standard library only, C++17.

#ifndef SEMKV_OPS_RETRIEVAL_ESTIMATE_REST_PLAN_H_
#define SEMKV_OPS_RETRIEVAL_ESTIMATE_REST_PLAN_H_

#include <cstddef>
#include <cstdint>

#include "csrc/ops/retrieval/score_lists_plan.h"
#include "semkv/types.h"

namespace semkv {

struct EstimateStates {
  float* out = nullptr;  // [max_tiles, num_rows, num_heads, head_dim]
  float* lse = nullptr;  // [max_tiles, num_rows, num_heads]; -inf: nothing is estimated, no out
};

inline EstimateStates LayOutEstimateStates(const ScoreListsPlan& plan, void* memory) {
  const int64_t states = int64_t{plan.max_tiles} * plan.num_rows * plan.num_heads;
  float* const out = static_cast<float*>(memory);
  return {out, out + states * plan.head_dim};
}

inline size_t EstimateRestCudaWorkspaceBytes(const ScoreListsPlan& plan) {
  const int64_t states = int64_t{plan.max_tiles} * plan.num_rows * plan.num_heads;
  return static_cast<size_t>(states * (plan.head_dim + 1)) * sizeof(float);
}

}  // namespace semkv

#endif  // SEMKV_OPS_RETRIEVAL_ESTIMATE_REST_PLAN_H_
