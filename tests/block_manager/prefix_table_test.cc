#include "block_manager/prefix_table.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <set>
#include <vector>

namespace semkv {
namespace {

constexpr int32_t kPageTokens = 4;
using Ids = std::vector<int32_t>;

bool Put(PrefixTable& table, int32_t page, const PrefixKey& key, const Ids& ids) {
  std::copy(ids.begin(), ids.end(), table.ids(page).begin());
  return table.Insert(page, key);
}

TEST(PrefixTableTest, FindsThePageWithTheSameKeyAndIds) {
  PrefixTable table(3, kPageTokens);
  const PrefixKey key{.salt = 1, .parent = 2, .hash = 3, .page_index = 4};
  ASSERT_TRUE(Put(table, 2, key, {5, 6, 7, 8}));
  EXPECT_EQ(table.Find(key, Ids{5, 6, 7, 8}), 2);
}

// Everything that tells two pages apart is compared, so an equal hash alone is never a hit.
TEST(PrefixTableTest, AHashHitWithAnythingElseDifferentIsNoHit) {
  PrefixTable table(3, kPageTokens);
  const PrefixKey key{.salt = 1, .parent = 2, .hash = 3, .page_index = 4};
  ASSERT_TRUE(Put(table, 0, key, {5, 6, 7, 8}));
  EXPECT_EQ(table.Find(key, Ids{5, 6, 7, 9}), -1);
  EXPECT_EQ(table.Find({.salt = 9, .parent = 2, .hash = 3, .page_index = 4}, Ids{5, 6, 7, 8}), -1);
  EXPECT_EQ(table.Find({.salt = 1, .parent = 9, .hash = 3, .page_index = 4}, Ids{5, 6, 7, 8}), -1);
  EXPECT_EQ(table.Find({.salt = 1, .parent = 2, .hash = 3, .page_index = 9}, Ids{5, 6, 7, 8}), -1);
}

TEST(PrefixTableTest, PagesWithCollidingHashesAreFoundAndRemovedSeparately) {
  PrefixTable table(8, kPageTokens);
  const PrefixKey key{.salt = 1, .parent = 2, .hash = 3, .page_index = 0};
  for (int32_t page = 0; page < 8; ++page) ASSERT_TRUE(Put(table, page, key, {page, 0, 0, 0}));
  for (int32_t removed : {3, 0, 7, 5}) {
    table.Remove(removed);
    EXPECT_EQ(table.Find(key, Ids{removed, 0, 0, 0}), -1);
  }
  for (int32_t page : {1, 2, 4, 6}) EXPECT_EQ(table.Find(key, Ids{page, 0, 0, 0}), page);
  EXPECT_EQ(table.size(), 4);
}

TEST(PrefixTableTest, OnlyTheFirstOfEqualPagesIsKept) {
  PrefixTable table(2, kPageTokens);
  const PrefixKey key{.salt = 1, .parent = 2, .hash = 3, .page_index = 0};
  ASSERT_TRUE(Put(table, 0, key, {1, 2, 3, 4}));
  EXPECT_FALSE(Put(table, 1, key, {1, 2, 3, 4}));
  EXPECT_EQ(table.size(), 1);
  table.Remove(0);
  EXPECT_TRUE(table.Insert(1, key));
}

TEST(PrefixHashTest, DependsOnParentOrderAndEveryId) {
  std::set<uint64_t> hashes;
  int32_t count = 0;
  for (uint64_t parent : {uint64_t{0}, uint64_t{1}, PrefixRoot(0), PrefixRoot(1)}) {
    for (const Ids& ids : {Ids{0, 0, 0}, Ids{1, 0, 0}, Ids{0, 1, 0}, Ids{0, 0, 1}, Ids{1, 2, 3},
                           Ids{3, 2, 1}, Ids{2, 1, 3}, Ids{-1, 2, 3}}) {
      hashes.insert(PrefixHash(parent, ids));
      ++count;
    }
  }
  EXPECT_EQ(static_cast<int32_t>(hashes.size()), count);
}

TEST(PrefixHashTest, LowBitsSpreadOverBuckets) {
  std::vector<int32_t> buckets(1024);
  for (int32_t i = 0; i < 1024 * 16; ++i) ++buckets[PrefixHash(PrefixRoot(0), Ids{i, 0}) & 1023];
  // 16 on average; a Poisson bucket exceeds 45 less than once in 10^7 tables.
  EXPECT_LT(*std::max_element(buckets.begin(), buckets.end()), 45);
}

}  // namespace
}  // namespace semkv
