// New tokens into slots, keys out of pages, and list pages over the bus.

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "benchmarks/cuda/cuda_attention_problem.h"
#include "benchmarks/cuda/cuda_case.h"
#include "benchmarks/cuda/cuda_twin.h"
#include "csrc/ops/cache/stage_keys_cuda.h"
#include "csrc/ops/cache/write_kv_cuda.h"
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
  CudaLaunch launch = [=](int32_t layer, cudaStream_t stream) {
    return WriteKvCuda(layers[layer], stream);
  };
  launch.check = [p = layers[0]](const CudaTwin& before, const CudaTwin& after) {
    WriteKvParams expected = p;
    before.Move(expected.k, expected.v, expected.slots, expected.view.k, expected.view.v);
    WriteKvReference(expected);
    constexpr size_t kPoolBytes = kPoolTokens * kTokenBytes;
    return FirstOf({BytesDiffer("keys", after.At(p.view.k), expected.view.k, kPoolBytes),
                    BytesDiffer("values", after.At(p.view.v), expected.view.v, kPoolBytes)});
  };
  return launch;
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
  CudaLaunch launch = [=](int32_t layer, cudaStream_t stream) {
    return StageKeysCuda(layers[layer], stream);
  };
  launch.check = [p = layers[0], cells](const CudaTwin& before, const CudaTwin& after) {
    StageKeysParams expected = p;
    const KvView* const views = before.At(p.layers);
    std::vector<KvView> moved(views, views + p.num_layers);
    for (KvView& view : moved) before.Move(view.k);
    expected.layers = moved.data();
    before.Move(expected.pages, expected.keys, expected.num_nonfinite, expected.nonfinite);
    StageKeysReference(expected);
    return FirstOf({BytesDiffer("keys", after.At(p.keys), expected.keys,
                                cells * p.num_tokens * kHeadDim * kElementBytes),
                    BytesDiffer("numbers of tokens that are not finite", after.At(p.num_nonfinite),
                                expected.num_nonfinite, cells * sizeof(int32_t))});
  };
  return launch;
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
  CudaLaunch launch = [=](int32_t layer, cudaStream_t stream) {
    PageCopyParams of_layer = p;
    of_layer.hot = hot[layer];
    return GatherPagesCuda(of_layer, kPageCopyCtas, stream);
  };
  launch.check = [=](const CudaTwin& before, const CudaTwin& after) {
    PageCopyParams expected = p;
    expected.hot = before.At(hot[0]);
    before.Move(expected.home, expected.pages, expected.num_pages);
    GatherPagesReference(expected);
    return BytesDiffer("hot pages", after.At(hot[0]), expected.hot,
                       static_cast<size_t>(num_pages * page_bytes));
  };
  return launch;
}

// The same pages, a call for each: what an engine does that has no kernel for it.
CudaLaunch PrepareCopies(CudaArena& arena, int32_t num_layers, int32_t num_pages,
                         int64_t page_bytes) {
  const char* home = static_cast<char*>(arena.Mapped(static_cast<size_t>(num_pages * page_bytes)));
  std::vector<char*> hot(num_layers);
  for (char*& pool : hot) {
    pool = static_cast<char*>(arena.Bytes(static_cast<size_t>(num_pages * page_bytes)));
  }
  CudaLaunch launch = [=](int32_t layer, cudaStream_t stream) {
    cudaError_t error = cudaSuccess;
    for (int32_t i = 0; i < num_pages && error == cudaSuccess; ++i) {
      error = cudaMemcpyAsync(hot[layer] + i * page_bytes, home + (num_pages - 1 - i) * page_bytes,
                              static_cast<size_t>(page_bytes), cudaMemcpyHostToDevice, stream);
    }
    return error;
  };
  launch.check = [=](const CudaTwin& before, const CudaTwin& after) {
    std::string wrong;
    for (int32_t i = 0; i < num_pages && wrong.empty(); ++i) {
      wrong = BytesDiffer("page " + std::to_string(i), after.At(hot[0] + i * page_bytes),
                          before.At(home + (num_pages - 1 - i) * page_bytes),
                          static_cast<size_t>(page_bytes));
    }
    return wrong;
  };
  return launch;
}

}  // namespace

void AddMovementCases(int32_t shrink, std::vector<CudaCase>& cases) {
  for (int32_t tokens : {1, 64}) {
    cases.push_back({"write_kv/tokens:" + std::to_string(tokens), 4 * tokens * kTokenBytes,
                     CudaYardstick::kMemory, 0,
                     [=](CudaArena& arena, int32_t n) { return PrepareWrite(arena, n, tokens); }});
  }
  const int32_t staged_tokens = 8192 / shrink, staged_layers = std::max(32 / shrink, 2);
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
}

}  // namespace semkv
