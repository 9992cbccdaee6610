// Value types that every room shares. Standard library only, C++17, usable in device code.
//
// Terms (docs/design.md, section 2): a *page* holds the keys and values of `page_tokens` tokens; a
// *slot* is the place of one token, slot = page * page_tokens + offset; -1 is no slot. A *row* is
// one sequence of a batch.

#ifndef SEMKV_TYPES_H_
#define SEMKV_TYPES_H_

#include <cstddef>
#include <cstdint>

// Functions that CUDA kernels call too (nvcc, and the SIMT harness of the tests).
#if defined(__CUDACC__) || defined(SEMKV_SIMT)
#define SEMKV_HOST_DEVICE __host__ __device__
#else
#define SEMKV_HOST_DEVICE
#endif

namespace semkv {

// Numbers equal SEMKV_DTYPE_* in semkv.h. kFloat8E4M3 (OCP: 4 bits of exponent, 3 of mantissa, up
// to 448, NaN but no infinity) is a dtype of pools on a device alone: value = stored * scale.
enum class DType : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kFloat8E4M3 = 3 };

constexpr int32_t kNoSlot = -1;

SEMKV_HOST_DEVICE constexpr int64_t DTypeBytes(DType dtype) {
  return dtype == DType::kFloat32 ? 4 : dtype == DType::kFloat8E4M3 ? 1 : 2;
}

template <typename T>
SEMKV_HOST_DEVICE constexpr T CeilDiv(T a, T b) {
  return (a + b - 1) / b;
}

// Keys and values of one layer of one pool, owned or borrowed from an engine. The head_dim channels
// of a row are contiguous; everything else is a stride, in elements of `dtype`. Key of (slot, KV
// head): k + (slot / page_tokens) * k_page + head * k_head + (slot % page_tokens) * k_token.
struct KvView {
  void* k = nullptr;
  void* v = nullptr;
  int64_t k_page = 0, k_head = 0, k_token = 0;
  int64_t v_page = 0, v_head = 0, v_token = 0;
  int32_t page_tokens = 0;  // a power of two in [1, 1024]
  int32_t num_pages = 0;
  DType dtype = DType::kFloat32;
  float k_scale = 1.0f, v_scale = 1.0f;  // of kFloat8E4M3: positive and finite; else 1
};

// A shift, not a division: page_tokens is a power of two, and the decode path asks once per token
// and head.
SEMKV_HOST_DEVICE inline int32_t PageShift(const KvView& view) {
#ifdef __CUDA_ARCH__
  return __ffs(view.page_tokens) - 1;
#else
  return __builtin_ctz(static_cast<uint32_t>(view.page_tokens));
#endif
}

// Offset, in elements, of a slot's row from the view's base.
SEMKV_HOST_DEVICE inline int64_t KeyOffset(const KvView& view, int32_t slot, int32_t head) {
  return (slot >> PageShift(view)) * view.k_page + head * view.k_head +
         (slot & (view.page_tokens - 1)) * view.k_token;
}

SEMKV_HOST_DEVICE inline int64_t ValueOffset(const KvView& view, int32_t slot, int32_t head) {
  return (slot >> PageShift(view)) * view.v_page + head * view.v_head +
         (slot & (view.page_tokens - 1)) * view.v_token;
}

}  // namespace semkv

#endif  // SEMKV_TYPES_H_
