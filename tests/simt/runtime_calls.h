// What a program asked of the emulated CUDA runtime (cuda_runtime/cuda_runtime_api.h).

#ifndef SEMKV_TESTS_SIMT_RUNTIME_CALLS_H_
#define SEMKV_TESTS_SIMT_RUNTIME_CALLS_H_

#include <cstdint>
#include <map>
#include <string>

namespace semkv::simt {

// How often each function of the runtime was called since the last TakeRuntimeCalls; "launch" for
// kernels that ran, those of a replayed graph too; "captured launch" for those that were recorded.
// cudaGetLastError, which waits for nothing, is not counted.
std::map<std::string, int64_t> TakeRuntimeCalls();

// Of the schedules of the launches that follow; every launch draws another from it. Lazy streams
// draw theirs from it too.
void SetRuntimeSeed(uint64_t seed);

// The `which`-th allocation of device or pinned memory from now on finds none; 0: none does.
void FailAllocation(int which);

// Lazy: what is enqueued on a stream runs when something waits for it, and not before, so that a
// program which forgets to wait, or to order its streams, computes something else. Who waits: the
// host in the runtime's synchronising calls and copies, and other streams' work that comes behind
// an event or the null stream. cudaEventQuery says cudaErrorNotReady and then lets one piece of the
// stream's work run, so that polling ends. Work that may run in any order does so in a drawn one.
// Off: everything has run when the call returns. What is enqueued runs before this returns.
void SetLazyStreams(bool lazy);

}  // namespace semkv::simt

#endif  // SEMKV_TESTS_SIMT_RUNTIME_CALLS_H_
