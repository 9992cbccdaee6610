// Runs a test on every SIMD target of the host operations.

#ifndef SEMKV_TESTS_OPS_RETRIEVAL_EACH_TARGET_H_
#define SEMKV_TESTS_OPS_RETRIEVAL_EACH_TARGET_H_

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cstdint>

#include "csrc/ops/retrieval/dots_vnni.h"

namespace semkv::testing {

// Calls `function` once for every SIMD target that this machine runs, the fallback included, and
// once more without VNNI where the machine has it.
template <typename Function>
void ForEachTarget(const Function& function) {
  for (int64_t target : {HWY_SCALAR, HWY_AVX2, HWY_AVX3}) {
    if ((hwy::SupportedTargets() & target) == 0 && target != HWY_SCALAR) continue;
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    function();
    if (target == HWY_AVX3 && HasVnni()) {
      SCOPED_TRACE("without VNNI");
      AllowVnniForTest(false);
      function();
      AllowVnniForTest(true);
    }
    hwy::SetSupportedTargetsForTest(0);
  }
}

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_OPS_RETRIEVAL_EACH_TARGET_H_
