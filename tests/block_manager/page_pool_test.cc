#include "block_manager/page_pool.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace semkv {
namespace {

std::vector<int32_t> AllocateAll(PagePool& pool) {
  std::vector<int32_t> pages;
  while (pool.num_free() > 0) pages.push_back(pool.Allocate());
  return pages;
}

TEST(PagePoolTest, ANewPoolGivesEveryPageOnceInOrder) {
  PagePool pool(4);
  EXPECT_EQ(AllocateAll(pool), (std::vector<int32_t>{0, 1, 2, 3}));
}

TEST(PagePoolTest, EvictsTheLeastRecentlyFreedCachedPageFirst) {
  PagePool pool(4);
  AllocateAll(pool);
  for (int32_t page : {2, 0, 3, 1}) {
    pool.SetCached(page);
    pool.Unref(page);
  }
  EXPECT_EQ(AllocateAll(pool), (std::vector<int32_t>{2, 0, 3, 1}));
}

TEST(PagePoolTest, PagesWithoutContentAreTakenBeforeCachedOnes) {
  PagePool pool(3);
  AllocateAll(pool);
  pool.SetCached(0);
  for (int32_t page : {0, 1, 2}) pool.Unref(page);
  EXPECT_EQ(AllocateAll(pool), (std::vector<int32_t>{2, 1, 0}));
}

TEST(PagePoolTest, AHitPullsAPageOutOfTheMiddleOfTheFreeList) {
  PagePool pool(4);
  AllocateAll(pool);
  for (int32_t page : {0, 1, 2, 3}) {
    pool.SetCached(page);
    pool.Unref(page);
  }
  const uint64_t generation = pool.tag(2).generation;
  pool.Ref(2);
  EXPECT_FALSE(pool.is_free(2));
  EXPECT_EQ(pool.tag(2).generation, generation);
  EXPECT_EQ(AllocateAll(pool), (std::vector<int32_t>{0, 1, 3}));
}

TEST(PagePoolTest, APinnedPageIsNotTakenAndKeepsItsContentWhenItsSequenceEnds) {
  PagePool pool(2);
  AllocateAll(pool);
  const int32_t pinned[] = {0};
  ASSERT_TRUE(pool.Pin(pinned).ok());
  const uint64_t generation = pool.tag(0).generation;
  pool.Unref(0);
  pool.Unref(1);
  EXPECT_EQ(pool.num_free(), 1);
  EXPECT_EQ(pool.tag(0).generation, generation);
  EXPECT_EQ(pool.Allocate(), 1);
  ASSERT_TRUE(pool.Unpin(pinned).ok());
  EXPECT_TRUE(pool.is_free(0));
  EXPECT_NE(pool.tag(0).generation, generation);
}

TEST(PagePoolTest, PinsAreCountedPerEntryAndPinnedPagesOnce) {
  PagePool pool(3);
  const int32_t twice[] = {1, 1};
  ASSERT_TRUE(pool.Pin(twice).ok());
  EXPECT_EQ(pool.num_pins(1), 2);
  EXPECT_EQ(pool.num_pinned(), 1);
  EXPECT_EQ(pool.num_free(), 2);
  ASSERT_TRUE(pool.Unpin({twice, 1}).ok());
  EXPECT_FALSE(pool.is_free(1));
  ASSERT_TRUE(pool.Unpin({twice, 1}).ok());
  EXPECT_TRUE(pool.is_free(1));
  EXPECT_EQ(pool.num_pinned(), 0);
}

TEST(PagePoolTest, UnpinningAPageTwiceInOneCallFreesItOnce) {
  PagePool pool(3);
  const int32_t twice[] = {1, 1};
  ASSERT_TRUE(pool.Pin(twice).ok());
  ASSERT_TRUE(pool.Unpin(twice).ok());
  EXPECT_EQ(pool.num_free(), 3);
  EXPECT_EQ(AllocateAll(pool).size(), 3u);
}

TEST(PagePoolTest, ARefusedUnpinOrPinChangesNothing) {
  PagePool pool(3);
  const int32_t pinned[] = {0, 1};
  ASSERT_TRUE(pool.Pin(pinned).ok());
  const int32_t too_many[] = {0, 1, 1};
  EXPECT_EQ(pool.Unpin(too_many).code(), absl::StatusCode::kFailedPrecondition);
  const int32_t outside[] = {2, 3};
  EXPECT_EQ(pool.Pin(outside).code(), absl::StatusCode::kInvalidArgument);
  const int32_t negative[] = {-1};
  EXPECT_EQ(pool.Pin(negative).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(pool.num_pins(0), 1);
  EXPECT_EQ(pool.num_pins(1), 1);
  EXPECT_EQ(pool.num_pins(2), 0);
  EXPECT_EQ(pool.num_pinned(), 2);
  EXPECT_EQ(pool.num_free(), 1);
}

TEST(PagePoolTest, TheGenerationRisesWithEveryNewContentAndNotOtherwise) {
  PagePool pool(1);
  std::vector<uint64_t> generations = {pool.tag(0).generation};
  const auto rose = [&] {
    generations.push_back(pool.tag(0).generation);
    return generations.back() > generations[generations.size() - 2];
  };
  pool.Allocate();
  EXPECT_TRUE(rose());
  pool.Ref(0);
  pool.Unref(0);
  EXPECT_FALSE(rose()) << "a reference more and less";
  pool.SetCached(0);
  pool.Unref(0);
  EXPECT_FALSE(rose()) << "freed with its content intact";
  pool.Ref(0);
  EXPECT_FALSE(rose()) << "a hit";
  pool.Unref(0);
  pool.Allocate();
  EXPECT_TRUE(rose()) << "evicted";
  pool.Unref(0);
  EXPECT_TRUE(rose()) << "released without findable content";
}

TEST(PagePoolTest, AFreePageThatStopsBeingCachedIsTakenNext) {
  PagePool pool(3);
  AllocateAll(pool);
  for (int32_t page : {0, 1, 2}) {
    pool.SetCached(page);
    pool.Unref(page);
  }
  const uint64_t generation = pool.tag(1).generation;
  pool.ClearCached(1);
  EXPECT_GT(pool.tag(1).generation, generation);
  EXPECT_EQ(AllocateAll(pool), (std::vector<int32_t>{1, 0, 2}));
}

// An engine's own pages are never allocated here: a pin that comes and goes must not look like new
// content, and Forget must.
TEST(PagePoolTest, TheTagOfAnEnginesPageSurvivesPinsAndEndsWithForget) {
  PagePool pool(2);
  pool.mutable_tag(1).first_sentence = 7;
  const uint64_t generation = pool.tag(1).generation;
  const int32_t page[] = {1};
  ASSERT_TRUE(pool.Pin(page).ok());
  ASSERT_TRUE(pool.Unpin(page).ok());
  EXPECT_EQ(pool.tag(1).first_sentence, 7);
  EXPECT_EQ(pool.tag(1).generation, generation);
  pool.Forget(1);
  EXPECT_EQ(pool.tag(1).first_sentence, -1);
  EXPECT_GT(pool.tag(1).generation, generation);
  EXPECT_EQ(pool.num_free(), 2);
}

}  // namespace
}  // namespace semkv
