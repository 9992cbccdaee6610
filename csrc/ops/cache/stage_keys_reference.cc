#include "csrc/ops/cache/stage_keys.h"

#include <cmath>
#include <cstring>

#include "csrc/ops/numeric/float_convert.h"

namespace semkv {
namespace {

bool IsFinite(const void* key, DType dtype, int32_t head_dim) {
  for (int32_t d = 0; d < head_dim; ++d) {
    if (!std::isfinite(LoadAsFloat(key, dtype, d))) return false;
  }
  return true;
}

// The key of token `i` in the pool.
const char* PoolKey(const StageKeysParams& params, const KvView& layer, int32_t head, int32_t i) {
  const int32_t position = params.first + i;
  const int64_t page = params.pages[position / params.page_tokens];
  const int64_t element =
      page * layer.k_page + head * layer.k_head + position % params.page_tokens * layer.k_token;
  return static_cast<const char*>(layer.k) + element * DTypeBytes(params.pool_dtype);
}

void StageKey(const StageKeysParams& params, const char* key, float scale, char* row) {
  if (params.pool_dtype == params.dtype) {
    std::memcpy(row, key, params.head_dim * DTypeBytes(params.dtype));
    return;
  }
  for (int32_t d = 0; d < params.head_dim; ++d) {
    StoreFromFloat(row, params.dtype, d, LoadAsFloat(key, params.pool_dtype, d) * scale);
  }
}

}  // namespace

void StageKeysReference(const StageKeysParams& params) {
  const int64_t row_bytes = params.head_dim * DTypeBytes(params.dtype);
  for (int32_t layer = 0; layer < params.num_layers; ++layer) {
    for (int32_t head = 0; head < params.num_kv_heads; ++head) {
      const int64_t cell = int64_t{layer} * params.num_kv_heads + head;
      for (int32_t i = 0; i < params.num_tokens; ++i) {
        char* row = static_cast<char*>(params.keys) + (cell * params.num_tokens + i) * row_bytes;
        StageKey(params, PoolKey(params, params.layers[layer], head, i),
                 params.layers[layer].k_scale, row);
        if (params.num_nonfinite == nullptr) continue;
        if (IsFinite(row, params.dtype, params.head_dim)) continue;
        const int32_t place = params.num_nonfinite[cell]++;
        params.nonfinite[cell * params.num_tokens + place] = static_cast<uint16_t>(i);
      }
    }
  }
}

}  // namespace semkv
