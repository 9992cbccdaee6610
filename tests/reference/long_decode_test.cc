// How far a policy's next-token distributions drift from dense ones while the shipped model reads a
// long text token by token, and that one index serves every question asked of it. The text is the
// demo's report; the next token is always the text's own.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "integration/reference/command/decoding.h"
#include "integration/reference/command/files.h"
#include "integration/reference/command/measurement.h"
#include "integration/reference/engine.h"

namespace semkv::command {
namespace {

constexpr int32_t kPrompt = 2048;
constexpr int32_t kBudget = 512;

class LongDecodeTest : public ::testing::Test {
 protected:
  static constexpr int32_t kPolicies[] = {SEMKV_POLICY_DENSE, SEMKV_POLICY_HYBRID,
                                          SEMKV_POLICY_CLUSTER, SEMKV_POLICY_SENTENCE,
                                          SEMKV_POLICY_PAGES};

  void SetUp() override {
    const std::string source = SEMKV_SOURCE_DIR;
    reference::EngineOptions options;
    options.num_threads = 1;
    options.max_sequence_tokens = 8192;
    options.pool_tokens = 6 * 8192;
    auto engine = reference::Engine::Load(source + "/models/semkv-tiny", options);
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
    const auto text = ReadFile(source + "/models/demo/harbour_report.txt");
    ASSERT_TRUE(text.ok()) << text.status();
    ids_ = {0};
    for (int32_t id : engine_->tokenizer().Encode(*text)) ids_.push_back(id);
    ASSERT_GE(ids_.size(), static_cast<size_t>(kPrompt + 4096 + 1));
  }

  static semkv_policy PolicyOf(int32_t kind, int32_t budget) {
    semkv_policy policy;
    EXPECT_EQ(semkv_policy_init(&policy, kind), SEMKV_OK);
    policy.budget = budget;
    policy.force_sparse = 1;
    return policy;
  }

  // KL(dense || policy) of every step for each policy, [kPolicies][num_steps], after a prompt of
  // `num_prompt` tokens that was indexed at once.
  std::vector<std::vector<double>> Follow(int32_t num_prompt, int32_t num_steps, int32_t budget) {
    const auto prompt = CreateDenseSequence(engine_->context());
    EXPECT_TRUE(prompt.ok());
    EXPECT_TRUE(
        engine_->Prefill(prompt->id(), absl::MakeConstSpan(ids_).first(num_prompt), {}).ok());
    std::vector<OwnedSequence> forks;
    std::vector<semkv_sequence> rows;
    for (int32_t kind : kPolicies) {
      auto fork =
          ForkUnderPolicy(engine_->context(), prompt->id(), PolicyOf(kind, budget), nullptr);
      EXPECT_TRUE(fork.ok()) << fork.status();
      forks.push_back(*std::move(fork));
      rows.push_back(forks.back().id());
    }
    const size_t vocab = engine_->config().vocab_size;
    std::vector<float> logits(rows.size() * vocab);
    std::vector<std::vector<double>> divergence(rows.size());
    for (int32_t t = num_prompt; t < num_prompt + num_steps; ++t) {
      const std::vector<int32_t> ids(rows.size(), ids_[t]);
      const absl::Status status = engine_->Step(rows, ids, absl::MakeSpan(logits));
      EXPECT_TRUE(status.ok()) << status;
      const absl::Span<const float> dense = absl::MakeConstSpan(logits).first(vocab);
      for (size_t r = 0; r < rows.size(); ++r) {
        divergence[r].push_back(
            KlDivergence(dense, absl::MakeConstSpan(logits).subspan(r * vocab, vocab)));
      }
    }
    return divergence;
  }

  void Report(const std::string& what, const std::vector<double>& by_policy) {
    for (size_t r = 0; r < by_policy.size(); ++r) {
      RecordProperty(absl::StrCat(what, "_", semkv_policy_name(kPolicies[r])),
                     absl::StrCat(by_policy[r]));
      std::printf("%s %s: %.6f\n", what.c_str(), semkv_policy_name(kPolicies[r]), by_policy[r]);
    }
  }

  std::unique_ptr<reference::Engine> engine_;
  std::vector<int32_t> ids_;
};

double MeanOf(const std::vector<double>& values, size_t first, size_t count) {
  return Mean(absl::MakeConstSpan(values).subspan(first, count));
}

// Indices into kPolicies.
enum { kDense, kHybrid, kCluster, kSentence, kPages, kNumPolicies };

TEST_F(LongDecodeTest, NextTokensStayCloseToDense) {
  const auto divergence = Follow(kPrompt, 256, kBudget);
  std::vector<double> kl;
  for (const auto& steps : divergence) kl.push_back(Mean(steps));
  Report("mean_kl_256_steps", kl);
  EXPECT_EQ(kl[kDense], 0.0);
  EXPECT_LE(kl[kHybrid], 0.05);
  EXPECT_LE(kl[kCluster], 0.05);
  EXPECT_LE(kl[kSentence], 0.10);
  EXPECT_LT(kl[kHybrid], kl[kPages]);
  EXPECT_LT(kl[kCluster], kl[kPages]);
}

TEST_F(LongDecodeTest, ABudgetOfTheWholeContextIsDense) {
  for (const auto& steps : Follow(kPrompt, 64, kPrompt + 64)) EXPECT_LE(Mean(steps), 1e-4);
}

// The context triples and the budget does not, so the divergence grows; it must not grow because
// the decoded tokens' lists were made piece by piece.
TEST_F(LongDecodeTest, ListsOfDecodedTokensServeAsThoseOfAPrompt) {
  constexpr int32_t kSteps = 4096, kLast = 512;
  const auto decoded = Follow(kPrompt, kSteps, kBudget);
  const auto prefilled = Follow(kPrompt + kSteps - kLast, kLast, kBudget);
  std::vector<double> first, last, anew;
  for (size_t r = 0; r < kNumPolicies; ++r) {
    first.push_back(MeanOf(decoded[r], 0, kLast));
    last.push_back(MeanOf(decoded[r], kSteps - kLast, kLast));
    anew.push_back(Mean(prefilled[r]));
  }
  Report("mean_kl_first_512", first);
  Report("mean_kl_last_512", last);
  Report("mean_kl_last_512_indexed_anew", anew);
  EXPECT_LE(last[kHybrid], 1.5 * anew[kHybrid]);
  EXPECT_LE(last[kSentence], 1.5 * anew[kSentence]);
  EXPECT_LT(last[kHybrid], last[kPages]);
}

TEST_F(LongDecodeTest, OneIndexServesEveryQuestion) {
  const size_t vocab = engine_->config().vocab_size;
  const absl::Span<const int32_t> text = absl::MakeConstSpan(ids_);
  const auto prompt = CreateDenseSequence(engine_->context());
  const auto again = CreateDenseSequence(engine_->context());
  ASSERT_TRUE(prompt.ok() && again.ok());
  ASSERT_TRUE(engine_->Prefill(prompt->id(), text.first(kPrompt), {}).ok());
  ASSERT_TRUE(engine_->Prefill(again->id(), text.first(kPrompt), {}).ok());
  for (int32_t kind : kPolicies) {
    SCOPED_TRACE(semkv_policy_name(kind));
    const auto indexed =
        ForkUnderPolicy(engine_->context(), prompt->id(), PolicyOf(kind, kBudget), nullptr);
    ASSERT_TRUE(indexed.ok()) << indexed.status();
    const auto ask = [&](semkv_sequence sequence, int32_t first) {
      std::vector<float> logits(vocab);
      for (int32_t id : text.subspan(first, 24)) {
        EXPECT_TRUE(engine_->Step({sequence}, {id}, absl::MakeSpan(logits)).ok());
      }
      return logits;
    };
    const auto first = ForkSequence(engine_->context(), indexed->id());
    const auto second = ForkSequence(engine_->context(), indexed->id());
    const auto alone =
        ForkUnderPolicy(engine_->context(), again->id(), PolicyOf(kind, kBudget), nullptr);
    ASSERT_TRUE(first.ok() && second.ok() && alone.ok());
    ask(first->id(), 3000);
    EXPECT_EQ(ask(second->id(), 4000), ask(alone->id(), 4000));
  }
}

}  // namespace
}  // namespace semkv::command
