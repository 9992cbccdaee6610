// Streams, events and pinned memory of the tests of the emulated CUDA runtime; destroyed with them.

#ifndef SEMKV_TESTS_SIMT_TEST_HANDLES_H_
#define SEMKV_TESTS_SIMT_TEST_HANDLES_H_

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>

namespace semkv::testing {

class TestStream {
 public:
  explicit TestStream(unsigned int flags = cudaStreamNonBlocking) {
    EXPECT_EQ(cudaStreamCreateWithFlags(&stream_, flags), cudaSuccess);
  }
  TestStream(const TestStream&) = delete;
  TestStream& operator=(const TestStream&) = delete;
  ~TestStream() { cudaStreamDestroy(stream_); }

  cudaStream_t get() const { return stream_; }
  cudaError_t Wait() const { return cudaStreamSynchronize(stream_); }

 private:
  cudaStream_t stream_ = nullptr;
};

class TestEvent {
 public:
  TestEvent() { EXPECT_EQ(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), cudaSuccess); }
  TestEvent(const TestEvent&) = delete;
  TestEvent& operator=(const TestEvent&) = delete;
  ~TestEvent() { cudaEventDestroy(event_); }

  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

// What is enqueued on `to` from now on comes behind what has been on `from`.
inline void Order(const TestStream& from, const TestStream& to) {
  const TestEvent event;
  EXPECT_EQ(cudaEventRecord(event.get(), from.get()), cudaSuccess);
  EXPECT_EQ(cudaStreamWaitEvent(to.get(), event.get()), cudaSuccess);
}

// Page-locked numbers of the host.
class PinnedInts {
 public:
  explicit PinnedInts(size_t n) {
    EXPECT_EQ(cudaHostAlloc(&data_, n * sizeof(int32_t), cudaHostAllocDefault), cudaSuccess);
  }
  PinnedInts(const PinnedInts&) = delete;
  PinnedInts& operator=(const PinnedInts&) = delete;
  ~PinnedInts() { cudaFreeHost(data_); }

  int32_t* data() const { return static_cast<int32_t*>(data_); }
  int32_t& operator[](size_t i) const { return data()[i]; }

 private:
  void* data_ = nullptr;
};

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_SIMT_TEST_HANDLES_H_
