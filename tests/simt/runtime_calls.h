// What a program asked of the emulated CUDA runtime (cuda_runtime/cuda_runtime_api.h).

#ifndef SEMKV_TESTS_SIMT_RUNTIME_CALLS_H_
#define SEMKV_TESTS_SIMT_RUNTIME_CALLS_H_

#include <cstdint>
#include <map>
#include <string>

namespace semkv::simt {

// How often each function of the runtime was called since the last TakeRuntimeCalls; "launch" for
// kernels. cudaGetLastError, which waits for nothing, is not counted.
std::map<std::string, int64_t> TakeRuntimeCalls();

// Of the schedules of the launches that follow; every launch draws another from it.
void SetRuntimeSeed(uint64_t seed);

}  // namespace semkv::simt

#endif  // SEMKV_TESTS_SIMT_RUNTIME_CALLS_H_
