// Block tables whose pages an engine chooses: what a sequence holds, what is refused, what a page's
// tag remembers of the contents it has had.

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "tests/block_manager/testing.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using absl::StatusCode;
using testing::MakeManager;
using testing::Pages;

constexpr BlockManagerOptions kEngine{.max_sequences = 8,
                                      .max_sequence_tokens = 64,
                                      .enable_prefix_sharing = false,
                                      .engine_pages = true};

TEST(EnginePagesTest, RefusesToShareAndToChooseAsWell) {
  BlockManagerOptions both = kEngine;
  both.enable_prefix_sharing = true;
  EXPECT_EQ(MakeManager(4, both), nullptr);
  const auto manager = MakeManager(4, kEngine);
  const SequenceId sequence = *manager->CreateSequence(0);
  std::vector<int32_t> slots(3);
  EXPECT_EQ(manager->Append(sequence, {}, absl::MakeSpan(slots)).status().code(),
            StatusCode::kFailedPrecondition);
  EXPECT_EQ(*manager->SharePrefix(sequence, {1, 2, 3, 4, 5, 6}), 0);
  const auto own = MakeManager(4);
  EXPECT_EQ(own->AppendPages(*own->CreateSequence(0), 1, {0}).code(),
            StatusCode::kFailedPrecondition);
}

TEST(EnginePagesTest, TakesTheGivenPagesAndNoOthers) {
  const auto manager = MakeManager(8, kEngine);
  const SequenceId sequence = *manager->CreateSequence(0);
  ASSERT_TRUE(manager->AppendPages(sequence, 6, {5, 2}).ok());
  ASSERT_TRUE(manager->AppendPages(sequence, 2, {}).ok());
  ASSERT_TRUE(manager->AppendPages(sequence, 1, {7}).ok());
  EXPECT_EQ(Pages(*manager, sequence), (std::vector<int32_t>{5, 2, 7}));
  EXPECT_EQ(manager->GetSequence(sequence)->num_tokens, 9);
  EXPECT_EQ(manager->GetPage(2)->tag.first_position, 4);
  EXPECT_EQ(manager->GetPage(2)->tag.fill, 4);
  EXPECT_EQ(manager->GetPage(7)->tag.fill, 1);
  EXPECT_EQ(manager->GetPage(7)->num_references, 1);
}

TEST(EnginePagesTest, ARefusedCallChangesNothing) {
  const auto manager = MakeManager(8, kEngine);
  const SequenceId sequence = *manager->CreateSequence(0);
  ASSERT_TRUE(manager->AppendPages(sequence, 5, {0, 1}).ok());
  EXPECT_EQ(manager->AppendPages(sequence, 3, {2}).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(manager->AppendPages(sequence, 4, {}).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(manager->AppendPages(sequence, 4, {8}).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(manager->AppendPages(sequence, 4, {-1}).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(manager->AppendPages(sequence, -1, {}).code(), StatusCode::kOutOfRange);
  // 8 pages of 4 tokens, however often the engine repeats them.
  const std::vector<int32_t> many(7, 3);
  EXPECT_EQ(manager->AppendPages(sequence, 28, many).code(), StatusCode::kOutOfRange);
  EXPECT_EQ(manager->AppendPages(99, 1, {2}).code(), StatusCode::kNotFound);
  EXPECT_EQ(Pages(*manager, sequence), (std::vector<int32_t>{0, 1}));
  EXPECT_EQ(manager->GetSequence(sequence)->num_tokens, 5);
  EXPECT_EQ(manager->GetPage(3)->num_references, 0);
}

TEST(EnginePagesTest, NewContentIsANewGenerationOnceNobodyHoldsThePage) {
  const auto manager = MakeManager(4, kEngine);
  const SequenceId sequence = *manager->CreateSequence(0);
  ASSERT_TRUE(manager->AppendPages(sequence, 4, {1}).ok());
  const uint64_t before = manager->GetPage(1)->tag.generation;
  EXPECT_EQ(manager->ForgetPages({1}).code(), StatusCode::kFailedPrecondition);
  ASSERT_TRUE(manager->Release(sequence).ok());
  EXPECT_EQ(manager->GetPage(1)->tag.generation, before) << "the engine still has its content";
  EXPECT_EQ(manager->GetPage(1)->tag.fill, 4);
  ASSERT_TRUE(manager->ForgetPages({1}).ok());
  EXPECT_EQ(manager->GetPage(1)->tag.generation, before + 1);
  EXPECT_EQ(manager->GetPage(1)->tag.fill, 0);
}

TEST(EnginePagesTest, SparsePagesMakeTheSequencesThatTakeThemSparse) {
  const auto manager = MakeManager(4, kEngine);
  const SequenceId first = *manager->CreateSequence(0);
  ASSERT_TRUE(manager->AppendPages(first, 4, {0}).ok());
  ASSERT_TRUE(manager->SetProvenance(first, Provenance::kSparse).ok());
  ASSERT_TRUE(manager->AppendPages(first, 4, {1}).ok());
  EXPECT_EQ(manager->GetPage(0)->tag.provenance, Provenance::kExact);
  EXPECT_EQ(manager->GetPage(1)->tag.provenance, Provenance::kSparse);
  ASSERT_TRUE(manager->Release(first).ok());
  const SequenceId second = *manager->CreateSequence(0);
  ASSERT_TRUE(manager->AppendPages(second, 8, {0, 1}).ok());
  EXPECT_EQ(manager->GetSequence(second)->provenance, Provenance::kSparse);
  const SequenceId third = *manager->CreateSequence(0);
  ASSERT_TRUE(manager->AppendPages(third, 4, {0}).ok());
  EXPECT_EQ(manager->GetSequence(third)->provenance, Provenance::kExact);
}

// Random appends, forks and releases against block tables kept here.
TEST(EnginePagesTest, ReferencesAreTheEntriesOfBlockTables) {
  const uint64_t seed = testing::TestSeed(5);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  constexpr int32_t kPages = 16;
  const auto manager = MakeManager(kPages, kEngine);
  struct Model {
    SequenceId id;
    std::vector<int32_t> pages;
    int32_t num_tokens = 0;
  };
  std::vector<Model> models;
  for (int step = 0; step < 2000; ++step) {
    const int choice = static_cast<int>(rng() % 8);
    if (choice == 0 && models.size() < 8) {
      models.push_back({*manager->CreateSequence(0), {}});
    } else if (choice == 1 && !models.empty() && models.size() < 8) {
      const Model parent = models[rng() % models.size()];
      ASSERT_TRUE(manager->MarkWritten(parent.id, parent.num_tokens).ok());
      models.push_back({*manager->Fork(parent.id), parent.pages, parent.num_tokens});
    } else if (choice == 2 && !models.empty()) {
      const size_t i = rng() % models.size();
      ASSERT_TRUE(manager->Release(models[i].id).ok());
      models.erase(models.begin() + static_cast<std::ptrdiff_t>(i));
    } else if (!models.empty()) {
      Model& model = models[rng() % models.size()];
      const int32_t n = static_cast<int32_t>(rng() % 7);
      if (model.num_tokens + n > 64) continue;
      std::vector<int32_t> pages((model.num_tokens + n + 3) / 4 - (model.num_tokens + 3) / 4);
      for (int32_t& page : pages) page = static_cast<int32_t>(rng() % kPages);
      ASSERT_TRUE(manager->AppendPages(model.id, n, pages).ok());
      model.num_tokens += n;
      model.pages.insert(model.pages.end(), pages.begin(), pages.end());
    }
    std::vector<int32_t> references(kPages, 0);
    for (const Model& model : models) {
      ASSERT_EQ(Pages(*manager, model.id), model.pages);
      for (int32_t page : model.pages) ++references[page];
    }
    for (int32_t page = 0; page < kPages; ++page) {
      ASSERT_EQ(manager->GetPage(page)->num_references, references[page]) << "step " << step;
    }
  }
}

}  // namespace
}  // namespace semkv
