// Device memory under the context: uploads through pinned memory, and lists' copies. Emulated only:
// these are the library's insides.

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "csrc/api/device.h"
#include "csrc/api/list_store.h"
#include "tests/cuda/run_captured.h"
#include "tests/testing/random.h"

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

struct RandomLists {
  std::vector<uint16_t> offsets, members;
  std::vector<float> means, variances, value_means;
};

RandomLists MakeLists(std::mt19937_64& rng, int32_t nlist, int32_t num_tokens, int32_t head_dim) {
  RandomLists lists;
  lists.offsets.push_back(0);
  for (int32_t i = 1; i < nlist; ++i) {
    lists.offsets.push_back(static_cast<uint16_t>(i * num_tokens / nlist));
  }
  lists.offsets.push_back(static_cast<uint16_t>(num_tokens));
  for (int32_t i = 0; i < num_tokens; ++i)
    lists.members.push_back(static_cast<uint16_t>(rng() % 900));
  lists.means = testing::RandomNormal(rng, int64_t{nlist} * head_dim);
  lists.variances = testing::RandomNormal(rng, nlist);
  lists.value_means = testing::RandomNormal(rng, int64_t{nlist} * head_dim);
  return lists;
}

// Cells get different numbers of lists, room runs out now and then, and after every Mirror each
// cell's view holds on the device what it does on the host.
TEST_F(DeviceMemoryTest, ListsAreMirroredAsTheyGrow) {
  constexpr int32_t kCells = 5, kHeadDim = 32, kMembers = 40;
  const uint64_t seed = testing::TestSeed(7);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (bool value_means : {false, true}) {
    ListStore store({kCells, kHeadDim, CentroidForm::kInt8, /*ranges=*/false, value_means});
    for (int32_t cell = 0; cell < kCells; ++cell) {
      store.SetCenter(cell, testing::RandomNormal(rng, kHeadDim).data());
    }
    for (int32_t round = 0; round < 12; ++round) {
      if (round % 4 == 0) store.Reserve((round + 4) * 6, (round + 4) * kMembers);
      for (int32_t cell = 0; cell < kCells; ++cell) {
        const auto nlist = static_cast<int32_t>(1 + rng() % 6);
        const RandomLists made = MakeLists(rng, nlist, kMembers, kHeadDim);
        NewLists lists;
        lists.nlist = nlist;
        lists.offsets = made.offsets.data();
        lists.members = made.members.data();
        lists.means = made.means.data();
        lists.variances = made.variances.data();
        lists.value_means = made.value_means.data();
        store.AppendCell(cell, lists);
      }
      if (round % 3 == 1) continue;  // two rounds at once
      ASSERT_TRUE(store.Mirror(device_.get()).ok());
      for (int32_t cell = 0; cell < kCells; ++cell) {
        const ListsView host = store.View(cell, 0, 1);
        const ListsView copy = store.View(cell, 0, 1, 0, ListMemory::kDevice);
        const auto expect_same = [&](auto* from, auto* to, int64_t n) {
          EXPECT_EQ(Read(to, n), std::vector(from, from + n)) << round << ", cell " << cell;
        };
        ASSERT_EQ(copy.nlist, host.nlist);
        expect_same(static_cast<const int8_t*>(host.centroids),
                    static_cast<const int8_t*>(copy.centroids), int64_t{host.nlist} * kHeadDim);
        expect_same(host.scales, copy.scales, host.nlist);
        expect_same(host.center, copy.center, kHeadDim);
        expect_same(host.variances, copy.variances, host.nlist);
        expect_same(host.offsets, copy.offsets, host.nlist + 1);
        expect_same(host.members, copy.members, host.offsets[host.nlist]);
        if (value_means) {
          expect_same(host.value_means, copy.value_means, int64_t{host.nlist} * kHeadDim);
        }
      }
    }
  }
}

}  // namespace
}  // namespace semkv
