// The emulated CUDA runtime: what a real one refuses or a wrong program does to it.

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "tests/simt/add_one.h"
#include "tests/simt/launch.h"
#include "tests/simt/runtime_calls.h"

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
