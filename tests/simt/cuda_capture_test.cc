// Graph capture of the emulated CUDA runtime: what is recorded, what is refused, what is replayed.

#include <cuda_runtime_api.h>
#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "tests/cuda/device_copy.h"
#include "tests/cuda/run_captured.h"
#include "tests/simt/add_one.h"
#include "tests/simt/launch.h"
#include "tests/simt/runtime_calls.h"
#include "tests/simt/test_handles.h"

namespace semkv {
namespace {

using testing::Order;
using testing::PinnedInts;
using testing::TestEvent;
using testing::TestStream;

cudaError_t Begin(const TestStream& stream,
                  cudaStreamCaptureMode mode = cudaStreamCaptureModeThreadLocal) {
  return cudaStreamBeginCapture(stream.get(), mode);
}

// Ends the capture with `error` and without a graph.
void ExpectEnd(const TestStream& stream, cudaError_t error) {
  cudaGraph_t graph = nullptr;
  EXPECT_EQ(cudaStreamEndCapture(stream.get(), &graph), error);
  EXPECT_EQ(graph, nullptr);
}

cudaGraphExec_t End(const TestStream& stream) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  EXPECT_EQ(cudaStreamEndCapture(stream.get(), &graph), cudaSuccess);
  EXPECT_EQ(cudaGraphInstantiate(&exec, graph), cudaSuccess);
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);  // the executable one has its own nodes
  return exec;
}

cudaStreamCaptureStatus Status(const TestStream& stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  EXPECT_EQ(cudaStreamIsCapturing(stream.get(), &status), cudaSuccess);
  return status;
}

void Add(const PinnedInts& from, const PinnedInts& to, const TestStream& stream) {
  EXPECT_EQ(AddOne({from.data(), to.data(), 1}, stream.get()), cudaSuccess);
}

TEST(CudaCaptureTest, RecordsAndReplaysInOrder) {
  const TestStream stream;
  testing::DeviceCopy device(std::vector<int32_t>{5});
  PinnedInts from(1), to(1);
  from[0] = 40;
  to[0] = 0;
  AddParams params = {static_cast<int32_t*>(device.data()), static_cast<int32_t*>(device.data()),
                      1};
  simt::TakeRuntimeCalls();
  ASSERT_EQ(Begin(stream), cudaSuccess);
  EXPECT_EQ(Status(stream), cudaStreamCaptureStatusActive);
  EXPECT_EQ(cudaMemcpyAsync(device.data(), from.data(), 4, cudaMemcpyHostToDevice, stream.get()),
            cudaSuccess);
  EXPECT_EQ(AddOne(params, stream.get()), cudaSuccess);
  EXPECT_EQ(AddOne(params, stream.get()), cudaSuccess);
  params = {};
  EXPECT_EQ(cudaMemcpyAsync(to.data(), device.data(), 4, cudaMemcpyDeviceToHost, stream.get()),
            cudaSuccess);
  EXPECT_EQ(cudaMemsetAsync(device.data(), 0, 4, stream.get()), cudaSuccess);
  EXPECT_EQ(to[0], 0);
  const cudaGraphExec_t exec = End(stream);
  EXPECT_EQ(Status(stream), cudaStreamCaptureStatusNone);
  EXPECT_EQ(device.Read<int32_t>()[0], 5);
  std::map<std::string, int64_t> calls = simt::TakeRuntimeCalls();
  EXPECT_EQ(calls["captured launch"], 2);
  EXPECT_EQ(calls.count("launch"), 0u);

  for (int32_t i = 0; i < 3; ++i) {
    from[0] = i;
    EXPECT_EQ(cudaGraphLaunch(exec, stream.get()), cudaSuccess);
    EXPECT_EQ(stream.Wait(), cudaSuccess);
    EXPECT_EQ(to[0], i + 2);
    EXPECT_EQ(device.Read<int32_t>()[0], 0);
  }
  calls = simt::TakeRuntimeCalls();
  EXPECT_EQ(calls["launch"], 6);
  EXPECT_EQ(calls["cudaGraphLaunch"], 3);
  EXPECT_EQ(calls.count("cudaMemcpyAsync"), 0u);
  EXPECT_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
  EXPECT_EQ(cudaGraphLaunch(exec, stream.get()), cudaErrorInvalidValue);
}

TEST(CudaCaptureTest, ReadsAndWritesPageableMemoryWhenItIsReplayed) {
  const TestStream stream;
  testing::DeviceCopy device(std::vector<int32_t>{5});
  int32_t from = 1, to = 0;
  ASSERT_EQ(Begin(stream), cudaSuccess);
  EXPECT_EQ(cudaMemcpyAsync(device.data(), &from, 4, cudaMemcpyHostToDevice, stream.get()),
            cudaSuccess);
  EXPECT_EQ(cudaMemcpyAsync(&to, device.data(), 4, cudaMemcpyDeviceToHost, stream.get()),
            cudaSuccess);
  const cudaGraphExec_t exec = End(stream);
  EXPECT_EQ(to, 0);
  from = 2;
  EXPECT_EQ(cudaGraphLaunch(exec, stream.get()), cudaSuccess);
  EXPECT_EQ(to, 2);
  EXPECT_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
}

// A call, by name.
struct Refused {
  std::string name;
  std::function<cudaError_t()> call;
};

std::vector<Refused> UnsafeCalls(const TestStream& other, const TestEvent& event) {
  static int32_t host = 0;
  static void* data = nullptr;
  return {
      {"malloc", [] { return cudaMalloc(&data, 4); }},
      {"free", [] { return cudaFree(nullptr); }},
      {"host alloc", [] { return cudaHostAlloc(&data, 4, 0); }},
      {"free host", [] { return cudaFreeHost(nullptr); }},
      {"copy", [] { return cudaMemcpy(&host, &host, 4, cudaMemcpyHostToHost); }},
      {"memset", [] { return cudaMemset(nullptr, 0, 0); }},
      {"stream", [&] { return cudaStreamSynchronize(other.get()); }},
      {"event", [&] { return cudaEventSynchronize(event.get()); }},
      {"query", [&] { return cudaEventQuery(event.get()); }},
  };
}

TEST(CudaCaptureTest, UnsafeCallsAreRefusedAndEndTheCapture) {
  const TestStream stream, other;
  const TestEvent event;
  for (const auto mode : {cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal}) {
    for (const Refused& refused : UnsafeCalls(other, event)) {
      SCOPED_TRACE(refused.name);
      ASSERT_EQ(Begin(stream, mode), cudaSuccess);
      EXPECT_EQ(refused.call(), cudaErrorStreamCaptureUnsupported);
      EXPECT_EQ(Status(stream), cudaStreamCaptureStatusInvalidated);
      EXPECT_EQ(AddOne({nullptr, nullptr, 1}, stream.get()), cudaErrorStreamCaptureInvalidated);
      ExpectEnd(stream, cudaErrorStreamCaptureInvalidated);
      EXPECT_EQ(refused.call(), cudaSuccess);
    }
  }
  ASSERT_EQ(Begin(stream, cudaStreamCaptureModeRelaxed), cudaSuccess);
  for (const Refused& refused : UnsafeCalls(other, event)) {
    EXPECT_EQ(refused.call(), cudaSuccess) << refused.name;
  }
  EXPECT_EQ(cudaGraphExecDestroy(End(stream)), cudaSuccess);
}

TEST(CudaCaptureTest, WhatContradictsACaptureIsRefusedInEveryMode) {
  const TestStream stream;
  void* data = nullptr;
  const std::vector<Refused> calls = {
      {"stream", [&] { return stream.Wait(); }},
      {"device", [] { return cudaDeviceSynchronize(); }},
      {"destroy", [&] { return cudaStreamDestroy(stream.get()); }},
      {"malloc async", [&] { return cudaMallocAsync(&data, 4, stream.get()); }},
      {"free async", [&] { return cudaFreeAsync(nullptr, stream.get()); }},
  };
  for (const auto mode : {cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal,
                          cudaStreamCaptureModeRelaxed}) {
    for (const Refused& refused : calls) {
      SCOPED_TRACE(refused.name);
      ASSERT_EQ(Begin(stream, mode), cudaSuccess);
      EXPECT_EQ(refused.call(), cudaErrorStreamCaptureUnsupported);
      ExpectEnd(stream, cudaErrorStreamCaptureInvalidated);
    }
  }
}

TEST(CudaCaptureTest, TheNullStreamCannotBeUsedWhileABlockingStreamCaptures) {
  const TestStream blocking(cudaStreamDefault), other;
  PinnedInts x(1);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  ASSERT_EQ(Begin(blocking), cudaSuccess);
  EXPECT_EQ(cudaStreamIsCapturing(nullptr, &status), cudaErrorStreamCaptureImplicit);
  EXPECT_EQ(Status(blocking), cudaStreamCaptureStatusActive);
  EXPECT_EQ(AddOne({x.data(), x.data(), 1}, nullptr), cudaErrorStreamCaptureImplicit);
  ExpectEnd(blocking, cudaErrorStreamCaptureInvalidated);
  ASSERT_EQ(Begin(blocking, cudaStreamCaptureModeRelaxed), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaErrorStreamCaptureImplicit);
  ExpectEnd(blocking, cudaErrorStreamCaptureInvalidated);

  ASSERT_EQ(Begin(other), cudaSuccess);
  x[0] = 1;
  EXPECT_EQ(AddOne({x.data(), x.data(), 1}, nullptr), cudaSuccess);
  EXPECT_EQ(x[0], 2);  // not captured
  EXPECT_EQ(cudaGraphExecDestroy(End(other)), cudaSuccess);
  EXPECT_EQ(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal),
            cudaErrorStreamCaptureUnsupported);
}

TEST(CudaCaptureTest, BeginsOnceAndEndsWhereItBegan) {
  const TestStream stream, other;
  ExpectEnd(stream, cudaErrorIllegalState);
  ASSERT_EQ(Begin(stream), cudaSuccess);
  EXPECT_EQ(Begin(stream), cudaErrorIllegalState);
  Order(stream, other);
  ExpectEnd(other, cudaErrorStreamCaptureUnmatched);
  ExpectEnd(stream, cudaErrorStreamCaptureInvalidated);
  EXPECT_EQ(Status(other), cudaStreamCaptureStatusNone);
}

TEST(CudaCaptureTest, ForksAndJoins) {
  const TestStream stream, other;
  PinnedInts x(1), y(1), z(1);
  ASSERT_EQ(Begin(stream), cudaSuccess);
  Add(x, y, stream);
  Order(stream, other);
  EXPECT_EQ(Status(other), cudaStreamCaptureStatusActive);
  Add(y, z, other);
  Order(other, stream);
  Add(z, x, stream);
  const cudaGraphExec_t exec = End(stream);
  EXPECT_EQ(Status(other), cudaStreamCaptureStatusNone);
  simt::SetLazyStreams(true);
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    simt::SetRuntimeSeed(seed);
    x[0] = 10;
    y[0] = z[0] = 0;  // what a branch that comes too early reads
    EXPECT_EQ(cudaGraphLaunch(exec, stream.get()), cudaSuccess);
    EXPECT_EQ(stream.Wait(), cudaSuccess);
    EXPECT_EQ(x[0], 13);
  }
  simt::SetLazyStreams(false);
  EXPECT_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
}

TEST(CudaCaptureTest, BranchesThatNothingOrdersRunInADrawnOrder) {
  const TestStream stream, other;
  PinnedInts x(1), y(1), z(1);
  ASSERT_EQ(Begin(stream), cudaSuccess);
  Order(stream, other);
  Add(x, y, stream);
  Add(y, z, other);  // should come behind it
  Order(other, stream);
  const cudaGraphExec_t exec = End(stream);
  std::set<int32_t> seen;
  simt::SetLazyStreams(true);
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    simt::SetRuntimeSeed(seed);
    x[0] = 1;
    y[0] = 10;
    EXPECT_EQ(cudaGraphLaunch(exec, stream.get()), cudaSuccess);
    EXPECT_EQ(stream.Wait(), cudaSuccess);
    seen.insert(z[0]);
  }
  simt::SetLazyStreams(false);
  EXPECT_EQ(seen, (std::set<int32_t>{3, 11}));
  EXPECT_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
}

TEST(CudaCaptureTest, DependenciesDoNotCrossItsBoundary) {
  const TestStream stream, other, third;
  const TestEvent event, outside;
  PinnedInts x(1);
  ASSERT_EQ(cudaEventRecord(outside.get(), third.get()), cudaSuccess);

  ASSERT_EQ(Begin(stream), cudaSuccess);
  Order(stream, other);
  Add(x, x, other);
  ExpectEnd(stream, cudaErrorStreamCaptureUnjoined);

  ASSERT_EQ(Begin(stream), cudaSuccess);
  EXPECT_EQ(cudaStreamWaitEvent(stream.get(), outside.get()), cudaErrorStreamCaptureIsolation);
  ExpectEnd(stream, cudaErrorStreamCaptureInvalidated);

  ASSERT_EQ(Begin(stream), cudaSuccess);
  ASSERT_EQ(Begin(other), cudaSuccess);
  EXPECT_EQ(cudaEventRecord(event.get(), stream.get()), cudaSuccess);
  EXPECT_EQ(cudaStreamWaitEvent(other.get(), event.get()), cudaErrorStreamCaptureMerge);
  ExpectEnd(other, cudaErrorStreamCaptureInvalidated);
  ExpectEnd(stream, cudaErrorStreamCaptureInvalidated);
}

TEST(CudaCaptureTest, AnEventOfACaptureSaysNothingToTheHost) {
  const TestStream stream, other;
  const TestEvent event;
  ASSERT_EQ(Begin(stream, cudaStreamCaptureModeRelaxed), cudaSuccess);
  EXPECT_EQ(cudaEventRecord(event.get(), stream.get()), cudaSuccess);
  EXPECT_EQ(cudaEventQuery(event.get()), cudaErrorCapturedEvent);
  EXPECT_EQ(cudaStreamWaitEvent(nullptr, event.get()), cudaErrorStreamCaptureImplicit);
  EXPECT_EQ(cudaStreamWaitEvent(other.get(), event.get()), cudaErrorStreamCaptureInvalidated);
  ExpectEnd(stream, cudaErrorStreamCaptureInvalidated);
  EXPECT_EQ(cudaEventSynchronize(event.get()), cudaErrorCapturedEvent);
  EXPECT_EQ(cudaStreamWaitEvent(other.get(), event.get()), cudaErrorCapturedEvent);
  ASSERT_EQ(Begin(other), cudaSuccess);
  EXPECT_EQ(cudaStreamWaitEvent(other.get(), event.get()), cudaErrorCapturedEvent);
  ExpectEnd(other, cudaErrorStreamCaptureInvalidated);
  EXPECT_EQ(cudaEventRecord(event.get(), stream.get()), cudaSuccess);
  EXPECT_EQ(cudaEventSynchronize(event.get()), cudaSuccess);
}

TEST(CudaCaptureTest, AGraphCanBeCapturedInAGraph) {
  const TestStream stream;
  PinnedInts x(1);
  ASSERT_EQ(Begin(stream), cudaSuccess);
  Add(x, x, stream);
  const cudaGraphExec_t inner = End(stream);
  ASSERT_EQ(Begin(stream), cudaSuccess);
  EXPECT_EQ(cudaGraphLaunch(inner, stream.get()), cudaSuccess);
  EXPECT_EQ(cudaGraphLaunch(inner, stream.get()), cudaSuccess);
  const cudaGraphExec_t outer = End(stream);
  EXPECT_EQ(cudaGraphExecDestroy(inner), cudaSuccess);
  x[0] = 0;
  EXPECT_EQ(cudaGraphLaunch(outer, stream.get()), cudaSuccess);
  EXPECT_EQ(x[0], 2);
  EXPECT_EQ(cudaGraphExecDestroy(outer), cudaSuccess);
}

TEST(CudaCaptureTest, LazyLaunchesOfOneGraphRunOneAfterTheOther) {
  const TestStream stream, other;
  PinnedInts x(1), y(1);
  ASSERT_EQ(Begin(stream), cudaSuccess);
  Add(x, x, stream);
  const cudaGraphExec_t exec = End(stream);
  simt::SetLazyStreams(true);
  x[0] = 0;
  EXPECT_EQ(cudaGraphLaunch(exec, stream.get()), cudaSuccess);
  Add(x, y, stream);
  EXPECT_EQ(cudaGraphLaunch(exec, other.get()), cudaSuccess);
  EXPECT_EQ(cudaGraphExecDestroy(exec), cudaSuccess);  // what is enqueued still runs
  EXPECT_EQ(x[0], 0);
  EXPECT_EQ(other.Wait(), cudaSuccess);
  EXPECT_EQ(x[0], 2);
  simt::SetLazyStreams(false);
  EXPECT_EQ(y[0], 3);
}

TEST(CudaCaptureTest, RunCapturedFindsWhatIsNoLaunch) {
  EXPECT_NONFATAL_FAILURE(
      testing::RunCaptured(
          1, [](cudaStream_t stream) { return cudaMemsetAsync(nullptr, 0, 0, stream); }),
      "cudaMemsetAsync");
}

TEST(CudaCaptureDeathTest, AKernelThatDoesWrongFailsTheReplay) {
  if (!simt::kMemoryHooks) GTEST_SKIP() << "AddressSanitizer ends the process itself";
  const auto overrun = [] {
    const TestStream stream;
    PinnedInts x(1);
    if (Begin(stream) != cudaSuccess) std::exit(1);
    if (AddOne({x.data(), x.data(), 2}, stream.get()) != cudaSuccess) std::exit(2);
    const cudaGraphExec_t exec = End(stream);
    std::exit(cudaGraphLaunch(exec, stream.get()) == cudaErrorLaunchFailure ? 7 : 3);
  };
  EXPECT_EXIT(overrun(), ::testing::ExitedWithCode(7), "the allocation of 4 bytes");
}

}  // namespace
}  // namespace semkv
