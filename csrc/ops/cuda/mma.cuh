// Tensor core products of a warp: mma.m16n8k16 with 16-bit inputs and float32 sums, and ldmatrix,
// which loads its fragments. All lanes call. Fragments as PTX defines them, two 16-bit numbers to a
// register, the lower column (of A) or row (of B) in the low half; g = lane / 4, t = lane % 4:
//
//   A[16, 16]  a[0]: row g, columns 2t, 2t+1;  a[1]: row g + 8;  a[2], a[3]: the same, columns + 8
//   B[16, 8]   b[0]: rows 2t, 2t+1, column g;  b[1]: rows + 8
//   D[16, 8]   d[0], d[1]: row g, columns 2t, 2t+1;  d[2], d[3]: row g + 8
//
// And mma.m16n8k32 with int8 inputs and int32 sums, four numbers to a register, D as above:
//
//   A[16, 32]  a[0]: row g, columns 4t..4t+3;  a[1]: row g + 8;  a[2], a[3]: the same, columns + 16
//   B[32, 8]   b[0]: rows 4t..4t+3, column g;  b[1]: rows + 16

#ifndef SEMKV_OPS_CUDA_MMA_CUH_
#define SEMKV_OPS_CUDA_MMA_CUH_

#include <cstdint>

#include "csrc/ops/cuda/element.cuh"
#include "semkv/types.h"

namespace semkv {

enum class Transpose { kNo, kYes };

#ifdef SEMKV_SIMT

template <DType kDType>
__device__ inline void MmaM16N8K16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(kDType != DType::kFloat32);
  simt::Mma16816(d, a, b, kDType == DType::kBFloat16);
}

template <Transpose kTranspose>
__device__ inline void LoadMatrixX4(uint32_t (&r)[4], const void* row) {
  simt::LoadMatrices(r, row, kTranspose == Transpose::kYes);
}

__device__ inline void MmaM16N8K32Int8(int32_t (&d)[4], const uint32_t (&a)[4],
                                       const uint32_t (&b)[2]) {
  simt::Mma16832Int8(d, a, b);
}

template <DType kDType>
__device__ inline uint32_t PackPair(float low, float high) {
  return ElementFromFloat<kDType>(low) | static_cast<uint32_t>(ElementFromFloat<kDType>(high))
                                             << 16;
}

__device__ inline uint32_t SwapMiddleBytes(uint32_t x) {
  return (x & 0xff0000ffu) | (x & 0xff00u) << 8 | (x & 0xff0000u) >> 8;
}

#else

// D += A * B.
template <DType kDType>
__device__ __forceinline__ void MmaM16N8K16(float (&d)[4], const uint32_t (&a)[4],
                                            const uint32_t (&b)[2]) {
  static_assert(kDType != DType::kFloat32);
  if constexpr (kDType == DType::kBFloat16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

// D += A * B.
__device__ __forceinline__ void MmaM16N8K32Int8(int32_t (&d)[4], const uint32_t (&a)[4],
                                                const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8x8 matrices of 16-bit numbers. `row` of lane 8 j + i: row i of matrix j, 16 bytes of shared
// memory, 16-byte aligned. r[j] of a lane: row g, columns 2t and 2t + 1 of matrix j; transposed:
// rows 2t and 2t + 1, column g.
template <Transpose kTranspose>
__device__ __forceinline__ void LoadMatrixX4(uint32_t (&r)[4], const void* row) {
  const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (kTranspose == Transpose::kYes) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
  }
}

// Two numbers as a register of a fragment, rounded to nearest even.
template <DType kDType>
__device__ __forceinline__ uint32_t PackPair(float low, float high) {
  static_assert(kDType != DType::kFloat32);
  uint32_t pair;
  if constexpr (kDType == DType::kBFloat16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
}

__device__ __forceinline__ uint32_t SwapMiddleBytes(uint32_t x) {
  return __byte_perm(x, 0, 0x3120);
}

#endif

// Four numbers of e4m3 as two registers of a fragment, in their order: exact. NaN stays NaN, but
// not which.
template <DType kDType>
__device__ inline void UnpackE4M3(uint32_t four, uint32_t& first, uint32_t& second) {
  first = Float16PairFromE4M3(four);
  second = Float16PairFromE4M3(four >> 16);
  if constexpr (kDType == DType::kBFloat16) {
    float low, high;
    UnpackPair<DType::kFloat16>(first, low, high);
    first = PackPair<DType::kBFloat16>(low, high);
    UnpackPair<DType::kFloat16>(second, low, high);
    second = PackPair<DType::kBFloat16>(low, high);
  }
}

}  // namespace semkv

#endif  // SEMKV_OPS_CUDA_MMA_CUH_
