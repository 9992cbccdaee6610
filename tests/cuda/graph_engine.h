// An engine that decodes through semkv.h on a device, all layers in one CUDA graph.

#ifndef SEMKV_TESTS_CUDA_GRAPH_ENGINE_H_
#define SEMKV_TESTS_CUDA_GRAPH_ENGINE_H_

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "semkv/semkv.h"
#include "tests/cuda/device_context.h"
#include "tests/cuda/run_captured.h"

namespace semkv::testing {

// An engine's decode step: buffers that stay where they are, one graph of all layers.
class GraphEngine {
 public:
  // `plans`: of the host and of the device (TwoContexts::Plans), for one row.
  GraphEngine(TwoContexts* contexts, std::pair<semkv_plan*, semkv_plan*> plans)
      : contexts_(contexts), plans_(plans) {
    const DeviceContextShape& shape = contexts->shape();
    EXPECT_EQ(cudaStreamCreate(&stream_), cudaSuccess);
    SEMKV_EXPECT_OK(semkv_set_stream(contexts->device(), stream_));
    const int64_t q_bytes = 2 * shape.query_floats(), kv_bytes = 2 * shape.token_floats();
    for (int32_t layer = 0; layer < shape.num_layers; ++layer) {
      for (int64_t bytes : {q_bytes, q_bytes, kv_bytes, kv_bytes})
        buffers_.push_back(NewBuffer(bytes));
    }
    slot_ = NewBuffer(sizeof(int32_t));
  }
  GraphEngine(const GraphEngine&) = delete;
  GraphEngine& operator=(const GraphEngine&) = delete;
  ~GraphEngine() {
    SEMKV_EXPECT_OK(semkv_set_stream(contexts_->device(), nullptr));
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    DropGraph();
    for (void* buffer : buffers_) cudaFree(buffer);
    cudaFree(slot_);
    EXPECT_EQ(cudaStreamDestroy(stream_), cudaSuccess);
  }

  // One more token of `sequence`, with random queries.
  void Step(semkv_sequence sequence) {
    const int32_t num_layers = contexts_->shape().num_layers;
    const int32_t slot = contexts_->Append(sequence, 1)[0];
    SEMKV_ASSERT_OK(semkv_plan_step(plans_.first, 1, &sequence, nullptr));
    SEMKV_ASSERT_OK(semkv_plan_step(plans_.second, 1, &sequence, nullptr));
    queries_.clear();
    Fill(slot_, &slot, sizeof(slot));
    for (int32_t layer = 0; layer < num_layers; ++layer) {
      queries_.push_back(contexts_->NewQueries(1));
      const std::vector<uint8_t> k = contexts_->LastKeys(sequence, layer);
      const std::vector<uint8_t> v = contexts_->LastValues(sequence, layer);
      Fill(buffers_[4 * layer], queries_[layer].data(), queries_[layer].size());
      Fill(buffers_[4 * layer + 2], k.data(), k.size());
      Fill(buffers_[4 * layer + 3], v.data(), v.size());
    }
    uint64_t key = 0;
    SEMKV_EXPECT_OK(semkv_plan_graph_key(plans_.second, &key));
    if (graph_ == nullptr || key != key_) Capture();
    key_ = key;
    EXPECT_EQ(cudaGraphLaunch(graph_, stream_), cudaSuccess);
    out_ = queries_;
    for (int32_t layer = 0; layer < num_layers; ++layer) {
      EXPECT_EQ(cudaMemcpyAsync(out_[layer].data(), buffers_[4 * layer + 1], out_[layer].size(),
                                cudaMemcpyDeviceToHost, stream_),
                cudaSuccess);
    }
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  }

  // A layer of the last step beside the same one call by call, and beside the host.
  void CompareWithCalls(semkv_sequence sequence, int32_t layer) {
    DeviceCopy q(queries_[layer]), again(queries_[layer]);
    semkv_attend_args args = contexts_->AttendArgs();
    args.q = q.data();
    args.out = again.data();
    SEMKV_ASSERT_OK(semkv_run_layer(plans_.second, layer, nullptr, &args));
    EXPECT_EQ(again.Read(), out_[layer]);
    contexts_->CheckLayer({sequence}, layer, plans_, queries_[layer], out_[layer]);
  }

  int num_captures() const { return num_captures_; }

 private:
  void* NewBuffer(int64_t bytes) {
    void* data = nullptr;
    EXPECT_EQ(cudaMalloc(&data, bytes), cudaSuccess);
    return data;
  }

  void Fill(void* to, const void* from, size_t bytes) {
    EXPECT_EQ(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_), cudaSuccess);
  }

  void DropGraph() {
    if (graph_ == nullptr) return;
    EXPECT_EQ(cudaGraphExecDestroy(graph_), cudaSuccess);
    graph_ = nullptr;
  }

  void Capture() {
    DropGraph();
    ++num_captures_;
    cudaGraph_t graph = nullptr;
    ASSERT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    TakeRuntimeCalls();
    for (int32_t layer = 0; layer < contexts_->shape().num_layers; ++layer) RunLayer(layer);
    for (const auto& [call, count] : TakeRuntimeCalls()) {
      EXPECT_TRUE(call == "captured launch" || call == "cudaGetDevice") << count << " " << call;
    }
    ASSERT_EQ(cudaStreamEndCapture(stream_, &graph), cudaSuccess);
    ASSERT_EQ(cudaGraphInstantiate(&graph_, graph, 0), cudaSuccess);
    EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  }

  void RunLayer(int32_t layer) {
    semkv_write_args write = {};
    write.struct_size = sizeof(write);
    write.dtype = contexts_->shape().args_dtype();
    write.num_tokens = 1;
    write.slots = static_cast<const int32_t*>(slot_);
    write.k = buffers_[4 * layer + 2];
    write.v = buffers_[4 * layer + 3];
    write.stream = stream_;
    semkv_attend_args attend = contexts_->AttendArgs();
    attend.q = buffers_[4 * layer];
    attend.out = buffers_[4 * layer + 1];
    attend.stream = stream_;
    SEMKV_EXPECT_OK(semkv_run_layer(plans_.second, layer, &write, &attend));
  }

  TwoContexts* const contexts_;
  const std::pair<semkv_plan*, semkv_plan*> plans_;
  cudaStream_t stream_ = nullptr;
  cudaGraphExec_t graph_ = nullptr;
  uint64_t key_ = 0;
  int num_captures_ = 0;
  std::vector<std::vector<uint8_t>> queries_, out_;  // of the last step, [num_layers]
  std::vector<void*> buffers_;                       // [num_layers][q, out, k, v]
  void* slot_ = nullptr;
};

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_CUDA_GRAPH_ENGINE_H_
