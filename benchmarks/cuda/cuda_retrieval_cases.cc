// Scoring and selecting lists for one row: clusters of 64 (the goals' lists) and the hybrid
// default, sentences of 25 beside clusters of 16.

#include <cstdint>
#include <string>
#include <vector>

#include "benchmarks/cuda/cuda_case.h"
#include "benchmarks/cuda/cuda_lists_problem.h"
#include "benchmarks/cuda/cuda_twin.h"

namespace semkv {
namespace {

CudaLaunch PrepareScore(CudaArena& arena, int32_t num_layers, const ListsShape& shape) {
  const RetrieveProblem problem = MakeRetrieve(arena, num_layers, shape);
  CudaLaunch launch = [=](int32_t layer, cudaStream_t stream) {
    return problem.EnqueueScore(layer, stream);
  };
  launch.check = [=](const CudaTwin& before, const CudaTwin& after) {
    return problem.CheckScore(before, after);
  };
  return launch;
}

CudaLaunch PrepareRetrieve(CudaArena& arena, int32_t num_layers, const ListsShape& shape) {
  const RetrieveProblem problem = MakeRetrieve(arena, num_layers, shape);
  CudaLaunch launch = [=](int32_t layer, cudaStream_t stream) {
    return problem.EnqueueRetrieve(layer, stream);
  };
  launch.check = [=](const CudaTwin& before, const CudaTwin& after) {
    return problem.CheckRetrieve(before, after);
  };
  return launch;
}

CudaLaunch PrepareEstimate(CudaArena& arena, int32_t num_layers, const ListsShape& shape) {
  const RetrieveProblem problem = MakeRetrieve(arena, num_layers, shape);
  CudaLaunch launch = [=](int32_t layer, cudaStream_t stream) {
    return problem.EnqueueEstimate(layer, stream);
  };
  launch.before_replay = [=](cudaStream_t stream) { return problem.EnqueueRetrieve(0, stream); };
  launch.check = [=](const CudaTwin& before, const CudaTwin& after) {
    return problem.CheckEstimate(before, after);
  };
  return launch;
}

}  // namespace

void AddRetrievalCases(int32_t shrink, std::vector<CudaCase>& cases) {
  for (int32_t full : {32768, 131072, 1048576}) {
    if (shrink > 1 && full > 131072) continue;  // nothing new, and slow
    const ListsShape clusters64 = MakeListsShape(1, full, 2048, shrink, Clusters64());
    const ListsShape hybrid = MakeListsShape(1, full, 2048, shrink, Hybrid());
    const std::string tokens = "/tokens:" + std::to_string(full);
    const auto add = [&](const std::string& name, const ListsShape& shape, int64_t floor,
                         auto prepare) {
      cases.push_back({name + tokens, floor, CudaYardstick::kMemory, 0,
                       [=](CudaArena& arena, int32_t n) { return prepare(arena, n, shape); }});
    };
    add("score_lists/clusters64", clusters64,
        clusters64.list_bytes() + int64_t{4} * kKvHeads * clusters64.num_lists(), PrepareScore);
    add("retrieve/clusters64", clusters64, clusters64.list_bytes() + clusters64.taken_bytes(),
        PrepareRetrieve);
    add("retrieve/hybrid", hybrid, hybrid.list_bytes() + hybrid.taken_bytes(), PrepareRetrieve);
    ListsShape estimated = hybrid;
    estimated.estimates = true;
    add("estimate_rest/hybrid", estimated, estimated.estimate_bytes(), PrepareEstimate);
    if (full > 131072) continue;  // two bitmaps of a row do not fit
    ListsShape pages = hybrid;
    pages.has_pages = true;
    // Members read; for each page, all of them full, 4 bytes read and an entry written.
    const int64_t page_bytes = int64_t{8 + 4} * kKvHeads * pages.budget / kListPageTokens;
    add("retrieve_pages/hybrid", pages,
        pages.list_bytes() + int64_t{2} * kKvHeads * pages.budget + page_bytes, PrepareRetrieve);
  }
}

}  // namespace semkv
