// Semantic vectors of one segment (8,192 keys), in GB/s of keys against a plain read of the same
// bytes.

#include "csrc/ops/cache/list_means.h"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "benchmarks/plain_read.h"
#include "benchmarks/ratios.h"

namespace semkv {
namespace {

constexpr int32_t kTokens = 8192;
// Copies of the segment that are visited in turn, so that keys come from memory, not from L3.
constexpr int32_t kSegments = 24;

std::vector<float> Keys(int32_t head_dim) {
  std::vector<float> keys(int64_t{kSegments} * kTokens * head_dim);
  std::mt19937 rng(1);
  for (float& x : keys) x = static_cast<float>(rng() % 2048) / 1024.0f - 1.0f;
  return keys;
}

void SetBytes(benchmark::State& state, int32_t head_dim) {
  state.SetBytesProcessed(state.iterations() * int64_t{kTokens} * head_dim * sizeof(float));
}

void BM_PlainReadOfKeys(benchmark::State& state) {
  const int32_t head_dim = static_cast<int32_t>(state.range(0));
  const std::vector<float> keys = Keys(head_dim);
  int64_t segment = 0;
  for (auto _ : state) {
    const float* p = keys.data() + segment++ % kSegments * kTokens * head_dim;
    typedef float Floats __attribute__((vector_size(32), aligned(4)));
    Floats sums[4] = {};
    for (int64_t i = 0; i < int64_t{kTokens} * head_dim; i += 32) {
      for (int j = 0; j < 4; ++j) sums[j] += *reinterpret_cast<const Floats*>(p + i + 8 * j);
    }
    benchmark::DoNotOptimize(sums);
  }
  SetBytes(state, head_dim);
}
BENCHMARK(BM_PlainReadOfKeys)->ArgName("dim")->Arg(64)->Arg(128);

// Lists of equal size over copies of a segment that are visited in turn.
class ListMeansRun {
 public:
  // `scattered`: members are those of clusters, in random order.
  ListMeansRun(int32_t head_dim, int32_t size, bool scattered)
      : keys_(Keys(head_dim)),
        offsets_(kTokens / size + 1),
        members_(kTokens),
        means_(int64_t{kTokens} / size * head_dim),
        variances_(kTokens / size) {
    const int32_t nlist = kTokens / size;
    for (int32_t i = 0; i <= nlist; ++i) offsets_[i] = static_cast<uint16_t>(i * size);
    std::iota(members_.begin(), members_.end(), 0);
    std::mt19937 rng(2);
    std::shuffle(members_.begin(), members_.end(), rng);
    for (int32_t i = 0; i < nlist; ++i) {
      std::sort(members_.begin() + offsets_[i], members_.begin() + offsets_[i + 1]);
    }
    params_.head_dim = head_dim;
    params_.nlist = nlist;
    params_.offsets = offsets_.data();
    params_.members = scattered ? members_.data() : nullptr;
    params_.means = means_.data();
    params_.variances = variances_.data();
  }

  void Run(int64_t i) {
    params_.keys = segment(i);
    ListMeansHost(params_);
  }
  const float* segment(int64_t i) const {
    return keys_.data() + i % kSegments * kTokens * params_.head_dim;
  }
  size_t segment_bytes() const { return int64_t{kTokens} * params_.head_dim * sizeof(float); }

 private:
  std::vector<float> keys_;
  std::vector<uint16_t> offsets_, members_;
  std::vector<float> means_, variances_;
  ListMeansParams params_;
};

// Arguments: head_dim, mean list size, 1 when members are scattered (clusters).
void BM_ListMeans(benchmark::State& state) {
  const int32_t head_dim = static_cast<int32_t>(state.range(0));
  ListMeansRun run(head_dim, static_cast<int32_t>(state.range(1)), state.range(2) != 0);
  int64_t segment = 0;
  for (auto _ : state) run.Run(segment++);
  SetBytes(state, head_dim);
}
BENCHMARK(BM_ListMeans)
    ->ArgNames({"dim", "size", "scattered"})
    ->Args({64, 32, 0})
    ->Args({128, 32, 0})
    ->Args({128, 32, 1})
    ->Args({128, 8, 0})
    ->Args({128, 8192, 0});

RatioCase ListMeansRatio(const std::string& name, bool scattered) {
  const auto run = std::make_shared<ListMeansRun>(128, 32, scattered);
  RatioCase result;
  result.name = "list_means/" + name;
  result.base_name = "plain read";
  result.bytes = static_cast<double>(run->segment_bytes());
  result.run = [run](int64_t i) { run->Run(i); };
  result.base = [run](int64_t i) {
    benchmark::DoNotOptimize(PlainRead(run->segment(i), run->segment_bytes()));
  };
  return result;
}

}  // namespace

void AddListMeansRatios(std::vector<RatioCase>& cases) {
  cases.push_back(ListMeansRatio("ranges/128", false));
  cases.push_back(ListMeansRatio("scattered/128", true));
}

}  // namespace semkv
