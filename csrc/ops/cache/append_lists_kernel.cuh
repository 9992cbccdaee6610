// append_lists on the GPU: the kernels, their launch shape and the choice of the instance.

#ifndef SEMKV_OPS_CACHE_APPEND_LISTS_KERNEL_CUH_
#define SEMKV_OPS_CACHE_APPEND_LISTS_KERNEL_CUH_

#include <cstdint>
#include <type_traits>

#include "csrc/ops/cache/append_lists.h"
#include "csrc/ops/cuda/element.cuh"
#include "csrc/ops/cuda/launch_shape.h"
#include "csrc/ops/cuda/shared_memory.cuh"
#include "csrc/ops/cuda/vector_access.cuh"
#include "csrc/ops/cuda/warp_reduce.cuh"

namespace semkv::cuda {

constexpr int32_t kAppendWarps = 4;
constexpr int32_t kAppendThreads = kAppendWarps * kWarpSize;
constexpr int32_t kAppendUnit = 8;    // elements of an access of 16 bytes
constexpr int32_t kAppendAhead = 4;   // rows that a lane has in flight
constexpr int32_t kAppendBlock = 32;  // rows of a lane whose sum joins the total as one number

// Which members count. To leave out those that are not finite, the lanes of a group have to agree.
enum class AppendKeep { kAll, kFinite };

// The lanes that read one row are a group: a warp reads as many rows at once as it has lanes for.
template <int32_t kHeadDim>
struct AppendGroups {
  static constexpr int32_t kLanes = kHeadDim / kAppendUnit;
  static constexpr int32_t kOfWarp = kWarpSize / kLanes;
  static constexpr int32_t kCount = kAppendWarps * kOfWarp;
};

template <int32_t kHeadDim>
struct AppendLane {
  using Groups = AppendGroups<kHeadDim>;

  int32_t thread, warp, lane;
  int32_t row;      // of those that the warp reads at once
  int32_t channel;  // the first of the lane's
  int32_t group;    // of the CTA
  bool is_idle;     // has no row
  uint32_t group_lanes;

  __device__ explicit AppendLane(int32_t thread_index)
      : thread(thread_index), warp(thread / kWarpSize), lane(thread % kWarpSize) {
    row = lane / Groups::kLanes;
    channel = lane % Groups::kLanes * kAppendUnit;
    group = warp * Groups::kOfWarp + row;
    is_idle = row >= Groups::kOfWarp;
    group_lanes = kAllLanes >> (kWarpSize - Groups::kLanes) << (row * Groups::kLanes);
  }
};

// The list of a CTA.
struct AppendTask {
  const uint16_t* keys;     // of the cell
  const uint16_t* members;  // of the cell; may be null
  int32_t begin, end;       // places of the list's members
};

__device__ inline AppendTask GetAppendTask(const AppendListsParams& p) {
  const int64_t cell = blockIdx.y;
  const int32_t list = static_cast<int32_t>(blockIdx.x);
  const uint16_t* offsets = p.offsets + cell * p.offsets_cell;
  AppendTask task;
  task.keys = static_cast<const uint16_t*>(p.keys) + cell * p.key_cell;
  task.members = p.members != nullptr ? p.members + cell * p.members_cell : nullptr;
  task.begin = offsets[list];
  task.end = offsets[list + 1];
  return task;
}

// Where the list of a CTA goes in the store, over all cells.
__device__ inline int64_t PlaceInStore(const AppendListsParams& p) {
  return int64_t{blockIdx.y} * p.max_lists + p.first_list + blockIdx.x;
}

__device__ inline int32_t MemberAt(const AppendTask& task, int32_t at) {
  return task.members != nullptr ? task.members[at] : at;
}

// ------------------------------ reading keys

// An exponent of ones is carried into the sign's bit, in both numbers of a word at once.
template <DType kDType>
__device__ inline bool IsFiniteKey(const Vec16& unit) {
  constexpr uint32_t kExponent = kDType == DType::kFloat16 ? 0x7c007c00u : 0x7f807f80u;
  constexpr uint32_t kLowestBit = kDType == DType::kFloat16 ? 0x04000400u : 0x00800080u;
  uint32_t carries = 0;
  for (int32_t i = 0; i < 4; ++i) carries |= (unit.words[i] & kExponent) + kLowestBit;
  return (carries & 0x80008000u) == 0;
}

template <DType kDType>
__device__ inline void UnpackKey(const Vec16& unit, float (&x)[kAppendUnit]) {
  for (int32_t i = 0; i < 4; ++i) UnpackPair<kDType>(unit.words[i], x[2 * i], x[2 * i + 1]);
}

__device__ inline void StoreNumbers(float* to, const float (&x)[kAppendUnit]) {
  for (int32_t i = 0; i < kAppendUnit; i += 4) {
    Vec16 unit;
    for (int32_t j = 0; j < 4; ++j) unit.words[j] = FloatBits(x[i + j]);
    Store(to + i, unit);
  }
}

// Per warp: calls f(units, kept) for batches of the lane's rows among places [begin, end), in their
// order. Bit a of `kept`: row a of the batch is there and is kept, in all of the group's lanes.
template <DType kDType, AppendKeep kKeep, int32_t kHeadDim, typename F>
__device__ inline void ForEachBatch(const AppendTask& task, const AppendLane<kHeadDim>& lane,
                                    int32_t begin, int32_t end, const F& f) {
  using Groups = AppendGroups<kHeadDim>;
  const int32_t warp_row = lane.warp * Groups::kOfWarp;
  for (int32_t first = begin + warp_row; first < end; first += kAppendAhead * Groups::kCount) {
    Vec16 units[kAppendAhead];
    int32_t rows[kAppendAhead];
    for (int32_t a = 0; a < kAppendAhead; ++a) {
      const int32_t at = first + a * Groups::kCount + lane.row;
      rows[a] = !lane.is_idle && at < end ? MemberAt(task, at) : -1;
    }
    for (int32_t a = 0; a < kAppendAhead; ++a) {
      if (rows[a] < 0) continue;
      units[a] = LoadStreaming(task.keys + rows[a] * kHeadDim + lane.channel);
    }
    uint32_t kept = 0;
    for (int32_t a = 0; a < kAppendAhead; ++a) {
      bool is_kept = rows[a] >= 0;
      if constexpr (kKeep == AppendKeep::kFinite) {
        const uint32_t finite = __ballot_sync(kAllLanes, is_kept && IsFiniteKey<kDType>(units[a]));
        is_kept = (finite & lane.group_lanes) == lane.group_lanes;
      }
      if (is_kept) kept |= 1u << a;
    }
    f(units, kept);
  }
}

// ------------------------------ places

// Per CTA: the list's members, and its entry of list_offsets; the last list's end too.
__device__ inline void WriteListPlaces(const AppendListsParams& p, const AppendTask& task,
                                       int32_t thread) {
  if (p.list_offsets == nullptr && p.list_members == nullptr) return;
  const int64_t cell = blockIdx.y;
  const int32_t list = static_cast<int32_t>(blockIdx.x);
  const int32_t shift = p.first_member - p.offsets[cell * p.offsets_cell];
  if (p.list_offsets != nullptr && thread == 0) {
    uint16_t* const to = p.list_offsets + cell * (p.max_lists + 1) + p.first_list + list;
    to[0] = static_cast<uint16_t>(task.begin + shift);
    if (list + 1 == p.nlist) to[1] = static_cast<uint16_t>(task.end + shift);
  }
  if (p.list_members == nullptr) return;
  uint16_t* const to = p.list_members + cell * p.max_members + shift;
  for (int32_t at = task.begin + thread; at < task.end; at += kAppendThreads) {
    to[at] = static_cast<uint16_t>(MemberAt(task, at) + p.member_shift);
  }
}

// ------------------------------ means

// What groups and warps tell each other.
template <int32_t kHeadDim>
struct AppendMeansShared {
  using Groups = AppendGroups<kHeadDim>;

  alignas(16) float means[Groups::kCount][kHeadDim];
  int32_t counts[Groups::kCount];
  float squares[kAppendWarps];   // sum of squared distances to the groups' own means
  float spread[kAppendWarps];    // and of these to the list's
  float greatest[kAppendWarps];  // magnitude of what is encoded
};

// Per lane: what a group has added up. Distances are from its first key, so that an offset of a
// channel does not cancel.
struct AppendSums {
  float first[kAppendUnit] = {}, distance[kAppendUnit] = {};
  float squares = 0.0f;
  int32_t count = 0;
};

// Per lane: a block of the group's rows. Its sums join the total as one number, which keeps float32
// exact enough for 65,535 members.
template <DType kDType, AppendKeep kKeep, int32_t kHeadDim>
__device__ inline void SumBlock(const AppendTask& task, const AppendLane<kHeadDim>& lane,
                                int32_t begin, int32_t end, AppendSums& sums) {
  float block[kAppendUnit] = {};
  float squares = 0.0f;
  const auto add = [&](const Vec16(&units)[kAppendAhead], uint32_t kept) {
    if (sums.count == 0 && kept != 0) {
      Vec16 first = units[0];  // or the lowest row that is kept
      for (int32_t a = 1; a < kAppendAhead; ++a) {
        if ((kept & ((1u << a) - 1)) == 0) first = units[a];
      }
      UnpackKey<kDType>(first, sums.first);
    }
    for (int32_t a = 0; a < kAppendAhead; ++a) {
      if ((kept >> a & 1u) == 0) continue;
      float x[kAppendUnit];
      UnpackKey<kDType>(units[a], x);
      for (int32_t i = 0; i < kAppendUnit; ++i) {
        const float distance = x[i] - sums.first[i];
        block[i] += distance;
        squares = fmaf(distance, distance, squares);
      }
      ++sums.count;
    }
  };
  ForEachBatch<kDType, kKeep>(task, lane, begin, end, add);
  for (int32_t i = 0; i < kAppendUnit; ++i) sums.distance[i] += block[i];
  sums.squares += squares;
}

template <DType kDType, AppendKeep kKeep, int32_t kHeadDim>
__device__ inline AppendSums SumMembers(const AppendTask& task, const AppendLane<kHeadDim>& lane) {
  constexpr int32_t kPlaces = kAppendBlock * AppendGroups<kHeadDim>::kCount;
  AppendSums sums;
  for (int32_t begin = task.begin; begin < task.end; begin += kPlaces) {
    const int32_t end = task.end - begin < kPlaces ? task.end : begin + kPlaces;
    SumBlock<kDType, kKeep>(task, lane, begin, end, sums);
  }
  return sums;
}

// Per CTA: mean key of each group's members and squared distances to it, in one pass. A sum is
// finite only if every member is: the check costs one look at the warp's, and only a warp that
// fails it looks at its members one by one.
template <DType kDType, int32_t kHeadDim>
__device__ inline void MeasureGroups(const AppendTask& task, const AppendLane<kHeadDim>& lane,
                                     AppendMeansShared<kHeadDim>& shared) {
  AppendSums sums = SumMembers<kDType, AppendKeep::kAll>(task, lane);
  if (WarpSum(sums.squares) * 0.0f != 0.0f) {
    sums = SumMembers<kDType, AppendKeep::kFinite>(task, lane);
  }
  const float scale = sums.count > 0 ? 1.0f / static_cast<float>(sums.count) : 0.0f;
  float mean[kAppendUnit];
  for (int32_t i = 0; i < kAppendUnit; ++i) {
    sums.squares -= sums.distance[i] * sums.distance[i] * scale;
    mean[i] = sums.first[i] + sums.distance[i] * scale;
  }
  const float squares = WarpSum(sums.squares);
  if (lane.lane == 0) shared.squares[lane.warp] = squares;
  if (lane.is_idle) return;
  StoreNumbers(&shared.means[lane.group][lane.channel], mean);
  if (lane.channel == 0) shared.counts[lane.group] = sums.count;
}

// Per thread: the list's mean key at a channel. Adds the squared distances of the groups' to it, by
// their members, to `spread`.
template <int32_t kHeadDim>
__device__ inline float JoinGroupMeans(const AppendMeansShared<kHeadDim>& shared, int32_t channel,
                                       float inverse, float& spread) {
  constexpr int32_t kGroups = AppendGroups<kHeadDim>::kCount;
  float mean = 0.0f;
  for (int32_t g = 0; g < kGroups; ++g) {
    const float weight = static_cast<float>(shared.counts[g]) * inverse;
    mean = fmaf(weight, shared.means[g][channel], mean);
  }
  for (int32_t g = 0; g < kGroups; ++g) {
    const float distance = shared.means[g][channel] - mean;
    spread = fmaf(static_cast<float>(shared.counts[g]) * distance, distance, spread);
  }
  return mean;
}

// Of a thread, once groups have met: channel i is number i * kAppendThreads + thread.
template <int32_t kHeadDim>
constexpr int32_t kAppendChannels = CeilDiv(kHeadDim, kAppendThreads);

// Per thread. Before keys are read, so that it does not wait for the center after them.
template <int32_t kHeadDim>
__device__ inline void LoadCenter(const float* from, int32_t thread,
                                  float (&center)[kAppendChannels<kHeadDim>]) {
  for (int32_t i = 0; i < kAppendChannels<kHeadDim>; ++i) {
    const int32_t channel = i * kAppendThreads + thread;
    if (channel < kHeadDim) center[i] = from[channel];
  }
}

__device__ inline int32_t CentroidCode(float x, float scale) {
  return scale > 0.0f ? static_cast<int32_t>(rintf(x / scale)) : 0;
}

// Per warp, which has a block of kInt4Block channels, a lane one (x is 0 behind kHeadDim): 16 lanes
// write a byte each.
template <int32_t kHeadDim>
__device__ inline void StoreInt4(const AppendListsParams& p, int64_t place, int32_t channel,
                                 float x, float scale) {
  const int32_t code = CentroidCode(x, scale);
  const int32_t upper = __shfl_xor_sync(kAllLanes, code, kInt4Block / 2);
  if (channel >= kHeadDim || channel % kInt4Block >= kInt4Block / 2) return;
  constexpr int32_t kRowBytes = CentroidRowBytes(CentroidForm::kInt4, kHeadDim);
  static_cast<uint8_t*>(p.centroids)[place * kRowBytes + Int4Byte(channel)] =
      static_cast<uint8_t>((code & 15) | upper << 4);
}

// Per thread: one channel of a centroid, as it is stored; not of kInt4.
__device__ inline void StoreCentroid(const AppendListsParams& p, int64_t at, float x, float scale) {
  switch (p.form) {
    case CentroidForm::kInt8:
      static_cast<int8_t*>(p.centroids)[at] = static_cast<int8_t>(CentroidCode(x, scale));
      return;
    case CentroidForm::kBFloat16:
      static_cast<uint16_t*>(p.centroids)[at] = BFloat16FromFloat(x);
      return;
    case CentroidForm::kInt4:
    case CentroidForm::kFloat32:
    case CentroidForm::kBounds:
      break;
  }
  static_cast<float*>(p.centroids)[at] = x;
}

// CTAs to an SM: what registers allow. Without being told, ptxas spills for more.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int32_t kAppendMeansCtas = 6;
#else
constexpr int32_t kAppendMeansCtas = 7;
#endif

// grid = (nlist, cells); a CTA has one list, its groups every kCount-th member each.
template <DType kDType, int32_t kHeadDim>
__global__ void __launch_bounds__(kAppendThreads, kAppendMeansCtas)
    AppendMeansKernel(const __grid_constant__ AppendListsParams p) {
  constexpr int32_t kChannels = kAppendChannels<kHeadDim>;
  AppendMeansShared<kHeadDim>& shared = SharedMemory<AppendMeansShared<kHeadDim>>();
  const AppendLane<kHeadDim> lane(static_cast<int32_t>(threadIdx.x));
  const AppendTask task = GetAppendTask(p);
  float center[kChannels] = {};
  if (p.centers != nullptr && p.form != CentroidForm::kFloat32) {
    LoadCenter<kHeadDim>(p.centers + int64_t{blockIdx.y} * kHeadDim, lane.thread, center);
  }
  MeasureGroups<kDType>(task, lane, shared);
  WriteListPlaces(p, task, lane.thread);
  __syncthreads();

  int32_t count = 0;
  for (int32_t g = 0; g < AppendGroups<kHeadDim>::kCount; ++g) count += shared.counts[g];
  const float inverse = count > 0 ? 1.0f / static_cast<float>(count) : 0.0f;
  float x[kChannels] = {};
  float spread = 0.0f, greatest = 0.0f;
  for (int32_t i = 0; i < kChannels; ++i) {
    const int32_t channel = i * kAppendThreads + lane.thread;
    if (channel >= kHeadDim) continue;
    x[i] = JoinGroupMeans(shared, channel, inverse, spread) - center[i];
    greatest = fmaxf(greatest, fabsf(x[i]));
  }
  spread = WarpSum(spread);
  greatest = WarpMax(greatest);
  if (lane.lane == 0) {
    shared.spread[lane.warp] = spread;
    shared.greatest[lane.warp] = greatest;
  }
  __syncthreads();

  float squares = 0.0f;
  for (int32_t w = 0; w < kAppendWarps; ++w) {
    squares += shared.squares[w] + shared.spread[w];
    greatest = fmaxf(greatest, shared.greatest[w]);
  }
  // As EncodeInt8: below this a scale loses bits to underflow.
  const float scale = greatest < 1e-30f ? 0.0f : greatest / GreatestCode(p.form);
  const int64_t place = PlaceInStore(p);
  for (int32_t i = 0; i < kChannels; ++i) {
    const int32_t channel = i * kAppendThreads + lane.thread;
    if (p.form == CentroidForm::kInt4) {
      StoreInt4<kHeadDim>(p, place, channel, x[i], scale);
    } else if (channel < kHeadDim) {
      StoreCentroid(p, place * kHeadDim + channel, x[i], scale);
    }
  }
  if (lane.thread != 0) return;
  if (HasScales(p.form)) p.scales[place] = scale;
  if (p.variances != nullptr) p.variances[place] = squares * inverse;
}

// ------------------------------ bounds

template <int32_t kHeadDim>
struct AppendBoundsShared {
  alignas(16) float least[AppendGroups<kHeadDim>::kCount][kHeadDim];
  alignas(16) float greatest[AppendGroups<kHeadDim>::kCount][kHeadDim];
};

// grid = (nlist, cells); a CTA has one list.
template <DType kDType, int32_t kHeadDim>
__global__ void __launch_bounds__(kAppendThreads)
    AppendBoundsKernel(const __grid_constant__ AppendListsParams p) {
  AppendBoundsShared<kHeadDim>& shared = SharedMemory<AppendBoundsShared<kHeadDim>>();
  const AppendLane<kHeadDim> lane(static_cast<int32_t>(threadIdx.x));
  const AppendTask task = GetAppendTask(p);
  const float infinity = FloatFromBits(0x7f800000u);
  float least[kAppendUnit], greatest[kAppendUnit];
  for (int32_t i = 0; i < kAppendUnit; ++i) least[i] = infinity;
  for (int32_t i = 0; i < kAppendUnit; ++i) greatest[i] = -infinity;
  const auto widen = [&](const Vec16(&units)[kAppendAhead], uint32_t kept) {
    for (int32_t a = 0; a < kAppendAhead; ++a) {
      if ((kept >> a & 1u) == 0) continue;
      float x[kAppendUnit];
      UnpackKey<kDType>(units[a], x);
      for (int32_t i = 0; i < kAppendUnit; ++i) {
        least[i] = fminf(least[i], x[i]);
        greatest[i] = fmaxf(greatest[i], x[i]);
      }
    }
  };
  ForEachBatch<kDType, AppendKeep::kFinite>(task, lane, task.begin, task.end, widen);
  if (!lane.is_idle) {
    StoreNumbers(&shared.least[lane.group][lane.channel], least);
    StoreNumbers(&shared.greatest[lane.group][lane.channel], greatest);
  }
  WriteListPlaces(p, task, lane.thread);
  __syncthreads();

  uint16_t* const bounds = static_cast<uint16_t*>(p.centroids) + PlaceInStore(p) * 2 * kHeadDim;
  for (int32_t channel = lane.thread; channel < kHeadDim; channel += kAppendThreads) {
    float low = infinity, high = -infinity;
    for (int32_t g = 0; g < AppendGroups<kHeadDim>::kCount; ++g) {
      low = fminf(low, shared.least[g][channel]);
      high = fmaxf(high, shared.greatest[g][channel]);
    }
    if (low > high) low = high = 0.0f;  // a list without finite members
    bounds[channel] = BFloat16Below(low);
    bounds[kHeadDim + channel] = BFloat16Above(high);
  }
}

// ------------------------------ launch

inline LaunchShape AppendListsLaunchShape(const AppendListsParams& p) {
  LaunchShape shape;
  shape.grid_x = static_cast<uint32_t>(p.nlist);
  shape.grid_y = static_cast<uint32_t>(p.num_cells);
  shape.threads = kAppendThreads;
  return shape;
}

template <DType kDType, typename Launch>
auto DispatchAppendHeadDim(const AppendListsParams& params, const Launch& launch) {
  const LaunchShape shape = AppendListsLaunchShape(params);
  const auto with = [&](auto constant) {
    constexpr int32_t kHeadDim = decltype(constant)::value;
    return params.form == CentroidForm::kBounds
               ? launch(&AppendBoundsKernel<kDType, kHeadDim>, shape)
               : launch(&AppendMeansKernel<kDType, kHeadDim>, shape);
  };
  if (params.head_dim == 64) return with(std::integral_constant<int32_t, 64>{});
  if (params.head_dim == 80) return with(std::integral_constant<int32_t, 80>{});
  if (params.head_dim == 96) return with(std::integral_constant<int32_t, 96>{});
  if (params.head_dim == 128) return with(std::integral_constant<int32_t, 128>{});
  return with(std::integral_constant<int32_t, 256>{});
}

// Returns launch(kernel, shape) with the instance that serves `params`, which
// AppendListsCudaUnsupported accepts.
template <typename Launch>
auto DispatchAppendLists(const AppendListsParams& params, const Launch& launch) {
  if (params.dtype == DType::kFloat16) {
    return DispatchAppendHeadDim<DType::kFloat16>(params, launch);
  }
  return DispatchAppendHeadDim<DType::kBFloat16>(params, launch);
}

}  // namespace semkv::cuda

#endif  // SEMKV_OPS_CACHE_APPEND_LISTS_KERNEL_CUH_
