#include "tests/simt/cuda_capture.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace semkv::simt {
namespace {

// Whether the stream where the capture began comes after every node at its end.
bool IsJoined(const Capture& capture) {
  std::vector<bool> is_before(capture.nodes.size(), false);
  std::vector<size_t> open = capture.streams.front()->last_nodes;
  while (!open.empty()) {
    const size_t node = open.back();
    open.pop_back();
    if (is_before[node]) continue;
    is_before[node] = true;
    open.insert(open.end(), capture.nodes[node].after.begin(), capture.nodes[node].after.end());
  }
  return std::all_of(is_before.begin(), is_before.end(), [](bool is) { return is; });
}

bool IsBlocking(const Capture& capture) {
  return std::any_of(capture.streams.begin(), capture.streams.end(),
                     [](const Stream* s) { return s->is_blocking; });
}

}  // namespace

void RunNodes(const Nodes& nodes, std::mt19937_64* rng) {
  std::vector<size_t> left(nodes.size());
  std::iota(left.begin(), left.end(), 0);
  std::vector<bool> is_done(nodes.size(), false);
  while (!left.empty()) {
    std::vector<size_t> ready;  // places in `left`; the first is always ready
    for (size_t i = 0; i < (rng == nullptr ? 1 : left.size()); ++i) {
      const std::vector<size_t>& after = nodes[left[i]].after;
      if (std::all_of(after.begin(), after.end(), [&](size_t n) { return is_done[n]; })) {
        ready.push_back(i);
      }
    }
    const size_t next = ready[rng == nullptr ? 0 : (*rng)() % ready.size()];
    const size_t node = left[next];
    left.erase(left.begin() + static_cast<std::ptrdiff_t>(next));
    nodes[node].run();
    is_done[node] = true;
  }
}

cudaError_t Captures::Begin(Stream& stream, cudaStreamCaptureMode mode) {
  if (stream.capture != nullptr) return cudaErrorIllegalState;
  stream.capture = std::make_shared<Capture>();
  stream.capture->mode = mode;
  stream.capture->streams = {&stream};
  stream.last_nodes.clear();
  active_.push_back(stream.capture);
  return cudaSuccess;
}

cudaError_t Captures::End(Stream& stream, Nodes* nodes) {
  const std::shared_ptr<Capture> capture = stream.capture;
  if (capture == nullptr) return cudaErrorIllegalState;
  if (capture->streams.front() != &stream) {
    capture->is_valid = false;
    return cudaErrorStreamCaptureUnmatched;
  }
  const bool is_joined = IsJoined(*capture);
  for (Stream* s : capture->streams) s->capture = nullptr;
  capture->is_active = false;
  active_.erase(std::find(active_.begin(), active_.end(), capture));
  if (!capture->is_valid) return cudaErrorStreamCaptureInvalidated;
  if (!is_joined) return cudaErrorStreamCaptureUnjoined;
  *nodes = std::move(capture->nodes);
  return cudaSuccess;
}

void Captures::Record(Stream& stream, std::function<void()> run) {
  Nodes& nodes = stream.capture->nodes;
  nodes.push_back({std::move(run), stream.last_nodes});
  stream.last_nodes = {nodes.size() - 1};
}

cudaError_t Captures::RefuseUnsafe() {
  cudaError_t error = cudaSuccess;
  for (const auto& capture : active_) {
    if (capture->mode == cudaStreamCaptureModeRelaxed) continue;
    capture->is_valid = false;
    error = cudaErrorStreamCaptureUnsupported;
  }
  return error;
}

cudaError_t Captures::RefuseAny() {
  for (const auto& capture : active_) capture->is_valid = false;
  return active_.empty() ? cudaSuccess : cudaErrorStreamCaptureUnsupported;
}

bool Captures::IncludesBlockingStream() const {
  return std::any_of(active_.begin(), active_.end(),
                     [](const auto& capture) { return IsBlocking(*capture); });
}

cudaError_t Captures::RefuseNullStream() {
  cudaError_t error = cudaSuccess;
  for (const auto& capture : active_) {
    if (!IsBlocking(*capture)) continue;
    capture->is_valid = false;
    error = cudaErrorStreamCaptureImplicit;
  }
  return error;
}

cudaError_t Captures::RefuseIfCapturing(Stream& stream) {
  if (stream.capture == nullptr) return cudaSuccess;
  stream.capture->is_valid = false;
  return cudaErrorStreamCaptureUnsupported;
}

cudaError_t Captures::Wait(Stream& stream, const Event& event) {
  if (event.capture == nullptr) {
    stream.capture->is_valid = false;
    return cudaErrorStreamCaptureIsolation;
  }
  if (!event.capture->is_active) {
    if (stream.capture != nullptr) stream.capture->is_valid = false;
    return cudaErrorCapturedEvent;
  }
  if (!event.capture->is_valid) return cudaErrorStreamCaptureInvalidated;
  if (stream.capture == nullptr) {
    if (stream.is_null) {
      event.capture->is_valid = false;
      return cudaErrorStreamCaptureImplicit;
    }
    stream.capture = event.capture;
    stream.capture->streams.push_back(&stream);
    stream.last_nodes = event.nodes;
    return cudaSuccess;
  }
  if (stream.capture != event.capture) {
    stream.capture->is_valid = event.capture->is_valid = false;
    return cudaErrorStreamCaptureMerge;
  }
  stream.last_nodes.insert(stream.last_nodes.end(), event.nodes.begin(), event.nodes.end());
  return cudaSuccess;
}

}  // namespace semkv::simt
