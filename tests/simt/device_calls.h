// What a kernel calls while the harness executes it: the meaning of CUDA's built-in functions and
// of the PTX instructions behind csrc/ops/cuda, without headers, because every kernel's source
// begins with it (cuda_on_host.h). Each call is made by the CUDA thread that is running.

#ifndef SEMKV_TESTS_SIMT_DEVICE_CALLS_H_
#define SEMKV_TESTS_SIMT_DEVICE_CALLS_H_

#include <cstddef>
#include <cstdint>

struct CUstream_st;

namespace semkv {
struct LaunchShape;
}

namespace semkv::simt {

// A line of the kernel's source, for messages. As a default argument it is the caller's.
struct Place {
  static constexpr Place Here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
  const char* file;
  int line;
};

enum class ShuffleKind { kIndex, kUp, kDown, kXor };

// Programmatic dependent launch (csrc/ops/cuda/dependent_launch.cuh).
void WaitForPreviousKernel();

// CTA barrier: every thread of the CTA must come to the same one.
void SyncThreads(Place place);

// Warp calls: every lane of `mask` must make the same call. Only SyncWarp orders memory accesses.
void SyncWarp(uint32_t mask, Place place);
uint32_t Ballot(uint32_t mask, bool predicate, Place place);
void Shuffle(ShuffleKind kind, uint32_t mask, const void* value, size_t bytes, int argument,
             int width, void* result, Place place);
void Mma16816(float* d, const uint32_t* a, const uint32_t* b, bool bfloat16,
              Place place = Place::Here());
void Mma16832Int8(int32_t* d, const uint32_t* a, const uint32_t* b, Place place = Place::Here());
void LoadMatrices(uint32_t* r, const void* row, bool transpose, Place place = Place::Here());

// Shared memory of the running CTA. `key` says which of the kernel's objects is meant.
void* StaticShared(const void* key, size_t bytes, size_t alignment);
std::byte* DynamicShared();

// cp.async. Until the wait the bytes of `shared` are poison; behind the first `source_bytes`, which
// alone are read, zeros arrive.
void BeginCopy(void* shared, const void* global, size_t bytes, size_t source_bytes,
               Place place = Place::Here());
void CommitCopies();
void WaitForCopies(int groups);

// What a launcher's launch does here, on a stream of the emulated CUDA runtime: calls
// function(a copy of the argument) in every CUDA thread of `shape`, which may touch what the
// runtime allocated. The argument's bytes are copied at the call: on a lazy or capturing stream
// that is before the kernel runs, and it may run often. Returns a cudaError_t.
constexpr size_t kMaxKernelArgumentBytes = 4096;
int LaunchOnDevice(const LaunchShape& shape, CUstream_st* stream, void (*function)(void*),
                   const void* argument, size_t bytes);

// *p = f(*p, x) as one step that does not race with another atomic; returns the old *p.
enum class AtomicKind { kAdd, kMax, kMin, kOr, kAnd, kExchange };
template <typename T>
T Atomic(AtomicKind kind, T* p, T x, Place place);
template <typename T>
T AtomicCompareAndSwap(T* p, T expected, T desired, Place place);

}  // namespace semkv::simt

#endif  // SEMKV_TESTS_SIMT_DEVICE_CALLS_H_
