// k-means of a segment, ours against faiss::Clustering, in one run and one thread: ratio of times
// and of objectives, on keys with structure (S1) and on noise, where nothing can be skipped.

#include "faiss_index/kmeans.h"

#include <benchmark/benchmark.h>
#include <omp.h>

#include <chrono>
#include <cstdint>
#include <random>
#include <vector>

#include "tests/testing/generator_s1.h"

extern "C" void openblas_set_num_threads(int);

namespace semkv {
namespace {

constexpr int32_t kTokens = 8192;

std::vector<float> Keys(bool structured, int32_t head_dim) {
  if (!structured) {
    std::mt19937_64 rng(1);
    return testing::RandomNormal(rng, int64_t{kTokens} * head_dim);
  }
  testing::S1Options options;
  options.head_dim = head_dim;
  options.num_queries = 0;
  return testing::GenerateS1(options).keys;
}

// Both in turn, so that a busy machine slows both.
void BM_KMeans(benchmark::State& state, bool structured, ClusterMetric metric) {
  omp_set_num_threads(1);
  openblas_set_num_threads(1);
  const int32_t head_dim = static_cast<int32_t>(state.range(0));
  const std::vector<float> keys = Keys(structured, head_dim);
  KMeansOptions options;
  options.nlist = kTokens / 32;
  options.metric = metric;
  using Clock = std::chrono::steady_clock;
  std::chrono::duration<double> ours{1e9}, theirs{1e9};
  double objective = 0.0, tested = 0.0, iterations = 0.0;
  for (auto _ : state) {
    const Clock::time_point start = Clock::now();
    const KMeansResult result = *TrainKMeans(keys.data(), kTokens, head_dim, options);
    const Clock::time_point middle = Clock::now();
    const KMeansResult oracle = *TrainWithFaiss(keys.data(), kTokens, head_dim, options);
    const Clock::time_point end = Clock::now();
    ours = std::min<std::chrono::duration<double>>(ours, middle - start);
    theirs = std::min<std::chrono::duration<double>>(theirs, end - middle);
    objective = result.objective / oracle.objective;
    tested = static_cast<double>(result.num_tests) / static_cast<double>(result.num_pairs);
    iterations = result.iterations;
  }
  // The least of the repetitions: the machine is shared.
  state.counters["ours_ms"] = ours.count() * 1e3;
  state.counters["faiss_ms"] = theirs.count() * 1e3;
  state.counters["speedup"] = theirs / ours;
  state.counters["objective_ratio"] = objective;
  state.counters["tested"] = tested;
  state.counters["iterations"] = iterations;
}
BENCHMARK_CAPTURE(BM_KMeans, s1_l2, true, ClusterMetric::kCenteredL2)
    ->Arg(64)
    ->Arg(128)
    ->Arg(256)
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_KMeans, s1_cosine, true, ClusterMetric::kCosine)
    ->Arg(128)
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_KMeans, gaussian_l2, false, ClusterMetric::kCenteredL2)
    ->Arg(64)
    ->Arg(128)
    ->Arg(256)
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace semkv
