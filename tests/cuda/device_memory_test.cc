// Device memory under the context: uploads through pinned memory, streams. Emulated only: these are
// the library's insides.

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "csrc/api/device.h"
#include "tests/cuda/run_captured.h"

namespace semkv {
namespace {

class DeviceMemoryTest : public ::testing::Test {
 protected:
  DeviceMemoryTest() : device_(*OpenDevice(0)) {}

  template <typename T>
  std::vector<T> Read(const T* data, int64_t n) {
    std::vector<T> host(n);
    const int64_t bytes = n * static_cast<int64_t>(sizeof(T));
    EXPECT_TRUE(device_->Download(host.data(), data, {bytes, 1, bytes, bytes}).ok());
    EXPECT_TRUE(device_->Wait().ok());
    return host;
  }

  std::unique_ptr<Device> device_;
};

// More bytes than the ring of pinned memory has, by rows shorter and longer than one of its pieces,
// on a stream that does nothing until it must.
TEST_F(DeviceMemoryTest, UploadsMayReuseTheCallersMemoryAtOnce) {
  const testing::LazyStreams lazy;
  for (const auto& [row_bytes, num_rows] :
       {std::pair{int64_t{1000}, int64_t{7000}}, std::pair{(int64_t{5} << 20) + 12, int64_t{2}}}) {
    const int64_t pitch = row_bytes + 20, to_pitch = row_bytes + 4;
    std::vector<uint8_t> from(num_rows * pitch);
    for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<uint8_t>(i * 2654435761u >> 13);
    const std::vector<uint8_t> original = from;
    absl::StatusOr<DeviceMemory> memory =
        DeviceMemory::Allocate(device_.get(), num_rows * to_pitch);
    ASSERT_TRUE(memory.ok()) << memory.status();
    ASSERT_TRUE(device_->Zero(memory->data(), num_rows * to_pitch).ok());
    ASSERT_TRUE(
        device_->Upload(memory->data(), from.data(), {row_bytes, num_rows, to_pitch, pitch}).ok());
    std::fill(from.begin(), from.end(), 0xee);
    const std::vector<uint8_t> back =
        Read(static_cast<const uint8_t*>(memory->data()), num_rows * to_pitch);
    for (int64_t row = 0; row < num_rows; ++row) {
      ASSERT_TRUE(std::equal(back.begin() + row * to_pitch,
                             back.begin() + row * to_pitch + row_bytes,
                             original.begin() + row * pitch))
          << "row " << row;
      ASSERT_EQ(back[row * to_pitch + row_bytes], 0);
    }
  }
}

TEST_F(DeviceMemoryTest, AnotherStreamContinuesWhereTheLastOneEnded) {
  const testing::LazyStreams lazy;
  cudaStream_t streams[2];
  for (cudaStream_t& s : streams) {
    ASSERT_EQ(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking), cudaSuccess);
  }
  ASSERT_TRUE(device_->SetStream(streams[0]).ok());
  absl::StatusOr<DeviceMemory> memory = DeviceMemory::Allocate(device_.get(), 4);
  for (int32_t i = 0; i < 20; ++i) {
    ASSERT_TRUE(device_->SetStream(streams[i % 2]).ok());
    ASSERT_TRUE(device_->Upload(memory->data(), &i, {4, 1, 4, 4}).ok());
    ASSERT_TRUE(device_->SetStream(streams[(i + 1) % 2]).ok());
    const int32_t read = i % 3 == 0 ? Read(static_cast<const int32_t*>(memory->data()), 1)[0] : i;
    EXPECT_EQ(read, i);
  }
  *memory = DeviceMemory();
  ASSERT_TRUE(device_->SetStream(nullptr).ok());
  for (cudaStream_t s : streams) ASSERT_EQ(cudaStreamDestroy(s), cudaSuccess);
}

}  // namespace
}  // namespace semkv
