// Counts calls of operator new: everything is reserved at creation (docs/design.md, section 10).

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "block_manager/block_manager.h"
#include "tests/block_manager/testing.h"
#include "tests/testing/count_allocations.h"

namespace semkv {
namespace {

// Prompts that hit, miss, evict, fork, copy and pin, on a pool that is too small for all of them.
void ServePrompts(BlockManager& manager, const std::vector<int32_t>& ids, int32_t length,
                  absl::Span<int32_t> slots) {
  const absl::Span<const int32_t> prompt = absl::MakeConstSpan(ids).first(length);
  const SequenceId sequence = manager.CreateSequence(1).value();
  const int32_t adopted = manager.SharePrefix(sequence, prompt).value();
  const auto rest = prompt.subspan(adopted);
  EXPECT_TRUE(manager.Append(sequence, rest, slots.first(rest.size())).ok());
  EXPECT_TRUE(manager.MarkWritten(sequence, length).ok());
  const SequenceId child = manager.Fork(sequence).value();
  EXPECT_TRUE(manager.Append(child, prompt.first(1), slots.first(1)).ok());
  const SequenceView view = manager.GetSequence(child).value();
  EXPECT_TRUE(manager.Pin({view.pages, static_cast<size_t>(view.num_pages)}).ok());
  EXPECT_TRUE(manager.Unpin({view.pages, static_cast<size_t>(view.num_pages)}).ok());
  EXPECT_TRUE(manager.BlockTable(child, slots).ok());
  EXPECT_TRUE(manager.Release(sequence).ok());
  EXPECT_TRUE(manager.Release(child).ok());
}

TEST(BlockManagerAllocationTest, NothingIsAllocatedAfterCreate) {
  const auto manager = testing::MakeManager(20, {.max_sequences = 4, .max_sequence_tokens = 64});
  std::vector<std::vector<int32_t>> texts;
  for (int32_t text = 0; text < 3; ++text) texts.push_back(testing::Range(text * 100, 64));
  std::vector<int32_t> slots(64);
  const int64_t before = testing::NumAllocations();
  ASSERT_GT(before, 0) << "the counter does not count";
  for (int32_t round = 0; round < 300; ++round) {
    ServePrompts(*manager, texts[round % 3], 1 + round % 50, absl::MakeSpan(slots));
  }
  EXPECT_EQ(testing::NumAllocations() - before, 0);
  const BlockManagerStats stats = manager->Stats();
  EXPECT_GT(stats.num_prefix_hits, 0);
  EXPECT_GT(stats.num_evictions, 0);
  EXPECT_GT(stats.num_copies, 0);
}

}  // namespace
}  // namespace semkv
