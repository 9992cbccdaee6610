// 2^x.

#ifndef SEMKV_OPS_CUDA_EXP2_CUH_
#define SEMKV_OPS_CUDA_EXP2_CUH_

namespace semkv {

#ifdef SEMKV_SIMT

__device__ inline float Exp2(float x) { return exp2f(x); }

#else

// One instruction, within 2 units of the last place; results below 2^-126 are 0.
__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

#endif

}  // namespace semkv

#endif  // SEMKV_OPS_CUDA_EXP2_CUH_
