// k-means of a segment, ours (with products of int16 where there is VNNI, and in float32) against
// faiss::Clustering, in one run and one thread: ratio of times and of objectives. On keys with
// structure (S1), on noise, where little can be skipped, and on keys that int16 leaves in doubt.

#include "faiss_index/kmeans.h"

#include <benchmark/benchmark.h>
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <ctime>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "benchmarks/ratios.h"
#include "csrc/ops/vnni.h"
#include "faiss_index/sentence_boundary.h"
#include "tests/testing/generator_s1.h"

extern "C" void openblas_set_num_threads(int);

namespace semkv {
namespace {

constexpr int32_t kTokens = 8192;
constexpr int32_t kHeadDim = 128;  // of the ratios

enum class KeyKind {
  kS1,
  kGaussian,
  kAlike,  // 40 places, nearer within than float32 tells apart
  kFar,    // Gaussian, but eight keys 50 times as long
};

std::vector<float> Keys(KeyKind kind, int32_t head_dim) {
  if (kind == KeyKind::kS1) {
    testing::S1Options options;
    options.head_dim = head_dim;
    options.num_queries = 0;
    return testing::GenerateS1(options).keys;
  }
  std::mt19937_64 rng(1);
  std::vector<float> keys = testing::RandomNormal(rng, int64_t{kTokens} * head_dim);
  for (int64_t i = 0; i < kTokens; ++i) {
    for (int64_t d = 0; d < head_dim; ++d) {
      float& x = keys[i * head_dim + d];
      if (kind == KeyKind::kAlike && i >= 40) x = keys[i % 40 * head_dim + d] + 1e-3f * x;
      if (kind == KeyKind::kFar && i % 1000 == 5 && i < 8000) x *= 50.0f;
    }
  }
  return keys;
}

// Time of this thread on a core, in seconds: the machine may be shared.
double ThreadSeconds() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Both in turn, so that a busy machine slows both.
void BM_KMeans(benchmark::State& state, KeyKind kind, ClusterMetric metric) {
  omp_set_num_threads(1);
  openblas_set_num_threads(1);
  const int32_t head_dim = static_cast<int32_t>(state.range(0));
  const std::vector<float> keys = Keys(kind, head_dim);
  KMeansOptions options;
  options.nlist = kTokens / 32;
  options.metric = metric;
  double ours = std::numeric_limits<double>::infinity(), theirs = ours, float32 = ours;
  double objective = 0.0, tested = 0.0, iterations = 0.0;
  for (auto _ : state) {
    const double start = ThreadSeconds();
    const KMeansResult result = *TrainKMeans(keys.data(), kTokens, head_dim, options);
    const double middle = ThreadSeconds();
    const KMeansResult oracle = *TrainWithFaiss(keys.data(), kTokens, head_dim, options);
    ours = std::min(ours, middle - start);
    const double end = ThreadSeconds();
    AllowVnniForTest(false);
    benchmark::DoNotOptimize(TrainKMeans(keys.data(), kTokens, head_dim, options));
    AllowVnniForTest(true);
    float32 = std::min(float32, ThreadSeconds() - end);
    theirs = std::min(theirs, end - middle);
    objective = result.objective / oracle.objective;
    tested = static_cast<double>(result.num_tests) / static_cast<double>(result.num_pairs);
    iterations = result.iterations;
  }
  // The least of the repetitions: the machine is shared.
  state.counters["ours_ms"] = ours * 1e3;
  state.counters["float32_ms"] = float32 * 1e3;
  state.counters["faiss_ms"] = theirs * 1e3;
  state.counters["speedup"] = theirs / ours;
  state.counters["objective_ratio"] = objective;
  state.counters["tested"] = tested;
  state.counters["iterations"] = iterations;
}
BENCHMARK_CAPTURE(BM_KMeans, s1_l2, KeyKind::kS1, ClusterMetric::kCenteredL2)
    ->Arg(64)
    ->Arg(128)
    ->Arg(256)
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_KMeans, s1_cosine, KeyKind::kS1, ClusterMetric::kCosine)
    ->Arg(128)
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_KMeans, gaussian_l2, KeyKind::kGaussian, ClusterMetric::kCenteredL2)
    ->Arg(64)
    ->Arg(128)
    ->Arg(256)
    ->Unit(benchmark::kMillisecond);

BENCHMARK_CAPTURE(BM_KMeans, alike_l2, KeyKind::kAlike, ClusterMetric::kCenteredL2)
    ->Arg(128)
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_KMeans, far_l2, KeyKind::kFar, ClusterMetric::kCenteredL2)
    ->Arg(128)
    ->Unit(benchmark::kMillisecond);

// Prose with numbers, abbreviations and line ends, in tokens of a word each as byte-level BPE has
// them: nanoseconds per token.
void BM_BoundaryScan(benchmark::State& state) {
  const std::vector<std::string> pieces = {" the", " semantic", " of", "\xC3\xA9t", " 3", ".",
                                           "14",   " end",      ".",   " Dr",       ".",  " cache",
                                           ",",    " a",        "?",   "\n\n",      "It", " is"};
  const std::vector<absl::string_view> vocabulary(pieces.begin(), pieces.end());
  const auto table = *BoundaryTable::Create(vocabulary);
  std::vector<int32_t> ids(kTokens);
  for (int32_t i = 0; i < kTokens; ++i) ids[i] = i % static_cast<int32_t>(pieces.size());
  std::vector<uint8_t> closes;
  closes.reserve(kTokens);
  for (auto _ : state) {
    closes.clear();
    BoundaryScanner scanner(table.get());
    scanner.Feed(ids, &closes);
    benchmark::DoNotOptimize(closes.data());
  }
  state.counters["ns_per_token"] = benchmark::Counter(
      1e-9 * kTokens, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}
BENCHMARK(BM_BoundaryScan);

// What both sides of a ratio left behind.
struct KMeansPair {
  std::vector<float> keys;
  KMeansOptions options;
  double objective = 0.0, oracle_objective = 0.0;
};

RatioCase KMeansRatio(const std::string& name, bool structured) {
  const auto pair = std::make_shared<KMeansPair>();
  pair->options.nlist = kTokens / 32;
  RatioCase result;
  result.name = "kmeans/" + name;
  result.base_name = "faiss::Clustering";
  result.goal = 1.2;
  result.run = [pair](int64_t) {
    pair->objective = TrainKMeans(pair->keys.data(), kTokens, kHeadDim, pair->options)->objective;
  };
  result.base = [pair, structured](int64_t) {
    if (pair->keys.empty()) {
      omp_set_num_threads(1);
      openblas_set_num_threads(1);
      pair->keys = Keys(structured ? KeyKind::kS1 : KeyKind::kGaussian, kHeadDim);
    }
    pair->oracle_objective =
        TrainWithFaiss(pair->keys.data(), kTokens, kHeadDim, pair->options)->objective;
  };
  result.holds = [pair](std::string* remark) {
    const double ratio = pair->objective / pair->oracle_objective;
    *remark = "objective " + std::to_string(ratio) + " of faiss's";
    return ratio <= 1.01;
  };
  return result;
}

}  // namespace

void AddKMeansRatios(std::vector<RatioCase>& cases) {
  cases.push_back(KMeansRatio("s1/128", true));
  cases.push_back(KMeansRatio("gaussian/128", false));
}

}  // namespace semkv
