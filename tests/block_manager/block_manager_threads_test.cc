// Many threads on one BlockManager, each with its own sequences over shared pages: meant for tsan,
// and for the bytes that a race would mix up.

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "block_manager/block_manager.h"
#include "tests/block_manager/testing.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

constexpr int32_t kNumThreads = 4;
constexpr int32_t kNumPages = 40;

// Token `position` of text `text`: what is written for it tells both apart.
std::vector<int32_t> Text(int32_t text, int32_t first, int32_t count) {
  return testing::Range(text * 1000 + first, count);
}

// Counts instead of asserting: assertions of GoogleTest in threads would hide the first failure
// behind the later ones.
class Worker {
 public:
  Worker(BlockManager& manager, uint64_t seed) : manager_(manager), rng_(seed) {}

  // Appends to a fork of a common parent of `length` tokens of text 0, while others do the same.
  void ExtendFork(SequenceId fork, int32_t length, int32_t own_text) {
    Extend(fork, Text(own_text, length, 3));
    Expect(fork, 0, 0, length);
    Expect(fork, own_text, length, 3);
    Check(manager_.Release(fork).ok());
  }

  void ServePrompts(int32_t rounds) {
    for (int32_t round = 0; round < rounds; ++round) {
      const int32_t text = static_cast<int32_t>(rng_() % 3);
      const int32_t length = 1 + static_cast<int32_t>(rng_() % 20);
      const absl::StatusOr<SequenceId> sequence = manager_.CreateSequence(5);
      if (!sequence.ok()) continue;
      const int32_t adopted =
          manager_.SharePrefix(*sequence, Text(text, 0, length)).value_or(length);
      Check(adopted < length);
      if (Extend(*sequence, Text(text, adopted, length - adopted))) {
        Expect(*sequence, text, 0, length);
        ForkAndPin(*sequence, text, length);
      }
      Check(manager_.Release(*sequence).ok());
    }
  }

  int64_t num_failures() const { return num_failures_; }

 private:
  void Check(bool ok) { num_failures_ += !ok; }

  void ForkAndPin(SequenceId sequence, int32_t text, int32_t length) {
    const absl::StatusOr<SequenceId> child = manager_.Fork(sequence);
    if (!child.ok()) return;
    const std::vector<int32_t> pages = testing::Pages(manager_, *child);
    Check(manager_.Pin(pages).ok());
    Extend(*child, Text(9, length, 1));
    Expect(*child, text, 0, length);
    Check(manager_.Release(*child).ok());
    Check(manager_.Unpin(pages).ok());
    Expect(sequence, text, 0, length);
  }

  bool Extend(SequenceId sequence, const std::vector<int32_t>& ids) {
    const absl::Status status = testing::AppendWritten(manager_, sequence, ids);
    Check(status.ok() || status.code() == absl::StatusCode::kResourceExhausted);
    return status.ok();
  }

  void Expect(SequenceId sequence, int32_t text, int32_t first, int32_t count) {
    for (int32_t i = first; i < first + count; ++i) {
      Check(testing::HoldsToken(manager_, testing::SlotOf(manager_, sequence, i), text * 1000 + i));
    }
  }

  BlockManager& manager_;
  std::mt19937_64 rng_;
  int64_t num_failures_ = 0;
};

void ExpectUnused(const BlockManager& manager) {
  const BlockManagerStats stats = manager.Stats();
  EXPECT_EQ(stats.num_sequences, 0);
  EXPECT_EQ(stats.num_pinned_pages, 0);
  EXPECT_EQ(stats.num_free_pages, kNumPages);
  for (int32_t page = 0; page < kNumPages; ++page) {
    EXPECT_EQ(manager.GetPage(page)->num_references, 0);
    EXPECT_TRUE(manager.GetPage(page)->is_free);
  }
}

TEST(BlockManagerThreadsTest, PromptsServedAtOnceKeepTheirBytes) {
  const uint64_t seed = testing::TestSeed(1);
  SEMKV_TRACE_SEED(seed);
  const auto manager =
      testing::MakeManager(kNumPages, {.max_sequences = 6, .max_sequence_tokens = 24});
  std::atomic<int64_t> num_failures{0};
  std::vector<std::thread> threads;
  for (int32_t i = 0; i < kNumThreads; ++i) {
    threads.emplace_back([&, i] {
      Worker worker(*manager, seed + i);
      worker.ServePrompts(500 * testing::SoakFactor());
      num_failures += worker.num_failures();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(num_failures.load(), 0);
  EXPECT_GT(manager->Stats().num_prefix_hits, 0);
  EXPECT_GT(manager->Stats().num_copies, 0);
  ExpectUnused(*manager);
}

// All copy the same last page at once, and whoever is left alone with it writes in place.
TEST(BlockManagerThreadsTest, ForksExtendedAtOnceDoNotSeeEachOther) {
  const auto manager = testing::MakeManager(
      kNumPages, {.max_sequences = kNumThreads + 1, .max_sequence_tokens = 24});
  std::atomic<int64_t> num_failures{0};
  for (int32_t round = 0; round < 100 * testing::SoakFactor(); ++round) {
    const int32_t length = 1 + round % 7;
    const SequenceId parent = manager->CreateSequence(round).value();
    ASSERT_TRUE(testing::AppendWritten(*manager, parent, Text(0, 0, length)).ok());
    std::vector<SequenceId> forks = {parent};
    while (forks.size() < kNumThreads) forks.push_back(manager->Fork(parent).value());
    std::vector<std::thread> threads;
    for (int32_t i = 0; i < kNumThreads; ++i) {
      threads.emplace_back([&, i] {
        Worker worker(*manager, 0);
        worker.ExtendFork(forks[i], length, 1 + i);
        num_failures += worker.num_failures();
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  EXPECT_EQ(num_failures.load(), 0);
  ExpectUnused(*manager);
}

}  // namespace
}  // namespace semkv
