// gather_pages and its other direction on the GPU: the kernel and its launch shape.
//
// Few CTAs, so that attention keeps its multiprocessors: what covers the way over the bus is bytes
// in flight, not threads. A warp has a piece of 4 KiB of a page at a time, all of it in flight
// before any of it is stored: 32 KiB a CTA.

#ifndef SEMKV_OPS_RESIDENCY_GATHER_PAGES_KERNEL_CUH_
#define SEMKV_OPS_RESIDENCY_GATHER_PAGES_KERNEL_CUH_

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "csrc/ops/cuda/dependent_launch.cuh"
#include "csrc/ops/cuda/launch_shape.h"
#include "csrc/ops/cuda/vector_access.cuh"
#include "csrc/ops/residency/gather_pages.h"
#include "semkv/types.h"

namespace semkv::cuda {

constexpr int32_t kPageCopyWarps = 8;
constexpr int32_t kPageCopyThreads = kPageCopyWarps * kWarpSize;
constexpr int32_t kPageCopyVectors = 8;  // of 16 bytes, in flight per thread
constexpr int32_t kPieceVectors = kPageCopyVectors * kWarpSize;

enum class PageDirection { kGather, kSpill };

// Per warp: copies vectors [first, first + kPieceVectors) of a page of num_vectors.
__device__ inline void CopyPiece(const std::byte* from, std::byte* to, int32_t first,
                                 int32_t num_vectors, int32_t lane) {
  Vec16 x[kPageCopyVectors];
  for (int32_t i = 0; i < kPageCopyVectors; ++i) {
    const int32_t vector = first + i * kWarpSize + lane;
    if (vector < num_vectors) x[i] = LoadStreaming(from + int64_t{vector} * 16);
  }
  for (int32_t i = 0; i < kPageCopyVectors; ++i) {
    const int32_t vector = first + i * kWarpSize + lane;
    if (vector < num_vectors) Store(to + int64_t{vector} * 16, x[i]);
  }
}

// Neighbouring warps have neighbouring pieces.
template <PageDirection kDirection>
__global__ void __launch_bounds__(kPageCopyThreads)
    CopyPagesKernel(const __grid_constant__ PageCopyParams p) {
  WaitForPreviousKernel();
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t lane = thread % kWarpSize;
  const uint32_t warp = blockIdx.x * kPageCopyWarps + static_cast<uint32_t>(thread / kWarpSize);
  const uint32_t num_warps = gridDim.x * kPageCopyWarps;
  const int32_t num_vectors = static_cast<int32_t>(p.page_bytes / 16);
  const uint32_t page_pieces = static_cast<uint32_t>(CeilDiv(num_vectors, kPieceVectors));
  int32_t num_pages = *p.num_pages;
  if (num_pages > p.max_pages) num_pages = p.max_pages;
  if (num_pages <= 0) return;
  const uint32_t num_pieces = static_cast<uint32_t>(num_pages) * page_pieces;
  for (uint32_t piece = warp; piece < num_pieces; piece += num_warps) {
    const uint32_t page = piece / page_pieces;
    const int32_t first = static_cast<int32_t>(piece - page * page_pieces) * kPieceVectors;
    const PagePair pair = p.pages[page];
    if (pair.home_page < 0 || pair.home_page >= p.num_home_pages) continue;
    if (pair.hot_page < 0 || pair.hot_page >= p.num_hot_pages) continue;
    std::byte* home = static_cast<std::byte*>(p.home) + pair.home_page * p.page_bytes;
    std::byte* hot = static_cast<std::byte*>(p.hot) + pair.hot_page * p.page_bytes;
    if constexpr (kDirection == PageDirection::kGather) {
      CopyPiece(home, hot, first, num_vectors, lane);
    } else {
      CopyPiece(hot, home, first, num_vectors, lane);
    }
  }
}

// For `params` that PageCopyCudaUnsupported accepts; no more CTAs than there may be pieces for.
inline LaunchShape PageCopyLaunchShape(const PageCopyParams& params, int32_t num_ctas) {
  const int64_t page_pieces = CeilDiv(params.page_bytes / 16, int64_t{kPieceVectors});
  const int64_t ctas = CeilDiv(params.max_pages * page_pieces, int64_t{kPageCopyWarps});
  LaunchShape shape;
  shape.grid_x = static_cast<uint32_t>(std::min<int64_t>(num_ctas, ctas));
  shape.threads = kPageCopyThreads;
  shape.overlaps_previous = true;
  return shape;
}

}  // namespace semkv::cuda

#endif  // SEMKV_OPS_RESIDENCY_GATHER_PAGES_KERNEL_CUH_
