// Scoring and selecting lists for rows of Llama-3-8B's shape, int4 centroids: what several cases
// launch.

#ifndef SEMKV_BENCHMARKS_CUDA_CUDA_LISTS_PROBLEM_H_
#define SEMKV_BENCHMARKS_CUDA_CUDA_LISTS_PROBLEM_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "benchmarks/cuda/cuda_attention_problem.h"
#include "benchmarks/cuda/cuda_case.h"
#include "csrc/ops/retrieval/estimate_rest_cuda.h"
#include "csrc/ops/retrieval/score_lists_cuda.h"
#include "csrc/ops/retrieval/select_lists_cuda.h"

namespace semkv {

constexpr int32_t kListPageTokens = 16;
constexpr int32_t kEstimatedPartition = 1;  // clusters, as the library's
constexpr CentroidForm kCentroidForm = CentroidForm::kInt4;
constexpr int32_t kCentroidBytes = CentroidRowBytes(kCentroidForm, kHeadDim);

// One partition of every segment: lists of `size` tokens, neighbours or spread over the segment.
struct Partition {
  int32_t number;
  int32_t size;
  bool is_range;
};

// The goals' lists, and the hybrid default.
std::vector<Partition> Clusters64();
std::vector<Partition> Hybrid();

struct ListsShape {
  int32_t num_views() const { return num_segments() * static_cast<int32_t>(partitions.size()); }
  int32_t num_segments() const { return tokens / segment_tokens; }
  int32_t num_segment_lists(const Partition& p) const { return CeilDiv(segment_tokens, p.size); }
  int32_t num_lists() const;
  // Of every list the centroid, scale, variance and offset.
  int64_t list_bytes() const;
  // Of every list that is estimated the centroid, scale, offset, members and mean value.
  int64_t estimate_bytes() const;
  // Members read, slots written.
  int64_t taken_bytes() const { return int64_t{6} * num_rows * kKvHeads * budget; }

  int32_t num_rows = 1;
  int32_t tokens = 0, budget = 0, segment_tokens = 0;  // of a row
  std::vector<Partition> partitions;
  bool has_pages = false;  // lists lie in list pages, which are wanted
  bool estimates = false;  // clusters have mean values
};

// Sizes of a context divided by `shrink`.
ListsShape MakeListsShape(int32_t num_rows, int32_t tokens, int32_t budget, int32_t shrink,
                          const std::vector<Partition>& partitions);

struct ListsLayer {
  const ListsView* views;
  float* keys;
};

// Slots go to select.slots, the same in all layers; rows' pages follow each other.
struct RetrieveProblem {
  cudaError_t EnqueueScore(int32_t layer, cudaStream_t stream) const;
  cudaError_t EnqueueRetrieve(int32_t layer, cudaStream_t stream) const;
  // Of the last selection, whatever its layer.
  cudaError_t EnqueueEstimate(int32_t layer, cudaStream_t stream) const;

  // What each of them wrote for layer 0 (cuda_lists_check.cc).
  std::string CheckScore(const CudaTwin& before, const CudaTwin& after) const;
  std::string CheckRetrieve(const CudaTwin& before, const CudaTwin& after) const;
  std::string CheckEstimate(const CudaTwin& before, const CudaTwin& after) const;

  ScoreListsParams score;
  SelectListsParams select;
  EstimateRestParams estimate;
  RetrievePlan plan;
  void* workspace = nullptr;
  size_t workspace_bytes = 0;
  std::vector<ListsLayer> layers;
};

RetrieveProblem MakeRetrieve(CudaArena& arena, int32_t num_layers, const ListsShape& shape);

}  // namespace semkv

#endif  // SEMKV_BENCHMARKS_CUDA_CUDA_LISTS_PROBLEM_H_
