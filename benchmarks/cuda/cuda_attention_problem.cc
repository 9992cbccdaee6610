#include "benchmarks/cuda/cuda_attention_problem.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "benchmarks/cuda/cuda_twin.h"
#include "tests/ops/attention/attention_cases.h"

namespace semkv {

KvView MakeView(CudaArena& arena, int64_t tokens, DType dtype) {
  KvView view;
  view.page_tokens = kPageTokens;
  view.num_pages = static_cast<int32_t>(tokens / kPageTokens);
  view.dtype = dtype;
  view.k = arena.Normal(static_cast<size_t>(KvBytes(tokens, dtype)), dtype);
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

cudaError_t AttentionProblem::Enqueue(const KvView& position, const KvView& list,
                                      cudaStream_t stream) const {
  DecodeAttentionParams p = params;
  p.position = position;
  p.list = list;
  return DecodeAttentionCuda(p, plan, workspace, workspace_bytes, stream);
}

std::string AttentionProblem::Check(const KvView& position, const KvView& list,
                                    const CudaTwin& before, const CudaTwin& after) const {
  DecodeAttentionParams p = params;
  p.position = position;
  p.list = list;
  const int64_t heads = int64_t{p.num_rows} * p.num_heads;
  std::vector<uint16_t> out(heads * p.head_dim);
  std::vector<float> lse(heads);
  p.out = out.data();
  p.lse = lse.data();
  before.Move(p.q, p.block_table, p.row_tokens);
  for (KvView* view : {&p.position, &p.list}) before.Move(view->k, view->v);
  for (SlotLists* lists : {&p.position_slots, &p.list_slots}) {
    before.Move(lists->slots, lists->counts);
  }
  DecodeAttentionReference(p);
  const float tolerance = testing::AttentionTolerance(p.q_dtype);
  return FirstOf(
      {Differs("lse", DType::kFloat32, after.At(params.lse), lse.data(), heads, 1e-5, 1e-5),
       Differs("out", p.q_dtype, after.At(params.out), out.data(), heads * p.head_dim,
               tolerance / 4, tolerance / 2)});
}

AttentionProblem MakeAttention(CudaArena& arena, int32_t num_rows, int32_t num_selections,
                               int32_t max_row_tokens, DType kv_dtype) {
  AttentionProblem problem;
  DecodeAttentionParams& p = problem.params;
  const size_t q_bytes = static_cast<size_t>(num_rows) * kHeads * kHeadDim * kElementBytes;
  p.q = arena.Normal(q_bytes);
  p.out = arena.Bytes(q_bytes);
  p.lse = arena.Array<float>(static_cast<size_t>(num_rows) * kHeads);
  p.q_dtype = DType::kBFloat16;
  p.q_row = p.out_row = kHeads * kHeadDim;
  p.q_head = p.out_head = kHeadDim;
  p.num_rows = num_rows;
  p.num_heads = kHeads;
  p.num_kv_heads = kKvHeads;
  p.num_selections = num_selections;
  p.head_dim = kHeadDim;
  p.scale = 1.0f / std::sqrt(static_cast<float>(kHeadDim));
  DecodeAttentionBounds bounds;
  bounds.num_rows = num_rows;
  bounds.max_row_tokens = max_row_tokens;
  bounds.num_heads = kHeads;
  bounds.num_kv_heads = kKvHeads;
  bounds.num_selections = num_selections;
  bounds.head_dim = kHeadDim;
  bounds.kv_dtype = kv_dtype;
  problem.plan = PlanDecodeAttention(bounds);
  problem.workspace_bytes = DecodeAttentionCudaWorkspaceBytes(problem.plan);
  problem.workspace = arena.Zeros(problem.workspace_bytes);
  return problem;
}

}  // namespace semkv
