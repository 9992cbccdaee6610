// What SentenceKV's keep set costs one layer at the end of prefill: 32 window queries against every
// key, 8 query heads over 2 KV heads, one thread.

#include "csrc/ops/retrieval/keep_tokens.h"

#include <benchmark/benchmark.h>

#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "csrc/ops/parallel/thread_pool.h"

namespace semkv {
namespace {

constexpr int32_t kHeads = 8, kKvHeads = 2, kDim = 128, kWindow = 32, kPageTokens = 16;

// Argument: tokens of the prompt.
void BM_KeepTokens(benchmark::State& state) {
  const int32_t tokens = static_cast<int32_t>(state.range(0));
  std::mt19937 rng(1);
  std::vector<float> keys(int64_t{tokens} * kKvHeads * kDim), q(kWindow * kHeads * kDim);
  for (float& x : keys) x = static_cast<float>(rng() % 2048) / 1024.0f - 1.0f;
  for (float& x : q) x = static_cast<float>(rng() % 2048) / 1024.0f - 1.0f;
  std::vector<int32_t> pages(tokens / kPageTokens);
  std::iota(pages.begin(), pages.end(), 0);
  KeepTokensParams p;
  p.q = q.data();
  p.num_window = kWindow;
  p.num_heads = kHeads;
  p.num_kv_heads = kKvHeads;
  p.head_dim = kDim;
  p.scale = 0.1f;
  p.position.k = keys.data();
  p.position.k_token = kKvHeads * kDim;
  p.position.k_page = int64_t{kPageTokens} * kKvHeads * kDim;
  p.position.k_head = kDim;
  p.position.page_tokens = kPageTokens;
  p.position.num_pages = static_cast<int32_t>(pages.size());
  p.block_table = pages.data();
  p.num_tokens = tokens;
  p.num_kept = tokens / 4;
  std::vector<int32_t> kept(int64_t{kHeads} * p.num_kept);
  p.kept = kept.data();
  std::vector<uint8_t> workspace(KeepTokensWorkspaceBytes(tokens, kWindow, kDim, 1));
  ThreadPool pool(1);
  for (auto _ : state) {
    KeepTokensHost(p, workspace.data(), workspace.size(), pool);
    benchmark::DoNotOptimize(kept.data());
  }
  const double flops = 2.0 * kWindow * kHeads * kDim * tokens;
  state.counters["GFLOP/s"] = benchmark::Counter(
      flops * static_cast<double>(state.iterations()) * 1e-9, benchmark::Counter::kIsRate);
}
BENCHMARK(BM_KeepTokens)->ArgName("tokens")->Arg(8192)->Arg(32768)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace semkv
