// Launches as engines make them: captured in a CUDA graph, which is then replayed.

#ifndef SEMKV_TESTS_CUDA_RUN_CAPTURED_H_
#define SEMKV_TESTS_CUDA_RUN_CAPTURED_H_

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <vector>

#ifdef SEMKV_EMULATED
#include "tests/simt/runtime_calls.h"
#endif

namespace semkv::testing {

#ifdef SEMKV_EMULATED

constexpr bool kIsEmulated = true;

// Does what launch(stream) enqueues `times` times. Fails if launch calls anything of the runtime
// but launches: it would synchronise, allocate or copy, which a graph's capture refuses too.
template <typename Launch>
void RunCaptured(int times, const Launch& launch) {
  simt::TakeRuntimeCalls();
  for (int i = 0; i < times; ++i) ASSERT_EQ(launch(nullptr), cudaSuccess);
  for (const auto& [call, count] : simt::TakeRuntimeCalls()) {
    EXPECT_EQ(call, "launch") << count << " calls";
  }
}

#else

constexpr bool kIsEmulated = false;

template <typename Launch>
void RunCaptured(int times, const Launch& launch) {
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t captured = nullptr;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  EXPECT_EQ(launch(stream), cudaSuccess);
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&captured, graph, 0), cudaSuccess);
  for (int i = 0; i < times; ++i) EXPECT_EQ(cudaGraphLaunch(captured, stream), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(cudaGraphExecDestroy(captured), cudaSuccess);
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
}

#endif

// Every fourth case where launches are emulated, which is slow: the harness's own tests have all.
template <typename Case>
std::vector<Case> Thinned(const std::vector<Case>& cases) {
  std::vector<Case> some;
  for (size_t i = 0; i < cases.size(); i += kIsEmulated ? 4 : 1) some.push_back(cases[i]);
  return some;
}

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_CUDA_RUN_CAPTURED_H_
