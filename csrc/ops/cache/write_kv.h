// New keys and values into their slots, and keys or values out of slots as float32.
//
// A pool of float8 e4m3 (CUDA and reference alone; the host form and GatherKeys, GatherValues do
// not take it) gets x / scale, a division in float32, rounded once to float32 and once to e4m3,
// where what is beyond 448 becomes 448, infinity too, and NaN stays NaN. Not x times the
// reciprocal, which rounds otherwise.

#ifndef SEMKV_OPS_CACHE_WRITE_KV_H_
#define SEMKV_OPS_CACHE_WRITE_KV_H_

#include <cstdint>

#include "semkv/types.h"

namespace semkv {

class ThreadPool;

struct WriteKvParams {
  const void* k = nullptr;  // [num_tokens, num_kv_heads, head_dim], dtype; channels contiguous
  const void* v = nullptr;
  DType dtype = DType::kFloat32;  // of k and v; converted (round to nearest even) to view.dtype;
                                  // not kFloat8E4M3
  int64_t k_token = 0, k_head = 0, v_token = 0, v_head = 0;  // strides in elements
  int32_t num_tokens = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  const int32_t* slots = nullptr;  // [num_tokens]; negative: the token is not written
  KvView view;
};

void WriteKvHost(const WriteKvParams& params, ThreadPool& pool);
void WriteKvReference(const WriteKvParams& params);

// rows[i, :] = key (or value) of slots[i] for KV head `head`, as float32. [num_slots, head_dim].
void GatherKeys(const KvView& view, int32_t head, int32_t head_dim, const int32_t* slots,
                int32_t num_slots, float* rows);
void GatherValues(const KvView& view, int32_t head, int32_t head_dim, const int32_t* slots,
                  int32_t num_slots, float* rows);

}  // namespace semkv

#endif  // SEMKV_OPS_CACHE_WRITE_KV_H_
