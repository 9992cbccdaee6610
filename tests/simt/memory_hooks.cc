// The functions that -fsanitize=thread puts before every memory access of a kernel's source. This
// is not ThreadSanitizer, whose runtime is not linked: each access goes to the launch that runs.
// Outside a kernel (tests share their source with kernels) they do nothing.

#include <atomic>
#include <cstddef>

#include "tests/simt/execution.h"

namespace {

using semkv::simt::AccessKind;

inline void Check(const void* address, size_t bytes, AccessKind kind, const void* instruction) {
  semkv::simt::Execution* execution = semkv::simt::Running();
  if (execution == nullptr || !execution->in_kernel()) return;
  const char* p = static_cast<const char*>(address);
  const auto within = [&](const uint3& x) {
    return p >= reinterpret_cast<const char*>(&x) && p < reinterpret_cast<const char*>(&x + 1);
  };
  const bool is_register =
      within(threadIdx) || within(blockIdx) || within(blockDim) || within(gridDim);
  if (is_register && kind == AccessKind::kRead) return;
  execution->CheckAccess({address, static_cast<int64_t>(bytes), kind, instruction});
}

}  // namespace

extern "C" {

void __tsan_read1(void* p) { Check(p, 1, AccessKind::kRead, __builtin_return_address(0)); }
void __tsan_write1(void* p) { Check(p, 1, AccessKind::kWrite, __builtin_return_address(0)); }
void __tsan_unaligned_read1(void* p) {
  Check(p, 1, AccessKind::kRead, __builtin_return_address(0));
}
void __tsan_unaligned_write1(void* p) {
  Check(p, 1, AccessKind::kWrite, __builtin_return_address(0));
}
void __tsan_read2(void* p) { Check(p, 2, AccessKind::kRead, __builtin_return_address(0)); }
void __tsan_write2(void* p) { Check(p, 2, AccessKind::kWrite, __builtin_return_address(0)); }
void __tsan_unaligned_read2(void* p) {
  Check(p, 2, AccessKind::kRead, __builtin_return_address(0));
}
void __tsan_unaligned_write2(void* p) {
  Check(p, 2, AccessKind::kWrite, __builtin_return_address(0));
}
void __tsan_read4(void* p) { Check(p, 4, AccessKind::kRead, __builtin_return_address(0)); }
void __tsan_write4(void* p) { Check(p, 4, AccessKind::kWrite, __builtin_return_address(0)); }
void __tsan_unaligned_read4(void* p) {
  Check(p, 4, AccessKind::kRead, __builtin_return_address(0));
}
void __tsan_unaligned_write4(void* p) {
  Check(p, 4, AccessKind::kWrite, __builtin_return_address(0));
}
void __tsan_read8(void* p) { Check(p, 8, AccessKind::kRead, __builtin_return_address(0)); }
void __tsan_write8(void* p) { Check(p, 8, AccessKind::kWrite, __builtin_return_address(0)); }
void __tsan_unaligned_read8(void* p) {
  Check(p, 8, AccessKind::kRead, __builtin_return_address(0));
}
void __tsan_unaligned_write8(void* p) {
  Check(p, 8, AccessKind::kWrite, __builtin_return_address(0));
}
void __tsan_read16(void* p) { Check(p, 16, AccessKind::kRead, __builtin_return_address(0)); }
void __tsan_write16(void* p) { Check(p, 16, AccessKind::kWrite, __builtin_return_address(0)); }
void __tsan_unaligned_read16(void* p) {
  Check(p, 16, AccessKind::kRead, __builtin_return_address(0));
}
void __tsan_unaligned_write16(void* p) {
  Check(p, 16, AccessKind::kWrite, __builtin_return_address(0));
}

void __tsan_read_range(void* p, size_t bytes) {
  Check(p, bytes, AccessKind::kRead, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t bytes) {
  Check(p, bytes, AccessKind::kWrite, __builtin_return_address(0));
}

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

// Atomics of the tests' own code (guards of static variables, shared pointers), not of kernels.
unsigned char __tsan_atomic8_load(const volatile unsigned char* p, int) {
  return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}
unsigned __tsan_atomic32_fetch_add(volatile unsigned* p, unsigned x, int) {
  return __atomic_fetch_add(p, x, __ATOMIC_SEQ_CST);
}

}  // extern "C"
