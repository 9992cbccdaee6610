// What a call of the block manager costs, the mutex uncontended. Owned memory of 1 layer and a row
// of 4 KiB per page keeps copies small: the bookkeeping is what is measured.

#include "block_manager/block_manager.h"

#include <benchmark/benchmark.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "benchmarks/ratios.h"
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

constexpr char kPerCall[] = "the manager's mutex, once per call, uncontended";

// Appends of `batch` tokens to one sequence, which is replaced off the clock; with `mark_written`
// as an engine pays for a decoded token: the slot, then that it is written (hashed per page).
TimeCase AppendTime(int32_t batch, bool mark_written) {
  struct Run {
    std::unique_ptr<BlockManager> manager = MakeManager();
    std::vector<int32_t> ids, slots;
    SequenceId sequence;
  };
  const auto run = std::make_shared<Run>();
  run->ids = Ids(batch);
  run->slots.resize(batch);
  run->sequence = *run->manager->CreateSequence(1);
  TimeCase result;
  result.name = mark_written ? "block_manager/append+written" : "block_manager/append";
  result.lock = mark_written ? "the same, twice" : kPerCall;
  result.batch = batch;
  result.item = "tokens";
  result.num_calls = kMaxTokens / 4 / batch;
  result.run = [run, mark_written, batch, calls = result.num_calls] {
    for (int32_t i = 0; i < calls; ++i) {
      BlockManager& manager = *run->manager;
      const absl::Span<int32_t> slots = absl::MakeSpan(run->slots);
      benchmark::DoNotOptimize(manager.Append(run->sequence, run->ids, slots).ok());
      if (!mark_written) continue;
      benchmark::DoNotOptimize(manager.MarkWritten(run->sequence, (i + 1) * batch).ok());
    }
  };
  result.clean_up = [run] {
    benchmark::DoNotOptimize(run->manager->Release(run->sequence).ok());
    run->sequence = *run->manager->CreateSequence(1);
  };
  return result;
}

// Both walk the sequence's pages once.
TimeCase ForkTime(int32_t num_tokens) {
  const std::shared_ptr<BlockManager> manager = MakeManager();
  const SequenceId parent = WrittenSequence(*manager, Ids(num_tokens));
  TimeCase result;
  result.name = "block_manager/fork+release";
  result.lock = "the same, twice";
  result.batch = num_tokens / kPageTokens;
  result.item = "pages";
  result.num_calls = 100;
  result.run = [manager, parent] {
    for (int i = 0; i < 100; ++i) {
      const absl::StatusOr<SequenceId> child = manager->Fork(parent);
      benchmark::DoNotOptimize(manager->Release(*child).ok());
    }
  };
  return result;
}

// Every full page of the prompt is found, compared and taken from the free list, then released to
// it.
TimeCase SharePrefixTime(int32_t num_tokens) {
  const std::shared_ptr<BlockManager> manager = MakeManager();
  const std::vector<int32_t> ids = Ids(num_tokens + 1);
  benchmark::DoNotOptimize(manager->Release(WrittenSequence(*manager, ids)).ok());
  TimeCase result;
  result.name = "block_manager/share_prefix+release";
  result.lock = "the same, three times (create, share, release)";
  result.batch = num_tokens / kPageTokens;
  result.item = "pages";
  result.num_calls = 10;
  result.run = [manager, ids] {
    for (int i = 0; i < 10; ++i) {
      const absl::StatusOr<SequenceId> sequence = manager->CreateSequence(1);
      const int32_t adopted = *manager->SharePrefix(*sequence, ids);
      if (adopted + 1 != static_cast<int32_t>(ids.size())) {
        std::fprintf(stderr, "share_prefix adopted %d of %zu tokens\n", adopted, ids.size());
        std::exit(1);
      }
      benchmark::DoNotOptimize(manager->Release(*sequence).ok());
    }
  };
  return result;
}

TimeCase PagePoolTime() {
  const auto pool = std::make_shared<PagePool>(kNumPages);
  TimeCase result;
  result.name = "page_pool/allocate+unref";
  result.lock = "none";
  result.item = "pages";
  result.num_calls = 10000;
  result.run = [pool] {
    for (int i = 0; i < 10000; ++i) pool->Unref(pool->Allocate());
  };
  return result;
}

}  // namespace

void AddBlockManagerTimes(std::vector<TimeCase>& cases) {
  cases.push_back(AppendTime(1, false));
  cases.push_back(AppendTime(512, false));
  cases.push_back(AppendTime(1, true));
  cases.push_back(ForkTime(512));
  cases.push_back(ForkTime(32768));
  cases.push_back(SharePrefixTime(512));
  cases.push_back(SharePrefixTime(32768));
  cases.push_back(PagePoolTime());
}

}  // namespace semkv
