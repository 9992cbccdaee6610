// Kernels that use each wrapper of csrc/ops/cuda: executed in the harness against the wrappers'
// definitions, and compiled by nvcc (tests/cuda/device_ops.cu), before a kernel of the library
// needs them.

#ifndef SEMKV_TESTS_SIMT_DEVICE_OPS_KERNELS_CUH_
#define SEMKV_TESTS_SIMT_DEVICE_OPS_KERNELS_CUH_

#include <cstdint>

#include "csrc/ops/cuda/block_scan.cuh"
#include "csrc/ops/cuda/copy_async.cuh"
#include "csrc/ops/cuda/last_cta.cuh"
#include "csrc/ops/cuda/mma.cuh"
#include "csrc/ops/cuda/shared_memory.cuh"
#include "csrc/ops/cuda/warp_reduce.cuh"

namespace semkv {

enum class Sync { kNone, kWarp, kCta };

template <Sync kSync>
__device__ inline void Synchronise() {
  if constexpr (kSync == Sync::kWarp) __syncwarp();
  if constexpr (kSync == Sync::kCta) __syncthreads();
}

__global__ void Reduce(const float* x, float* sums, float* maxima) {
  sums[threadIdx.x] = WarpSum(x[threadIdx.x]);
  maxima[threadIdx.x] = WarpMax(x[threadIdx.x]);
}

// The CTA that comes last adds up what all have left.
__global__ void SumCtas(const int32_t* x, int32_t* left, uint32_t* counter, int32_t* sum) {
  bool& is_last = SharedMemory<bool>();
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  left[blockIdx.x * blockDim.x + threadIdx.x] = 2 * x[blockIdx.x * blockDim.x + threadIdx.x];
  if (!IsLastCta(counter, gridDim.x, thread, is_last) || thread != 0) return;
  int32_t total = 0;
  for (uint32_t i = 0; i < gridDim.x * blockDim.x; ++i) total += left[i];
  *sum = total;
}

__global__ void CountBits(const uint32_t* x, int32_t* counts, int32_t* lowest, uint32_t* reversed,
                          int32_t* least) {
  reversed[threadIdx.x] = __brev(x[threadIdx.x]);
  counts[threadIdx.x] = __popc(x[threadIdx.x]);
  lowest[threadIdx.x] = __ffs(static_cast<int32_t>(x[threadIdx.x]));
  atomicMin(least, counts[threadIdx.x]);
}

// Twice with the same scratch.
template <int32_t kWarps>
__global__ void ScanBlock(const int32_t* x, const uint64_t* y, int32_t* below, int32_t* totals,
                          uint64_t* minima) {
  BlockScratch& scratch = SharedMemory<BlockScratch>();
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  for (int32_t round = 0; round < 2; ++round) {
    const int32_t i = round * kWarps * kWarpSize + thread;
    const int32_t total = SumOverBlockAndSync<kWarps>(x[i], thread, scratch).total;
    const BlockSum sum = SumOverBlock<kWarps>(x[i], thread, scratch);
    below[i] = sum.below;
    totals[i] = total == sum.total ? total : ~total;
    minima[i] = MinOverBlock<kWarps>(y[i], thread, scratch);
    __syncthreads();
  }
}

// Fragments by the table of the PTX manual, from plain row-major matrices.
template <DType kDType>
__global__ void Product(const uint16_t* a, const uint16_t* b, const float* c, float* d) {
  const int g = static_cast<int>(threadIdx.x) / 4;
  const int t = static_cast<int>(threadIdx.x) % 4;
  uint32_t a_fragment[4], b_fragment[2];
  for (int i = 0; i < 8; i += 2) {
    const int row = i % 4 < 2 ? g : g + 8;
    const int column = 2 * t + (i >= 4 ? 8 : 0);
    a_fragment[i / 2] = a[row * 16 + column] | uint32_t{a[row * 16 + column + 1]} << 16;
  }
  for (int i = 0; i < 4; i += 2) {
    const int row = 2 * t + (i >= 2 ? 8 : 0);
    b_fragment[i / 2] = b[row * 8 + g] | uint32_t{b[(row + 1) * 8 + g]} << 16;
  }
  float sum[4];
  for (int i = 0; i < 4; ++i) sum[i] = c[(i < 2 ? g : g + 8) * 8 + 2 * t + i % 2];
  MmaM16N8K16<kDType>(sum, a_fragment, b_fragment);
  for (int i = 0; i < 4; ++i) d[(i < 2 ? g : g + 8) * 8 + 2 * t + i % 2] = sum[i];
}

__global__ void ProductInt8(const int8_t* a, const int8_t* b, int32_t* d) {
  const int g = static_cast<int>(threadIdx.x) / 4;
  const int t = static_cast<int>(threadIdx.x) % 4;
  uint32_t a_fragment[4] = {}, b_fragment[2] = {};
  for (int i = 0; i < 16; ++i) {
    const int row = i / 4 % 2 == 0 ? g : g + 8;
    const int column = 4 * t + i % 4 + (i >= 8 ? 16 : 0);
    a_fragment[i / 4] |= uint32_t{static_cast<uint8_t>(a[row * 32 + column])} << (8 * (i % 4));
  }
  for (int i = 0; i < 8; ++i) {
    const int row = 4 * t + i % 4 + (i >= 4 ? 16 : 0);
    b_fragment[i / 4] |= uint32_t{static_cast<uint8_t>(b[row * 8 + g])} << (8 * (i % 4));
  }
  int32_t sum[4];
  for (int i = 0; i < 4; ++i) sum[i] = d[(i < 2 ? g : g + 8) * 8 + 2 * t + i % 2];
  MmaM16N8K32Int8(sum, a_fragment, b_fragment);
  for (int i = 0; i < 4; ++i) d[(i < 2 ? g : g + 8) * 8 + 2 * t + i % 2] = sum[i];
}

struct alignas(16) Matrices {
  uint16_t x[4][8][8];
};

template <Transpose kTranspose>
__global__ void LoadFragments(uint32_t* out, int first_row) {
  Matrices& matrices = SharedMemory<Matrices>();
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 4 * 64; i += 32)
    matrices.x[i / 64][i / 8 % 8][i % 8] = static_cast<uint16_t>(i);
  __syncwarp();
  uint32_t r[4];
  LoadMatrixX4<kTranspose>(r, matrices.x[lane / 8] + lane % 8 + first_row);
  for (int j = 0; j < 4; ++j) out[lane * 4 + j] = r[j];
}

struct alignas(16) Staged {
  float x[64][4];
};

enum class Waiting { kYes, kNo };

template <Waiting kWaiting, Sync kSync>
__global__ void Stage(const float* from, float* to) {
  Staged& staged = SharedMemory<Staged>();
  CopyAsync16(staged.x[threadIdx.x], from + 4 * threadIdx.x);
  CopyAsyncCommit();
  if constexpr (kWaiting == Waiting::kYes) CopyAsyncWait<0>();
  Synchronise<kSync>();
  to[threadIdx.x] = staged.x[threadIdx.x ^ 1][0];
}

// Two groups; only the first is waited for.
__global__ void StageTwoGroups(const float* from, float* to) {
  Staged& staged = SharedMemory<Staged>();
  for (int group = 0; group < 2; ++group) {
    CopyAsync16(staged.x[group], from + 4 * group);
    CopyAsyncCommit();
  }
  CopyAsyncWait<1>();
  to[0] = staged.x[0][0];
  to[1] = staged.x[1][0];
}

// Odd threads copy nothing, from an address that may not be read.
__global__ void StageOrZero(const float* from, float* to) {
  Staged& staged = SharedMemory<Staged>();
  const bool is_copy = threadIdx.x % 2 == 0;
  const float* source = is_copy ? from + 4 * threadIdx.x : from + (1 << 20);
  CopyAsync16OrZero(staged.x[threadIdx.x], source, is_copy);
  CopyAsyncCommit();
  CopyAsyncWait<0>();
  for (int i = 0; i < 4; ++i) to[4 * threadIdx.x + i] = staged.x[threadIdx.x][i];
}

}  // namespace semkv

#endif  // SEMKV_TESTS_SIMT_DEVICE_OPS_KERNELS_CUH_
