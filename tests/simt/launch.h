// The SIMT harness: executes a kernel's own source on the CPU and reports what it did wrong and
// what it moved.
//
//   LaunchOptions options;
//   options.buffers = {{"x", x.data(), x_bytes, Access::kRead}, {"y", ...}};
//   const LaunchReport report = Launch(shape, options, [&] { Kernel<4>(params); });
//   EXPECT_EQ(report.Errors(), "");
//
// CTAs run one after another and the CUDA threads of a CTA as fibers of the calling thread, both in
// an order drawn from the seed. A thread runs until it has to wait (barrier, warp call), so two
// seeds show what two schedules do. Shared memory holds 0xff bytes (NaN) when a CTA starts.
//
// Always found: deadlocks (some threads at a barrier, others gone or elsewhere), warp calls whose
// mask does not fit, launch shapes and sums of shared memory that no GPU takes, threads of a launch
// that overlaps the previous kernel and end without having waited for it. With kMemoryHooks also,
// from hooks that the compiler puts at every access of the kernel (memory_hooks.cc): accesses
// outside the buffers and shared memory or not aligned, of a buffer before that wait, writes to a
// read-only buffer, races within the CTA on shared memory and writes of two threads to one global
// byte, and the traffic of each buffer. Without them (sanitizer builds) AddressSanitizer looks
// instead. Not seen: calls of memcpy that the compiler leaves as calls.
//
// Not for concurrent use: one launch at a time in a process.

#ifndef SEMKV_TESTS_SIMT_LAUNCH_H_
#define SEMKV_TESTS_SIMT_LAUNCH_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "csrc/ops/cuda/launch_shape.h"

namespace semkv::simt {

#ifdef SEMKV_SIMT_HOOKS
constexpr bool kMemoryHooks = true;
#else
constexpr bool kMemoryHooks = false;
#endif

enum class Access { kRead, kReadWrite };

// Global memory that the kernel may touch. Borrowed.
struct Buffer {
  std::string name;
  const void* data = nullptr;
  int64_t bytes = 0;
  Access access = Access::kRead;
};

struct LaunchOptions {
  std::vector<Buffer> buffers;
  uint64_t seed = 1;
};

// What a kernel asked of a buffer. Lanes of a warp that read the same address by the same
// instruction count once, as hardware broadcasts; nothing else is taken for cached.
struct Traffic {
  int64_t read_bytes = 0;
  int64_t written_bytes = 0;
  std::map<int, int64_t> accesses;  // by width in bytes
};

struct LaunchReport {
  // The first errors, a line each; empty when all went well.
  std::string Errors() const;
  // Over all buffers.
  int64_t Bytes() const;

  std::vector<std::string> errors;
  std::map<std::string, Traffic> traffic;  // by buffer
  int64_t static_shared_bytes = 0;         // per CTA
};

LaunchReport LaunchFunction(const LaunchShape& shape, const LaunchOptions& options,
                            void (*function)(void*), void* argument);

// Calls kernel() once in every CUDA thread of `shape`.
template <typename Kernel>
LaunchReport Launch(const LaunchShape& shape, const LaunchOptions& options, Kernel kernel) {
  return LaunchFunction(
      shape, options, [](void* k) { (*static_cast<Kernel*>(k))(); }, &kernel);
}

}  // namespace semkv::simt

#endif  // SEMKV_TESTS_SIMT_LAUNCH_H_
