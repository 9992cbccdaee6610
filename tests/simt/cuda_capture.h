// Graph capture of the emulated CUDA runtime: what capturing streams record, what they refuse, and
// graphs. The rules are those of "Stream Capture" in the CUDA C++ Programming Guide, for a process
// with one thread: there, the global and the thread-local mode refuse the same calls.

#ifndef SEMKV_TESTS_SIMT_CUDA_CAPTURE_H_
#define SEMKV_TESTS_SIMT_CUDA_CAPTURE_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "tests/simt/cuda_streams.h"

namespace semkv::simt {

struct Node {
  std::function<void()> run;
  std::vector<size_t> after;  // earlier nodes
};

using Nodes = std::vector<Node>;

// Runs every node once: as they were recorded, or in an order that rng draws of those that they
// allow.
void RunNodes(const Nodes& nodes, std::mt19937_64* rng);

struct Capture {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::vector<Stream*> streams;  // where it began, then those that joined
  Nodes nodes;
  bool is_valid = true;
  bool is_active = true;
};

// The work of a stream, or nodes of a capture.
struct Event {
  bool is_destroyed = false;
  Ticket ticket;
  std::shared_ptr<Capture> capture;
  std::vector<size_t> nodes;
};

struct Graph {
  bool is_destroyed = false;
  std::shared_ptr<const Nodes> nodes;
};

struct GraphExec {
  bool is_destroyed = false;
  std::shared_ptr<const Nodes> nodes;
  Ticket last_launch;  // the next one comes after it, in whatever stream
};

// The captures that have begun and not ended.
class Captures {
 public:
  cudaError_t Begin(Stream& stream, cudaStreamCaptureMode mode);
  cudaError_t End(Stream& stream, Nodes* nodes);
  static void Record(Stream& stream, std::function<void()> run);

  // For calls that would wait for the device or change what it has. They are not enqueued, so a
  // capture cannot hold them; unless all captures are relaxed they are refused and the captures
  // invalid.
  cudaError_t RefuseUnsafe();
  // For calls that would wait for everything.
  cudaError_t RefuseAny();
  // For any use of the null stream, which would wait for the blocking streams among the capturing.
  cudaError_t RefuseNullStream();
  bool IncludesBlockingStream() const;
  // For a wait for `stream`, and what cannot be recorded.
  static cudaError_t RefuseIfCapturing(Stream& stream);
  // cudaStreamWaitEvent where either of the two captures.
  static cudaError_t Wait(Stream& stream, const Event& event);

 private:
  std::vector<std::shared_ptr<Capture>> active_;
};

}  // namespace semkv::simt

struct CUevent_st : semkv::simt::Event {};
struct CUgraph_st : semkv::simt::Graph {};
struct CUgraphExec_st : semkv::simt::GraphExec {};

#endif  // SEMKV_TESTS_SIMT_CUDA_CAPTURE_H_
