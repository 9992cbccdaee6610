// The shapes and policies of contexts that tests drive on a device and on the host.

#ifndef SEMKV_TESTS_CUDA_DEVICE_CONTEXT_SHAPE_H_
#define SEMKV_TESTS_CUDA_DEVICE_CONTEXT_SHAPE_H_

#include <gtest/gtest.h>

#include <cstdint>

#include "semkv/semkv.h"

namespace semkv::testing {

// Where an engine's pool has a row, in elements, within memory of its own for keys and for values.
enum class PoolLayout { kOwned, kTokensInside, kHeadsInside };

struct DeviceContextShape {
  int32_t num_layers = 2, num_heads = 4, num_kv_heads = 2, head_dim = 64;
  int32_t page_tokens = 16, num_pages = 128, max_sequence_tokens = 1024;
  int32_t kv_dtype = SEMKV_DTYPE_BF16;
  PoolLayout layout = PoolLayout::kOwned;
  // Of SEMKV_DTYPE_F8_E4M3; borrowed, of layer l times l + 1. The host's context is bfloat16 then
  // and holds the same numbers, or, where a scale is no power of two, these rounded.
  float k_scale = 0, v_scale = 0;

  bool is_e4m3() const { return kv_dtype == SEMKV_DTYPE_F8_E4M3; }
  // Of keys and values that are written, q and out.
  int32_t args_dtype() const { return is_e4m3() ? SEMKV_DTYPE_BF16 : kv_dtype; }
  int64_t token_floats() const { return int64_t{num_kv_heads} * head_dim; }
  int64_t query_floats() const { return int64_t{num_heads} * head_dim; }

  // Of a layer's keys or values: owned pools have one in all layers.
  float scale(int32_t layer, bool of_keys) const {
    const float scale = of_keys ? k_scale : v_scale;
    if (scale == 0) return 1;
    return layout == PoolLayout::kOwned ? scale : scale * static_cast<float>(layer + 1);
  }
};

inline semkv_policy Policy(int32_t kind, int32_t budget) {
  semkv_policy policy;
  EXPECT_EQ(semkv_policy_init(&policy, kind), SEMKV_OK);
  policy.budget = budget;
  policy.min_context = budget;
  policy.dense_layers = 0;
  policy.kmeans_iterations = 2;  // the harness takes its time
  return policy;
}

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_CUDA_DEVICE_CONTEXT_SHAPE_H_
