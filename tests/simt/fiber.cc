#include "tests/simt/fiber.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace semkv::simt {
namespace {

constexpr size_t kGuardBytes = 4096;

#ifdef __SANITIZE_ADDRESS__

void BeginSwitch(void** fake_stack, const void* to, size_t bytes) {
  __sanitizer_start_switch_fiber(fake_stack, to, bytes);
}

void EndSwitch(void* fake_stack, const void** from, size_t* bytes) {
  __sanitizer_finish_switch_fiber(fake_stack, from, bytes);
}

// A dropped run leaves the red zones of its frames behind.
void ForgetFrames(std::byte* stack) { __asan_unpoison_memory_region(stack, kStackBytes); }

#else

void BeginSwitch(void**, const void*, size_t) {}
void EndSwitch(void*, const void**, size_t*) {}
void ForgetFrames(std::byte*) {}

#endif

}  // namespace

StackPool::~StackPool() {
  for (std::byte* mapping : mappings_) munmap(mapping, kGuardBytes + kStackBytes);
}

std::byte* StackPool::Stack(size_t i) {
  while (mappings_.size() <= i) {
    void* mapping = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED || mprotect(mapping, kGuardBytes, PROT_NONE) != 0) {
      std::perror("simt: stack of a CUDA thread");
      std::abort();
    }
    mappings_.push_back(static_cast<std::byte*>(mapping));
  }
  return mappings_[i] + kGuardBytes;
}

void Fiber::Start(std::byte* stack, void (*function)(void*), void* argument) {
  ForgetFrames(stack);
  stack_ = stack;
  function_ = function;
  argument_ = argument;
  finished_ = false;
  fiber_ = boost::context::detail::make_fcontext(stack + kStackBytes, kStackBytes, &Entry);
}

void Fiber::Entry(boost::context::detail::transfer_t from) {
  Fiber* self = static_cast<Fiber*>(from.data);
  EndSwitch(nullptr, &self->scheduler_stack_, &self->scheduler_stack_bytes_);
  self->scheduler_ = from.fctx;
  self->function_(self->argument_);
  self->finished_ = true;
  BeginSwitch(nullptr, self->scheduler_stack_, self->scheduler_stack_bytes_);
  boost::context::detail::jump_fcontext(self->scheduler_, nullptr);
}

void Fiber::Resume() {
  void* fake_stack = nullptr;
  BeginSwitch(&fake_stack, stack_, kStackBytes);
  fiber_ = boost::context::detail::jump_fcontext(fiber_, this).fctx;
  EndSwitch(fake_stack, nullptr, nullptr);
}

void Fiber::Suspend() {
  BeginSwitch(&fake_stack_, scheduler_stack_, scheduler_stack_bytes_);
  const auto from = boost::context::detail::jump_fcontext(scheduler_, nullptr);
  EndSwitch(fake_stack_, nullptr, nullptr);
  scheduler_ = from.fctx;
}

}  // namespace semkv::simt
