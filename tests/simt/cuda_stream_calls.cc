// The functions of the emulated CUDA runtime: streams, events, capture and graphs.

#include <cuda_runtime_api.h>

#include <memory>
#include <utility>
#include <vector>

#include "tests/simt/cuda_device.h"

namespace semkv::simt {
namespace {

// Handles of one kind. Their objects stay until the process ends, so that a handle never comes to
// mean another one.
template <typename T>
class Handles {
 public:
  T* Create() {
    objects_.push_back(std::make_unique<T>());
    return objects_.back().get();
  }
  // Whether it is one and has not been destroyed.
  bool Has(const T* handle) const {
    for (const auto& object : objects_) {
      if (object.get() == handle) return !object->is_destroyed;
    }
    return false;
  }

 private:
  std::vector<std::unique_ptr<T>> objects_;
};

template <typename T>
Handles<T>& All() {
  static Handles<T> handles;
  return handles;
}

cudaError_t CreateStream(cudaStream_t* stream, bool is_blocking) {
  *stream = TheDevice().streams().Create(is_blocking);
  return TheDevice().last_error();
}

// What stands in the way of asking the host's question whether an event has happened.
cudaError_t RefuseToLookAt(cudaEvent_t event) {
  if (!All<CUevent_st>().Has(event)) return cudaErrorInvalidResourceHandle;
  const cudaError_t error = TheDevice().captures().RefuseUnsafe();
  if (error != cudaSuccess) return error;
  return event->capture != nullptr ? cudaErrorCapturedEvent : cudaSuccess;
}

}  // namespace
}  // namespace semkv::simt

using semkv::simt::All;
using semkv::simt::Call;
using semkv::simt::Captures;
using semkv::simt::CreateStream;
using semkv::simt::Device;
using semkv::simt::RefuseToLookAt;
using semkv::simt::Stream;

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  Call(__func__);
  return CreateStream(stream, true);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int flags) {
  Call(__func__);
  if (flags != cudaStreamDefault && flags != cudaStreamNonBlocking) return cudaErrorInvalidValue;
  return CreateStream(stream, flags == cudaStreamDefault);
}

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  Stream* stream = Call(__func__).streams().Find(handle);
  if (stream == nullptr || handle == nullptr) return cudaErrorInvalidResourceHandle;
  const cudaError_t error = Captures::RefuseIfCapturing(*stream);
  if (error != cudaSuccess) return error;
  // What it was given is still done.
  stream->is_destroyed = true;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  Device& device = Call(__func__);
  Stream* stream = device.streams().Find(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  cudaError_t error = Captures::RefuseIfCapturing(*stream);
  if (error == cudaSuccess) error = device.captures().RefuseUnsafe();
  if (error == cudaSuccess && handle == nullptr) error = device.captures().RefuseNullStream();
  if (error != cudaSuccess) return error;
  device.streams().WaitForStream(*stream);
  return device.last_error();
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned int flags) {
  Device& device = Call(__func__);
  Stream* stream = nullptr;
  if (const cudaError_t error = device.Use(handle, &stream); error != cudaSuccess) return error;
  if (!All<CUevent_st>().Has(event)) return cudaErrorInvalidResourceHandle;
  if (flags != 0) return cudaErrorInvalidValue;
  if (event->capture != nullptr || stream->capture != nullptr) {
    return Captures::Wait(*stream, *event);
  }
  device.streams().Enqueue(*stream, [] {}, {event->ticket});
  return device.last_error();
}

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  Device& device = Call(__func__);
  Stream* stream = device.streams().Find(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (handle == nullptr) return cudaErrorStreamCaptureUnsupported;
  return device.captures().Begin(*stream, mode);
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  Device& device = Call(__func__);
  Stream* stream = device.streams().Find(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (handle == nullptr && device.captures().IncludesBlockingStream()) {
    return cudaErrorStreamCaptureImplicit;
  }
  *status = stream->capture == nullptr  ? cudaStreamCaptureStatusNone
            : stream->capture->is_valid ? cudaStreamCaptureStatusActive
                                        : cudaStreamCaptureStatusInvalidated;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  Device& device = Call(__func__);
  *graph = nullptr;
  Stream* stream = device.streams().Find(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  semkv::simt::Nodes nodes;
  const cudaError_t error = device.captures().End(*stream, &nodes);
  if (error != cudaSuccess) return error;
  *graph = All<CUgraph_st>().Create();
  (*graph)->nodes = std::make_shared<const semkv::simt::Nodes>(std::move(nodes));
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int) {
  Call(__func__);
  *event = All<CUevent_st>().Create();
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  Call(__func__);
  if (!All<CUevent_st>().Has(event)) return cudaErrorInvalidResourceHandle;
  *event = {};
  event->is_destroyed = true;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
  Device& device = Call(__func__);
  Stream* stream = nullptr;
  if (const cudaError_t error = device.Use(handle, &stream); error != cudaSuccess) return error;
  if (!All<CUevent_st>().Has(event)) return cudaErrorInvalidResourceHandle;
  event->capture = stream->capture;
  event->nodes = stream->last_nodes;
  // A piece of work of its own, which on the null stream waits for the other streams.
  if (stream->capture == nullptr) event->ticket = device.streams().Enqueue(*stream, [] {});
  return device.last_error();
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  Device& device = Call(__func__);
  if (const cudaError_t error = RefuseToLookAt(event); error != cudaSuccess) return error;
  if (device.streams().IsDone(event->ticket)) return device.last_error();
  // Time passes: who asks often enough sees it happen.
  device.streams().RunNext(*event->ticket.stream);
  return cudaErrorNotReady;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  Device& device = Call(__func__);
  if (const cudaError_t error = RefuseToLookAt(event); error != cudaSuccess) return error;
  device.streams().WaitFor(event->ticket);
  return device.last_error();
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  Call(__func__);
  *exec = nullptr;
  if (!All<CUgraph_st>().Has(graph)) return cudaErrorInvalidValue;
  *exec = All<CUgraphExec_st>().Create();
  (*exec)->nodes = graph->nodes;
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t handle) {
  Device& device = Call(__func__);
  Stream* stream = nullptr;
  if (const cudaError_t error = device.Use(handle, &stream); error != cudaSuccess) return error;
  if (!All<CUgraphExec_st>().Has(exec)) return cudaErrorInvalidValue;
  const auto run = [nodes = exec->nodes, &device] { RunNodes(*nodes, device.streams().rng()); };
  if (stream->capture != nullptr) {
    Captures::Record(*stream, run);
  } else {
    exec->last_launch = device.streams().Enqueue(*stream, run, {exec->last_launch});
  }
  return device.last_error();
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  Call(__func__);
  if (!All<CUgraphExec_st>().Has(exec)) return cudaErrorInvalidValue;
  *exec = {};
  exec->is_destroyed = true;
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  Call(__func__);
  if (!All<CUgraph_st>().Has(graph)) return cudaErrorInvalidValue;
  *graph = {};
  graph->is_destroyed = true;
  return cudaSuccess;
}
