// Decode attention in a layer of Llama-3-8B's shape, of bfloat16 queries over pools of bfloat16 or
// float8 e4m3: what several cases launch.

#ifndef SEMKV_BENCHMARKS_CUDA_CUDA_ATTENTION_PROBLEM_H_
#define SEMKV_BENCHMARKS_CUDA_CUDA_ATTENTION_PROBLEM_H_

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "benchmarks/cuda/cuda_case.h"
#include "csrc/ops/attention/decode_attention_cuda.h"

namespace semkv {

constexpr int32_t kHeads = 32, kKvHeads = 8, kHeadDim = 128, kPageTokens = 16;
constexpr int64_t kElementBytes = 2;

// Of a layer.
constexpr int64_t KvBytes(int64_t tokens, DType dtype = DType::kBFloat16) {
  return 2 * tokens * kKvHeads * kHeadDim * DTypeBytes(dtype);
}

// Keys, then values, as [page, token, KV head, channel].
KvView MakeView(CudaArena& arena, int64_t tokens, DType dtype = DType::kBFloat16);

std::vector<int32_t> RandomOrder(int32_t n, std::mt19937& rng);

// Plan and workspace, and what all layers share but keys and values.
struct AttentionProblem {
  cudaError_t Enqueue(const KvView& position, const KvView& list, cudaStream_t stream) const;
  // What came out (`after`) against the reference over what was read (`before`; may be the same).
  std::string Check(const KvView& position, const KvView& list, const CudaTwin& before,
                    const CudaTwin& after) const;

  DecodeAttentionParams params;
  DecodeAttentionPlan plan;
  void* workspace = nullptr;
  size_t workspace_bytes = 0;
};

// num_selections: 0 for dense rows. Of the params, slots or block table are the caller's.
AttentionProblem MakeAttention(CudaArena& arena, int32_t num_rows, int32_t num_selections,
                               int32_t max_row_tokens, DType kv_dtype = DType::kBFloat16);

}  // namespace semkv

#endif  // SEMKV_BENCHMARKS_CUDA_CUDA_ATTENTION_PROBLEM_H_
