// Every wrapper of csrc/ops/cuda through nvcc and ptxas. Compiled, not linked.

#include "tests/simt/device_ops_kernels.cuh"

namespace semkv {

template __global__ void ScanBlock<32>(const int32_t*, const uint64_t*, int32_t*, int32_t*,
                                       uint64_t*);
template __global__ void Product<DType::kFloat16>(const uint16_t*, const uint16_t*, const float*,
                                                  float*);
template __global__ void Product<DType::kBFloat16>(const uint16_t*, const uint16_t*, const float*,
                                                   float*);
template __global__ void LoadFragments<Transpose::kNo>(uint32_t*, int);
template __global__ void LoadFragments<Transpose::kYes>(uint32_t*, int);
template __global__ void Stage<Waiting::kYes, Sync::kCta>(const float*, float*);

}  // namespace semkv
