// Whether AVX-512 VNNI may be used: vpdpwssd multiplies pairs of int16 and adds them to int32 sums
// in one instruction, twice what float32 multiply-adds do in a cycle. Highway 1.0.3 has it for
// AVX3_DL only, which asks for more than Cascade Lake has; so inner loops that want it are written
// in intrinsics (files *_vnni.cc), behind this check, beside Highway code for every other machine.

#ifndef SEMKV_OPS_VNNI_H_
#define SEMKV_OPS_VNNI_H_

#define SEMKV_VNNI __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
#define SEMKV_VNNI_INLINE SEMKV_VNNI __attribute__((always_inline)) inline

namespace semkv {

// Whether this processor has the instruction and tests have not forbidden it.
bool HasVnni();
void AllowVnniForTest(bool is_allowed);

}  // namespace semkv

#endif  // SEMKV_OPS_VNNI_H_
