#include "block_manager/block_manager.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tests/block_manager/testing.h"

namespace semkv {
namespace {

using testing::AppendWritten;
using testing::HoldsToken;
using testing::MakeManager;
using testing::Pages;
using testing::Range;
using testing::SlotOf;

constexpr uint64_t kSalt = 11;
using absl::StatusCode;

SequenceId NewSequence(BlockManager& manager, uint64_t salt = kSalt) {
  const absl::StatusOr<SequenceId> sequence = manager.CreateSequence(salt);
  EXPECT_TRUE(sequence.ok()) << sequence.status();
  return sequence.value_or(0);
}

int32_t Adopted(BlockManager& manager, const std::vector<int32_t>& ids, uint64_t salt = kSalt) {
  const SequenceId sequence = NewSequence(manager, salt);
  const int32_t adopted = manager.SharePrefix(sequence, ids).value_or(-1);
  EXPECT_TRUE(manager.Release(sequence).ok());
  return adopted;
}

TEST(BlockManagerTest, RefusesLimitsThatAreNotPositive) {
  for (const BlockManagerOptions& options :
       {BlockManagerOptions{.max_sequences = 0, .max_sequence_tokens = 1},
        BlockManagerOptions{.max_sequences = 1, .max_sequence_tokens = 0}}) {
    absl::StatusOr<KvStorage> storage = KvStorage::Allocate(testing::SmallKvShape(2));
    EXPECT_EQ(BlockManager::Create(options, *std::move(storage)).status().code(),
              StatusCode::kInvalidArgument);
  }
}

TEST(BlockManagerTest, SlotsArePageTimesPageTokensPlusOffset) {
  const auto manager = MakeManager(8);
  const SequenceId sequence = NewSequence(*manager);
  std::vector<int32_t> first(3), second(6);
  ASSERT_TRUE(manager->Append(sequence, {}, absl::MakeSpan(first)).ok());
  ASSERT_TRUE(manager->Append(sequence, {}, absl::MakeSpan(second)).ok());
  first.insert(first.end(), second.begin(), second.end());
  const std::vector<int32_t> pages = Pages(*manager, sequence);
  ASSERT_EQ(pages.size(), 3u);
  for (int32_t i = 0; i < 9; ++i) EXPECT_EQ(first[i], pages[i / 4] * 4 + i % 4);
}

TEST(BlockManagerTest, TheTagOfAPageFollowsItsTokens) {
  const auto manager = MakeManager(8);
  const SequenceId sequence = NewSequence(*manager);
  ASSERT_TRUE(AppendWritten(*manager, sequence, Range(0, 6)).ok());
  const PageTag full = manager->GetPage(Pages(*manager, sequence)[0])->tag;
  const PageTag part = manager->GetPage(Pages(*manager, sequence)[1])->tag;
  EXPECT_EQ(full.first_position, 0);
  EXPECT_EQ(full.fill, 4);
  EXPECT_EQ(part.first_position, 4);
  EXPECT_EQ(part.fill, 2);
  EXPECT_EQ(part.num_sentences, 0);
  EXPECT_EQ(part.cluster, -1);
  EXPECT_EQ(part.provenance, Provenance::kExact);
}

TEST(BlockManagerTest, AnAppendThatDoesNotFitChangesNothingAndNamesTheNumbers) {
  const auto manager = MakeManager(4);
  const SequenceId held = NewSequence(*manager);
  const SequenceId sequence = NewSequence(*manager);
  ASSERT_TRUE(AppendWritten(*manager, held, Range(0, 4)).ok());
  ASSERT_TRUE(AppendWritten(*manager, sequence, Range(0, 3)).ok());
  const std::vector<int32_t> pin = {Pages(*manager, held)[0]};
  ASSERT_TRUE(manager->Pin(pin).ok());
  const std::vector<int32_t> before = Pages(*manager, sequence);
  std::vector<int32_t> slots(10, -7);
  const absl::Status status = manager->Append(sequence, {}, absl::MakeSpan(slots)).status();
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(), "need 3 pages, 2 free, 1 pinned");
  EXPECT_EQ(slots, std::vector<int32_t>(10, -7));
  EXPECT_EQ(Pages(*manager, sequence), before);
  EXPECT_EQ(manager->GetSequence(sequence)->num_tokens, 3);
  EXPECT_EQ(manager->Stats().num_free_pages, 2);
  EXPECT_EQ(manager->Stats().num_refusals, 1);
  // What does fit still does, to the last page.
  EXPECT_TRUE(AppendWritten(*manager, sequence, Range(3, 9)).ok());
  EXPECT_EQ(manager->Stats().num_free_pages, 0);
}

TEST(BlockManagerTest, TheCopyOfASharedPageCountsAmongThePagesNeeded) {
  const auto manager = MakeManager(2);
  const SequenceId parent = NewSequence(*manager);
  ASSERT_TRUE(AppendWritten(*manager, parent, Range(0, 7)).ok());
  const SequenceId child = *manager->Fork(parent);
  std::vector<int32_t> slot(1, -7);
  const absl::Status status = manager->Append(child, {}, absl::MakeSpan(slot)).status();
  EXPECT_EQ(status.message(), "need 1 pages, 0 free, 0 pinned");
  EXPECT_EQ(Pages(*manager, child), Pages(*manager, parent));
  EXPECT_EQ(slot[0], -7);
}

TEST(BlockManagerTest, ASequenceEndsAtItsLimit) {
  const auto manager =
      MakeManager(8, {.max_sequences = 2, .max_sequence_tokens = 6, .enable_prefix_sharing = true});
  const SequenceId sequence = NewSequence(*manager);
  ASSERT_TRUE(AppendWritten(*manager, sequence, Range(0, 6)).ok());
  EXPECT_EQ(AppendWritten(*manager, sequence, {1}).code(), StatusCode::kOutOfRange);
  EXPECT_EQ(manager->SharePrefix(NewSequence(*manager), Range(0, 7)).status().code(),
            StatusCode::kOutOfRange);
  EXPECT_EQ(manager->CreateSequence(kSalt).status().message(), "need 1 sequence, 2 of 2 in use");
  EXPECT_EQ(manager->Fork(sequence).status().code(), StatusCode::kResourceExhausted);
}

TEST(BlockManagerTest, AnIdOfAReleasedSequenceNamesNoLaterOne) {
  const auto manager = MakeManager(4);
  const SequenceId old = NewSequence(*manager);
  ASSERT_TRUE(manager->Release(old).ok());
  const SequenceId young = NewSequence(*manager);
  EXPECT_NE(old, young);
  std::vector<int32_t> slot(1);
  for (SequenceId id : {old, SequenceId{0}, SequenceId{-1}, young + 1, SequenceId{INT64_MAX}}) {
    EXPECT_EQ(manager->Append(id, {}, absl::MakeSpan(slot)).status().code(), StatusCode::kNotFound);
    EXPECT_EQ(manager->SharePrefix(id, slot).status().code(), StatusCode::kNotFound);
    EXPECT_EQ(manager->MarkWritten(id, 0).code(), StatusCode::kNotFound);
    EXPECT_EQ(manager->SetProvenance(id, Provenance::kExact).code(), StatusCode::kNotFound);
    EXPECT_EQ(manager->Fork(id).status().code(), StatusCode::kNotFound);
    EXPECT_EQ(manager->GetSequence(id).status().code(), StatusCode::kNotFound);
    EXPECT_EQ(manager->BlockTable(id, absl::MakeSpan(slot)).status().code(), StatusCode::kNotFound);
    EXPECT_EQ(manager->Release(id).code(), StatusCode::kNotFound);
  }
  EXPECT_EQ(manager->Stats().num_sequences, 1);
}

TEST(BlockManagerTest, WhatAForkAppendsLeavesItsParentsBytesAlone) {
  const auto manager = MakeManager(8);
  const SequenceId parent = NewSequence(*manager);
  ASSERT_TRUE(AppendWritten(*manager, parent, Range(100, 6)).ok());
  const SequenceId child = *manager->Fork(parent);
  EXPECT_EQ(Pages(*manager, child), Pages(*manager, parent));
  ASSERT_TRUE(AppendWritten(*manager, child, Range(200, 3)).ok());
  ASSERT_TRUE(AppendWritten(*manager, parent, Range(300, 3)).ok());
  EXPECT_EQ(Pages(*manager, child)[0], Pages(*manager, parent)[0]);
  EXPECT_NE(Pages(*manager, child)[1], Pages(*manager, parent)[1]);
  for (int32_t i = 0; i < 6; ++i) {
    EXPECT_TRUE(HoldsToken(*manager, SlotOf(*manager, parent, i), 100 + i)) << i;
    EXPECT_TRUE(HoldsToken(*manager, SlotOf(*manager, child, i), 100 + i)) << i;
  }
  for (int32_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(HoldsToken(*manager, SlotOf(*manager, child, 6 + i), 200 + i)) << i;
    EXPECT_TRUE(HoldsToken(*manager, SlotOf(*manager, parent, 6 + i), 300 + i)) << i;
  }
  EXPECT_EQ(manager->Stats().num_copies, 1) << "the second writer owned the page already";
}

TEST(BlockManagerTest, AnAppendReportsTheCopyThatItMade) {
  const auto manager = MakeManager(8);
  const SequenceId parent = NewSequence(*manager);
  ASSERT_TRUE(AppendWritten(*manager, parent, Range(0, 6)).ok());
  const SequenceId child = *manager->Fork(parent);
  std::vector<int32_t> slot(1);
  const absl::StatusOr<PageCopy> copy = manager->Append(child, {}, absl::MakeSpan(slot));
  ASSERT_TRUE(copy.ok());
  EXPECT_EQ(copy->src, Pages(*manager, parent)[1]);
  EXPECT_EQ(copy->dst, Pages(*manager, child)[1]);
  EXPECT_EQ(copy->num_tokens, 2);
  EXPECT_EQ(manager->Append(child, {}, absl::MakeSpan(slot))->src, -1);
}

TEST(BlockManagerTest, AForkOutlivesItsParent) {
  const auto manager = MakeManager(8);
  const SequenceId parent = NewSequence(*manager);
  ASSERT_TRUE(AppendWritten(*manager, parent, Range(100, 6)).ok());
  const SequenceId child = *manager->Fork(parent);
  ASSERT_TRUE(manager->Release(parent).ok());
  const SequenceId other = NewSequence(*manager);
  ASSERT_TRUE(AppendWritten(*manager, other, Range(500, 24)).ok());
  for (int32_t i = 0; i < 6; ++i) {
    EXPECT_TRUE(HoldsToken(*manager, SlotOf(*manager, child, i), 100 + i)) << i;
  }
}

// Its last page would be copied without the tokens whose keys arrive later.
TEST(BlockManagerTest, ASequenceWithUnwrittenTokensCannotBeForked) {
  const auto manager = MakeManager(8);
  const SequenceId parent = NewSequence(*manager);
  std::vector<int32_t> slot(1);
  ASSERT_TRUE(manager->Append(parent, {}, absl::MakeSpan(slot)).ok());
  EXPECT_EQ(manager->Fork(parent).status().code(), StatusCode::kFailedPrecondition);
  ASSERT_TRUE(manager->MarkWritten(parent, 1).ok());
  EXPECT_TRUE(manager->Fork(parent).ok());
}

TEST(BlockManagerTest, APrefixIsAdoptedInFullPagesAndNeverTheWholePrompt) {
  const auto manager = MakeManager(16);
  ASSERT_TRUE(AppendWritten(*manager, NewSequence(*manager), Range(0, 14)).ok());
  EXPECT_EQ(Adopted(*manager, Range(0, 14)), 12);
  EXPECT_EQ(Adopted(*manager, Range(0, 12)), 8) << "one token must be left to compute";
  EXPECT_EQ(Adopted(*manager, Range(0, 13)), 12);
  EXPECT_EQ(Adopted(*manager, Range(0, 4)), 0);
  EXPECT_EQ(Adopted(*manager, {}), 0);
  std::vector<int32_t> differs = Range(0, 14);
  differs[7] = 99;
  EXPECT_EQ(Adopted(*manager, differs), 4);
  EXPECT_EQ(Adopted(*manager, Range(4, 8)), 0) << "the same ids at another place";
}

TEST(BlockManagerTest, AnAdoptedPrefixHoldsTheBytesOfItsTokens) {
  const auto manager = MakeManager(16);
  const SequenceId first = NewSequence(*manager);
  ASSERT_TRUE(AppendWritten(*manager, first, Range(50, 10)).ok());
  ASSERT_TRUE(manager->Release(first).ok());
  const SequenceId second = NewSequence(*manager);
  ASSERT_EQ(manager->SharePrefix(second, Range(50, 10)).value(), 8);
  ASSERT_TRUE(AppendWritten(*manager, second, Range(58, 4)).ok());
  EXPECT_EQ(manager->GetSequence(second)->num_written, 12);
  for (int32_t i = 0; i < 12; ++i) {
    EXPECT_TRUE(HoldsToken(*manager, SlotOf(*manager, second, i), 50 + i)) << i;
  }
  EXPECT_EQ(Adopted(*manager, Range(50, 13)), 12) << "the chain goes on after adopted pages";
  EXPECT_EQ(manager->SharePrefix(second, Range(50, 10)).status().code(),
            StatusCode::kFailedPrecondition);
}

TEST(BlockManagerTest, SequencesWithDifferentSaltsNeverShare) {
  const auto manager = MakeManager(16);
  ASSERT_TRUE(AppendWritten(*manager, NewSequence(*manager, 1), Range(0, 9)).ok());
  EXPECT_EQ(Adopted(*manager, Range(0, 9), 2), 0);
  EXPECT_EQ(Adopted(*manager, Range(0, 9), 0), 0);
  EXPECT_EQ(Adopted(*manager, Range(0, 9), 1), 8);
}

TEST(BlockManagerTest, APageIsOfferedOnlyWhenFullAndWritten) {
  const auto manager = MakeManager(16);
  const SequenceId sequence = NewSequence(*manager);
  std::vector<int32_t> slots(8);
  ASSERT_TRUE(manager->Append(sequence, Range(0, 8), absl::MakeSpan(slots)).ok());
  EXPECT_EQ(Adopted(*manager, Range(0, 9)), 0);
  ASSERT_TRUE(manager->MarkWritten(sequence, 7).ok());
  EXPECT_EQ(Adopted(*manager, Range(0, 9)), 4);
  ASSERT_TRUE(manager->MarkWritten(sequence, 2).ok()) << "never goes back";
  EXPECT_EQ(manager->GetSequence(sequence)->num_written, 7);
  ASSERT_TRUE(manager->MarkWritten(sequence, 8).ok());
  EXPECT_EQ(Adopted(*manager, Range(0, 9)), 8);
  EXPECT_EQ(manager->MarkWritten(sequence, 9).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(manager->MarkWritten(sequence, -1).code(), StatusCode::kInvalidArgument);
}

TEST(BlockManagerTest, NothingIsOfferedFromTheFirstTokenWithoutAnId) {
  const auto manager = MakeManager(16);
  const SequenceId sequence = NewSequence(*manager);
  ASSERT_TRUE(AppendWritten(*manager, sequence, Range(0, 4)).ok());
  std::vector<int32_t> slot(1);
  ASSERT_TRUE(manager->Append(sequence, {}, absl::MakeSpan(slot)).ok());
  ASSERT_TRUE(AppendWritten(*manager, sequence, Range(5, 8)).ok());
  EXPECT_EQ(Adopted(*manager, Range(0, 13)), 4);
  EXPECT_EQ(manager->Stats().num_cached_pages, 1);
  std::vector<int32_t> two(2);
  EXPECT_EQ(manager->Append(sequence, slot, absl::MakeSpan(two)).status().code(),
            StatusCode::kInvalidArgument);
}

TEST(BlockManagerTest, NothingIsOfferedFromTheFirstTokenThatIsNotExact) {
  for (Provenance provenance :
       {Provenance::kSparse, Provenance::kReusedSameIds, Provenance::kFuzzy}) {
    const auto manager = MakeManager(16);
    const SequenceId sequence = NewSequence(*manager);
    ASSERT_TRUE(AppendWritten(*manager, sequence, Range(0, 6)).ok());
    ASSERT_TRUE(manager->SetProvenance(sequence, provenance).ok());
    ASSERT_TRUE(AppendWritten(*manager, sequence, {6}).ok());
    ASSERT_TRUE(manager->SetProvenance(sequence, Provenance::kExact).ok());
    ASSERT_TRUE(AppendWritten(*manager, sequence, Range(7, 9)).ok());
    EXPECT_EQ(Adopted(*manager, Range(0, 17)), 4);
    for (int32_t i : {1, 2, 3}) {
      EXPECT_EQ(manager->GetPage(Pages(*manager, sequence)[i])->tag.provenance, provenance);
    }
  }
}

TEST(BlockManagerTest, APageThatLosesExactnessIsWithdrawnAndEndsTheChain) {
  const auto manager = MakeManager(16);
  const SequenceId sequence = NewSequence(*manager);
  ASSERT_TRUE(AppendWritten(*manager, sequence, Range(0, 8)).ok());
  const int32_t page = Pages(*manager, sequence)[0];
  PageTag tag = manager->GetPage(page)->tag;
  tag.provenance = Provenance::kFuzzy;
  ASSERT_TRUE(manager->SetTag(page, tag).ok());
  EXPECT_FALSE(manager->GetPage(page)->is_cached);
  EXPECT_EQ(Adopted(*manager, Range(0, 9)), 0);
  ASSERT_TRUE(AppendWritten(*manager, sequence, Range(8, 4)).ok());
  EXPECT_FALSE(manager->GetPage(Pages(*manager, sequence)[2])->is_cached);
  tag.provenance = Provenance::kExact;
  ASSERT_TRUE(manager->SetTag(page, tag).ok());
  EXPECT_EQ(manager->GetPage(page)->tag.provenance, Provenance::kFuzzy) << "there is no way back";
}

TEST(BlockManagerTest, ATagOfAnEarlierContentIsRefused) {
  const auto manager = MakeManager(1);
  const SequenceId first = NewSequence(*manager);
  ASSERT_TRUE(AppendWritten(*manager, first, Range(0, 2)).ok());
  PageTag tag = manager->GetPage(0)->tag;
  tag.first_sentence = 3;
  tag.num_sentences = 2;
  tag.fill = 4;
  ASSERT_TRUE(manager->SetTag(0, tag).ok());
  EXPECT_EQ(manager->GetPage(0)->tag.first_sentence, 3);
  EXPECT_EQ(manager->GetPage(0)->tag.fill, 2) << "the manager knows how many tokens there are";
  ASSERT_TRUE(manager->Release(first).ok());
  ASSERT_TRUE(AppendWritten(*manager, NewSequence(*manager), Range(0, 2)).ok());
  EXPECT_EQ(manager->SetTag(0, tag).code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(manager->GetPage(0)->tag.first_sentence, -1);
}

TEST(BlockManagerTest, RefusesTagsAndPagesOutOfRange) {
  const auto manager = MakeManager(2);
  std::vector<PageTag> bad(6);
  bad[0].fill = 5;
  bad[1].fill = -1;
  bad[2].num_sentences = -1;
  bad[3].cluster = 0;
  bad[4].provenance = static_cast<Provenance>(4);
  bad[5].first_position = -2;
  for (const PageTag& tag : bad) {
    EXPECT_EQ(manager->SetTag(0, tag).code(), StatusCode::kInvalidArgument);
  }
  for (int32_t page : {-1, 2, INT32_MAX, INT32_MIN}) {
    EXPECT_EQ(manager->SetTag(page, PageTag()).code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(manager->GetPage(page).status().code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(manager->ForgetPages({&page, 1}).code(), StatusCode::kInvalidArgument);
  }
}

TEST(BlockManagerTest, ThePrefixOfAReleasedSequenceIsEvictedLast) {
  const auto manager = MakeManager(4);
  const SequenceId first = NewSequence(*manager);
  ASSERT_TRUE(AppendWritten(*manager, first, Range(0, 16)).ok());
  ASSERT_TRUE(manager->Release(first).ok());
  EXPECT_EQ(manager->Stats().num_free_pages, 4);
  EXPECT_EQ(manager->Stats().num_cached_pages, 4);
  ASSERT_TRUE(AppendWritten(*manager, NewSequence(*manager), Range(700, 8)).ok());
  EXPECT_EQ(manager->Stats().num_evictions, 2);
  EXPECT_EQ(Adopted(*manager, Range(0, 17)), 8);
}

TEST(BlockManagerTest, AHitProtectsAPageFromTheNextAllocation) {
  const auto manager = MakeManager(4);
  const SequenceId first = NewSequence(*manager);
  ASSERT_TRUE(AppendWritten(*manager, first, Range(0, 8)).ok());
  ASSERT_TRUE(manager->Release(first).ok());
  const SequenceId second = NewSequence(*manager);
  ASSERT_EQ(manager->SharePrefix(second, Range(0, 9)).value(), 8);
  const SequenceId third = NewSequence(*manager);
  EXPECT_EQ(AppendWritten(*manager, third, Range(50, 9)).message(),
            "need 3 pages, 2 free, 0 pinned");
  ASSERT_TRUE(AppendWritten(*manager, third, Range(50, 8)).ok());
  for (int32_t i = 0; i < 8; ++i) {
    EXPECT_TRUE(HoldsToken(*manager, SlotOf(*manager, second, i), i)) << i;
  }
}

TEST(BlockManagerTest, ForgettingPagesThatASequenceHoldsIsRefusedForAll) {
  const auto manager = MakeManager(4);
  const SequenceId sequence = NewSequence(*manager);
  ASSERT_TRUE(AppendWritten(*manager, sequence, Range(0, 4)).ok());
  const int32_t held = Pages(*manager, sequence)[0];
  const std::vector<int32_t> both = {(held + 1) % 4, held};
  const uint64_t generation = manager->GetPage(both[0])->tag.generation;
  EXPECT_EQ(manager->ForgetPages(both).code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(manager->GetPage(both[0])->tag.generation, generation);
  ASSERT_TRUE(manager->Release(sequence).ok());
  ASSERT_TRUE(manager->ForgetPages(both).ok());
  EXPECT_EQ(manager->GetPage(both[0])->tag.generation, generation + 1);
  EXPECT_EQ(manager->Stats().num_cached_pages, 0);
  EXPECT_EQ(Adopted(*manager, Range(0, 5)), 0);
}

TEST(BlockManagerTest, WithSharingOffNothingIsCachedAndEverythingElseWorks) {
  const auto manager = MakeManager(
      4, {.max_sequences = 4, .max_sequence_tokens = 16, .enable_prefix_sharing = false});
  const SequenceId parent = NewSequence(*manager);
  ASSERT_TRUE(AppendWritten(*manager, parent, Range(0, 6)).ok());
  EXPECT_EQ(Adopted(*manager, Range(0, 6)), 0);
  const SequenceId child = *manager->Fork(parent);
  ASSERT_TRUE(AppendWritten(*manager, child, {9}).ok());
  EXPECT_TRUE(HoldsToken(*manager, SlotOf(*manager, child, 5), 5));
  EXPECT_EQ(manager->Stats().num_cached_pages, 0);
}

TEST(BlockManagerTest, TheBlockTableIsCopiedAndItsViewStays) {
  const auto manager = MakeManager(16);
  const SequenceId sequence = NewSequence(*manager);
  const int32_t* pages = manager->GetSequence(sequence)->pages;
  ASSERT_TRUE(AppendWritten(*manager, sequence, Range(0, 30)).ok());
  EXPECT_EQ(manager->GetSequence(sequence)->pages, pages);
  std::vector<int32_t> table(10, -1);
  EXPECT_EQ(manager->BlockTable(sequence, absl::MakeSpan(table)).value(), 8);
  EXPECT_EQ(std::vector<int32_t>(table.begin(), table.begin() + 8), Pages(*manager, sequence));
  EXPECT_EQ(table[8], -1);
  table.resize(7);
  EXPECT_EQ(manager->BlockTable(sequence, absl::MakeSpan(table)).status().code(),
            StatusCode::kInvalidArgument);
}

TEST(BlockManagerTest, SequencesWaitUntilEveryLayerHasMemory) {
  const KvShape shape = testing::SmallKvShape(2);
  absl::StatusOr<KvStorage> lender = KvStorage::Allocate(shape);
  absl::StatusOr<KvStorage> storage = KvStorage::Borrow(shape, KvAccess::kDevice);
  ASSERT_TRUE(lender.ok() && storage.ok());
  const auto manager =
      *BlockManager::Create({.max_sequences = 2, .max_sequence_tokens = 8}, *std::move(storage));
  EXPECT_EQ(manager->View(0).status().code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(manager->View(2).status().code(), StatusCode::kInvalidArgument);
  ASSERT_TRUE(manager->SetView(1, lender->view(1)).ok());
  EXPECT_EQ(manager->CreateSequence(0).status().message(), "1 of 2 layers have memory");
  ASSERT_TRUE(manager->SetView(0, lender->view(0)).ok());
  EXPECT_EQ(manager->View(0)->k, lender->view(0).k);
  const SequenceId parent = NewSequence(*manager);
  ASSERT_TRUE(AppendWritten(*manager, parent, {1}).ok());
  const SequenceId child = *manager->Fork(parent);
  std::vector<int32_t> slot(1);
  EXPECT_EQ(manager->Append(child, {}, absl::MakeSpan(slot))->dst, 1);
  EXPECT_FALSE(HoldsToken(*manager, SlotOf(*manager, child, 0), 1)) << "the device's owner copies";
}

}  // namespace
}  // namespace semkv
