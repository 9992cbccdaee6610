// Scales of pools of float8 e4m3 as a caller gives them: 0 is 1.

#ifndef SEMKV_API_KV_SCALES_H_
#define SEMKV_API_KV_SCALES_H_

#include <cmath>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "semkv/semkv.h"

namespace semkv {

inline float ScaleOrOne(float scale) { return scale == 0.0f ? 1.0f : scale; }

// INVALID_ARGUMENT for a scale that is negative or not finite, and for one of another dtype.
inline absl::Status CheckScale(const char* field, float scale, int32_t kv_dtype) {
  if (scale == 1.0f || scale == 0.0f) return absl::OkStatus();
  if (!(scale > 0.0f) || !std::isfinite(scale)) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " is ", scale, ", must be positive and finite"));
  }
  if (kv_dtype == SEMKV_DTYPE_F8_E4M3) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", scale, " and kv_dtype ", kv_dtype,
                   ", only SEMKV_DTYPE_F8_E4M3 = ", SEMKV_DTYPE_F8_E4M3, " is scaled"));
}

}  // namespace semkv

#endif  // SEMKV_API_KV_SCALES_H_
