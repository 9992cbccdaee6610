#include "faiss_index/sentence_boundary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "faiss_index/partitioner.h"
#include "tests/faiss_index/toy_vocabulary.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using ::semkv::testing::kSpecialId;
using ::semkv::testing::ToyVocabularies;
using ::semkv::testing::ToyVocabulary;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

struct Golden {
  std::string text;
  size_t cuts;
};

// Acceptance check A6, and the rules in the header one by one.
TEST(SentenceBoundaryTest, GoldenTextsInEveryVocabulary) {
  const std::vector<Golden> texts = {
      {"", 0},
      {"Pi is 3.14. The tag is v1.2.", 2},
      {"He said \"stop.\" He went (why?) home.", 3},
      {"One.\n\nTwo", 1},
      {"\"Stop.\"", 1},
      {"(Why?)", 1},
      {"\xE4\xBD\xA0\xE5\xA5\xBD\xE3\x80\x82\xE4\xBD\xA0\xE3\x80\x82\xE5\xA5\xBD\xE3\x80\x82"
       "\xE4\xBD\xA0\xEF\xBC\x81\xE5\xA5\xBD\xEF\xBC\x9F",
       5},
      {"...", 1},
      {"Well... He went. ?!", 3},
      {"\n\n\n\n", 0},
      {"One.\n\n\n\nTwo.\n\n \n", 2},
      {"No stop here\n\nend", 1},
      {"See https://a.b/c?d=e.f and x.txt now", 0},
      {"Ask Dr. Who, e.g. at 5 p.m. in the U.S. office", 0},
      {"J. R. R. wrote it. Fine.", 2},
      {"List:\n1. The first\n2. The second", 0},
      {"It was 1984. The end.", 2},
      {"It ends with etc.\n\nNew", 1},
      {"if (a != b) { x = 1;\n  y = 2;\n}\n", 3},
      {"a wrapped line\nof a sentence", 0},
      {"**Bold.** Next.", 2},
      {"Wait \xE2\x80\xA6 more", 1},
      {"\xE5\xA5\xBD\xE3\x80\x82\xE3\x80\x8D\xE5\xA5\xBD", 1},
      {"Is it?! Yes!", 2}};
  for (const ToyVocabulary& vocabulary : ToyVocabularies()) {
    for (const Golden& golden : texts) {
      EXPECT_THAT(vocabulary.Sentences(golden.text), SizeIs(golden.cuts)) << golden.text;
    }
  }
}

TEST(SentenceBoundaryTest, ClosingQuotesBelongToTheSentenceTheyClose) {
  const ToyVocabulary vocabulary({});
  EXPECT_THAT(vocabulary.Sentences("\"Go.\" (Now?) Yes"), ElementsAre("\"Go.\"", " (Now?)"));
}

TEST(SentenceBoundaryTest, StopSplitOverTokensClosesOnTheTokenThatCompletesIt) {
  const ToyVocabulary vocabulary({"\xE3\x80"});
  EXPECT_THAT(vocabulary.Closes(vocabulary.Tokenize("a\xE3\x80\x82"
                                                    "b")),
              ElementsAre(0, 0, 1, 0));
}

TEST(SentenceBoundaryTest, FateOfAStopWaitsForTheNextCharacter) {
  const ToyVocabulary vocabulary({});
  BoundaryScanner scanner(vocabulary.table());
  std::vector<uint8_t> closes;
  scanner.Feed(vocabulary.Tokenize("x3."), &closes);
  EXPECT_THAT(closes, ElementsAre(0, 0));
  EXPECT_EQ(scanner.num_pending(), 1);
  EXPECT_EQ(scanner.PendingCloses(), 1);
  BoundaryScanner fork = scanner;
  scanner.Feed(vocabulary.Tokenize("1"), &closes);
  EXPECT_THAT(closes, ElementsAre(0, 0, 0, 0));
  std::vector<uint8_t> fork_closes;
  fork.Feed(vocabulary.Tokenize(" "), &fork_closes);
  EXPECT_THAT(fork_closes, ElementsAre(1, 0));
}

TEST(SentenceBoundaryTest, SpecialTokenClosesTheTextBeforeItOnce) {
  const ToyVocabulary vocabulary({});
  std::vector<int32_t> ids = vocabulary.Tokenize("Hi.");
  ids.insert(ids.end(), {kSpecialId, kSpecialId, 'a', kSpecialId});
  EXPECT_THAT(vocabulary.Sentences(ids), ElementsAre("Hi.<|>", "<|>a<|>"));
}

TEST(SentenceBoundaryTest, UnknownIdsAreOrdinaryTokens) {
  const ToyVocabulary vocabulary({});
  EXPECT_THAT(vocabulary.Closes({'a', '.', 100000, -1, '.'}), ElementsAre(0, 0, 0, 0, 1));
}

TEST(SentenceBoundaryTest, LongLinesEndAtTheirNewline) {
  const ToyVocabulary vocabulary({});
  EXPECT_THAT(vocabulary.Sentences(std::string(31, 'x') + "\n" + std::string(10, 'y') + "\n"),
              SizeIs(1));
}

TEST(SentenceBoundaryTest, TableRefusesAnEmptyVocabulary) {
  EXPECT_EQ(BoundaryTable::Create({}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(SentenceBoundaryTest, TableIsSmall) {
  const ToyVocabulary vocabulary({});
  EXPECT_EQ(vocabulary.table()->vocabulary_size(), 257);
  EXPECT_LT(vocabulary.table()->bytes(), 4096);
}

// A7 on texts made to hit every rule; also: nothing but white space is never closed.
TEST(SentenceBoundaryTest, IncrementalEqualsBatchOnRandomText) {
  const std::vector<std::string> pieces = {".",
                                           "!",
                                           "?",
                                           "\"",
                                           ")",
                                           " ",
                                           "\n",
                                           "\n\n",
                                           "a",
                                           "Dr",
                                           "e.g",
                                           "3",
                                           "word",
                                           ";",
                                           "}",
                                           "'",
                                           "\xE3\x80\x82",
                                           "\xE3\x80\x8D",
                                           "\xE3",
                                           "\x80",
                                           "\xE2\x80\x9D",
                                           "\xF0\x9F",
                                           "\xC3\xA9"};
  for (uint64_t round = 0; round < 300u * testing::SoakFactor(); ++round) {
    const uint64_t seed = testing::TestSeed(17) + round;
    SEMKV_TRACE_SEED(seed);
    std::mt19937_64 rng(seed);
    std::string text;
    for (int i = 0; i < 60; ++i) text += pieces[rng() % pieces.size()];
    for (const ToyVocabulary& vocabulary : ToyVocabularies()) {
      std::vector<int32_t> ids = vocabulary.Tokenize(text);
      if (rng() % 2 == 0) ids.insert(ids.begin() + ids.size() / 2, kSpecialId);
      BoundaryScanner batch(vocabulary.table()), single(vocabulary.table());
      std::vector<uint8_t> expected, actual;
      batch.Feed(ids, &expected);
      for (size_t i = 0; i < ids.size(); ++i) {
        const size_t end = std::min(ids.size(), i + 1 + rng() % 3);
        single.Feed(absl::MakeConstSpan(ids).subspan(i, end - i), &actual);
        i = end - 1;
        ASSERT_EQ(actual.size() + single.num_pending(), end);
        ASSERT_LE(single.num_pending(), 4);
      }
      ASSERT_EQ(actual, expected);
      ASSERT_EQ(single.PendingCloses(), batch.PendingCloses());
      for (const std::string& sentence : vocabulary.Sentences(ids)) {
        ASSERT_NE(sentence.find_first_not_of(" \n"), std::string::npos) << text;
      }
    }
  }
}

// The number of cuts does not depend on how the text is split into tokens.
TEST(SentenceBoundaryTest, VocabulariesAgreeOnProse) {
  const std::string text =
      "Dr. Who said: \"The end.\" He went to v1.2 of word.txt, e.g. the tag. Is it? Yes!\n\n"
      "The end is 3.14 (or so). The end... The word.";
  const std::vector<ToyVocabulary> all = ToyVocabularies();
  const std::vector<std::string> expected = all[0].Sentences(text);
  EXPECT_THAT(expected, SizeIs(7));
  for (const ToyVocabulary& vocabulary : all) {
    EXPECT_THAT(vocabulary.Sentences(text), SizeIs(expected.size()));
  }
}

TEST(SentenceBoundaryTest, EmptyFeedChangesNothing) {
  const ToyVocabulary vocabulary({});
  BoundaryScanner scanner(vocabulary.table());
  std::vector<uint8_t> closes;
  scanner.Feed({}, &closes);
  EXPECT_THAT(closes, IsEmpty());
  EXPECT_EQ(scanner.PendingCloses(), 0);
}

}  // namespace
}  // namespace semkv
