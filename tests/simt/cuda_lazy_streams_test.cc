// The emulated CUDA runtime with lazy streams: what each call waits for, and that programs which
// forget to wait compute something else.

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "tests/cuda/device_copy.h"
#include "tests/simt/add_one.h"
#include "tests/simt/launch.h"
#include "tests/simt/runtime_calls.h"
#include "tests/simt/test_handles.h"

namespace semkv {
namespace {

using testing::DeviceCopy;
using testing::Order;
using testing::PinnedInts;
using testing::TestEvent;
using testing::TestStream;

// One number on the device.
class DeviceInt : public DeviceCopy {
 public:
  explicit DeviceInt(int32_t x) : DeviceCopy(&x, sizeof(x)) {}
  int32_t* get() { return static_cast<int32_t*>(data()); }
  // Does not wait for streams that are not blocking.
  int32_t Value() const { return Read<int32_t>()[0]; }
};

// *to = *from + 1.
void Add(int32_t* from, int32_t* to, cudaStream_t stream) {
  EXPECT_EQ(AddOne({from, to, 1}, stream), cudaSuccess);
}

class CudaLazyStreamsTest : public ::testing::Test {
 protected:
  void SetUp() override { simt::SetLazyStreams(true); }
  void TearDown() override { simt::SetLazyStreams(false); }
};

using CudaLazyStreamsDeathTest = CudaLazyStreamsTest;

TEST_F(CudaLazyStreamsTest, NothingRunsUntilSomethingWaits) {
  DeviceInt x(1), y(1);
  const TestStream stream, other;
  AddParams params = {x.get(), x.get(), 1};
  simt::TakeRuntimeCalls();
  EXPECT_EQ(AddOne(params, stream.get()), cudaSuccess);
  params = {};  // the launch has its own
  EXPECT_EQ(cudaMemsetAsync(y.get(), 0, 4, stream.get()), cudaSuccess);
  EXPECT_EQ(other.Wait(), cudaSuccess);
  EXPECT_EQ(simt::TakeRuntimeCalls().count("launch"), 0u);
  EXPECT_EQ(x.Value(), 1);
  EXPECT_EQ(y.Value(), 1);
  EXPECT_EQ(stream.Wait(), cudaSuccess);
  EXPECT_EQ(simt::TakeRuntimeCalls()["launch"], 1);
  EXPECT_EQ(x.Value(), 2);
  EXPECT_EQ(y.Value(), 0);
}

TEST_F(CudaLazyStreamsTest, WhatWaitsForTheDevice) {
  DeviceInt x(0);
  void* memory = nullptr;
  ASSERT_EQ(cudaMalloc(&memory, 4), cudaSuccess);
  {
    const TestStream stream;
    Add(x.get(), x.get(), stream.get());
  }
  EXPECT_EQ(x.Value(), 0);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);  // for a destroyed stream's work too
  EXPECT_EQ(x.Value(), 1);
  const TestStream stream;
  Add(x.get(), x.get(), stream.get());
  EXPECT_EQ(cudaFree(memory), cudaSuccess);
  EXPECT_EQ(x.Value(), 2);
  Add(x.get(), x.get(), stream.get());
  simt::SetLazyStreams(false);
  EXPECT_EQ(x.Value(), 3);
  Add(x.get(), x.get(), stream.get());
  EXPECT_EQ(x.Value(), 4);
}

TEST_F(CudaLazyStreamsTest, AnEventIsWhatItsStreamHadBeenGiven) {
  DeviceInt x(0), y(0);
  const TestStream stream;
  const TestEvent event;
  EXPECT_EQ(cudaEventQuery(event.get()), cudaSuccess);  // of no work
  EXPECT_EQ(cudaEventSynchronize(event.get()), cudaSuccess);
  Add(x.get(), x.get(), stream.get());
  EXPECT_EQ(cudaEventRecord(event.get(), stream.get()), cudaSuccess);
  Add(y.get(), y.get(), stream.get());
  EXPECT_EQ(cudaEventSynchronize(event.get()), cudaSuccess);
  EXPECT_EQ(x.Value(), 1);
  EXPECT_EQ(y.Value(), 0);
  EXPECT_EQ(cudaEventRecord(event.get(), stream.get()), cudaSuccess);
  EXPECT_EQ(cudaEventSynchronize(event.get()), cudaSuccess);
  EXPECT_EQ(y.Value(), 1);
}

TEST_F(CudaLazyStreamsTest, PollingAnEventSeesNotReadyAndEnds) {
  DeviceInt x(0);
  const TestStream stream;
  const TestEvent event;
  Add(x.get(), x.get(), stream.get());
  Add(x.get(), x.get(), stream.get());
  EXPECT_EQ(cudaEventRecord(event.get(), stream.get()), cudaSuccess);
  EXPECT_EQ(x.Value(), 0);
  int polls = 0;
  while (cudaEventQuery(event.get()) == cudaErrorNotReady && polls < 100) ++polls;
  EXPECT_EQ(polls, 3);
  EXPECT_EQ(x.Value(), 2);
}

TEST_F(CudaLazyStreamsTest, AnEventOrdersTwoStreams) {
  DeviceInt x(1), y(10), z(100);
  const TestStream first, second;
  Add(x.get(), y.get(), first.get());
  Order(first, second);
  Add(x.get(), x.get(), first.get());  // behind the event: nobody waits for it
  Add(y.get(), z.get(), second.get());
  EXPECT_EQ(second.Wait(), cudaSuccess);
  EXPECT_EQ(z.Value(), 3);
  EXPECT_EQ(x.Value(), 1);
}

TEST_F(CudaLazyStreamsTest, StreamsThatNothingOrdersAreFoundOut) {
  DeviceInt x(1), y(10), z(100);
  const TestStream first, second;
  Add(x.get(), y.get(), first.get());
  Add(y.get(), z.get(), second.get());
  EXPECT_EQ(second.Wait(), cudaSuccess);
  EXPECT_EQ(z.Value(), 11);
}

TEST_F(CudaLazyStreamsTest, TheDeviceRunsStreamsInADrawnOrder) {
  std::set<int32_t> seen;
  DeviceInt x(0);
  const TestStream first, second;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    simt::SetRuntimeSeed(seed);
    EXPECT_EQ(cudaMemsetAsync(x.get(), 1, 1, first.get()), cudaSuccess);
    EXPECT_EQ(cudaMemsetAsync(x.get(), 2, 1, second.get()), cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    seen.insert(x.Value());
  }
  EXPECT_EQ(seen, (std::set<int32_t>{1, 2}));
}

TEST_F(CudaLazyStreamsTest, TheNullStreamAndBlockingStreamsWaitForEachOther) {
  const TestStream blocking(cudaStreamDefault), other;
  {
    DeviceInt x(1), y(10), z(100);
    Add(x.get(), y.get(), blocking.get());
    Add(y.get(), z.get(), nullptr);
    EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);
    EXPECT_EQ(z.Value(), 3);
  }
  {
    DeviceInt x(1), y(10), z(100);
    Add(x.get(), y.get(), nullptr);
    Add(y.get(), z.get(), blocking.get());
    EXPECT_EQ(blocking.Wait(), cudaSuccess);
    EXPECT_EQ(z.Value(), 3);
  }
  {
    DeviceInt x(1), y(10), z(100);
    Add(x.get(), y.get(), other.get());
    Add(y.get(), z.get(), nullptr);
    EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);
    EXPECT_EQ(z.Value(), 11);
  }
  {
    DeviceInt x(1), y(10), z(100);
    Add(x.get(), y.get(), nullptr);
    Add(y.get(), z.get(), other.get());
    EXPECT_EQ(other.Wait(), cudaSuccess);
    EXPECT_EQ(z.Value(), 11);
  }
}

TEST_F(CudaLazyStreamsTest, WhoWaitsForTheNullStreamWaitsForBlockingStreams) {
  PinnedInts x(1);
  const TestStream blocking(cudaStreamDefault);
  const TestEvent event;
  x[0] = 0;
  Add(x.data(), x.data(), blocking.get());
  EXPECT_EQ(x[0], 0);
  EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);
  EXPECT_EQ(x[0], 1);
  Add(x.data(), x.data(), blocking.get());
  EXPECT_EQ(cudaEventRecord(event.get(), nullptr), cudaSuccess);
  EXPECT_EQ(x[0], 1);
  EXPECT_EQ(cudaEventSynchronize(event.get()), cudaSuccess);
  EXPECT_EQ(x[0], 2);
  DeviceInt y(0);
  Add(x.data(), x.data(), blocking.get());
  EXPECT_EQ(y.Value(), 0);  // a synchronous copy
  EXPECT_EQ(x[0], 3);
}

TEST_F(CudaLazyStreamsTest, ACopyFromPinnedMemoryReadsItWhenItRuns) {
  DeviceInt x(0), y(0);
  PinnedInts pinned(1);
  const TestStream stream;
  pinned[0] = 1;
  EXPECT_EQ(cudaMemcpyAsync(x.get(), pinned.data(), 4, cudaMemcpyHostToDevice, stream.get()),
            cudaSuccess);
  pinned[0] = 2;  // too early
  EXPECT_EQ(stream.Wait(), cudaSuccess);
  EXPECT_EQ(x.Value(), 2);

  int32_t pageable = 1;
  EXPECT_EQ(cudaMemcpyAsync(y.get(), &pageable, 4, cudaMemcpyHostToDevice, stream.get()),
            cudaSuccess);
  pageable = 2;  // in time: the call has staged it
  EXPECT_EQ(y.Value(), 0);
  EXPECT_EQ(stream.Wait(), cudaSuccess);
  EXPECT_EQ(y.Value(), 1);
}

TEST_F(CudaLazyStreamsTest, RowsOfPageableMemoryAreStagedToo) {
  DeviceCopy to(std::vector<int32_t>(4, 9));
  std::vector<int32_t> from = {1, 2, 3, 4, 5, 6};
  const TestStream stream;
  EXPECT_EQ(
      cudaMemcpy2DAsync(to.data(), 8, from.data(), 12, 4, 2, cudaMemcpyHostToDevice, stream.get()),
      cudaSuccess);
  from.assign(6, 7);
  EXPECT_EQ(stream.Wait(), cudaSuccess);
  EXPECT_EQ(to.Read<int32_t>(), (std::vector<int32_t>{1, 9, 4, 9}));
}

TEST_F(CudaLazyStreamsTest, ACopyToPageableMemoryWaitsAndToPinnedMemoryDoesNot) {
  DeviceInt x(1);
  PinnedInts pinned(1);
  int32_t pageable = 0;
  const TestStream stream;
  pinned[0] = 0;
  EXPECT_EQ(cudaMemcpyAsync(pinned.data(), x.get(), 4, cudaMemcpyDeviceToHost, stream.get()),
            cudaSuccess);
  EXPECT_EQ(pinned[0], 0);
  EXPECT_EQ(cudaMemcpyAsync(&pageable, x.get(), 4, cudaMemcpyDeviceToHost, stream.get()),
            cudaSuccess);
  EXPECT_EQ(pageable, 1);
  EXPECT_EQ(pinned[0], 1);
}

TEST_F(CudaLazyStreamsTest, ACopyWithinTheHostWaits) {
  PinnedInts from(1), to(1);
  const TestStream stream;
  from[0] = 1;
  EXPECT_EQ(cudaMemcpyAsync(to.data(), from.data(), 4, cudaMemcpyHostToHost, stream.get()),
            cudaSuccess);
  EXPECT_EQ(to[0], 1);
}

TEST_F(CudaLazyStreamsTest, ASynchronousCopyWithinTheDeviceWaitsForNothing) {
  DeviceInt x(0);
  PinnedInts y(1);
  y[0] = 0;
  Add(y.data(), y.data(), nullptr);
  EXPECT_EQ(cudaMemcpy(x.get(), x.get(), 4, cudaMemcpyDeviceToDevice), cudaSuccess);
  EXPECT_EQ(cudaMemset(x.get(), 0, 4), cudaSuccess);
  EXPECT_EQ(y[0], 0);
  EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);
  EXPECT_EQ(y[0], 1);
}

TEST_F(CudaLazyStreamsTest, MemoryComesAndGoesInItsStreamsOrder) {
  DeviceInt x(1), y(0);
  const TestStream stream, other;
  void* memory = nullptr;
  EXPECT_EQ(cudaMallocAsync(&memory, 4, stream.get()), cudaSuccess);
  int32_t* between = static_cast<int32_t*>(memory);
  Add(x.get(), between, stream.get());
  Order(stream, other);
  Add(between, y.get(), other.get());
  Order(other, stream);
  EXPECT_EQ(cudaFreeAsync(memory, stream.get()), cudaSuccess);
  EXPECT_EQ(cudaFreeAsync(memory, stream.get()), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(memory), cudaErrorInvalidValue);
  EXPECT_EQ(stream.Wait(), cudaSuccess);
  EXPECT_EQ(y.Value(), 3);
}

// What a program did and whether it ended with `error`, which stays; in a process of its own.
[[noreturn]] void ExitWith(cudaError_t error, const std::function<void()>& program) {
  program();
  std::exit(cudaDeviceSynchronize() == error && cudaGetLastError() == error ? 7 : 1);
}

TEST_F(CudaLazyStreamsDeathTest, CopiesOutsideTheLifeOfMemoryAreFoundOut) {
  const TestStream stream, other;
  DeviceInt x(0);
  void* memory = nullptr;
  const auto expect_error = [](const std::function<void()>& program) {
    EXPECT_EXIT(ExitWith(cudaErrorIllegalAddress, program), ::testing::ExitedWithCode(7),
                "not allocated when it happens");
  };
  const auto copy = [&](const TestStream& s) {
    EXPECT_EQ(cudaMemcpyAsync(x.get(), memory, 4, cudaMemcpyDeviceToDevice, s.get()), cudaSuccess);
  };
  expect_error([&] {
    cudaMallocAsync(&memory, 4, stream.get());
    cudaFreeAsync(memory, stream.get());
    copy(stream);
  });
  expect_error([&] {
    cudaMallocAsync(&memory, 4, stream.get());
    cudaFreeAsync(memory, stream.get());
    EXPECT_EQ(cudaMemsetAsync(memory, 0, 4, stream.get()), cudaSuccess);
  });
  expect_error([&] {
    cudaMallocAsync(&memory, 4, stream.get());
    cudaFreeAsync(memory, stream.get());
    cudaMemcpyAsync(memory, x.get(), 4, cudaMemcpyDeviceToDevice, stream.get());
  });
  expect_error([&] {  // before the stream has come to the allocation
    cudaMallocAsync(&memory, 4, stream.get());
    copy(other);
    other.Wait();
  });
  expect_error([&] {
    cudaHostAlloc(&memory, 4, cudaHostAllocDefault);
    cudaMemcpyAsync(x.get(), memory, 4, cudaMemcpyHostToDevice, stream.get());
    cudaFreeHost(memory);
  });
}

TEST_F(CudaLazyStreamsDeathTest, KernelsOutsideTheLifeOfMemoryAreFoundOut) {
  if (!simt::kMemoryHooks) GTEST_SKIP() << "AddressSanitizer ends the process itself";
  const TestStream stream, other;
  void* memory = nullptr;
  const auto run = [&](const TestStream& s) {
    Add(static_cast<int32_t*>(memory), static_cast<int32_t*>(memory), s.get());
  };
  EXPECT_EXIT(ExitWith(cudaErrorLaunchFailure,
                       [&] {
                         cudaMallocAsync(&memory, 4, stream.get());
                         cudaFreeAsync(memory, stream.get());
                         run(stream);
                       }),
              ::testing::ExitedWithCode(7), "outside every buffer");
  EXPECT_EXIT(ExitWith(cudaErrorLaunchFailure,
                       [&] {
                         cudaMallocAsync(&memory, 4, stream.get());
                         run(other);
                         other.Wait();
                       }),
              ::testing::ExitedWithCode(7), "outside every buffer");
}

}  // namespace
}  // namespace semkv
