// Decode attention of a layer of Llama-3-8B's shape in bfloat16 and over pools of float8 e4m3,
// dense and over slots that lie scattered, and the merging of its results.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "benchmarks/cuda/cuda_case.h"
#include "csrc/ops/attention/decode_attention_cuda.h"
#include "csrc/ops/attention/merge_states_cuda.h"

namespace semkv {
namespace {

constexpr int32_t kHeads = 32, kKvHeads = 8, kHeadDim = 128, kPageTokens = 16;
constexpr int64_t kElementBytes = 2;

int64_t KvBytes(int64_t tokens, DType dtype = DType::kBFloat16) {
  return 2 * tokens * kKvHeads * kHeadDim * DTypeBytes(dtype);
}

// Keys, then values, as [page, token, KV head, channel]. Of e4m3 they are the bytes of bfloat16
// numbers, any of which the kernel takes as long.
KvView MakeView(CudaArena& arena, int64_t tokens, DType dtype = DType::kBFloat16) {
  KvView view;
  view.page_tokens = kPageTokens;
  view.num_pages = static_cast<int32_t>(tokens / kPageTokens);
  view.dtype = dtype;
  view.k = arena.Normal(static_cast<size_t>(KvBytes(tokens, dtype)));
  view.v = static_cast<char*>(view.k) + KvBytes(tokens, dtype) / 2;
  view.k_head = view.v_head = kHeadDim;
  view.k_token = view.v_token = kKvHeads * kHeadDim;
  view.k_page = view.v_page = kPageTokens * view.k_token;
  return view;
}

std::vector<int32_t> RandomOrder(int32_t n, std::mt19937& rng) {
  std::vector<int32_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), rng);
  return order;
}

// What all layers share but keys and values.
DecodeAttentionParams MakeParams(CudaArena& arena, int32_t num_rows) {
  DecodeAttentionParams p;
  const size_t q_bytes = static_cast<size_t>(num_rows) * kHeads * kHeadDim * kElementBytes;
  p.q = arena.Normal(q_bytes);
  p.out = arena.Bytes(q_bytes);
  p.q_dtype = DType::kBFloat16;
  p.q_row = p.out_row = kHeads * kHeadDim;
  p.q_head = p.out_head = kHeadDim;
  p.num_rows = num_rows;
  p.num_heads = kHeads;
  p.num_kv_heads = kKvHeads;
  p.head_dim = kHeadDim;
  p.scale = 1.0f / std::sqrt(static_cast<float>(kHeadDim));
  return p;
}

CudaLaunch Launch(CudaArena& arena, const DecodeAttentionParams& params, int32_t max_row_tokens,
                  std::vector<KvView> layers) {
  DecodeAttentionBounds bounds;
  bounds.kv_dtype = layers.empty() ? DType::kBFloat16 : layers[0].dtype;
  bounds.num_rows = params.num_rows;
  bounds.max_row_tokens = max_row_tokens;
  bounds.num_heads = kHeads;
  bounds.num_kv_heads = kKvHeads;
  bounds.num_selections = params.num_selections;
  bounds.head_dim = kHeadDim;
  const DecodeAttentionPlan plan = PlanDecodeAttention(bounds);
  const size_t bytes = DecodeAttentionCudaWorkspaceBytes(plan);
  void* workspace = arena.Zeros(bytes);
  return [=](int32_t layer, cudaStream_t stream) {
    DecodeAttentionParams p = params;
    p.position = layers[layer];
    return DecodeAttentionCuda(p, plan, workspace, bytes, stream);
  };
}

CudaLaunch PrepareDense(CudaArena& arena, int32_t num_layers, int32_t num_rows, int32_t tokens,
                        DType dtype) {
  std::mt19937 rng(2);
  DecodeAttentionParams p = MakeParams(arena, num_rows);
  const int64_t all_tokens = int64_t{num_rows} * tokens;
  p.block_table = arena.Copy(RandomOrder(static_cast<int32_t>(all_tokens / kPageTokens), rng));
  p.block_table_stride = tokens / kPageTokens;
  p.row_tokens = arena.Copy(std::vector<int32_t>(num_rows, tokens));
  std::vector<KvView> layers(num_layers);
  for (KvView& view : layers) view = MakeView(arena, all_tokens, dtype);
  return Launch(arena, p, tokens, layers);
}

CudaLaunch PrepareSparse(CudaArena& arena, int32_t num_layers, int32_t tokens, int32_t selected,
                         DType dtype) {
  std::mt19937 rng(3);
  DecodeAttentionParams p = MakeParams(arena, 1);
  const std::vector<int32_t> table = RandomOrder(tokens / kPageTokens, rng);
  std::vector<int32_t> slots;
  for (int32_t head = 0; head < kKvHeads; ++head) {
    std::vector<int32_t> chosen = RandomOrder(tokens, rng);
    chosen.resize(selected);
    std::sort(chosen.begin(), chosen.end());
    for (int32_t t : chosen) {
      slots.push_back(table[t / kPageTokens] * kPageTokens + t % kPageTokens);
    }
  }
  p.num_selections = kKvHeads;
  p.position_slots = {arena.Copy(slots), arena.Copy(std::vector<int32_t>(kKvHeads, selected)),
                      int64_t{kKvHeads} * selected, selected};
  std::vector<KvView> layers(num_layers);
  for (KvView& view : layers) view = MakeView(arena, tokens, dtype);
  return Launch(arena, p, selected, layers);
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
  return [=](int32_t layer, cudaStream_t stream) {
    MergeStatesParams of_layer = p;
    of_layer.o = layers[layer];
    return MergeStatesCuda(of_layer, stream);
  };
}

void AddDecodeCases(int32_t shrink, DType dtype, std::vector<CudaCase>& cases) {
  const std::string name =
      dtype == DType::kFloat8E4M3 ? "decode_attention_e4m3" : "decode_attention";
  for (const auto& [rows, full] : {std::pair{1, 8192}, {1, 32768}, {1, 131072}, {8, 8192}}) {
    const int32_t tokens = full / shrink;
    cases.push_back(
        {name + "/dense/rows:" + std::to_string(rows) + "/tokens:" + std::to_string(full),
         rows * KvBytes(tokens, dtype), CudaYardstick::kMemory,
         [=](CudaArena& arena, int32_t n) { return PrepareDense(arena, n, rows, tokens, dtype); }});
  }
  for (int32_t full : {32768, 131072}) {
    const int32_t tokens = full / shrink, selected = 2048 / shrink;
    cases.push_back({name + "/slots:2048/tokens:" + std::to_string(full),
                     KvBytes(selected, dtype) + int64_t{4} * kKvHeads * selected,
                     CudaYardstick::kMemory, [=](CudaArena& arena, int32_t n) {
                       return PrepareSparse(arena, n, tokens, selected, dtype);
                     }});
  }
}

}  // namespace

void AddAttentionCases(int32_t shrink, std::vector<CudaCase>& cases) {
  for (DType dtype : {DType::kBFloat16, DType::kFloat8E4M3}) AddDecodeCases(shrink, dtype, cases);
  for (int32_t rows : {1, 64}) {
    const int64_t head_bytes = 3 * kHeadDim * kElementBytes + 2 * int64_t{sizeof(float)};
    cases.push_back({"merge_states/rows:" + std::to_string(rows), rows * kHeads * head_bytes,
                     CudaYardstick::kMemory,
                     [=](CudaArena& arena, int32_t n) { return PrepareMerge(arena, n, rows); }});
  }
}

}  // namespace semkv
