// A kernel for the test of the emulated CUDA runtime.

#ifndef SEMKV_TESTS_SIMT_ADD_ONE_H_
#define SEMKV_TESTS_SIMT_ADD_ONE_H_

#include <cuda_runtime_api.h>

#include <cstdint>

namespace semkv {

struct AddParams {
  const int32_t* from;
  int32_t* to;
  int32_t n;
};

cudaError_t AddOne(const AddParams& params, cudaStream_t stream);

}  // namespace semkv

#endif  // SEMKV_TESTS_SIMT_ADD_ONE_H_
