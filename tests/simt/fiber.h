// A stack of its own for each CUDA thread, and switches between it and the scheduler.
// Boost.Context's assembly underneath; its fiber class unwinds a fiber that is dropped half way, by
// an exception through the kernel, and does not tell AddressSanitizer about switches.

#ifndef SEMKV_TESTS_SIMT_FIBER_H_
#define SEMKV_TESTS_SIMT_FIBER_H_

#include <boost/context/detail/fcontext.hpp>
#include <cstddef>
#include <vector>

namespace semkv::simt {

constexpr size_t kStackBytes = 64 * 1024;

// Stacks with a guard page below each, mapped once and used again by every CTA.
class StackPool {
 public:
  StackPool() = default;
  StackPool(const StackPool&) = delete;
  StackPool& operator=(const StackPool&) = delete;
  ~StackPool();

  // Lowest address of stack `i`; maps it when it is new.
  std::byte* Stack(size_t i);

 private:
  std::vector<std::byte*> mappings_;
};

class Fiber {
 public:
  // The next Resume calls function(argument) on `stack`; a run that was not finished is dropped.
  void Start(std::byte* stack, void (*function)(void*), void* argument);
  // Runs the fiber until it suspends or returns. Called by the scheduler.
  void Resume();
  // Goes back to the scheduler. Called by the fiber itself.
  void Suspend();

  bool finished() const { return finished_; }
  std::byte* stack() const { return stack_; }

 private:
  static void Entry(boost::context::detail::transfer_t from);

  std::byte* stack_ = nullptr;
  void (*function_)(void*) = nullptr;
  void* argument_ = nullptr;
  boost::context::detail::fcontext_t fiber_ = nullptr, scheduler_ = nullptr;
  // AddressSanitizer's: its fake stack of the suspended fiber, the scheduler's stack.
  void* fake_stack_ = nullptr;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_stack_bytes_ = 0;
  bool finished_ = false;
};

}  // namespace semkv::simt

#endif  // SEMKV_TESTS_SIMT_FIBER_H_
