// k-means on the GPU, assign: the nearest centroid of every point.
//
// A CTA has 256 points, a warp 32 of them, in registers as A of mma.m16n8k16 from beginning to end.
// Centroids stream through shared memory in stages of 64, copied ahead; a warp multiplies its
// points with 16 of them at a time and folds the scores, which never leave registers, into a
// running maximum. The bias of a centroid is where its sums begin.
//
// Fragments are loaded in 16 bytes: lane t of four has channels 32 j + 8 t to + 7 of a row, of
// points and centroids alike, and takes them for channels 2t, 2t+1, 2t+8, 2t+9 of two products.
// That is another order of the channels, which a dot product does not see, and spares ldmatrix and
// the points' way through shared memory.

#ifndef SEMKV_OPS_CLUSTERING_KMEANS_ASSIGN_KERNEL_CUH_
#define SEMKV_OPS_CLUSTERING_KMEANS_ASSIGN_KERNEL_CUH_

#include <cstdint>

#include "csrc/ops/clustering/kmeans_task.cuh"
#include "csrc/ops/cuda/copy_async.cuh"
#include "csrc/ops/cuda/mma.cuh"
#include "csrc/ops/cuda/shared_memory.cuh"

namespace semkv::cuda {

constexpr int32_t kAssignWarps = 8;
constexpr int32_t kAssignThreads = kAssignWarps * kWarpSize;
constexpr int32_t kAssignWarpPoints = 32;
constexpr int32_t kAssignPoints = kAssignWarps * kAssignWarpPoints;  // of a CTA
constexpr int32_t kAssignStages = 3;
constexpr int32_t kAssignStageLists = kKMeansListsAlignment;
constexpr int32_t kAssignLists = 16;  // of a step: two tiles of 8

template <int32_t kHeadDim>
struct AssignLayout {
  static constexpr int32_t kSteps = KMeansRowChannels(kHeadDim) / 32;
  static constexpr int32_t kRowBytes = 64 * kSteps;
  // 64 modulo 128 bytes: 8 lanes that read 64 bytes of two neighbouring rows read every bank once.
  static constexpr int32_t kPitch = (kRowBytes + 63) / 128 * 128 + 64;
  static constexpr int32_t kBiases = kAssignStageLists * kPitch;  // behind the rows
  static constexpr int32_t kStage = kBiases + kAssignStageLists * int32_t{sizeof(float)};
  static constexpr int32_t kBytes = kAssignStages * kStage;
  // Two CTAs of a multiprocessor hide each other's barriers; 256 channels leave registers for one.
  static constexpr int32_t kCtas = kHeadDim <= 128 ? 2 : 1;
};

// Per lane, of the warp's points 16 m + 8 half + g (mma.cuh).
template <int32_t kHeadDim>
struct AssignPoints {
  Vec16 unit[2][2][AssignLayout<kHeadDim>::kSteps];  // [m][half]: channels 32 step + 8 t
};

struct AssignBest {
  float score[2][2];  // [m][half]
  int32_t list[2][2];
};

// Per CTA: asks for 64 rows and their biases.
template <int32_t kHeadDim>
__device__ inline void CopyStage(const KMeansTask& task, int32_t num_used, int32_t first,
                                 int32_t thread, std::byte* stage) {
  using Layout = AssignLayout<kHeadDim>;
  constexpr int32_t kUnits = Layout::kRowBytes / 16;
  const std::byte* rows =
      reinterpret_cast<const std::byte*>(task.rows) + int64_t{first} * Layout::kRowBytes;
  for (int32_t i = thread; i < kAssignStageLists * kUnits; i += kAssignThreads) {
    const int32_t row = i / kUnits;
    const bool is_list = first + row < num_used;
    CopyAsync16OrZero(stage + row * Layout::kPitch + (i - row * kUnits) * 16,
                      is_list ? rows + i * 16 : rows, is_list);
  }
  if (thread < kAssignStageLists / 4) {
    CopyAsync16(stage + Layout::kBiases + thread * 16, task.biases + first + 4 * thread);
  }
}

// Per warp: points from `first` on; zeros behind the last.
template <int32_t kHeadDim>
__device__ inline void LoadPoints(const KMeansTask& task, int32_t first, int32_t lane,
                                  AssignPoints<kHeadDim>& points) {
  const int32_t g = lane / 4, t = lane % 4;
  for (int32_t i = 0; i < 4; ++i) {
    const int32_t point = first + 8 * i + g;
    for (int32_t step = 0; step < AssignLayout<kHeadDim>::kSteps; ++step) {
      const int32_t channel = 32 * step + 8 * t;
      Vec16& unit = points.unit[i / 2][i % 2][step];
      unit = Vec16{};
      if (point < task.num_points && channel < kHeadDim) {
        unit = LoadStreaming(task.points + point * task.stride + channel);
      }
    }
  }
}

// Per warp: folds the scores of 16 centroids from list `first` on, whose rows and biases lie at
// `rows` and `biases`, into the maximum. NaN never wins. A lane meets lists in ascending order, so
// the lowest of equals stays.
template <DType kDType, int32_t kHeadDim>
__device__ inline void ScoreLists16(const AssignPoints<kHeadDim>& points, const std::byte* rows,
                                    const float* biases, int32_t first, int32_t lane,
                                    AssignBest& best) {
  using Layout = AssignLayout<kHeadDim>;
  const int32_t g = lane / 4, t = lane % 4;
  float scores[2][2][4];  // [tile of 8 centroids][m]
  for (int32_t n = 0; n < 2; ++n) {
    const float low = biases[8 * n + 2 * t], high = biases[8 * n + 2 * t + 1];
    for (int32_t m = 0; m < 2; ++m) {
      scores[n][m][0] = scores[n][m][2] = low;
      scores[n][m][1] = scores[n][m][3] = high;
    }
  }
  for (int32_t step = 0; step < Layout::kSteps; ++step) {
    Vec16 row[2];
    for (int32_t n = 0; n < 2; ++n) {
      row[n] = Load(rows + (8 * n + g) * Layout::kPitch + 64 * step + 16 * t);
    }
    for (int32_t w = 0; w < 4; w += 2) {
      for (int32_t n = 0; n < 2; ++n) {
        const uint32_t b[2] = {row[n].words[w], row[n].words[w + 1]};
        for (int32_t m = 0; m < 2; ++m) {
          const Vec16 &upper = points.unit[m][0][step], &lower = points.unit[m][1][step];
          const uint32_t a[4] = {upper.words[w], lower.words[w], upper.words[w + 1],
                                 lower.words[w + 1]};
          MmaM16N8K16<kDType>(scores[n][m], a, b);
        }
      }
    }
  }
  for (int32_t n = 0; n < 2; ++n) {
    for (int32_t m = 0; m < 2; ++m) {
      for (int32_t i = 0; i < 4; ++i) {
        const bool wins = scores[n][m][i] > best.score[m][i / 2];
        best.score[m][i / 2] = wins ? scores[n][m][i] : best.score[m][i / 2];
        best.list[m][i / 2] = wins ? first + 8 * n + 2 * t + i % 2 : best.list[m][i / 2];
      }
    }
  }
}

// Per warp: labels of its points. Lanes of four saw other centroids of the same points.
__device__ inline void WriteLabels(const KMeansTask& task, int32_t first, int32_t lane,
                                   AssignBest& best) {
  int32_t changes = 0;
  for (int32_t i = 0; i < 4; ++i) {
    float score = best.score[i / 2][i % 2];
    int32_t list = best.list[i / 2][i % 2];
    for (int32_t mask = 1; mask <= 2; mask *= 2) {
      const float other_score = __shfl_xor_sync(kAllLanes, score, mask);
      const int32_t other_list = __shfl_xor_sync(kAllLanes, list, mask);
      if (other_score > score || (other_score == score && other_list < list)) {
        score = other_score;
        list = other_list;
      }
    }
    const int32_t point = first + 8 * i + lane / 4;
    if (lane % 4 != 0 || point >= task.num_points) continue;
    const int32_t before = task.labels[point];
    if (before >= task.num_lists || before == list) continue;  // not ordinary, or the same
    task.labels[point] = static_cast<uint16_t>(list);
    ++changes;
  }
  changes = WarpSum(changes);
  if (lane == 0 && changes > 0) atomicAdd(&task.state->changes, changes);
}

// grid = (tiles of 256 points, problems).
template <DType kDType, int32_t kHeadDim>
__global__ void __launch_bounds__(kAssignThreads, AssignLayout<kHeadDim>::kCtas)
    KMeansAssignKernel(const __grid_constant__ KMeansLaunch launch) {
  using Layout = AssignLayout<kHeadDim>;
  const KMeansTask task = GetKMeansTask(launch, static_cast<int32_t>(blockIdx.y));
  const int32_t tile = static_cast<int32_t>(blockIdx.x) * kAssignPoints;
  if (tile >= task.num_points || task.state->is_done != 0) return;
  std::byte* stages = DynamicSharedMemory();
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t lane = thread % kWarpSize;
  const int32_t first_point = tile + thread / kWarpSize * kAssignWarpPoints;
  const int32_t num_used = task.state->num_used;
  for (int32_t s = 0; s < kAssignStages - 1; ++s) {
    const int32_t first = s * kAssignStageLists;
    if (first < num_used) {
      CopyStage<kHeadDim>(task, num_used, first, thread, stages + s * Layout::kStage);
    }
    CopyAsyncCommit();
  }
  AssignPoints<kHeadDim> points;
  LoadPoints<kHeadDim>(task, first_point, lane, points);
  AssignBest best;
  for (int32_t i = 0; i < 4; ++i) {
    best.score[i / 2][i % 2] = NegativeInfinity();
    best.list[i / 2][i % 2] = 0;
  }
  int32_t stage = 0;
  for (int32_t first = 0; first < num_used; first += kAssignStageLists) {
    CopyAsyncWait<kAssignStages - 2>();
    __syncthreads();
    // The stage that all warps left before this barrier.
    const int32_t ahead = first + (kAssignStages - 1) * kAssignStageLists;
    const int32_t free = stage == 0 ? kAssignStages - 1 : stage - 1;
    if (ahead < num_used) {
      CopyStage<kHeadDim>(task, num_used, ahead, thread, stages + free * Layout::kStage);
    }
    CopyAsyncCommit();
    const std::byte* rows = stages + stage * Layout::kStage;
    const float* biases = reinterpret_cast<const float*>(rows + Layout::kBiases);
    const int32_t left = num_used - first;
    const int32_t lists = left < kAssignStageLists ? left : kAssignStageLists;
    for (int32_t i = 0; i < lists; i += kAssignLists) {
      ScoreLists16<kDType, kHeadDim>(points, rows + i * Layout::kPitch, biases + i, first + i, lane,
                                     best);
    }
    stage = stage + 1 == kAssignStages ? 0 : stage + 1;
  }
  CopyAsyncWait<0>();
  WriteLabels(task, first_point, lane, best);
}

}  // namespace semkv::cuda

#endif  // SEMKV_OPS_CLUSTERING_KMEANS_ASSIGN_KERNEL_CUH_
