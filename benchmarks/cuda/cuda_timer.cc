#include "benchmarks/cuda/cuda_timer.h"

#include <algorithm>
#include <vector>

namespace semkv {

#ifdef SEMKV_EMULATED

cudaError_t TimeLayers(const CudaLaunch& launch, int32_t num_layers, CudaTimes* times) {
  *times = {};
  if (launch.before_replay) {
    if (const cudaError_t error = launch.before_replay(nullptr); error != cudaSuccess) return error;
  }
  for (int32_t layer = 0; layer < num_layers; ++layer) {
    if (const cudaError_t error = launch.enqueue(layer, nullptr); error != cudaSuccess)
      return error;
  }
  return cudaSuccess;
}

cudaError_t MeasureYardsticks(double* memory_gbs, double* bus_gbs) {
  *memory_gbs = *bus_gbs = 1.0;
  return cudaSuccess;
}

#else

namespace {

constexpr int kWarmUps = 3, kReplays = 15;

// A stream, two events and a graph; destroyed with it.
class GraphTimer {
 public:
  ~GraphTimer() {
    if (captured_ != nullptr) cudaGraphExecDestroy(captured_);
    if (graph_ != nullptr) cudaGraphDestroy(graph_);
    if (begin_ != nullptr) cudaEventDestroy(begin_);
    if (end_ != nullptr) cudaEventDestroy(end_);
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  cudaError_t Capture(const std::function<cudaError_t(cudaStream_t)>& enqueue) {
    cudaError_t error = cudaStreamCreate(&stream_);
    if (error == cudaSuccess) error = cudaEventCreate(&begin_);
    if (error == cudaSuccess) error = cudaEventCreate(&end_);
    if (error == cudaSuccess) {
      error = cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal);
    }
    if (error != cudaSuccess) return error;
    const cudaError_t enqueued = enqueue(stream_);
    error = cudaStreamEndCapture(stream_, &graph_);
    if (enqueued != cudaSuccess) return enqueued;
    return error == cudaSuccess ? cudaGraphInstantiate(&captured_, graph_, 0) : error;
  }

  // Milliseconds of one replay; of what is enqueued before it none.
  cudaError_t Replay(const std::function<cudaError_t(cudaStream_t)>& before, float* ms) {
    cudaError_t error = before ? before(stream_) : cudaSuccess;
    if (error == cudaSuccess) error = cudaEventRecord(begin_, stream_);
    if (error == cudaSuccess) error = cudaGraphLaunch(captured_, stream_);
    if (error == cudaSuccess) error = cudaEventRecord(end_, stream_);
    if (error == cudaSuccess) error = cudaEventSynchronize(end_);
    return error == cudaSuccess ? cudaEventElapsedTime(ms, begin_, end_) : error;
  }

 private:
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t captured_ = nullptr;
};

cudaError_t TimeGraph(const std::function<cudaError_t(cudaStream_t)>& enqueue,
                      const std::function<cudaError_t(cudaStream_t)>& before_replay,
                      CudaTimes* times) {
  GraphTimer timer;
  cudaError_t error = timer.Capture(enqueue);
  std::vector<float> ms;
  for (int i = 0; i < kWarmUps + kReplays && error == cudaSuccess; ++i) {
    float once = 0.0f;
    error = timer.Replay(before_replay, &once);
    if (i >= kWarmUps) ms.push_back(once);
  }
  if (error != cudaSuccess) return error;
  std::sort(ms.begin(), ms.end());
  times->least_us = 1e3 * ms.front();
  times->median_us = 1e3 * ms[ms.size() / 2];
  return cudaSuccess;
}

}  // namespace

cudaError_t TimeLayers(const CudaLaunch& launch, int32_t num_layers, CudaTimes* times) {
  const cudaError_t error = TimeGraph(
      [&](cudaStream_t stream) {
        for (int32_t layer = 0; layer < num_layers; ++layer) {
          if (const cudaError_t e = launch.enqueue(layer, stream); e != cudaSuccess) return e;
        }
        return cudaSuccess;
      },
      launch.before_replay, times);
  times->least_us /= num_layers;
  times->median_us /= num_layers;
  return error;
}

cudaError_t MeasureYardsticks(double* memory_gbs, double* bus_gbs) {
  constexpr size_t kBytes = size_t{1} << 30;
  CudaArena arena;
  void *from = arena.Normal(kBytes), *to = arena.Bytes(kBytes), *host = arena.Mapped(kBytes);
  if (arena.error() != cudaSuccess) return arena.error();
  CudaTimes times;
  const auto copy = [&](const void* source) {
    return TimeGraph(
        [&](cudaStream_t stream) {
          return cudaMemcpyAsync(to, source, kBytes, cudaMemcpyDefault, stream);
        },
        nullptr, &times);
  };
  if (const cudaError_t error = copy(from); error != cudaSuccess) return error;
  *memory_gbs = 2e-3 * kBytes / times.least_us;
  if (const cudaError_t error = copy(host); error != cudaSuccess) return error;
  *bus_gbs = 1e-3 * kBytes / times.least_us;
  return cudaSuccess;
}

#endif

}  // namespace semkv
