// Random test inputs from a seed that every failure prints.

#ifndef SEMKV_TESTS_TESTING_RANDOM_H_
#define SEMKV_TESTS_TESTING_RANDOM_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "csrc/ops/numeric/float_convert.h"

namespace semkv::testing {

// SEMKV_TEST_SEED replays a run; otherwise `fallback`, so that runs repeat.
inline uint64_t TestSeed(uint64_t fallback) {
  const char* text = std::getenv("SEMKV_TEST_SEED");
  return text != nullptr ? std::strtoull(text, nullptr, 10) : fallback;
}

// Put the seed into every failure message of the scope.
#define SEMKV_TRACE_SEED(seed) SCOPED_TRACE("seed " + std::to_string(seed))

// How many times longer than usual a random test runs: `make soak` sets SEMKV_SOAK.
inline int SoakFactor() {
  const char* text = std::getenv("SEMKV_SOAK");
  return text != nullptr ? std::max(1, std::atoi(text)) : 1;
}

inline std::vector<float> RandomNormal(std::mt19937_64& rng, int64_t n, float deviation = 1.0f) {
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> x(n);
  for (float& value : x) value = normal(rng);
  return x;
}

// The bytes of `x` as `dtype`.
inline std::vector<uint8_t> Encode(const std::vector<float>& x, DType dtype) {
  std::vector<uint8_t> bytes(x.size() * DTypeBytes(dtype));
  for (size_t i = 0; i < x.size(); ++i) StoreFromFloat(bytes.data(), dtype, i, x[i]);
  return bytes;
}

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_TESTING_RANDOM_H_
