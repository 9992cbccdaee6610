// How the harness runs threads: barriers, warp calls, deadlocks, atomics, shared memory.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "csrc/ops/cuda/dependent_launch.cuh"
#include "csrc/ops/cuda/shared_memory.cuh"
#include "csrc/ops/cuda/warp_reduce.cuh"
#include "tests/simt/launch.h"

namespace semkv::simt {
namespace {

template <typename T>
Buffer Writable(const std::string& name, std::vector<T>& data) {
  return {name, data.data(), static_cast<int64_t>(data.size() * sizeof(T)), Access::kReadWrite};
}

LaunchShape Ctas(uint32_t ctas, uint32_t threads) {
  LaunchShape shape;
  shape.grid_x = ctas;
  shape.threads = threads;
  return shape;
}

__global__ void Identity(uint32_t* out) {
  const uint32_t cta = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  out[cta * blockDim.x + threadIdx.x] = cta * 1000 + threadIdx.x;
}

TEST(SimtTest, EveryThreadOfEveryCtaRunsOnce) {
  LaunchShape shape;
  shape.grid_x = 2;
  shape.grid_y = 3;
  shape.grid_z = 4;
  shape.threads = 70;
  std::vector<uint32_t> out(24 * 70, 77);
  const LaunchReport report =
      Launch(shape, {{Writable("out", out)}}, [&] { Identity(out.data()); });
  EXPECT_EQ(report.Errors(), "");
  for (uint32_t i = 0; i < out.size(); ++i) EXPECT_EQ(out[i], i / 70 * 1000 + i % 70);
}

TEST(SimtTest, AnEmptyGridRunsNothing) {
  EXPECT_EQ(Launch(Ctas(0, 32), {}, [] { __builtin_trap(); }).Errors(), "");
}

TEST(SimtTest, ShapesThatNoGpuTakesAreRefused) {
  LaunchShape shape = Ctas(1, 1025);
  EXPECT_NE(Launch(shape, {}, [] {}).Errors().find("1025 threads"), std::string::npos);
  shape = Ctas(1, 32);
  shape.grid_y = 65536;
  EXPECT_NE(Launch(shape, {}, [] {}).Errors().find("grid"), std::string::npos);
  shape = Ctas(1, 32);
  shape.dynamic_shared_bytes = 228 * 1024;
  EXPECT_NE(Launch(shape, {}, [] {}).Errors().find("shared"), std::string::npos);
}

struct MuchStatic {
  uint8_t x[24 * 1024];
};

__global__ void TouchStatic() { SharedMemory<MuchStatic>().x[threadIdx.x] = 1; }

// A launch asks for no room below kDynamicWithoutAsking, so static and dynamic memory must fit what
// every kernel has.
TEST(SimtTest, SharedMemoryThatNoLaunchAsksForIsAnError) {
  LaunchShape shape = Ctas(1, 32);
  shape.dynamic_shared_bytes = 24 * 1024;
  EXPECT_EQ(Launch(shape, {}, [] { TouchStatic(); }).Errors(), "");
  shape.dynamic_shared_bytes += 16;
  EXPECT_NE(Launch(shape, {}, [] { TouchStatic(); }).Errors().find("asked for"), std::string::npos);
  shape.dynamic_shared_bytes = kDynamicWithoutAsking + 16;
  EXPECT_EQ(Launch(shape, {}, [] { TouchStatic(); }).Errors(), "");
}

// The first thread to run wins: another seed, another winner.
__global__ void FirstWins(int* winner) {
  if (atomicCAS(winner, -1, static_cast<int>(threadIdx.x)) == -1) return;
}

TEST(SimtTest, TheOrderOfThreadsDependsOnTheSeedAndOnNothingElse) {
  std::set<int> winners;
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    int first = 0;
    for (int run = 0; run < 2; ++run) {
      std::vector<int> winner = {-1};
      LaunchOptions options;
      options.buffers = {Writable("winner", winner)};
      options.seed = seed;
      EXPECT_EQ(Launch(Ctas(1, 64), options, [&] { FirstWins(winner.data()); }).Errors(), "");
      if (run == 1) {
        EXPECT_EQ(winner[0], first);
      }
      first = winner[0];
    }
    winners.insert(first);
  }
  EXPECT_GT(winners.size(), 3u);
}

struct Values {
  float x[128];
};

__global__ void Reverse(float* data) {
  Values& shared = SharedMemory<Values>();
  shared.x[threadIdx.x] = data[threadIdx.x];
  __syncthreads();
  data[threadIdx.x] = shared.x[blockDim.x - 1 - threadIdx.x];
}

TEST(SimtTest, ABarrierMakesSharedMemoryVisible) {
  std::vector<float> data(128);
  std::iota(data.begin(), data.end(), 0.0f);
  data[5] = std::nanf("");
  const LaunchReport report =
      Launch(Ctas(1, 128), {{Writable("data", data)}}, [&] { Reverse(data.data()); });
  EXPECT_EQ(report.Errors(), "");
  EXPECT_EQ(report.static_shared_bytes, static_cast<int64_t>(sizeof(Values)));
  for (int i = 0; i < 128; ++i) {
    if (i != 122) {
      EXPECT_EQ(data[i], 127.0f - i);
    }
  }
  EXPECT_TRUE(std::isnan(data[122]));
}

__global__ void ReadPoison(uint32_t* out, int dynamic_words) {
  Values& shared = SharedMemory<Values>();
  const uint32_t* words = reinterpret_cast<const uint32_t*>(DynamicSharedMemory());
  uint32_t all = ~0u;
  for (int i = 0; i < dynamic_words; ++i) all &= words[i];
  out[blockIdx.x] = std::isnan(shared.x[7]) ? all : 0;
  shared.x[7] = 1.0f;
}

TEST(SimtTest, SharedMemoryIsPoisonWhenACtaStarts) {
  std::vector<uint32_t> out(3);
  LaunchShape shape = Ctas(3, 1);
  shape.dynamic_shared_bytes = 64;
  EXPECT_EQ(Launch(shape, {{Writable("out", out)}}, [&] { ReadPoison(out.data(), 16); }).Errors(),
            "");
  EXPECT_EQ(out, std::vector<uint32_t>(3, ~0u));
}

struct TooMuch {
  char bytes[48 * 1024 + 1];
};

TEST(SimtTest, MoreThan48KiBOfStaticSharedMemoryIsAnError) {
  const LaunchReport report = Launch(Ctas(1, 1), {}, [] { SharedMemory<TooMuch>(); });
  EXPECT_NE(report.Errors().find("48 KiB"), std::string::npos) << report.Errors();
}

TEST(SimtTest, StaticAndDynamicSharedMemoryTogetherMayBeTooMuch) {
  LaunchShape shape = Ctas(1, 1);
  shape.dynamic_shared_bytes = 227 * 1024 - sizeof(Values);
  EXPECT_EQ(Launch(shape, {}, [] { SharedMemory<Values>(); }).Errors(), "");
  ++shape.dynamic_shared_bytes;
  const std::string errors = Launch(shape, {}, [] { SharedMemory<Values>(); }).Errors();
  EXPECT_NE(errors.find("232449 bytes of shared memory"), std::string::npos) << errors;
}

__global__ void OneThreadDoesNotWait(uint32_t leaves) {
  if (threadIdx.x == leaves) return;
  WaitForPreviousKernel();
}

TEST(SimtTest, EveryThreadOfAnOverlappingLaunchWaitsForThePreviousKernel) {
  LaunchShape shape = Ctas(2, 64);
  EXPECT_EQ(Launch(shape, {}, [] { OneThreadDoesNotWait(40); }).Errors(), "");
  shape.overlaps_previous = true;
  EXPECT_EQ(Launch(shape, {}, [] { OneThreadDoesNotWait(64); }).Errors(), "");
  const std::string errors = Launch(shape, {}, [] { OneThreadDoesNotWait(40); }).Errors();
  EXPECT_NE(errors.find("thread (40, 0, 0): ends before it waits"), std::string::npos) << errors;
}

__global__ void MissingParticipant() {
  if (threadIdx.x == 3) return;
  __syncthreads();
}

TEST(SimtTest, AThreadMissingAtABarrierIsADeadlockWithNames) {
  LaunchShape shape = Ctas(1, 64);
  const std::string errors = Launch(shape, {}, [] { MissingParticipant(); }).Errors();
  EXPECT_NE(errors.find("deadlock"), std::string::npos) << errors;
  EXPECT_NE(errors.find("thread (3, 0, 0) has finished"), std::string::npos) << errors;
  EXPECT_NE(errors.find("waits at __syncthreads (schedule_test.cc:"), std::string::npos) << errors;
  EXPECT_NE(errors.find("and 62 more"), std::string::npos) << errors;
}

__global__ void TwoBarriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

TEST(SimtTest, ThreadsAtDifferentBarriersAreAnError) {
  const std::string errors = Launch(Ctas(1, 64), {}, [] { TwoBarriers(); }).Errors();
  EXPECT_NE(errors.find("different barriers"), std::string::npos) << errors;
}

// After a deadlock the next launch starts clean.
TEST(SimtTest, ALaunchAfterADeadlockIsSound) {
  for (int round = 0; round < 3; ++round) {
    EXPECT_NE(Launch(Ctas(2, 64), {}, [] { MissingParticipant(); }).Errors(), "");
    std::vector<uint32_t> out(64);
    EXPECT_EQ(Launch(Ctas(1, 64), {{Writable("out", out)}}, [&] { Identity(out.data()); }).Errors(),
              "");
  }
}

__global__ void Shuffles(int* out) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  int* mine = out + threadIdx.x * 6;
  mine[0] = __shfl_sync(kAllLanes, lane * 10, 5);
  mine[1] = __shfl_up_sync(kAllLanes, lane, 3);
  mine[2] = __shfl_down_sync(kAllLanes, lane, 3);
  mine[3] = __shfl_xor_sync(kAllLanes, lane, 9);
  mine[4] = __shfl_down_sync(kAllLanes, lane, 2, 8);
  mine[5] = static_cast<int>(__shfl_sync(kAllLanes, 1.5 * lane, lane + 1, 16) * 2);
}

TEST(SimtTest, ShufflesReadTheLaneThatPtxSays) {
  std::vector<int> out(64 * 6);
  const LaunchReport report =
      Launch(Ctas(1, 64), {{Writable("out", out)}}, [&] { Shuffles(out.data()); });
  EXPECT_EQ(report.Errors(), "");
  for (int t = 0; t < 64; ++t) {
    const int lane = t % 32;
    const int* mine = out.data() + t * 6;
    EXPECT_EQ(mine[0], 50);
    EXPECT_EQ(mine[1], lane < 3 ? lane : lane - 3);
    EXPECT_EQ(mine[2], lane > 28 ? lane : lane + 3);
    EXPECT_EQ(mine[3], lane ^ 9);
    EXPECT_EQ(mine[4], lane % 8 > 5 ? lane : lane + 2);
    EXPECT_EQ(mine[5], 3 * (lane / 16 * 16 + (lane + 1) % 16));
  }
}

__global__ void Votes(uint32_t* out) {
  const uint32_t lane = threadIdx.x;
  constexpr uint32_t kEven = 0x55555555u;
  if (lane % 2 == 0) {
    out[lane] = __ballot_sync(kEven, lane < 8);
    out[lane] |= static_cast<uint32_t>(__shfl_sync(kEven, lane, 30)) << 16;
  } else {
    out[lane] =
        (__all_sync(~kEven, lane < 32) ? 1u : 0u) | (__any_sync(~kEven, lane == 7) ? 2u : 0u) |
        (__all_sync(~kEven, lane != 7) ? 4u : 0u) | (__any_sync(~kEven, lane == 8) ? 8u : 0u);
  }
}

TEST(SimtTest, VotesAndShufflesOfHalfAWarpDoNotWaitForTheOtherHalf) {
  std::vector<uint32_t> out(32);
  EXPECT_EQ(Launch(Ctas(1, 32), {{Writable("out", out)}}, [&] { Votes(out.data()); }).Errors(), "");
  for (uint32_t lane = 0; lane < 32; ++lane) {
    EXPECT_EQ(out[lane], lane % 2 == 0 ? (0x55u | 30u << 16) : 3u) << lane;
  }
}

__global__ void LaneMissing() {
  if (threadIdx.x != 9) __syncwarp();
}

__global__ void LaneNotNamed() { __ballot_sync(0xffff, 1); }

__global__ void FromALaneNotNamed() {
  if (threadIdx.x < 16) __shfl_sync(0xffff, 1, 20);
}

__global__ void DifferentCalls() {
  if (threadIdx.x < 16) {
    __syncwarp();
  } else {
    __shfl_sync(kAllLanes, 1, 0);
  }
}

TEST(SimtTest, WarpCallsWhoseMaskDoesNotFitAreErrors) {
  const auto errors = [](void (*kernel)()) { return Launch(Ctas(1, 32), {}, kernel).Errors(); };
  EXPECT_NE(errors(&LaneMissing).find("waits at __syncwarp with mask"), std::string::npos);
  EXPECT_NE(errors(&LaneNotNamed).find("a lane that its mask does not name"), std::string::npos);
  EXPECT_NE(errors(&FromALaneNotNamed).find("from lane 20"), std::string::npos);
  EXPECT_NE(errors(&DifferentCalls).find("deadlock"), std::string::npos);
  // A warp of 20 threads has no 32 lanes.
  EXPECT_NE(Launch(Ctas(1, 20), {}, [] { __syncwarp(); }).Errors().find("deadlock"),
            std::string::npos);
}

__global__ void Atomics(int* sum, float* total, uint32_t* bits, uint32_t* left, int* greatest,
                        uint32_t* last) {
  atomicAdd(sum, 1);
  atomicAdd(total, 0.5f);
  atomicOr(bits, 1u << (threadIdx.x % 32));
  atomicAnd(left, ~(1u << (threadIdx.x % 16)));
  atomicMax(greatest, static_cast<int>(threadIdx.x));
  atomicExch(last, 7u);
}

TEST(SimtTest, AtomicsOfAllThreadsCount) {
  std::vector<int> sum(1), greatest(1, -1);
  std::vector<float> total(1);
  std::vector<uint32_t> bits(1), left(1, 0xffffffffu), last(1);
  LaunchOptions options;
  options.buffers = {Writable("sum", sum),     Writable("greatest", greatest),
                     Writable("total", total), Writable("bits", bits),
                     Writable("left", left),   Writable("last", last)};
  const LaunchReport report = Launch(Ctas(4, 96), options, [&] {
    Atomics(sum.data(), total.data(), bits.data(), left.data(), greatest.data(), last.data());
  });
  EXPECT_EQ(report.Errors(), "");
  EXPECT_EQ(sum[0], 4 * 96);
  EXPECT_EQ(total[0], 2 * 96.0f);
  EXPECT_EQ(bits[0], ~0u);
  EXPECT_EQ(left[0], 0xffff0000u);
  EXPECT_EQ(greatest[0], 95);
  EXPECT_EQ(last[0], 7u);
}

}  // namespace
}  // namespace semkv::simt
