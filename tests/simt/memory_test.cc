// What the harness finds in a kernel's memory accesses, and that it is silent about sound ones.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "csrc/ops/cuda/dependent_launch.cuh"
#include "csrc/ops/cuda/shared_memory.cuh"
#include "csrc/ops/cuda/vector_access.cuh"
#include "csrc/ops/cuda/warp_reduce.cuh"
#include "tests/simt/device_ops_kernels.cuh"
#include "tests/simt/launch.h"

namespace semkv::simt {
namespace {

#define SEMKV_NEEDS_HOOKS() \
  if (!kMemoryHooks) GTEST_SKIP() << "this build has sanitizers in place of memory hooks"

template <typename T>
Buffer Of(const std::string& name, std::vector<T>& data, Access access) {
  return {name, data.data(), static_cast<int64_t>(data.size() * sizeof(T)), access};
}

LaunchShape Ctas(uint32_t ctas, uint32_t threads) {
  LaunchShape shape;
  shape.grid_x = ctas;
  shape.threads = threads;
  return shape;
}

struct Cells {
  int x[64];
};

// Every thread reads what the thread `distance` away wrote.
template <Sync kSync>
__global__ void ReadNeighbour(int* out, int distance) {
  Cells& cells = SharedMemory<Cells>();
  cells.x[threadIdx.x] = static_cast<int>(threadIdx.x);
  Synchronise<kSync>();
  out[threadIdx.x] = cells.x[threadIdx.x ^ static_cast<uint32_t>(distance)];
}

// All read cell 0, then one thread writes it.
template <Sync kSync>
__global__ void WriteAfterRead(int* out, uint32_t writer) {
  Cells& cells = SharedMemory<Cells>();
  if (threadIdx.x == 0) cells.x[0] = 5;
  __syncthreads();
  out[threadIdx.x] = cells.x[0];
  Synchronise<kSync>();
  if (threadIdx.x == writer) cells.x[0] = 6;
}

// The errors over some schedules: a race is found in all of them, whether it bites or not.
template <typename Kernel>
std::vector<std::string> ErrorsBySeed(std::vector<int>& out, const Kernel& kernel) {
  std::vector<std::string> errors;
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    LaunchOptions options;
    options.buffers = {Of("out", out, Access::kReadWrite)};
    options.seed = seed;
    errors.push_back(Launch(Ctas(1, 64), options, kernel).Errors());
  }
  return errors;
}

template <typename Kernel>
void ExpectRace(const Kernel& kernel) {
  std::vector<int> out(64);
  for (const std::string& errors : ErrorsBySeed(out, [&] { kernel(out.data()); })) {
    EXPECT_NE(errors.find("race"), std::string::npos) << errors;
    EXPECT_NE(errors.find("shared memory"), std::string::npos) << errors;
  }
}

template <typename Kernel>
void ExpectSound(const Kernel& kernel) {
  std::vector<int> out(64);
  for (const std::string& errors : ErrorsBySeed(out, [&] { kernel(out.data()); })) {
    EXPECT_EQ(errors, "");
  }
}

TEST(SimtRaceTest, AReadOfAnotherThreadsWriteNeedsABarrier) {
  SEMKV_NEEDS_HOOKS();
  ExpectRace([](int* out) { ReadNeighbour<Sync::kNone>(out, 1); });
  ExpectSound([](int* out) { ReadNeighbour<Sync::kCta>(out, 1); });
  ExpectSound([](int* out) { ReadNeighbour<Sync::kNone>(out, 0); });
}

TEST(SimtRaceTest, SyncwarpOrdersLanesOfAWarpAndNoOthers) {
  SEMKV_NEEDS_HOOKS();
  ExpectSound([](int* out) { ReadNeighbour<Sync::kWarp>(out, 1); });
  ExpectRace([](int* out) { ReadNeighbour<Sync::kWarp>(out, 32); });
  ExpectSound([](int* out) { ReadNeighbour<Sync::kCta>(out, 32); });
}

TEST(SimtRaceTest, AWriteAfterReadsOfOthersNeedsABarrier) {
  SEMKV_NEEDS_HOOKS();
  for (uint32_t writer : {0u, 40u}) {
    ExpectRace([&](int* out) { WriteAfterRead<Sync::kNone>(out, writer); });
    ExpectRace(
        [&](int* out) { WriteAfterRead<Sync::kWarp>(out, writer); });  // the other warp reads
    ExpectSound([&](int* out) { WriteAfterRead<Sync::kCta>(out, writer); });
  }
}

// A __syncwarp of the even lanes orders them among themselves only.
__global__ void HalfAWarp(int* out, uint32_t writer) {
  Cells& cells = SharedMemory<Cells>();
  const uint32_t lane = threadIdx.x % 32;
  if (threadIdx.x == writer) cells.x[0] = 5;
  if (lane % 2 == 0) __syncwarp(0x55555555u);
  if (threadIdx.x == 4) out[0] = cells.x[0];
}

TEST(SimtRaceTest, SyncwarpOfSomeLanesOrdersOnlyThose) {
  SEMKV_NEEDS_HOOKS();
  ExpectSound([](int* out) { HalfAWarp(out, 2); });
  ExpectRace([](int* out) { HalfAWarp(out, 3); });
}

__global__ void ShuffleIsNoFence(int* out) {
  Cells& cells = SharedMemory<Cells>();
  cells.x[threadIdx.x] = 1;
  __shfl_xor_sync(kAllLanes, 1, 1);
  out[threadIdx.x] = cells.x[threadIdx.x ^ 1];
}

TEST(SimtRaceTest, AShuffleOrdersNoMemory) {
  SEMKV_NEEDS_HOOKS();
  ExpectRace([](int* out) { ShuffleIsNoFence(out); });
}

template <Sync kSync>
__global__ void AtomicThenRead(int* out) {
  Cells& cells = SharedMemory<Cells>();
  if (threadIdx.x == 0) cells.x[0] = 0;
  __syncthreads();
  atomicAdd(&cells.x[0], 1);
  Synchronise<kSync>();
  if (threadIdx.x == 0) out[0] = cells.x[0];
}

TEST(SimtRaceTest, AtomicsDoNotRaceAmongThemselvesButWithPlainAccesses) {
  SEMKV_NEEDS_HOOKS();
  ExpectSound([](int* out) { AtomicThenRead<Sync::kCta>(out); });
  int races = 0;
  std::vector<int> out(64);
  for (const std::string& errors :
       ErrorsBySeed(out, [&] { AtomicThenRead<Sync::kNone>(out.data()); })) {
    races += errors.find("race") != std::string::npos;
  }
  EXPECT_GT(races, 0);
}

__global__ void EveryCtaWrites(int* out, int stride) { out[blockIdx.x * stride] = 1; }

TEST(SimtRaceTest, TwoCtasWritingOneGlobalByteAreFound) {
  SEMKV_NEEDS_HOOKS();
  std::vector<int> out(8);
  const LaunchOptions options = {{Of("out", out, Access::kReadWrite)}};
  EXPECT_EQ(Launch(Ctas(8, 1), options, [&] { EveryCtaWrites(out.data(), 1); }).Errors(), "");
  const std::string errors =
      Launch(Ctas(8, 1), options, [&] { EveryCtaWrites(out.data(), 0); }).Errors();
  EXPECT_NE(errors.find("race: write of 4 bytes at byte 0 of out"), std::string::npos) << errors;
  EXPECT_NE(Launch(Ctas(1, 2), options, [&] { EveryCtaWrites(out.data(), 1); }).Errors(), "");
}

// n elements of T, one a thread.
template <typename T>
__global__ void Copy(const T* from, T* to, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) to[i] = from[i];
}

__global__ void CopyVectors(const std::byte* from, std::byte* to, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) Store(to + 16 * i, LoadStreaming(from + 16 * i));
}

template <typename T>
void ExpectCopyIsCounted() {
  std::vector<T> from(1000, T{3}), to(1000);
  const LaunchOptions options = {
      {Of("from", from, Access::kRead), Of("to", to, Access::kReadWrite)}};
  const LaunchReport report =
      Launch(Ctas(8, 128), options, [&] { Copy(from.data(), to.data(), 1000); });
  EXPECT_EQ(report.Errors(), "");
  EXPECT_EQ(to, from);
  constexpr int kWidth = sizeof(T);
  EXPECT_EQ(report.traffic.at("from").read_bytes, 1000 * kWidth);
  EXPECT_EQ(report.traffic.at("from").written_bytes, 0);
  EXPECT_EQ(report.traffic.at("to").read_bytes, 0);
  EXPECT_EQ(report.traffic.at("to").written_bytes, 1000 * kWidth);
  EXPECT_EQ(report.traffic.at("to").accesses, (std::map<int, int64_t>{{kWidth, 1000}}));
  EXPECT_EQ(report.Bytes(), 2000 * kWidth);
}

TEST(SimtTrafficTest, BytesAndWidthsOfACopyAreExact) {
  SEMKV_NEEDS_HOOKS();
  ExpectCopyIsCounted<uint8_t>();
  ExpectCopyIsCounted<uint16_t>();
  ExpectCopyIsCounted<float>();
  ExpectCopyIsCounted<double>();
}

TEST(SimtTrafficTest, AVectorIsOneAccessOf16Bytes) {
  std::vector<std::byte> from(16 * 100, std::byte{7}), to(16 * 100);
  const LaunchOptions options = {
      {Of("from", from, Access::kRead), Of("to", to, Access::kReadWrite)}};
  const LaunchReport report =
      Launch(Ctas(1, 128), options, [&] { CopyVectors(from.data(), to.data(), 100); });
  EXPECT_EQ(report.Errors(), "");
  EXPECT_EQ(to, from);
  SEMKV_NEEDS_HOOKS();
  EXPECT_EQ(report.traffic.at("from").accesses, (std::map<int, int64_t>{{16, 100}}));
  EXPECT_EQ(report.traffic.at("to").accesses, (std::map<int, int64_t>{{16, 100}}));
  EXPECT_EQ(report.Bytes(), 2 * 1600);
}

// Reads one number in all lanes, `times` times.
__global__ void ReadBroadcast(const int* x, int times, int* out) {
  int sum = 0;
  for (int i = 0; i < times; ++i) sum += *static_cast<const volatile int*>(x);
  out[threadIdx.x] = sum;
}

TEST(SimtTrafficTest, ABroadcastCountsOncePerWarpAndExecution) {
  SEMKV_NEEDS_HOOKS();
  std::vector<int> x = {21}, out(64);
  const LaunchOptions options = {{Of("x", x, Access::kRead), Of("out", out, Access::kReadWrite)}};
  const LaunchReport report =
      Launch(Ctas(1, 64), options, [&] { ReadBroadcast(x.data(), 2, out.data()); });
  EXPECT_EQ(report.Errors(), "");
  EXPECT_EQ(out[63], 42);
  EXPECT_EQ(report.traffic.at("x").read_bytes, 2 * 2 * 4);  // two warps, twice each
}

TEST(SimtBoundsTest, AccessesOutsideTheBuffersAreFoundAndDoNotHappen) {
  SEMKV_NEEDS_HOOKS();
  std::vector<int> from(100, 3), to(101, 9);
  const LaunchOptions options = {
      {Of("from", from, Access::kRead), {"to", to.data(), 100 * sizeof(int), Access::kReadWrite}}};
  std::string errors =
      Launch(Ctas(1, 128), options, [&] { Copy(to.data(), to.data(), 101); }).Errors();
  EXPECT_NE(errors.find("read of 4 bytes outside every buffer, 0 bytes behind the end of to"),
            std::string::npos)
      << errors;
  errors = Launch(Ctas(1, 128), options, [&] { Copy(to.data(), to.data() + 1, 100); }).Errors();
  EXPECT_NE(errors.find("write of 4 bytes outside every buffer"), std::string::npos) << errors;
  EXPECT_EQ(to[100], 9);
  errors = Launch(Ctas(1, 128), options, [&] { Copy(to.data(), from.data(), 1); }).Errors();
  EXPECT_NE(errors.find("read-only buffer from"), std::string::npos) << errors;
  EXPECT_EQ(from[0], 3);
}

__global__ void CountUp(int* n, bool waits_first) {
  Cells& cells = SharedMemory<Cells>();
  cells.x[0] = 1;
  if (waits_first) WaitForPreviousKernel();
  *n += cells.x[0];
  if (!waits_first) WaitForPreviousKernel();
}

TEST(SimtBoundsTest, AGlobalAccessBeforeTheWaitForThePreviousKernelIsFound) {
  SEMKV_NEEDS_HOOKS();
  std::vector<int> n(1);
  const LaunchOptions options = {{Of("n", n, Access::kReadWrite)}};
  LaunchShape shape = Ctas(1, 1);
  EXPECT_EQ(Launch(shape, options, [&] { CountUp(n.data(), false); }).Errors(), "");
  shape.overlaps_previous = true;
  EXPECT_EQ(Launch(shape, options, [&] { CountUp(n.data(), true); }).Errors(), "");
  const std::string errors = Launch(shape, options, [&] { CountUp(n.data(), false); }).Errors();
  EXPECT_NE(errors.find("read of 4 bytes of n before waiting"), std::string::npos) << errors;
  EXPECT_EQ(n[0], 2);
}

__global__ void IndexShared(int* out, int i) {
  Cells& cells = SharedMemory<Cells>();
  cells.x[0] = 1;
  out[0] = *(cells.x + i);
}

TEST(SimtBoundsTest, AnAccessBehindSharedMemoryIsFound) {
  SEMKV_NEEDS_HOOKS();
  std::vector<int> out(1);
  const LaunchOptions options = {{Of("out", out, Access::kReadWrite)}};
  EXPECT_EQ(Launch(Ctas(1, 1), options, [&] { IndexShared(out.data(), 0); }).Errors(), "");
  const std::string errors =
      Launch(Ctas(1, 1), options, [&] { IndexShared(out.data(), 64); }).Errors();
  EXPECT_NE(errors.find("outside every object of shared memory"), std::string::npos) << errors;
}

TEST(SimtBoundsTest, AnAddressThatIsNotAlignedIsFound) {
  SEMKV_NEEDS_HOOKS();
  std::vector<std::byte> from(64), to(64);
  const LaunchOptions options = {
      {Of("from", from, Access::kRead), Of("to", to, Access::kReadWrite)}};
  const std::string errors =
      Launch(Ctas(1, 1), options, [&] { CopyVectors(from.data() + 8, to.data(), 1); }).Errors();
  EXPECT_NE(errors.find("not aligned"), std::string::npos) << errors;
}

// Where there are no hooks, AddressSanitizer stands in for them, on the fibers' stacks too.
__global__ void IndexLocal(int* out, int i) {
  volatile int local[4] = {1, 2, 3, 4};
  __syncthreads();
  const volatile int* element =
      local + i;  // past UndefinedBehaviorSanitizer, which knows the array
  out[0] = *element;
}

TEST(SimtBoundsDeathTest, SanitizersFindAccessesOutside) {
#ifdef __SANITIZE_ADDRESS__
  std::vector<int> x(100), to(100);
  EXPECT_DEATH(Launch(Ctas(1, 128), {}, [&] { Copy(x.data(), to.data(), 101); }),
               "heap-buffer-overflow");
  EXPECT_DEATH(Launch(Ctas(1, 1), {}, [&] { IndexShared(to.data(), 64); }), "use-after-poison");
  // Either sanitizer may be the first.
  EXPECT_DEATH(Launch(Ctas(1, 1), {}, [&] { IndexLocal(to.data(), 4); }),
               "stack-buffer-overflow|insufficient space");
  EXPECT_EQ(Launch(Ctas(1, 1), {}, [&] { IndexLocal(to.data(), 3); }).Errors(), "");
  EXPECT_EQ(to[0], 4);
#else
  GTEST_SKIP() << "no AddressSanitizer in this build";
#endif
}

TEST(SimtCopyAsyncTest, DataArriveAtTheWaitAndArePoisonBefore) {
  std::vector<float> from(256), to(64);
  for (int i = 0; i < 256; ++i) from[i] = static_cast<float>(i);
  const LaunchOptions options = {
      {Of("from", from, Access::kRead), Of("to", to, Access::kReadWrite)}};
  const LaunchReport report = Launch(
      Ctas(1, 64), options, [&] { Stage<Waiting::kYes, Sync::kCta>(from.data(), to.data()); });
  EXPECT_EQ(report.Errors(), "");
  for (int i = 0; i < 64; ++i) EXPECT_EQ(to[i], 4.0f * (i ^ 1));
  Launch(Ctas(1, 64), options, [&] { Stage<Waiting::kNo, Sync::kCta>(from.data(), to.data()); });
  for (int i = 0; i < 64; ++i) EXPECT_TRUE(std::isnan(to[i]));
  EXPECT_EQ(Launch(Ctas(1, 1), options, [&] { StageTwoGroups(from.data(), to.data()); }).Errors(),
            "");
  EXPECT_EQ(to[0], 0.0f);
  EXPECT_TRUE(std::isnan(to[1]));
  SEMKV_NEEDS_HOOKS();
  EXPECT_EQ(report.traffic.at("from").accesses, (std::map<int, int64_t>{{16, 64}}));
  const std::string errors = Launch(Ctas(1, 64), options, [&] {
                               Stage<Waiting::kYes, Sync::kNone>(from.data(), to.data());
                             }).Errors();
  EXPECT_NE(errors.find("race"), std::string::npos) << errors;
}

}  // namespace
}  // namespace semkv::simt
