// What an index costs: its lists over a whole segment at once, and token by token while a sequence
// grows by another one, through the library's C ABI.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <vector>

#include "semkv/semkv.h"

namespace semkv {
namespace {

// Layers of Llama-3-8B; a segment of the default policy and what the next one needs to be
// partitioned anew.
constexpr int32_t kHeads = 32, kKvHeads = 8, kDim = 128;
constexpr int32_t kSegment = 8192, kDecoded = 9216;

void Check(int status) {
  if (status == SEMKV_OK) return;
  std::fprintf(stderr, "%s\n", semkv_last_error());
  std::exit(1);
}

class GrowingSequence {
 public:
  GrowingSequence(int32_t num_layers, int32_t num_threads) : num_layers_(num_layers) {
    semkv_options o;
    Check(semkv_options_init(&o));
    o.num_layers = num_layers;
    o.num_heads = kHeads;
    o.num_kv_heads = kKvHeads;
    o.head_dim = kDim;
    o.kv_dtype = SEMKV_DTYPE_BF16;
    o.max_sequence_tokens = kSegment + kDecoded;
    o.num_pages = o.max_sequence_tokens / 16;
    o.num_threads = num_threads;
    Check(semkv_context_create(&o, &context_));
    Check(semkv_sequence_create(context_, 0, &sequence_));
    std::mt19937 rng(1);
    rows_.resize(int64_t{kSegment} * kKvHeads * kDim);
    for (uint16_t& x : rows_) x = static_cast<uint16_t>(0x3f00 | (rng() & 0x80ff));  // +-0.5 to 2
  }
  GrowingSequence(const GrowingSequence&) = delete;
  GrowingSequence& operator=(const GrowingSequence&) = delete;
  ~GrowingSequence() { semkv_context_destroy(context_); }

  void Append(int32_t num_tokens) {
    std::vector<int32_t> slots(num_tokens);
    Check(semkv_sequence_append(context_, sequence_, num_tokens, nullptr, slots.data()));
    for (int32_t layer = 0; layer < num_layers_; ++layer) {
      semkv_write_args args = {};
      args.struct_size = sizeof(args);
      args.dtype = SEMKV_DTYPE_BF16;
      args.num_tokens = num_tokens;
      args.slots = slots.data();
      args.k = args.v = Rows(num_tokens, layer);
      args.k_token = args.v_token = kKvHeads * kDim;
      args.k_head = args.v_head = kDim;
      Check(semkv_write_kv(context_, layer, &args));
    }
    num_tokens_ += num_tokens;
  }
  void Index() { Check(semkv_index(context_, sequence_)); }
  void Observe() { Check(semkv_observe(context_, sequence_)); }

 private:
  // Other rows for every layer and token.
  const uint16_t* Rows(int32_t num_tokens, int32_t layer) const {
    const int32_t first = (num_tokens_ + 509 * layer) % (kSegment - num_tokens + 1);
    return rows_.data() + int64_t{first} * kKvHeads * kDim;
  }

  const int32_t num_layers_;
  int32_t num_tokens_ = 0;
  semkv_context* context_ = nullptr;
  semkv_sequence sequence_ = 0;
  std::vector<uint16_t> rows_;  // [kSegment, kKvHeads, kDim], bfloat16
};

double MillisecondsOf(const std::function<void()>& call) {
  const auto begin = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin)
      .count();
}

void BM_Index(benchmark::State& state) {
  for (auto _ : state) {
    GrowingSequence sequence(static_cast<int32_t>(state.range(0)),
                             static_cast<int32_t>(state.range(1)));
    sequence.Append(kSegment);
    state.SetIterationTime(1e-3 * MillisecondsOf([&] { sequence.Index(); }));
  }
}
BENCHMARK(BM_Index)
    ->ArgNames({"layers", "threads"})
    ->Args({16, 2})
    ->UseManualTime()
    ->Iterations(1)
    ->Unit(benchmark::kMillisecond);

// Time: of all calls. The worst one is what a request's tokens wait for at most.
void BM_Observe(benchmark::State& state) {
  for (auto _ : state) {
    GrowingSequence sequence(static_cast<int32_t>(state.range(0)),
                             static_cast<int32_t>(state.range(1)));
    sequence.Append(512);
    sequence.Index();
    double sum = 0.0, worst = 0.0;
    for (int32_t i = 0; i < kDecoded; ++i) {
      sequence.Append(1);
      const double ms = MillisecondsOf([&] { sequence.Observe(); });
      sum += ms;
      worst = std::max(worst, ms);
    }
    state.SetIterationTime(1e-3 * sum);
    state.counters["mean_ms"] = sum / kDecoded;
    state.counters["worst_ms"] = worst;
  }
}
BENCHMARK(BM_Observe)
    ->ArgNames({"layers", "threads"})
    ->Args({16, 2})
    ->UseManualTime()
    ->Iterations(1)
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace semkv
