// Scoring and selecting the lists, and estimating those that were not read, of one layer of
// Llama-3-8B (8 KV heads of 4 query heads, 128 channels) for one row on one thread.
// Each call works on another layer, so that centroids come from memory; between two calls the same
// number of bytes is read plainly from a layer that neither used, which is what `read_us` and
// `reads` (time / read_us) compare with.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include "csrc/ops/parallel/thread_pool.h"
#include "csrc/ops/retrieval/estimate_rest.h"
#include "csrc/ops/retrieval/score_lists.h"
#include "csrc/ops/retrieval/select_lists.h"
#include "tests/ops/retrieval/retrieval_cases.h"

namespace semkv {
namespace {

using ::semkv::testing::RetrievalCase;
using ::semkv::testing::RetrievalInput;

enum Operation : int64_t { kScore = 0, kSelect = 1, kRetrieve = 2, kEstimate = 3 };
// kHybrid: the default, int4 centroids and clusters of 16. The last two with clusters of 32.
enum Policy : int64_t { kClustersOf64 = 0, kHybrid = 1, kInt4Of32 = 2, kInt8Of32 = 3 };

constexpr int64_t kCacheBytes = 80 << 20;  // of centroids; twice what the L3 of a server holds

// Layers of one context length and policy, enough to overflow the caches.
struct Layers {
  Layers(int32_t context, int64_t policy) {
    RetrievalCase c;
    c.contexts = {context};
    c.num_heads = 32;
    c.num_selections = 8;
    c.head_dim = 128;
    c.q_dtype = DType::kBFloat16;
    c.budget = 2048;
    c.segment_tokens = 8192;
    c.form = policy == kInt8Of32 ? CentroidForm::kInt8 : CentroidForm::kInt4;
    c.cluster_tokens = policy == kHybrid ? 16 : 32;
    if (policy == kClustersOf64) {
      c.sentence_tokens = 0;
      c.cluster_tokens = 64;
    }
    for (int64_t bytes = 0; bytes < kCacheBytes; bytes += layers.back()->centroid_bytes()) {
      layers.push_back(std::make_unique<RetrievalInput>(c, layers.size()));
      const size_t needed = layers.back()->RetrieveWorkspace(1).size();
      if (needed > workspace.size()) workspace.resize(needed);
      ScoreListsHost(layers.back()->Score(), workspace.data(), workspace.size(), pool);
    }
    rest_out.resize(int64_t{c.num_heads} * c.head_dim);
    rest_lse.resize(c.num_heads);
  }

  // Before kEstimate: selections, and mean values of the clusters.
  void PrepareEstimate() {
    for (const std::unique_ptr<RetrievalInput>& input : layers) {
      const SelectListsParams select = input->Select();
      SelectListsHost(select, workspace.data(), workspace.size(), pool);
      for (ListsView& view : input->views()) {
        if (view.partition != 1) continue;
        value_means.emplace_back(int64_t{view.nlist} * 128, BFloat16FromFloat(0.5f));
        view.value_means = value_means.back().data();
      }
      const size_t needed =
          EstimateRestWorkspaceBytes(32, 8, 128, select.rows[0].num_tokens, input->max_lists(), 1);
      if (needed > workspace.size()) workspace.resize(needed);
    }
  }

  EstimateRestParams Estimate(int64_t i) {
    EstimateRestParams p;
    p.score = layer(i).Score();
    p.positions = layer(i).positions.data();
    p.counts = layer(i).counts.data();
    p.positions_stride = layer(i).slots_stride();
    p.rest_out = rest_out.data();
    p.rest_lse = rest_lse.data();
    return p;
  }

  RetrievalInput& layer(int64_t i) { return *layers[i % layers.size()]; }

  void Run(int64_t operation, int64_t i) {
    ScoreListsParams score = layer(i).Score();
    switch (operation) {
      case kScore:
        ScoreListsHost(score, workspace.data(), workspace.size(), pool);
        return;
      case kSelect:
        SelectListsHost(layer(i).Select(), workspace.data(), workspace.size(), pool);
        return;
      case kRetrieve:
        score.keys = nullptr;
        RetrieveHost(score, layer(i).Select(), workspace.data(), workspace.size(), pool);
        return;
      case kEstimate:
        EstimateRestHost(Estimate(i), workspace.data(), workspace.size(), pool);
        return;
    }
  }

  // Reads the centroids of layer `i`, of each view whole runs of 128 bytes: an int4 list has 64.
  uint64_t Read(int64_t i) {
    typedef uint64_t Words __attribute__((vector_size(16), aligned(1)));
    Words sums[8] = {};
    for (const ListsView& view : layer(i).views()) {
      const uint8_t* const p = static_cast<const uint8_t*>(view.centroids);
      const int64_t bytes = int64_t{view.nlist} * CentroidRowBytes(view.form, 128);
      for (int64_t at = 0; at + 128 <= bytes; at += 128) {
        for (int j = 0; j < 8; ++j) sums[j] ^= *reinterpret_cast<const Words*>(p + at + 16 * j);
      }
    }
    uint64_t sum = 0;
    for (const Words& words : sums) sum ^= words[0] ^ words[1];
    return sum;
  }

  std::vector<std::unique_ptr<RetrievalInput>> layers;
  std::deque<std::vector<uint16_t>> value_means;
  std::vector<float> rest_out, rest_lse;
  std::vector<uint8_t> workspace;
  ThreadPool pool{1};
};

template <typename Function>
double Seconds(const Function& function) {
  const auto start = std::chrono::steady_clock::now();
  function();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Arguments: Operation, context, Policy.
void BM_Retrieval(benchmark::State& state) {
  static std::unique_ptr<Layers> layers;
  static int64_t made_for[2] = {-1, -1};
  if (made_for[0] != state.range(1) || made_for[1] != state.range(2)) {
    layers = nullptr;
    layers = std::make_unique<Layers>(static_cast<int32_t>(state.range(1)), state.range(2));
    made_for[0] = state.range(1);
    made_for[1] = state.range(2);
  }
  if (state.range(0) == kEstimate && layers->value_means.empty()) layers->PrepareEstimate();
  std::vector<double> run, read;
  int64_t i = 0;
  for (auto _ : state) {
    run.push_back(Seconds([&] { layers->Run(state.range(0), i); }));
    const int64_t other = i + static_cast<int64_t>(layers->layers.size()) / 2;
    read.push_back(Seconds([&] { benchmark::DoNotOptimize(layers->Read(other)); }));
    state.SetIterationTime(run.back());
    ++i;
  }
  std::sort(run.begin(), run.end());
  std::sort(read.begin(), read.end());
  const double bytes = static_cast<double>(layers->layers[0]->centroid_bytes());
  state.counters["MB"] = bytes / 1e6;
  state.counters["best_us"] = run[0] * 1e6;
  state.counters["median_us"] = run[run.size() / 2] * 1e6;
  state.counters["read_us"] = read[0] * 1e6;
  state.counters["read_GBps"] = bytes / read[0] / 1e9;
  state.counters["GBps"] = bytes / run[0] / 1e9;
  state.counters["reads"] = run[0] / read[0];
}
BENCHMARK(BM_Retrieval)
    ->ArgNames({"op", "context", "policy"})
    ->ArgsProduct({{kScore, kSelect, kRetrieve, kEstimate}, {8192}, {kClustersOf64, kHybrid}})
    ->ArgsProduct({{kScore, kSelect, kRetrieve, kEstimate}, {32768}, {kClustersOf64, kHybrid}})
    ->ArgsProduct({{kScore, kSelect, kRetrieve, kEstimate}, {131072}, {kClustersOf64, kHybrid}})
    ->ArgsProduct({{kScore, kSelect, kRetrieve}, {32768, 131072}, {kInt4Of32, kInt8Of32}})
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace semkv
