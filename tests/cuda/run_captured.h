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

// What launch(stream) enqueues, captured. Emulated, it fails if launch calls anything of the
// runtime but launches: copies would be captured, and allocations from a pool.
class CapturedGraph {
 public:
  template <typename Launch>
  CapturedGraph(cudaStream_t stream, const Launch& launch) {
    cudaGraph_t graph = nullptr;
    EXPECT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    TakeRuntimeCalls();
    EXPECT_EQ(launch(stream), cudaSuccess);
    for (const auto& [call, count] : TakeRuntimeCalls()) {
      EXPECT_EQ(call, "captured launch") << count << " calls";
    }
    EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    EXPECT_EQ(cudaGraphInstantiate(&captured_, graph, 0), cudaSuccess);
    EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  }
  CapturedGraph(const CapturedGraph&) = delete;
  CapturedGraph& operator=(const CapturedGraph&) = delete;
  ~CapturedGraph() { EXPECT_EQ(cudaGraphExecDestroy(captured_), cudaSuccess); }

  void Replay(cudaStream_t stream) const {
    EXPECT_EQ(cudaGraphLaunch(captured_, stream), cudaSuccess);
  }

 private:
  cudaGraphExec_t captured_ = nullptr;
};

// Captures what launch(stream) enqueues and replays it `times` times.
template <typename Launch>
void RunCaptured(int times, const Launch& launch) {
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  {
    const CapturedGraph graph(stream, launch);
    for (int i = 0; i < times; ++i) graph.Replay(stream);
    EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  }
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
