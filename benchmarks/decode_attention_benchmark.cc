// Decode attention of one layer of Llama-3-8B (bf16) from memory that no cache holds, beside plain
// reads of as many bytes.

#include <benchmark/benchmark.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "benchmarks/attention_layers.h"
#include "benchmarks/ratios.h"
#include "hwy/highway.h"
#include "hwy/targets.h"

namespace semkv {
namespace {

using Selection = DecodeAttentionRun::Selection;

constexpr int32_t kSelected = 2048;
constexpr int32_t k32k = 32768;

// Limits the SIMD operations of this program to AVX2 while it lives.
class LimitToAvx2 {
 public:
  LimitToAvx2() { hwy::GetChosenTarget().Update(HWY_AVX2); }
  ~LimitToAvx2() { hwy::GetChosenTarget().Update(hwy::SupportedTargets()); }
};

double SecondsSince(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void BM_DecodeAttention(benchmark::State& state, Selection selection, bool is_avx2) {
  const int32_t num_tokens = static_cast<int32_t>(state.range(0));
  const AttentionLayers layers(num_tokens);
  DecodeAttentionRun run(layers, num_tokens, selection, kSelected,
                         static_cast<int>(state.range(1)));
  double plain = 0.0, attend = 0.0;
  int64_t layer = 0;
  for (auto _ : state) {
    auto begin = std::chrono::steady_clock::now();
    run.ReadPlainly(layer++);
    plain += SecondsSince(begin);
    begin = std::chrono::steady_clock::now();
    if (is_avx2) {
      const LimitToAvx2 limit;
      run.Attend(layer++);
    } else {
      run.Attend(layer++);
    }
    const double seconds = SecondsSince(begin);
    attend += seconds;
    state.SetIterationTime(seconds);
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(run.bytes()));
  state.counters["of_plain_read"] = plain / attend;
}

BENCHMARK_CAPTURE(BM_DecodeAttention, bf16 / dense, Selection::kDense, false)
    ->ArgNames({"tokens", "threads"})
    ->ArgsProduct({{8192, 32768, 131072}, {1, 2}})
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_DecodeAttention, bf16 / dense / avx2, Selection::kDense, true)
    ->ArgNames({"tokens", "threads"})
    ->Args({32768, 1})
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_DecodeAttention, bf16 / scattered2048, Selection::kScattered, false)
    ->ArgNames({"tokens", "threads"})
    ->ArgsProduct({{32768, 131072}, {1, 2}})
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_DecodeAttention, bf16 / pages2048, Selection::kPages, false)
    ->ArgNames({"tokens", "threads"})
    ->ArgsProduct({{32768}, {1, 2}})
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);

// A case that attends in layers of `num_tokens` tokens, beside a plain read of as many bytes.
RatioCase AgainstPlainRead(const std::string& name, int32_t num_tokens, Selection selection,
                           double goal, bool is_avx2) {
  const AttentionLayers layers(num_tokens);
  const auto run =
      std::make_shared<DecodeAttentionRun>(layers, num_tokens, selection, kSelected, 1);
  RatioCase result;
  result.name = "attend/" + name;
  result.base_name = "plain read";
  result.goal = goal;
  result.bytes = static_cast<double>(run->bytes());
  result.base = [run](int64_t i) { run->ReadPlainly(i); };
  result.run = [run](int64_t i) { run->Attend(i); };
  if (is_avx2) {
    result.run = [run](int64_t i) {
      const LimitToAvx2 limit;
      run->Attend(i);
    };
  }
  return result;
}

// The same beside a loop that does nothing but read the rows that attention reads, in its order.
RatioCase AgainstItsRows(const std::string& name, Selection selection) {
  const auto run =
      std::make_shared<DecodeAttentionRun>(AttentionLayers(k32k), k32k, selection, kSelected, 1);
  run->DescribeRows();
  RatioCase result;
  result.name = "attend/" + name + "/rows";
  result.base_name = "read of its rows";
  result.bytes = static_cast<double>(run->bytes());
  result.base = [run](int64_t i) { run->ReadRows(i); };
  result.run = [run](int64_t i) { run->Attend(i); };
  return result;
}

// Two threads beside one.
RatioCase TwoThreads(const std::string& name, Selection selection, double goal) {
  const AttentionLayers layers(k32k);
  const auto one = std::make_shared<DecodeAttentionRun>(layers, k32k, selection, kSelected, 1);
  const auto two = std::make_shared<DecodeAttentionRun>(layers, k32k, selection, kSelected, 2);
  RatioCase result;
  result.name = "attend/" + name;
  result.base_name = "one thread";
  result.is_single_threaded = false;
  result.goal = goal;
  result.bytes = static_cast<double>(two->bytes());
  result.base = [one](int64_t i) { one->Attend(i); };
  result.run = [two](int64_t i) { two->Attend(i); };
  return result;
}

// The sparse step beside a plain read of the whole context: what selection can save.
RatioCase AgainstDenseRead(const std::string& name, Selection selection, double goal) {
  const AttentionLayers layers(k32k);
  const auto dense = std::make_shared<DecodeAttentionRun>(layers, k32k, Selection::kDense, 0, 1);
  const auto sparse = std::make_shared<DecodeAttentionRun>(layers, k32k, selection, kSelected, 1);
  RatioCase result;
  result.name = "attend/" + name;
  result.base_name = "plain read of 32k";
  result.goal = goal;
  result.bytes = static_cast<double>(sparse->bytes());
  result.base = [dense](int64_t i) { dense->ReadPlainly(i); };
  result.run = [sparse](int64_t i) { sparse->Attend(i); };
  return result;
}

}  // namespace

void AddDecodeAttentionRatios(std::vector<RatioCase>& cases) {
  cases.push_back(AgainstPlainRead("dense/8k", 8192, Selection::kDense, 0.80, false));
  cases.push_back(AgainstPlainRead("dense/32k", k32k, Selection::kDense, 0.80, false));
  cases.push_back(AgainstPlainRead("dense/128k", 131072, Selection::kDense, 0.80, false));
  cases.push_back(AgainstPlainRead("dense/32k/avx2", k32k, Selection::kDense, 0.50, true));
  cases.push_back(AgainstItsRows("dense/32k", Selection::kDense));
  cases.push_back(TwoThreads("dense/32k/2threads", Selection::kDense, 1.7));
  cases.push_back(AgainstPlainRead("scattered2048/32k", k32k, Selection::kScattered, 0.80, false));
  cases.push_back(AgainstItsRows("scattered2048/32k", Selection::kScattered));
  cases.push_back(AgainstPlainRead("pages2048/32k", k32k, Selection::kPages, 0.80, false));
  cases.push_back(AgainstDenseRead("scattered2048/32k/save", Selection::kScattered, 1 / 0.075));
  cases.push_back(AgainstDenseRead("pages2048/32k/save", Selection::kPages, 1 / 0.075));
  cases.push_back(TwoThreads("scattered2048/32k/2threads", Selection::kScattered, 1.7));
}

}  // namespace semkv
