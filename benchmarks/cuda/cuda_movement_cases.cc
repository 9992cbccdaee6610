// New tokens into slots, keys out of pages, list pages over the bus, and clusters of a prompt and
// their stored form.

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "benchmarks/cuda/cuda_attention_problem.h"
#include "benchmarks/cuda/cuda_case.h"
#include "csrc/ops/cache/append_lists_cuda.h"
#include "csrc/ops/cache/stage_keys_cuda.h"
#include "csrc/ops/cache/write_kv_cuda.h"
#include "csrc/ops/clustering/kmeans_cuda.h"
#include "csrc/ops/residency/gather_pages_cuda.h"

namespace semkv {
namespace {

constexpr int64_t kTokenBytes = KvBytes(1) / 2;  // of K, or of V

CudaLaunch PrepareWrite(CudaArena& arena, int32_t num_layers, int32_t num_tokens) {
  constexpr int32_t kPoolTokens = 4096;
  std::mt19937 rng(5);
  std::vector<int32_t> slots = RandomOrder(kPoolTokens, rng);
  slots.resize(num_tokens);
  WriteKvParams p;
  p.dtype = DType::kBFloat16;
  p.k_token = p.v_token = kKvHeads * kHeadDim;
  p.k_head = p.v_head = kHeadDim;
  p.num_tokens = num_tokens;
  p.num_kv_heads = kKvHeads;
  p.head_dim = kHeadDim;
  p.slots = arena.Copy(slots);
  p.view.k_head = p.view.v_head = kHeadDim;
  p.view.k_token = p.view.v_token = kKvHeads * kHeadDim;
  p.view.k_page = p.view.v_page = kPageTokens * p.view.k_token;
  p.view.page_tokens = kPageTokens;
  p.view.num_pages = kPoolTokens / kPageTokens;
  p.view.dtype = DType::kBFloat16;
  std::vector<WriteKvParams> layers(num_layers, p);
  for (WriteKvParams& layer : layers) {
    layer.k = arena.Normal(static_cast<size_t>(num_tokens * kTokenBytes));
    layer.v = arena.Normal(static_cast<size_t>(num_tokens * kTokenBytes));
    layer.view.k = arena.Bytes(static_cast<size_t>(kPoolTokens * kTokenBytes));
    layer.view.v = arena.Bytes(static_cast<size_t>(kPoolTokens * kTokenBytes));
  }
  return [=](int32_t layer, cudaStream_t stream) { return WriteKvCuda(layers[layer], stream); };
}

// Every KV head of `model_layers` layers in one launch.
CudaLaunch PrepareStage(CudaArena& arena, int32_t num_layers, int32_t tokens,
                        int32_t model_layers) {
  std::mt19937 rng(7);
  const std::vector<int32_t> pages = RandomOrder(tokens / kPageTokens, rng);
  StageKeysParams p;
  p.num_layers = model_layers;
  p.num_kv_heads = kKvHeads;
  p.head_dim = kHeadDim;
  p.pool_dtype = p.dtype = DType::kBFloat16;
  p.page_tokens = kPageTokens;
  p.pages = arena.Copy(pages);
  p.num_tokens = tokens;
  const size_t cells = static_cast<size_t>(model_layers * kKvHeads);
  p.num_nonfinite = static_cast<int32_t*>(arena.Zeros(cells * sizeof(int32_t)));
  p.nonfinite = arena.Array<uint16_t>(cells * tokens);
  KvView view;
  view.k_head = kHeadDim;
  view.k_token = kKvHeads * kHeadDim;
  view.k_page = kPageTokens * view.k_token;
  std::vector<StageKeysParams> layers(num_layers, p);
  for (StageKeysParams& layer : layers) {
    std::vector<KvView> views(model_layers, view);
    for (KvView& v : views) v.k = arena.Normal(static_cast<size_t>(tokens * kTokenBytes));
    layer.layers = arena.Copy(views);
    layer.keys = arena.Bytes(static_cast<size_t>(model_layers * tokens * kTokenBytes));
  }
  return [=](int32_t layer, cudaStream_t stream) { return StageKeysCuda(layers[layer], stream); };
}

CudaLaunch PrepareGather(CudaArena& arena, int32_t num_layers, int32_t num_pages,
                         int64_t page_bytes) {
  std::mt19937 rng(6);
  std::vector<PagePair> pairs(num_pages);
  for (int32_t i = 0; i < num_pages; ++i) pairs[i] = {i, num_pages - 1 - i};
  std::shuffle(pairs.begin(), pairs.end(), rng);
  PageCopyParams p;
  p.page_bytes = page_bytes;
  p.num_home_pages = p.num_hot_pages = p.max_pages = num_pages;
  p.pages = arena.Copy(pairs);
  p.num_pages = arena.Copy(std::vector<int32_t>{num_pages});
  p.home = arena.Mapped(static_cast<size_t>(num_pages * page_bytes));
  std::vector<void*> hot(num_layers);
  for (void*& pool : hot) pool = arena.Bytes(static_cast<size_t>(num_pages * page_bytes));
  return [=](int32_t layer, cudaStream_t stream) {
    PageCopyParams of_layer = p;
    of_layer.hot = hot[layer];
    return GatherPagesCuda(of_layer, kPageCopyCtas, stream);
  };
}

// The same pages, a call for each: what an engine does that has no kernel for it.
CudaLaunch PrepareCopies(CudaArena& arena, int32_t num_layers, int32_t num_pages,
                         int64_t page_bytes) {
  const char* home = static_cast<char*>(arena.Mapped(static_cast<size_t>(num_pages * page_bytes)));
  std::vector<char*> hot(num_layers);
  for (char*& pool : hot) {
    pool = static_cast<char*>(arena.Bytes(static_cast<size_t>(num_pages * page_bytes)));
  }
  return [=](int32_t layer, cudaStream_t stream) {
    cudaError_t error = cudaSuccess;
    for (int32_t i = 0; i < num_pages && error == cudaSuccess; ++i) {
      error = cudaMemcpyAsync(hot[layer] + i * page_bytes, home + (num_pages - 1 - i) * page_bytes,
                              static_cast<size_t>(page_bytes), cudaMemcpyHostToDevice, stream);
    }
    return error;
  };
}

// Every KV head of every segment of a prompt.
CudaLaunch PrepareKMeans(CudaArena& arena, int32_t num_layers, int32_t tokens,
                         int32_t segment_tokens, int32_t num_lists, int32_t iterations) {
  KMeansParams p;
  p.num_problems = kKvHeads * (tokens / segment_tokens);
  p.head_dim = kHeadDim;
  p.dtype = DType::kBFloat16;
  p.iterations = iterations;
  p.max_points = segment_tokens;
  p.max_lists = num_lists;
  const size_t problems = static_cast<size_t>(p.num_problems);
  const size_t index_bytes = KMeansIsNarrow(segment_tokens) ? 2 : 4;
  p.labels = arena.Array<uint16_t>(problems * segment_tokens);
  p.offsets = arena.Bytes(problems * (num_lists + 3) * index_bytes);
  p.members = arena.Bytes(problems * segment_tokens * index_bytes);
  p.centroids = arena.Array<float>(problems * num_lists * kHeadDim);
  p.objectives = arena.Array<float>(problems);
  p.iterations_done = arena.Array<int32_t>(problems);
  std::vector<KMeansParams> layers(num_layers, p);
  for (KMeansParams& layer : layers) {
    const char* keys = static_cast<char*>(arena.Normal(static_cast<size_t>(tokens * kTokenBytes)));
    std::vector<KMeansProblem> of_layer;
    for (int32_t begin = 0; begin < tokens; begin += segment_tokens) {
      for (int32_t head = 0; head < kKvHeads; ++head) {
        of_layer.push_back({keys + begin * kTokenBytes + head * kHeadDim * 2, kKvHeads * kHeadDim,
                            segment_tokens, num_lists});
      }
    }
    layer.problems = arena.Copy(of_layer);
  }
  const KMeansPlan plan =
      PlanKMeans(p.num_problems, kHeadDim, segment_tokens, num_lists, iterations);
  const size_t bytes = KMeansCudaWorkspaceBytes(plan);
  void* workspace = arena.Bytes(bytes);
  return [=](int32_t layer, cudaStream_t stream) {
    return KMeansCuda(layers[layer], plan, workspace, bytes, stream);
  };
}

constexpr int32_t kAppendCells = 128;  // KV heads of 16 segments

// The lists of one segment in each cell: clusters, or the center alone.
CudaLaunch PrepareAppend(CudaArena& arena, int32_t num_layers, int32_t segment_tokens,
                         int32_t num_lists) {
  AppendListsParams p;
  p.num_cells = kAppendCells;
  p.head_dim = kHeadDim;
  p.nlist = p.max_lists = num_lists;
  p.dtype = DType::kBFloat16;
  p.key_cell = int64_t{segment_tokens} * kHeadDim;
  std::vector<uint16_t> offsets(num_lists + 1);
  for (int32_t i = 0; i <= num_lists; ++i) {
    offsets[i] = static_cast<uint16_t>(i * segment_tokens / num_lists);
  }
  p.offsets = arena.Copy(offsets);
  const size_t lists = static_cast<size_t>(num_lists) * kAppendCells;
  if (num_lists == 1) {
    p.form = CentroidForm::kFloat32;
    p.centroids = arena.Array<float>(lists * kHeadDim);
  } else {
    const size_t members = static_cast<size_t>(segment_tokens) * kAppendCells;
    std::mt19937 rng(7);
    std::vector<uint16_t> rows(members);
    for (auto cell = rows.begin(); cell != rows.end(); cell += segment_tokens) {
      std::iota(cell, cell + segment_tokens, uint16_t{0});
      std::shuffle(cell, cell + segment_tokens, rng);
    }
    p.members = arena.Copy(rows);
    p.members_cell = p.max_members = segment_tokens;
    p.centers = static_cast<float*>(arena.Zeros(kAppendCells * kHeadDim * sizeof(float)));
    p.form = CentroidForm::kInt4;
    p.centroids = arena.Bytes(lists * CentroidRowBytes(p.form, kHeadDim));
    p.scales = arena.Array<float>(lists);
    p.list_offsets = arena.Array<uint16_t>(lists + kAppendCells);
    p.list_members = arena.Array<uint16_t>(members);
  }
  p.variances = arena.Array<float>(lists);
  std::vector<AppendListsParams> layers(num_layers, p);
  for (AppendListsParams& layer : layers) {
    layer.keys = arena.Normal(static_cast<size_t>(kAppendCells * p.key_cell * 2));
  }
  return [=](int32_t layer, cudaStream_t stream) { return AppendListsCuda(layers[layer], stream); };
}

// Keys, and of clusters: members in and out, offsets out, codes, scales, variances and centers.
int64_t AppendFloorBytes(int32_t segment_tokens, int32_t num_lists) {
  const int64_t keys = int64_t{2} * segment_tokens * kHeadDim;
  if (num_lists == 1) return kAppendCells * (keys + 4 * kHeadDim + 4);
  return kAppendCells *
         (keys + 4 * segment_tokens +
          num_lists * (CentroidRowBytes(CentroidForm::kInt4, kHeadDim) + 4 + 4 + 2) + 4 * kHeadDim);
}

}  // namespace

void AddMovementCases(int32_t shrink, std::vector<CudaCase>& cases) {
  for (int32_t tokens : {1, 64}) {
    cases.push_back({"write_kv/tokens:" + std::to_string(tokens), 4 * tokens * kTokenBytes,
                     CudaYardstick::kMemory, 0,
                     [=](CudaArena& arena, int32_t n) { return PrepareWrite(arena, n, tokens); }});
  }
  const int32_t staged_tokens = 8192 / shrink, staged_layers = std::max(32 / shrink, 1);
  cases.push_back({"stage_keys/tokens:8192/layers:32",
                   2 * staged_layers * staged_tokens * kTokenBytes, CudaYardstick::kMemory, 0,
                   [=](CudaArena& arena, int32_t n) {
                     return PrepareStage(arena, n, staged_tokens, staged_layers);
                   }});
  for (int32_t page_kib : {8, 32}) {
    const int32_t pages = std::max(4096 / page_kib / shrink, 1);
    const int64_t page_bytes = int64_t{1024} * page_kib;
    cases.push_back({"gather_pages/page_kib:" + std::to_string(page_kib), pages * page_bytes,
                     CudaYardstick::kBus, 0, [=](CudaArena& arena, int32_t n) {
                       return PrepareGather(arena, n, pages, page_bytes);
                     }});
    cases.push_back({"cudaMemcpyAsync/page_kib:" + std::to_string(page_kib), pages * page_bytes,
                     CudaYardstick::kBus, 0, [=](CudaArena& arena, int32_t n) {
                       return PrepareCopies(arena, n, pages, page_bytes);
                     }});
  }
  const int32_t tokens = 131072 / shrink, iterations = shrink == 1 ? 10 : 1;
  for (int32_t segment : {8192, 131072}) {
    const int32_t lists = segment == 8192 ? 512 : 1024;
    cases.push_back({"kmeans/tokens:131072/segment:" + std::to_string(segment) +
                         "/lists:" + std::to_string(lists) + "/iterations:10",
                     (2 * iterations + 2) * tokens * kTokenBytes, CudaYardstick::kMemory, 0,
                     [=](CudaArena& arena, int32_t n) {
                       return PrepareKMeans(arena, n, tokens, segment / shrink,
                                            std::max(lists / shrink, 2), iterations);
                     }});
  }
  for (int32_t lists : {512, 128, 1}) {
    const int32_t segment = 8192 / shrink, some = std::max(lists / shrink, 1);
    cases.push_back(
        {"append_lists/cells:128/tokens:8192/lists:" + std::to_string(lists),
         AppendFloorBytes(segment, some), CudaYardstick::kMemory, 0,
         [=](CudaArena& arena, int32_t n) { return PrepareAppend(arena, n, segment, some); }});
  }
}

}  // namespace semkv
