// Streams of the emulated CUDA runtime: what has been enqueued, what it waits for, and when it
// runs. A stream's work runs in order; that of different streams in any order that the waits allow.

#ifndef SEMKV_TESTS_SIMT_CUDA_STREAMS_H_
#define SEMKV_TESTS_SIMT_CUDA_STREAMS_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <vector>

namespace semkv::simt {

struct Capture;
struct Stream;

// The first `number` pieces of a stream's work.
struct Ticket {
  Stream* stream = nullptr;
  uint64_t number = 0;
};

struct Work {
  std::function<void()> run;
  std::vector<Ticket> after;
};

struct Stream {
  bool is_null = false;
  bool is_blocking = true;  // ordered with the null stream, both ways
  bool is_destroyed = false;
  std::deque<Work> queue;
  uint64_t num_done = 0;
  // While it captures: into what, and the nodes that its next one comes after.
  std::shared_ptr<Capture> capture;
  std::vector<size_t> last_nodes;
};

class Streams {
 public:
  Streams();

  // Objects stay until the process ends, so that a handle never comes to mean another stream.
  cudaStream_t Create(bool is_blocking);
  // Null: no stream has this handle.
  Stream* Find(cudaStream_t handle);

  // What `run` does happens behind the stream's earlier work and behind `after`: at once, or if
  // lazy when something waits for it.
  Ticket Enqueue(Stream& stream, std::function<void()> run, std::vector<Ticket> after = {});
  bool IsDone(const Ticket& ticket) const { return ticket.number <= Done(ticket.stream); }
  void WaitFor(const Ticket& ticket);
  void WaitForStream(Stream& stream);
  void WaitForDevice();
  // The first piece that the stream has not done yet, and what that waits for.
  void RunNext(Stream& stream);

  void set_lazy(bool is_lazy);
  void set_seed(uint64_t seed) { rng_.seed(seed); }
  // Null if what may run in any order runs in that of the calls.
  std::mt19937_64* rng() { return is_lazy_ ? &rng_ : nullptr; }

 private:
  static uint64_t Done(const Stream* stream) { return stream == nullptr ? 0 : stream->num_done; }

  std::vector<std::unique_ptr<CUstream_st>> streams_;  // the null stream first
  bool is_lazy_ = false;
  std::mt19937_64 rng_;
};

}  // namespace semkv::simt

struct CUstream_st : semkv::simt::Stream {};

#endif  // SEMKV_TESTS_SIMT_CUDA_STREAMS_H_
