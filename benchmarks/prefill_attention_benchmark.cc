// Chunked prefill attention in GFLOP/s, and the float32 FMA rate of a core that it is measured
// against. FLOPs count visible (query, token) pairs only: 4 * head_dim each.

#include "csrc/ops/attention/prefill_attention.h"

#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "csrc/ops/numeric/float_convert.h"
#include "csrc/ops/parallel/thread_pool.h"

namespace semkv {
namespace {

constexpr int32_t kHeads = 8;
constexpr int32_t kKvHeads = 2;
constexpr int32_t kPageTokens = 16;

#if defined(__x86_64__)
// Independent chains of multiply-adds: what one core does when nothing is loaded.
__attribute__((target("avx512f"))) void BM_FmaPeakAvx512(benchmark::State& state) {
  typedef float Floats __attribute__((vector_size(64)));
  constexpr int kChains = 12, kRepeats = 1000;
  if (!__builtin_cpu_supports("avx512f")) {
    state.SkipWithError("no AVX-512");
    return;
  }
  Floats x[kChains] = {};
  const Floats y = x[0] + 0.5f, z = x[0] + 1.0f;
  for (auto _ : state) {
    for (int i = 0; i < kRepeats; ++i) {
#pragma GCC unroll 12
      for (int j = 0; j < kChains; ++j) x[j] = x[j] * y + z;
    }
    benchmark::DoNotOptimize(x);
  }
  state.counters["GFLOP/s"] = benchmark::Counter(
      2.0 * 16 * kChains * kRepeats * state.iterations() * 1e-9, benchmark::Counter::kIsRate);
}
BENCHMARK(BM_FmaPeakAvx512);
#endif

// Arguments: head_dim, context, chunk, KV dtype, threads.
void BM_PrefillAttention(benchmark::State& state) {
  const int32_t head_dim = static_cast<int32_t>(state.range(0));
  const int32_t context = static_cast<int32_t>(state.range(1));
  const int32_t chunk = static_cast<int32_t>(state.range(2));
  const DType dtype = static_cast<DType>(state.range(3));
  const int num_threads = static_cast<int>(state.range(4));
  const int32_t num_pages = CeilDiv(context, kPageTokens);

  std::mt19937 rng(1);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  std::vector<float> q(int64_t{chunk} * kHeads * head_dim), out(q.size());
  for (float& x : q) x = uniform(rng);
  const int64_t elements = int64_t{num_pages} * kPageTokens * kKvHeads * head_dim;
  std::vector<float> k(elements), v(elements);
  for (int64_t i = 0; i < elements; ++i) {
    StoreFromFloat(k.data(), dtype, i, uniform(rng));
    StoreFromFloat(v.data(), dtype, i, uniform(rng));
  }
  std::vector<int32_t> table(num_pages);
  for (int32_t i = 0; i < num_pages; ++i) table[i] = num_pages - 1 - i;
  const int32_t starts[2] = {0, chunk};

  PrefillAttentionParams p;
  p.q = q.data();
  p.out = out.data();
  p.q_head = p.out_head = head_dim;
  p.q_token = p.out_token = kHeads * head_dim;
  p.num_rows = 1;
  p.num_heads = kHeads;
  p.num_kv_heads = kKvHeads;
  p.head_dim = head_dim;
  p.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  p.position = {.k = k.data(), .v = v.data(), .dtype = dtype};
  p.position.page_tokens = kPageTokens;
  p.position.num_pages = num_pages;
  p.position.k_head = p.position.v_head = head_dim;
  p.position.k_token = p.position.v_token = kKvHeads * head_dim;
  p.position.k_page = p.position.v_page = kPageTokens * kKvHeads * head_dim;
  p.query_start = starts;
  p.row_tokens = &context;
  p.block_table = table.data();
  p.block_table_stride = num_pages;

  ThreadPool pool(num_threads);
  const size_t bytes = PrefillAttentionWorkspaceBytes(kHeads, kKvHeads, head_dim, num_threads);
  std::vector<float> memory(bytes / sizeof(float) + 16);
  void* workspace = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) / 4;
  for (auto _ : state) PrefillAttentionHost(p, workspace, bytes, pool);

  const double pairs = (context - (chunk - 1) / 2.0) * chunk;
  state.counters["GFLOP/s"] = benchmark::Counter(
      4.0 * head_dim * pairs * kHeads * state.iterations() * 1e-9, benchmark::Counter::kIsRate);
}
// One thread by its own CPU time, so that a busy machine does not show; several by the clock.
BENCHMARK(BM_PrefillAttention)
    ->ArgNames({"dim", "context", "chunk", "dtype", "threads"})
    ->Args({64, 8192, 512, 0, 1})
    ->Args({64, 8192, 512, 1, 1})
    ->Args({80, 8192, 512, 1, 1})
    ->Args({128, 8192, 512, 0, 1})
    ->Args({128, 8192, 512, 2, 1})
    ->Args({256, 8192, 512, 1, 1})
    ->Args({128, 512, 512, 1, 1})
    ->Args({128, 8192, 16, 1, 1})
    ->Unit(benchmark::kMillisecond);
BENCHMARK(BM_PrefillAttention)
    ->ArgNames({"dim", "context", "chunk", "dtype", "threads"})
    ->Args({128, 8192, 512, 1, 2})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace semkv
