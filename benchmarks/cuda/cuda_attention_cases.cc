// Decode attention of a layer of Llama-3-8B's shape, dense and over slots that lie scattered, and
// the merging of its results.

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "benchmarks/cuda/cuda_attention_problem.h"
#include "benchmarks/cuda/cuda_case.h"
#include "benchmarks/cuda/cuda_twin.h"
#include "csrc/ops/attention/merge_states_cuda.h"

namespace semkv {
namespace {

CudaLaunch Launch(const AttentionProblem& problem, std::vector<KvView> layers) {
  CudaLaunch launch = [=](int32_t layer, cudaStream_t stream) {
    return problem.Enqueue(layers[layer], KvView(), stream);
  };
  launch.check = [=](const CudaTwin& before, const CudaTwin& after) {
    return problem.Check(layers[0], KvView(), before, after);
  };
  return launch;
}

std::vector<KvView> MakeViews(CudaArena& arena, int32_t num_layers, int64_t tokens, DType dtype) {
  std::vector<KvView> layers(num_layers);
  for (KvView& view : layers) view = MakeView(arena, tokens, dtype);
  return layers;
}

CudaLaunch PrepareDense(CudaArena& arena, int32_t num_layers, int32_t num_rows, int32_t tokens,
                        DType dtype) {
  std::mt19937 rng(2);
  AttentionProblem problem = MakeAttention(arena, num_rows, 0, tokens, dtype);
  DecodeAttentionParams& p = problem.params;
  const int64_t all_tokens = int64_t{num_rows} * tokens;
  p.block_table = arena.Copy(RandomOrder(static_cast<int32_t>(all_tokens / kPageTokens), rng));
  p.block_table_stride = tokens / kPageTokens;
  p.row_tokens = arena.Copy(std::vector<int32_t>(num_rows, tokens));
  return Launch(problem, MakeViews(arena, num_layers, all_tokens, dtype));
}

// Every (row, KV head) has `selected` tokens of its own `tokens`, anywhere.
CudaLaunch PrepareSparse(CudaArena& arena, int32_t num_layers, int32_t num_rows, int32_t tokens,
                         int32_t selected, DType dtype) {
  std::mt19937 rng(3);
  AttentionProblem problem = MakeAttention(arena, num_rows, kKvHeads, selected, dtype);
  const int32_t row_pages = tokens / kPageTokens;
  const std::vector<int32_t> table = RandomOrder(num_rows * row_pages, rng);
  std::vector<int32_t> slots;
  for (int32_t cell = 0; cell < num_rows * kKvHeads; ++cell) {
    std::vector<int32_t> chosen = RandomOrder(tokens, rng);
    chosen.resize(selected);
    std::sort(chosen.begin(), chosen.end());
    const int32_t first = cell / kKvHeads * row_pages;
    for (int32_t t : chosen) {
      slots.push_back(table[first + t / kPageTokens] * kPageTokens + t % kPageTokens);
    }
  }
  problem.params.position_slots = {arena.Copy(slots),
                                   arena.Copy(std::vector<int32_t>(num_rows * kKvHeads, selected)),
                                   int64_t{kKvHeads} * selected, selected};
  return Launch(problem, MakeViews(arena, num_layers, int64_t{num_rows} * tokens, dtype));
}

CudaLaunch PrepareMerge(CudaArena& arena, int32_t num_layers, int32_t num_rows) {
  MergeStatesParams p;
  p.num_states = 2;
  p.num_rows = num_rows;
  p.num_heads = kHeads;
  p.head_dim = kHeadDim;
  p.dtype = p.out_dtype = DType::kBFloat16;
  p.out_row = kHeads * kHeadDim;
  p.out_head = kHeadDim;
  const size_t bytes = static_cast<size_t>(num_rows) * kHeads * kHeadDim * kElementBytes;
  p.lse = static_cast<float*>(arena.Zeros(size_t{2} * num_rows * kHeads * sizeof(float)));
  p.out = arena.Bytes(bytes);
  std::vector<void*> layers(num_layers);
  for (void*& o : layers) o = arena.Normal(2 * bytes);
  CudaLaunch launch = [=](int32_t layer, cudaStream_t stream) {
    MergeStatesParams of_layer = p;
    of_layer.o = layers[layer];
    return MergeStatesCuda(of_layer, stream);
  };
  launch.check = [=](const CudaTwin& before, const CudaTwin& after) {
    MergeStatesParams expected = p;
    expected.o = before.At(layers[0]);
    before.Move(expected.lse, expected.out);
    MergeStatesReference(expected);
    return Differs("out", p.out_dtype, after.At(p.out), expected.out,
                   int64_t{num_rows} * kHeads * kHeadDim, 1e-4, 0x1p-8);
  };
  return launch;
}

struct Shape {
  int32_t rows, tokens, selected;  // selected 0: dense
};

void AddDecodeCase(int32_t shrink, const Shape& full, DType dtype, std::vector<CudaCase>& cases) {
  if (shrink > 1 && full.rows * full.tokens > 131072 && full.selected == 0) return;  // slow
  const int32_t rows = full.rows, tokens = full.tokens / shrink, selected = full.selected / shrink;
  const bool is_dense = selected == 0;
  const std::string what = is_dense ? "/dense" : "/slots:" + std::to_string(full.selected);
  const int64_t floor = is_dense ? KvBytes(tokens, dtype)
                                 : KvBytes(selected, dtype) + int64_t{4} * kKvHeads * selected;
  cases.push_back({(dtype == DType::kFloat8E4M3 ? "decode_attention_e4m3" : "decode_attention") +
                       what + "/rows:" + std::to_string(rows) +
                       "/tokens:" + std::to_string(full.tokens),
                   rows * floor, CudaYardstick::kMemory, rows * KvBytes(tokens, dtype),
                   [=](CudaArena& arena, int32_t n) {
                     return is_dense ? PrepareDense(arena, n, rows, tokens, dtype)
                                     : PrepareSparse(arena, n, rows, tokens, selected, dtype);
                   }});
}

}  // namespace

void AddAttentionCases(int32_t shrink, std::vector<CudaCase>& cases) {
  for (const Shape& shape : {Shape{1, 8192, 0},
                             {1, 32768, 0},
                             {1, 131072, 0},
                             {1, 1048576, 0},
                             {8, 8192, 0},
                             {8, 32768, 0},
                             {8, 131072, 0},
                             {1, 32768, 2048},
                             {1, 131072, 2048},
                             {8, 32768, 1024},
                             {8, 131072, 2048}}) {
    AddDecodeCase(shrink, shape, DType::kBFloat16, cases);
  }
  for (const Shape& shape : {Shape{1, 8192, 0},
                             {1, 32768, 0},
                             {1, 131072, 0},
                             {8, 8192, 0},
                             {1, 32768, 2048},
                             {1, 131072, 2048}}) {
    AddDecodeCase(shrink, shape, DType::kFloat8E4M3, cases);
  }
  for (int32_t rows : {1, 64}) {
    const int64_t head_bytes = 3 * kHeadDim * kElementBytes + 2 * int64_t{sizeof(float)};
    cases.push_back({"merge_states/rows:" + std::to_string(rows), rows * kHeads * head_bytes,
                     CudaYardstick::kMemory, 0,
                     [=](CudaArena& arena, int32_t n) { return PrepareMerge(arena, n, rows); }});
  }
}

}  // namespace semkv
