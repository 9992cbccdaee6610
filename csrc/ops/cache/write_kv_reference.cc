#include "csrc/ops/cache/write_kv.h"

#include <cstring>

#include "csrc/ops/numeric/float_convert.h"

namespace semkv {
namespace {

// A copy when the dtypes agree, so that NaN payloads survive. `scale` is of e4m3.
void CopyElement(const void* from, DType from_dtype, int64_t i, void* to, DType to_dtype, int64_t j,
                 float scale) {
  if (to_dtype == DType::kFloat8E4M3) {
    StoreFromFloat(to, to_dtype, j, LoadAsFloat(from, from_dtype, i) / scale);
    return;
  }
  if (from_dtype != to_dtype) {
    StoreFromFloat(to, to_dtype, j, LoadAsFloat(from, from_dtype, i));
    return;
  }
  const int64_t bytes = DTypeBytes(from_dtype);
  std::memcpy(static_cast<char*>(to) + j * bytes, static_cast<const char*>(from) + i * bytes,
              bytes);
}

}  // namespace

void WriteKvReference(const WriteKvParams& params) {
  const KvView& view = params.view;
  for (int32_t t = 0; t < params.num_tokens; ++t) {
    const int32_t slot = params.slots[t];
    if (slot < 0) continue;
    for (int32_t g = 0; g < params.num_kv_heads; ++g) {
      for (int32_t d = 0; d < params.head_dim; ++d) {
        CopyElement(params.k, params.dtype, t * params.k_token + g * params.k_head + d, view.k,
                    view.dtype, KeyOffset(view, slot, g) + d, view.k_scale);
        CopyElement(params.v, params.dtype, t * params.v_token + g * params.v_head + d, view.v,
                    view.dtype, ValueOffset(view, slot, g) + d, view.v_scale);
      }
    }
  }
}

}  // namespace semkv
