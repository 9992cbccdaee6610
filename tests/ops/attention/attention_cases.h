// The shapes on which attention is tested and measured: one table for tests and benchmarks.

#ifndef SEMKV_TESTS_OPS_ATTENTION_ATTENTION_CASES_H_
#define SEMKV_TESTS_OPS_ATTENTION_ATTENTION_CASES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "semkv/types.h"

namespace semkv::testing {

struct AttentionShape {
  int32_t num_heads = 8;
  int32_t num_kv_heads = 2;
  int32_t head_dim = 128;
  int32_t num_tokens = 0;
  DType dtype = DType::kFloat32;  // of q and out, and of the pools unless is_e4m3
  bool is_e4m3 = false;
};

inline DType KvDType(const AttentionShape& s) { return s.is_e4m3 ? DType::kFloat8E4M3 : s.dtype; }

inline const char* DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return "fp16";
    case DType::kBFloat16:
      return "bf16";
    case DType::kFloat8E4M3:
      return "e4m3";
    case DType::kFloat32:
      break;
  }
  return "fp32";
}

inline std::string ShapeName(const AttentionShape& s) {
  return std::string(DTypeName(s.dtype)) + (s.is_e4m3 ? "_e4m3" : "") + "/h" +
         std::to_string(s.num_heads) + "_" + std::to_string(s.num_kv_heads) + "/d" +
         std::to_string(s.head_dim) + "/n" + std::to_string(s.num_tokens);
}

constexpr DType kAttentionDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
constexpr int32_t kAttentionHeadDims[] = {64, 80, 96, 128, 256};

// Every ratio of query heads to KV heads, head size, dtype, and lengths around tiles; three pieces
// with the ratio that fills neither a quad of heads nor a power of two.
inline std::vector<AttentionShape> AttentionShapes(bool is_e4m3 = false) {
  constexpr int32_t kHeads[][2] = {{8, 8}, {32, 8}, {28, 4}, {16, 1}};
  std::vector<AttentionShape> shapes;
  for (DType dtype : kAttentionDTypes) {
    for (const auto& heads : kHeads) {
      for (int32_t head_dim : kAttentionHeadDims) {
        for (int32_t tokens : {1, 15, 16, 17, 1000, 4097}) {
          if (tokens == 4097 && heads[0] != 28) continue;
          shapes.push_back({heads[0], heads[1], head_dim, tokens, dtype, is_e4m3});
        }
      }
    }
  }
  return shapes;
}

// What the benchmarks read: one layer of Llama-3-8B.
inline AttentionShape Llama8bShape(int32_t num_tokens) {
  return {32, 8, 128, num_tokens, DType::kBFloat16};
}

// Greatest difference to the float64 reference on the same stored data, relative to max(1, |x|).
constexpr float AttentionTolerance(DType dtype) {
  return dtype == DType::kFloat32 ? 1e-5f : dtype == DType::kFloat16 ? 2e-3f : 1.6e-2f;
}

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_OPS_ATTENTION_ATTENTION_CASES_H_
