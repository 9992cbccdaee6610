// Runs a test once per instruction set that Highway may choose on this machine.

#ifndef SEMKV_TESTS_TESTING_SIMD_TARGETS_H_
#define SEMKV_TESTS_TESTING_SIMD_TARGETS_H_

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cstdint>

#include "csrc/ops/vnni.h"

namespace semkv::testing {

// Calls body() with each target chosen in turn, AVX-512 without VNNI too where the machine has it.
// A target that the library was not compiled for falls back to its baseline, which then runs twice.
template <typename Body>
void ForEachSimdTarget(const Body& body) {
  for (int64_t target :
       {int64_t{HWY_AVX3}, int64_t{HWY_AVX2}, int64_t{HWY_SSE4}, int64_t{HWY_SCALAR}}) {
    if (target != HWY_SCALAR && (hwy::SupportedTargets() & target) == 0) continue;
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    body();
    if (target == HWY_AVX3 && HasVnni()) {
      SCOPED_TRACE("without VNNI");
      AllowVnniForTest(false);
      body();
      AllowVnniForTest(true);
    }
    hwy::SetSupportedTargetsForTest(0);
  }
}

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_TESTING_SIMD_TARGETS_H_
