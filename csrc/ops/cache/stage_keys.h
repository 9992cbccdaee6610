// Keys of a sequence's pages, as they are stored, laid side by side cell after cell (a cell is a
// KV head of a layer), and which tokens' keys are not finite: what k-means and list vectors on the
// GPU read, rows at one stride.
//
//   keys[cell, i] = key of token first + i in the cell's layer, for its KV head
//
// Keys that are stored as float8 e4m3 come out as bfloat16: stored * k_scale, rounded to float32
// and then to bfloat16. What is finite is asked of that.
//
// On the host lists are built from float32 rows, which GatherKeys (write_kv.h) gathers and converts
// at once: there is no second form of that here.

#ifndef SEMKV_OPS_CACHE_STAGE_KEYS_H_
#define SEMKV_OPS_CACHE_STAGE_KEYS_H_

#include <cstdint>

#include "semkv/types.h"

namespace semkv {

constexpr int32_t kStageKeysMaxTokens = 65535;

struct StageKeysParams {
  // [num_layers]; of each only k, k_page, k_head, k_token and, of e4m3, k_scale are read. CUDA:
  // device memory.
  const KvView* layers = nullptr;
  int32_t num_layers = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  DType pool_dtype = DType::kFloat32;  // of all layers
  DType dtype = DType::kFloat32;       // of `keys`: pool_dtype, or kBFloat16 if that is kFloat8E4M3
  int32_t page_tokens = 0;             // of all layers; a power of two
  // Block table: token i is at place (first + i) % page_tokens of pages[(first + i) / page_tokens].
  const int32_t* pages = nullptr;
  int32_t first = 0;       // at least 0; first + num_tokens is an int32_t
  int32_t num_tokens = 0;  // at most kStageKeysMaxTokens
  void* keys = nullptr;    // out: [num_layers * num_kv_heads, num_tokens, head_dim], of `dtype`
  // Both or neither: the tokens with a key that is not finite.
  int32_t* num_nonfinite = nullptr;  // in: zeros; out: [cells], how many
  uint16_t* nonfinite = nullptr;     // out: [cells, num_tokens]: their numbers i, in any order
};

// In plain loops, the numbers ascending: the specification. All pointers are host pointers.
void StageKeysReference(const StageKeysParams& params);

}  // namespace semkv

#endif  // SEMKV_OPS_CACHE_STAGE_KEYS_H_
