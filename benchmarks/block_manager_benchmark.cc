// What a call of the block manager costs. Names end in `locked` where the mutex is taken, once per
// call and uncontended, and in `raw` for the pool beneath it. Owned memory of 1 layer and a row of
// 4 KiB per page keeps copies small: the bookkeeping is what is measured.

#include "block_manager/block_manager.h"

#include <benchmark/benchmark.h>

#include <cstdint>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "block_manager/page_pool.h"

namespace semkv {
namespace {

constexpr int32_t kPageTokens = 16;
constexpr int32_t kNumPages = 1 << 14;
constexpr int32_t kMaxTokens = 1 << 17;

std::unique_ptr<BlockManager> MakeManager() {
  KvStorage storage = *KvStorage::Allocate({.num_pages = kNumPages,
                                            .page_tokens = kPageTokens,
                                            .num_layers = 1,
                                            .num_kv_heads = 1,
                                            .head_dim = 64,
                                            .dtype = DType::kFloat16});
  return *BlockManager::Create({.max_sequences = 16, .max_sequence_tokens = kMaxTokens},
                               std::move(storage));
}

std::vector<int32_t> Ids(int32_t count) {
  std::vector<int32_t> ids(count);
  std::iota(ids.begin(), ids.end(), 0);
  return ids;
}

SequenceId WrittenSequence(BlockManager& manager, const std::vector<int32_t>& ids) {
  const SequenceId sequence = *manager.CreateSequence(1);
  std::vector<int32_t> slots(ids.size());
  benchmark::DoNotOptimize(manager.Append(sequence, ids, absl::MakeSpan(slots)).ok());
  benchmark::DoNotOptimize(manager.MarkWritten(sequence, static_cast<int32_t>(ids.size())).ok());
  return sequence;
}

// One sequence; `batch` tokens per call, ids given. A full sequence is replaced outside the clock.
void BM_Append(benchmark::State& state) {
  const int32_t batch = static_cast<int32_t>(state.range(0));
  const auto manager = MakeManager();
  const std::vector<int32_t> ids = Ids(batch);
  std::vector<int32_t> slots(batch);
  SequenceId sequence = *manager->CreateSequence(1);
  int32_t length = 0;
  for (auto _ : state) {
    if (length + batch > kMaxTokens) {
      state.PauseTiming();
      benchmark::DoNotOptimize(manager->Release(sequence).ok());
      sequence = *manager->CreateSequence(1);
      length = 0;
      state.ResumeTiming();
    }
    benchmark::DoNotOptimize(manager->Append(sequence, ids, absl::MakeSpan(slots)).ok());
    length += batch;
  }
  state.SetItemsProcessed(state.iterations() * batch);
}
BENCHMARK(BM_Append)->Name("BM_BlockManagerAppend/locked/tokens")->Arg(1)->Arg(512);

// A decoded token, as an engine pays for it: the slot, then that it is written (hashed per page).
void BM_AppendAndMarkWritten(benchmark::State& state) {
  const auto manager = MakeManager();
  const int32_t id = 7;
  int32_t slot = 0;
  SequenceId sequence = *manager->CreateSequence(1);
  int32_t length = 0;
  for (auto _ : state) {
    if (length == kMaxTokens) {
      state.PauseTiming();
      benchmark::DoNotOptimize(manager->Release(sequence).ok());
      sequence = *manager->CreateSequence(1);
      length = 0;
      state.ResumeTiming();
    }
    benchmark::DoNotOptimize(manager->Append(sequence, {&id, 1}, {&slot, 1}).ok());
    benchmark::DoNotOptimize(manager->MarkWritten(sequence, ++length).ok());
  }
}
BENCHMARK(BM_AppendAndMarkWritten)->Name("BM_BlockManagerAppendAndMarkWritten/locked/tokens:1");

// Fork and release of a sequence of `tokens`: both walk its pages once.
void BM_ForkAndRelease(benchmark::State& state) {
  const auto manager = MakeManager();
  const SequenceId parent = WrittenSequence(*manager, Ids(static_cast<int32_t>(state.range(0))));
  for (auto _ : state) {
    const absl::StatusOr<SequenceId> child = manager->Fork(parent);
    benchmark::DoNotOptimize(manager->Release(*child).ok());
  }
}
BENCHMARK(BM_ForkAndRelease)
    ->Name("BM_BlockManagerForkAndRelease/locked/tokens")
    ->Arg(512)
    ->Arg(32768);

// Every full page of a prompt of `tokens` is found, compared and taken from the free list, then
// released to it again.
void BM_SharePrefixHit(benchmark::State& state) {
  const auto manager = MakeManager();
  const std::vector<int32_t> ids = Ids(static_cast<int32_t>(state.range(0)) + 1);
  benchmark::DoNotOptimize(manager->Release(WrittenSequence(*manager, ids)).ok());
  for (auto _ : state) {
    const absl::StatusOr<SequenceId> sequence = manager->CreateSequence(1);
    const absl::StatusOr<int32_t> adopted = manager->SharePrefix(*sequence, ids);
    if (*adopted + 1 != static_cast<int32_t>(ids.size())) state.SkipWithError("no hit");
    benchmark::DoNotOptimize(manager->Release(*sequence).ok());
  }
  state.SetItemsProcessed(state.iterations() * state.range(0) / kPageTokens);
}
BENCHMARK(BM_SharePrefixHit)
    ->Name("BM_BlockManagerSharePrefixHitAndRelease/locked/tokens")
    ->Arg(512)
    ->Arg(32768);

void BM_PoolAllocateAndUnref(benchmark::State& state) {
  PagePool pool(kNumPages);
  for (auto _ : state) pool.Unref(pool.Allocate());
}
BENCHMARK(BM_PoolAllocateAndUnref)->Name("BM_PagePoolAllocateAndUnref/raw/pages:1");

}  // namespace
}  // namespace semkv
