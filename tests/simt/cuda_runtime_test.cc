// The emulated CUDA runtime: what a real one refuses or a wrong program does to it.

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "tests/simt/add_one.h"
#include "tests/simt/launch.h"
#include "tests/simt/runtime_calls.h"
#include "tests/simt/test_handles.h"

namespace semkv {
namespace {

int32_t* DeviceInts(size_t n) {
  void* data = nullptr;
  EXPECT_EQ(cudaMalloc(&data, n * sizeof(int32_t)), cudaSuccess);
  return static_cast<int32_t*>(data);
}

TEST(CudaRuntimeTest, CopiesLaunchesAndCounts) {
  std::vector<int32_t> host(100), back(100);
  std::iota(host.begin(), host.end(), 0);
  const size_t bytes = host.size() * sizeof(int32_t);
  int32_t *from = DeviceInts(100), *to = DeviceInts(100);
  ASSERT_EQ(cudaMemcpy(from, host.data(), bytes, cudaMemcpyHostToDevice), cudaSuccess);
  simt::TakeRuntimeCalls();
  ASSERT_EQ(AddOne({from, to, 100}, nullptr), cudaSuccess);
  ASSERT_EQ(AddOne({to, to, 100}, nullptr), cudaSuccess);
  ASSERT_EQ(AddOne({to, to, 0}, nullptr), cudaSuccess);  // an empty grid
  ASSERT_EQ(cudaMemcpy(back.data(), to, bytes, cudaMemcpyDeviceToHost), cudaSuccess);
  EXPECT_EQ(simt::TakeRuntimeCalls(),
            (std::map<std::string, int64_t>{{"launch", 2}, {"cudaMemcpy", 1}}));
  for (int32_t i = 0; i < 100; ++i) EXPECT_EQ(back[i], i + 2);
  EXPECT_EQ(cudaFree(from), cudaSuccess);
  EXPECT_EQ(cudaFree(from), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(to), cudaSuccess);
}

TEST(CudaRuntimeTest, MappedHostMemoryIsBothSides) {
  void *host = nullptr, *device = nullptr;
  ASSERT_EQ(cudaHostAlloc(&host, 4, cudaHostAllocMapped), cudaSuccess);
  ASSERT_EQ(cudaHostGetDevicePointer(&device, host, 0), cudaSuccess);
  *static_cast<int32_t*>(host) = 41;
  int32_t* number = static_cast<int32_t*>(device);
  ASSERT_EQ(AddOne({number, number, 1}, nullptr), cudaSuccess);
  EXPECT_EQ(*static_cast<int32_t*>(host), 42);
  EXPECT_EQ(cudaFreeHost(host), cudaSuccess);
}

TEST(CudaRuntimeTest, CopiesKnowWhereMemoryIs) {
  int32_t* device = DeviceInts(4);
  int32_t host[4] = {};
  EXPECT_EQ(cudaMemcpy(device, host, 17, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(device + 1, host, 16, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(host, device, 16, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(host, host, 16, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemset(host, 0, 16), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemset(device, 0, 16), cudaSuccess);
  EXPECT_EQ(cudaMemcpy(nullptr, host, 0, cudaMemcpyHostToDevice), cudaSuccess);
  EXPECT_EQ(cudaFree(device), cudaSuccess);
}

TEST(CudaRuntimeTest, CopiesRows) {
  const std::vector<int32_t> from = {1, 2, 3, 4, 5, 6};
  std::vector<int32_t> back(4, 9);
  const testing::TestStream stream;
  int32_t* device = DeviceInts(6);
  ASSERT_EQ(cudaMemset(device, 0, 24), cudaSuccess);
  // Columns 0 and 1 of 3 to columns 0 and 1 of 3, then column 1 alone.
  EXPECT_EQ(
      cudaMemcpy2DAsync(device, 12, from.data(), 12, 8, 2, cudaMemcpyHostToDevice, stream.get()),
      cudaSuccess);
  EXPECT_EQ(
      cudaMemcpy2DAsync(back.data(), 8, device + 1, 12, 4, 2, cudaMemcpyDeviceToHost, stream.get()),
      cudaSuccess);
  EXPECT_EQ(back, (std::vector<int32_t>{2, 9, 5, 9}));
  const auto copy = [&](size_t to_pitch, size_t width, size_t height) {
    return cudaMemcpy2DAsync(device, to_pitch, from.data(), 12, width, height,
                             cudaMemcpyHostToDevice, stream.get());
  };
  EXPECT_EQ(copy(4, 8, 2), cudaErrorInvalidPitchValue);
  EXPECT_EQ(copy(16, 8, 2), cudaSuccess);  // the last row ends with the memory
  EXPECT_EQ(copy(20, 8, 2), cudaErrorInvalidValue);
  EXPECT_EQ(copy(16, 8, 0), cudaSuccess);
  EXPECT_EQ(cudaFree(device), cudaSuccess);
}

TEST(CudaRuntimeTest, IsOneDevice) {
  int number = -1, value = 0;
  EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
  EXPECT_EQ(cudaSetDevice(1), cudaErrorInvalidDevice);
  EXPECT_EQ(cudaGetDevice(&number), cudaSuccess);
  EXPECT_EQ(number, 0);
  EXPECT_EQ(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, 0), cudaSuccess);
  EXPECT_EQ(value, 4);
  EXPECT_EQ(cudaDeviceGetAttribute(&value, cudaDevAttrComputeCapabilityMajor, 0), cudaSuccess);
  EXPECT_EQ(value, 9);
  EXPECT_EQ(cudaDeviceGetAttribute(&value, cudaDevAttrComputeCapabilityMinor, 0), cudaSuccess);
  EXPECT_EQ(value, 0);
  EXPECT_EQ(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, 1),
            cudaErrorInvalidDevice);
}

TEST(CudaRuntimeTest, WithoutLazyStreamsAllHasHappenedWhenTheCallReturns) {
  const testing::TestStream stream, other;
  const testing::TestEvent event;
  testing::PinnedInts x(1);
  void* memory = nullptr;
  ASSERT_EQ(cudaMallocAsync(&memory, 4, stream.get()), cudaSuccess);
  int32_t* device = static_cast<int32_t*>(memory);
  x[0] = 1;
  EXPECT_EQ(cudaMemcpyAsync(device, x.data(), 4, cudaMemcpyHostToDevice, stream.get()),
            cudaSuccess);
  x[0] = 5;
  EXPECT_EQ(AddOne({device, device, 1}, other.get()), cudaSuccess);
  EXPECT_EQ(cudaMemcpyAsync(x.data(), device, 4, cudaMemcpyDeviceToHost, stream.get()),
            cudaSuccess);
  EXPECT_EQ(x[0], 2);
  EXPECT_EQ(cudaEventRecord(event.get(), stream.get()), cudaSuccess);
  EXPECT_EQ(cudaEventQuery(event.get()), cudaSuccess);
  EXPECT_EQ(cudaFreeAsync(memory, stream.get()), cudaSuccess);
  EXPECT_EQ(cudaMemsetAsync(memory, 0, 4, stream.get()), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(memory), cudaErrorInvalidValue);
}

TEST(CudaRuntimeTest, FreedAddressesDoNotComeAgainAndDoNotRunOut) {
  std::set<const void*> seen;
  for (int i = 0; i < 70000; ++i) {  // more than a process may have mappings
    const int32_t* data = DeviceInts(1);
    ASSERT_TRUE(data != nullptr && seen.insert(data).second);
    ASSERT_EQ(cudaFree(const_cast<int32_t*>(data)), cudaSuccess);
  }
}

TEST(CudaRuntimeTest, KnowsItsHandles) {
  cudaStream_t stream = nullptr;
  cudaEvent_t event = nullptr;
  EXPECT_EQ(cudaStreamCreateWithFlags(&stream, 2), cudaErrorInvalidValue);
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  ASSERT_EQ(cudaEventCreateWithFlags(&event, cudaEventDefault), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaStreamDestroy(nullptr), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(AddOne({nullptr, nullptr, 1}, stream), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
  EXPECT_EQ(cudaEventDestroy(event), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaEventRecord(event, nullptr), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaStreamWaitEvent(nullptr, event), cudaErrorInvalidResourceHandle);
}

TEST(CudaRuntimeDeathTest, TheHostCannotTouchDeviceMemory) {
  int32_t* device = DeviceInts(1);
  EXPECT_DEATH(*const_cast<volatile int32_t*>(device) = 1, "");
  EXPECT_EQ(cudaFree(device), cudaSuccess);
}

TEST(CudaRuntimeDeathTest, AKernelThatDoesWrongFailsItsLaunchAndAllThatFollows) {
  if (!simt::kMemoryHooks) GTEST_SKIP() << "AddressSanitizer ends the process itself";
  int32_t* device = DeviceInts(3);
  const auto overrun = [&] {
    const bool failed = AddOne({device, device, 4}, nullptr) == cudaErrorLaunchFailure &&
                        cudaGetLastError() == cudaErrorLaunchFailure &&
                        cudaDeviceSynchronize() == cudaErrorLaunchFailure;
    std::exit(failed ? 7 : 1);
  };
  EXPECT_EXIT(overrun(), ::testing::ExitedWithCode(7), "the allocation of 12 bytes");
  EXPECT_EQ(cudaFree(device), cudaSuccess);
}

}  // namespace
}  // namespace semkv
