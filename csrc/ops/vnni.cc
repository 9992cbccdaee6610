#include "csrc/ops/vnni.h"

#include <atomic>

namespace semkv {
namespace {

std::atomic<bool> is_vnni_allowed{true};

bool DetectVnni() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

}  // namespace

void AllowVnniForTest(bool is_allowed) { is_vnni_allowed = is_allowed; }

bool HasVnni() {
  static const bool has_vnni = DetectVnni();
  return has_vnni && is_vnni_allowed.load(std::memory_order_relaxed);
}

}  // namespace semkv
