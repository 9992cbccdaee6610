#include "tests/simt/cuda_streams.h"

#include <algorithm>
#include <utility>

namespace semkv::simt {
namespace {

Ticket AllOf(Stream& stream) { return {&stream, stream.num_done + stream.queue.size()}; }

}  // namespace

Streams::Streams() { Create(true)->is_null = true; }

cudaStream_t Streams::Create(bool is_blocking) {
  streams_.push_back(std::make_unique<CUstream_st>());
  streams_.back()->is_blocking = is_blocking;
  return streams_.back().get();
}

Stream* Streams::Find(cudaStream_t handle) {
  if (handle == nullptr) return streams_.front().get();
  for (size_t i = 1; i < streams_.size(); ++i) {
    if (streams_[i].get() == handle) return streams_[i]->is_destroyed ? nullptr : handle;
  }
  return nullptr;
}

Ticket Streams::Enqueue(Stream& stream, std::function<void()> run, std::vector<Ticket> after) {
  for (const auto& other : streams_) {
    const bool is_ordered = other.get() != &stream && other->is_blocking && stream.is_blocking &&
                            (other->is_null || stream.is_null);
    if (is_ordered && !other->queue.empty()) after.push_back(AllOf(*other));
  }
  stream.queue.push_back({std::move(run), std::move(after)});
  const Ticket ticket = AllOf(stream);
  if (!is_lazy_) WaitFor(ticket);
  return ticket;
}

void Streams::WaitFor(const Ticket& ticket) {
  while (!IsDone(ticket)) RunNext(*ticket.stream);
}

void Streams::WaitForStream(Stream& stream) {
  // The null stream's next piece waits for every blocking stream; who waits for it, too.
  WaitFor(stream.is_null ? Enqueue(stream, [] {}) : AllOf(stream));
}

void Streams::WaitForDevice() {
  while (true) {
    std::vector<Stream*> busy;
    for (const auto& stream : streams_) {
      if (!stream->queue.empty()) busy.push_back(stream.get());
    }
    if (busy.empty()) return;
    RunNext(*busy[rng_() % busy.size()]);
  }
}

void Streams::RunNext(Stream& stream) {
  const std::vector<Ticket> after = stream.queue.front().after;
  for (const Ticket& ticket : after) WaitFor(ticket);
  const Work work = std::move(stream.queue.front());
  stream.queue.pop_front();
  ++stream.num_done;
  work.run();
}

void Streams::set_lazy(bool is_lazy) {
  WaitForDevice();
  is_lazy_ = is_lazy;
}

}  // namespace semkv::simt
