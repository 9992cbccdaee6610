// Semantic vectors of one segment (8,192 keys), in GB/s of keys against a plain read of the same
// bytes.

#include "csrc/ops/cache/list_means.h"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

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

// Arguments: head_dim, mean list size, 1 when members are scattered (clusters).
void BM_ListMeans(benchmark::State& state) {
  const int32_t head_dim = static_cast<int32_t>(state.range(0));
  const int32_t size = static_cast<int32_t>(state.range(1));
  const std::vector<float> keys = Keys(head_dim);
  const int32_t nlist = kTokens / size;
  std::vector<uint16_t> offsets(nlist + 1), members(kTokens);
  for (int32_t i = 0; i <= nlist; ++i) offsets[i] = static_cast<uint16_t>(i * size);
  std::iota(members.begin(), members.end(), 0);
  std::mt19937 rng(2);
  std::shuffle(members.begin(), members.end(), rng);
  for (int32_t i = 0; i < nlist; ++i) {
    std::sort(members.begin() + offsets[i], members.begin() + offsets[i + 1]);
  }
  std::vector<float> means(int64_t{nlist} * head_dim), variances(nlist);
  ListMeansParams p;
  p.head_dim = head_dim;
  p.nlist = nlist;
  p.offsets = offsets.data();
  p.members = state.range(2) != 0 ? members.data() : nullptr;
  p.means = means.data();
  p.variances = variances.data();
  int64_t segment = 0;
  for (auto _ : state) {
    p.keys = keys.data() + segment++ % kSegments * kTokens * head_dim;
    ListMeansHost(p);
  }
  SetBytes(state, head_dim);
}
BENCHMARK(BM_ListMeans)
    ->ArgNames({"dim", "size", "scattered"})
    ->Args({64, 32, 0})
    ->Args({128, 32, 0})
    ->Args({128, 32, 1})
    ->Args({128, 8, 0})
    ->Args({128, 8192, 0});

}  // namespace
}  // namespace semkv
