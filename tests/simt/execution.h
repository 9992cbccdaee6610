// A launch while it runs: the threads of the current CTA, what each waits for, and who is next.
// Internal to the harness; one at a time in a process, found by the device calls through Running().

#ifndef SEMKV_TESTS_SIMT_EXECUTION_H_
#define SEMKV_TESTS_SIMT_EXECUTION_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "tests/simt/cuda_on_host.h"
#include "tests/simt/device_calls.h"
#include "tests/simt/fiber.h"
#include "tests/simt/launch.h"
#include "tests/simt/memory_checker.h"

namespace semkv::simt {

enum class ThreadState { kReady, kAtBarrier, kInWarpCall, kFinished };

// A copy into shared memory that has been asked for and has not arrived.
struct PendingCopy {
  void* shared;
  const void* global;
  size_t bytes;
  size_t source_bytes;
  int group;
};

// A call that a warp makes together. The operands stay on the callers' stacks.
struct WarpCall {
  const char* name = "";
  uint32_t mask = 0;
  const void* operand = nullptr;
  size_t bytes = 0;
};

// What every lane gave to a completed call, by lane of its mask.
struct Operands {
  std::vector<std::byte> of_lane[kWarpSize];
};

struct Thread {
  int lane() const { return static_cast<int>(clock.thread % kWarpSize); }

  Fiber fiber;
  ThreadState state = ThreadState::kReady;
  uint3 index = {};
  ThreadClock clock;
  Place place = {"", 0};
  WarpCall call;
  std::shared_ptr<const Operands> operands;  // of the call just completed
  std::vector<PendingCopy> copies;
  int copy_group = 0;       // of copies not committed yet
  bool has_waited = false;  // for the previous kernel; true at once where a launch does not overlap
};

class Execution {
 public:
  Execution(const LaunchShape& shape, const LaunchOptions& options, void (*function)(void*),
            void* argument);
  ~Execution();
  Execution(const Execution&) = delete;
  Execution& operator=(const Execution&) = delete;

  LaunchReport Run();

  Thread& thread() { return *running_; }
  // True while a CUDA thread's own code runs, and not the harness on its behalf.
  bool in_kernel() const { return in_kernel_; }
  void set_in_kernel(bool in_kernel) { in_kernel_ = in_kernel; }
  MemoryChecker& memory() { return memory_; }

  // By the running thread. Fail ends the launch; so does CheckAccess when the access may not
  // happen.
  void Report(const std::string& message);
  [[noreturn]] void Fail(const std::string& message);
  void CheckAccess(const MemoryAccess& access);
  void WaitForPreviousKernel() { thread().has_waited = true; }
  // Waits until every thread of the CTA waits at the barrier of `place`.
  void Barrier(Place place);
  // Waits until every lane of call.mask makes the same call; then thread().operands hold theirs.
  void JoinWarpCall(const WarpCall& call, Place place);

 private:
  static void RunThread(void* execution);

  void RunCta(uint32_t cta);
  void Switch(size_t next);
  void MakeReady(Thread& thread);
  void ReleaseBarrier();
  bool WarpIsComplete(const Thread& thread) const;
  void CompleteWarpCall(const Thread& caller);
  void ReportDeadlock();
  std::string Name(const Thread& thread) const;

  LaunchShape shape_;
  void (*function_)(void*);
  void* argument_;
  std::mt19937_64 rng_;
  MemoryChecker memory_;
  std::vector<Thread> threads_;
  std::vector<size_t> ready_;
  Thread* running_ = nullptr;
  bool in_kernel_ = false;
  bool failed_ = false;
  uint64_t epoch_ = 0;
  uint32_t finished_ = 0, at_barrier_ = 0;
  LaunchReport report_;
};

// The launch that runs; null between launches.
Execution* Running();

// While it lives the harness works on behalf of the running thread. It may then run templates of
// the standard library whose copy has hooks, because a kernel's source brought it.
class InHarness {
 public:
  InHarness() { Running()->set_in_kernel(false); }
  ~InHarness() { Running()->set_in_kernel(true); }
  InHarness(const InHarness&) = delete;
  InHarness& operator=(const InHarness&) = delete;
};

}  // namespace semkv::simt

#endif  // SEMKV_TESTS_SIMT_EXECUTION_H_
