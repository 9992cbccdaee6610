#include "tests/simt/add_one.h"

#include "csrc/ops/cuda/launch.cuh"

namespace semkv {
namespace {

__global__ void AddOneKernel(AddParams p) {
  const int32_t i = static_cast<int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < p.n) p.to[i] = p.from[i] + 1;
}

}  // namespace

cudaError_t AddOne(const AddParams& params, cudaStream_t stream) {
  const LaunchShape shape = {static_cast<uint32_t>(params.n + 31) / 32, 1, 1, 32, 0};
  return LaunchKernel(&AddOneKernel, shape, params, stream);
}

}  // namespace semkv
