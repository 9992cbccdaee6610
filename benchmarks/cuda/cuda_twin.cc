#include "benchmarks/cuda/cuda_twin.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "csrc/ops/numeric/float_convert.h"

namespace semkv {

CudaTwin::CudaTwin(CudaArena& arena) {
  for (const CudaArena::Block& block : arena.blocks()) {
    Copy copy = {static_cast<const char*>(block.device), block.bytes,
                 std::make_unique<char[]>(block.bytes)};
    arena.Read(block, copy.host.get());
    copies_.push_back(std::move(copy));
  }
}

void* CudaTwin::Find(const void* device) const {
  for (const Copy& copy : copies_) {
    const std::ptrdiff_t at = static_cast<const char*>(device) - copy.device;
    if (at >= 0 && at < static_cast<std::ptrdiff_t>(copy.bytes)) return copy.host.get() + at;
  }
  return nullptr;
}

std::string Differs(const std::string& what, DType dtype, const void* actual, const void* expected,
                    int64_t n, double absolute, double relative) {
  int64_t worst = -1;
  double most = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    const double a = LoadAsFloat(actual, dtype, i), b = LoadAsFloat(expected, dtype, i);
    if (a == b || (std::isnan(a) && std::isnan(b))) continue;
    const double off = std::abs(a - b) / (absolute + relative * std::abs(b));
    if (off <= 1.0) continue;  // not so if it is no number
    if (worst >= 0 && !(off > most)) continue;
    worst = i;
    most = off;
  }
  if (worst < 0) return "";
  return what + "[" + std::to_string(worst) + "] is " +
         std::to_string(LoadAsFloat(actual, dtype, worst)) + ", must be " +
         std::to_string(LoadAsFloat(expected, dtype, worst));
}

std::string BytesDiffer(const std::string& what, const void* actual, const void* expected,
                        size_t bytes) {
  const char* const a = static_cast<const char*>(actual);
  const char* const b = static_cast<const char*>(expected);
  const char* const at = std::mismatch(a, a + bytes, b).first;
  if (at == a + bytes) return "";
  return "byte " + std::to_string(at - a) + " of " + std::to_string(bytes) + " of " + what +
         " differs";
}

std::string FirstOf(std::initializer_list<std::string> wrongs) {
  for (const std::string& wrong : wrongs) {
    if (!wrong.empty()) return wrong;
  }
  return "";
}

}  // namespace semkv
