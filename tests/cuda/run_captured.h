// Launches as engines make them: captured in a CUDA graph, which is then replayed.

#ifndef SEMKV_TESTS_CUDA_RUN_CAPTURED_H_
#define SEMKV_TESTS_CUDA_RUN_CAPTURED_H_

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#ifdef SEMKV_EMULATED
#include "tests/simt/runtime_calls.h"
#endif

namespace semkv::testing {

using RuntimeCalls = std::map<std::string, int64_t>;

#ifdef SEMKV_EMULATED
constexpr bool kIsEmulated = true;
inline RuntimeCalls TakeRuntimeCalls() { return simt::TakeRuntimeCalls(); }
inline void SetLazyStreams(bool lazy) { simt::SetLazyStreams(lazy); }
inline void FailAllocation(int which) { simt::FailAllocation(which); }
#else
constexpr bool kIsEmulated = false;
inline RuntimeCalls TakeRuntimeCalls() { return {}; }
inline void SetLazyStreams(bool) {}
inline void FailAllocation(int) {}
#endif

// While it lives an emulated stream does nothing before something waits for it, as a GPU may.
class LazyStreams {
 public:
  LazyStreams() { SetLazyStreams(true); }
  ~LazyStreams() { SetLazyStreams(false); }
  LazyStreams(const LazyStreams&) = delete;
  LazyStreams& operator=(const LazyStreams&) = delete;
};

// Captures what launch(stream) enqueues and replays it `times` times. Emulated, it fails too if
// launch calls anything of the runtime but launches: copies would be captured, and allocations
// from a pool.
template <typename Launch>
void RunCaptured(int times, const Launch& launch) {
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t captured = nullptr;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  TakeRuntimeCalls();
  EXPECT_EQ(launch(stream), cudaSuccess);
  for (const auto& [call, count] : TakeRuntimeCalls()) {
    EXPECT_EQ(call, "captured launch") << count << " calls";
  }
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&captured, graph, 0), cudaSuccess);
  for (int i = 0; i < times; ++i) EXPECT_EQ(cudaGraphLaunch(captured, stream), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(cudaGraphExecDestroy(captured), cudaSuccess);
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
}

// Every fourth case where launches are emulated, which is slow: the harness's own tests have all.
template <typename Case>
std::vector<Case> Thinned(const std::vector<Case>& cases) {
  std::vector<Case> some;
  for (size_t i = 0; i < cases.size(); i += kIsEmulated ? 4 : 1) some.push_back(cases[i]);
  return some;
}

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_CUDA_RUN_CAPTURED_H_
