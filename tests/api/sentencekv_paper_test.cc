// Policy sentencekv against a brute force written from SentenceKV's text and code (research section
// 1.1, checks A8, A9 and A28): plain loops in float64 that share nothing with the library but the
// tensors.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "semkv/semkv.h"
#include "tests/api/paper_model.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using testing::PaperModel;
using testing::PaperShape;
using testing::SoakFactor;
using testing::TestSeed;

constexpr int32_t kWindow = 32, kFixed = 32, kRecent = 32;

semkv_policy PaperPolicy(int32_t tau, float r) {
  semkv_policy policy;
  EXPECT_EQ(semkv_policy_init(&policy, SEMKV_POLICY_SENTENCEKV), SEMKV_OK);
  policy.budget = tau;
  policy.keep_factor = r;
  policy.force_sparse = 1;
  return policy;
}

// One (layer, query head) of SentenceKV.
class BruteForce {
 public:
  BruteForce(PaperModel* model, int32_t layer, int32_t head, int32_t prompt, int32_t tau, double r,
             int32_t warm_up)
      : model_(*model), layer_(layer), head_(head), prompt_(prompt), tau_(tau), warm_up_(warm_up) {
    Keep(std::min(prompt, static_cast<int32_t>(std::floor(r * tau))));
    std::vector<int32_t> sentence;
    for (int32_t t = 0; t < prompt; ++t) {
      if (std::binary_search(kept_.begin(), kept_.end(), t)) sentence.push_back(t);
      if (model->Closes(t) || t + 1 == prompt) AddBucket(&sentence);
    }
  }

  // What the step of token `t` attends to.
  std::set<int32_t> Select(int32_t t) {
    std::vector<int32_t> cache = kept_;
    for (int32_t i = prompt_; i <= t; ++i) cache.push_back(i);
    // Q_s restarts behind a delimiter; at the delimiter's own step it is empty.
    if (t > prompt_ && model_.Closes(t - 1)) first_query_ = t;
    const int32_t num_queries = model_.Closes(t) ? 0 : t - std::max(first_query_, prompt_) + 1;
    std::set<int32_t> taken;
    if (num_queries <= warm_up_ && warm_up_ > 0) {
      taken.insert(cache.begin(), cache.end());
    } else {
      Retrieve(t, cache, &taken);
    }
    CloseGenerated(t);
    return taken;
  }

  const std::vector<int32_t>& kept() const { return kept_; }

 private:
  struct Bucket {
    std::vector<int32_t> tokens;
    std::vector<double> mean;
  };

  const float* Key(int32_t t) const { return model_.Key(layer_, t, model_.KvHead(head_)); }

  void Keep(int32_t count) {
    const int32_t before = prompt_ - kWindow;
    if (count == prompt_) {
      for (int32_t t = 0; t < prompt_; ++t) kept_.push_back(t);
      return;
    }
    std::vector<double> alpha(before);
    for (int32_t j = before; j < prompt_; ++j) {
      std::vector<double> weight(j + 1);
      double sum = 0;
      for (int32_t t = 0; t <= j; ++t) {
        const double dot = model_.Dot(model_.Query(layer_, j, head_), Key(t));
        sum += weight[t] = std::exp(dot / std::sqrt(static_cast<double>(model_.shape().dim)));
      }
      for (int32_t t = 0; t < before; ++t) alpha[t] += weight[t] / sum;
    }
    std::vector<std::pair<double, int32_t>> order;  // best first
    for (int32_t t = 0; t < before; ++t) {
      double pooled = 0;
      for (int32_t i = std::max(0, t - 3); i <= std::min(before - 1, t + 3); ++i) {
        pooled = std::max(pooled, alpha[i]);
      }
      order.emplace_back(-pooled, t);
    }
    std::sort(order.begin(), order.end());
    for (int32_t i = 0; i < count - kWindow; ++i) kept_.push_back(order[i].second);
    for (int32_t t = before; t < prompt_; ++t) kept_.push_back(t);
    std::sort(kept_.begin(), kept_.end());
  }

  void AddBucket(std::vector<int32_t>* tokens) {
    if (tokens->empty()) return;
    Bucket bucket{*tokens, std::vector<double>(model_.shape().dim)};
    for (int32_t t : *tokens) {
      for (int32_t c = 0; c < model_.shape().dim; ++c) {
        bucket.mean[c] += Key(t)[c] / static_cast<double>(tokens->size());
      }
    }
    buckets_.push_back(bucket);
    tokens->clear();
  }

  void Retrieve(int32_t t, const std::vector<int32_t>& cache, std::set<int32_t>* taken) {
    taken->insert(cache.begin(), cache.begin() + kFixed);
    // The last tokens, and the whole of the sentence that no bucket holds yet (docs/papers.md).
    const int32_t recent = std::min(std::max(kRecent, t + 1 - bucketed_end_), tau_ - kFixed);
    taken->insert(cache.end() - recent, cache.end());
    std::vector<double> mean(model_.shape().dim);
    for (int32_t i = std::max(first_query_, prompt_); i <= t; ++i) {
      for (int32_t c = 0; c < model_.shape().dim; ++c) mean[c] += model_.Query(layer_, i, head_)[c];
    }
    std::vector<std::pair<double, int32_t>> order;
    for (int32_t b = 0; b < static_cast<int32_t>(buckets_.size()); ++b) {
      double score = 0;
      for (int32_t c = 0; c < model_.shape().dim; ++c) score += mean[c] * buckets_[b].mean[c];
      order.emplace_back(-score, b);
    }
    std::sort(order.begin(), order.end());
    for (const auto& [score, b] : order) {
      for (int32_t token : buckets_[b].tokens) {
        if (static_cast<int32_t>(taken->size()) < tau_) taken->insert(token);
      }
    }
  }

  // After the step of token t: what is known to have closed becomes a bucket; the fate of a last
  // delimiter is not known yet. Ours: so does what half of the budget for retrieval cannot hold.
  void CloseGenerated(int32_t t) {
    bucketed_end_ = std::max(bucketed_end_, prompt_);
    const int32_t end = model_.Closes(t) ? t : t + 1;
    for (int32_t last = bucketed_end_; last < end; ++last) {
      const bool full = last + 1 - bucketed_end_ == (tau_ - kFixed) / 2;
      if (!model_.Closes(last) && !full) continue;
      std::vector<int32_t> sentence;
      for (int32_t i = bucketed_end_; i <= last; ++i) sentence.push_back(i);
      AddBucket(&sentence);
      bucketed_end_ = last + 1;
    }
  }

  PaperModel& model_;
  const int32_t layer_, head_, prompt_, tau_, warm_up_;
  int32_t first_query_ = 0;
  int32_t bucketed_end_ = prompt_;
  std::vector<int32_t> kept_;  // ascending
  std::vector<Bucket> buckets_;
};

// How many (layer, head, step) cases attend to what the brute force attends to, of how many.
struct Agreement {
  int64_t same = 0, cases = 0;
  double worst_output = 0;
  int64_t attended = 0;
};

Agreement Compare(PaperModel* model, const semkv_policy& policy, int32_t steps) {
  const PaperShape& shape = model->shape();
  const int32_t prompt = model->length();
  std::vector<BruteForce> oracles;
  for (int32_t i = 0; i < shape.layers * shape.heads; ++i) {
    oracles.emplace_back(model, i / shape.heads, i % shape.heads, prompt, policy.budget,
                         policy.keep_factor, policy.warm_up);
  }
  Agreement agreement;
  for (int32_t step = 0; step < steps; ++step) {
    const PaperModel::Step found = model->Decode();
    for (int32_t i = 0; i < shape.layers * shape.heads; ++i) {
      const int32_t layer = i / shape.heads, head = i % shape.heads, t = prompt + step;
      const std::set<int32_t> expected = oracles[i].Select(t);
      const std::set<int32_t>& selected = found.selected[layer][head];
      ++agreement.cases;
      agreement.attended += static_cast<int64_t>(selected.size());
      EXPECT_EQ(selected.size(), expected.size()) << "step " << step;
      if (selected != expected) continue;
      ++agreement.same;
      agreement.worst_output =
          std::max(agreement.worst_output,
                   model->OutputError(layer, t, head, expected, found.out[layer][head]));
    }
  }
  return agreement;
}

TEST(SentenceKvPaperTest, AttendsToWhatTheBruteForceAttendsTo) {  // A28
  struct Case {
    int32_t prompt, tau;
    float r;
    int32_t warm_up, min_sentence, max_sentence;
  };
  const Case cases[] = {{900, 128, 3, 1, 4, 30},  {900, 128, 2, 0, 4, 30}, {700, 64, 1, 1, 10, 40},
                        {500, 200, 3, 1, 20, 60}, {900, 128, 5, 3, 2, 9},  {40, 128, 3, 1, 4, 30}};
  for (int round = 0; round < SoakFactor(); ++round) {
    for (const Case& c : cases) {
      const uint64_t seed = TestSeed(11) + round;
      SEMKV_TRACE_SEED(seed);
      SCOPED_TRACE("tau " + std::to_string(c.tau) + " prompt " + std::to_string(c.prompt));
      PaperModel model(seed, PaperShape(), c.min_sentence, c.max_sentence);
      model.Prefill(c.prompt);
      semkv_policy policy = PaperPolicy(c.tau, c.r);
      policy.warm_up = c.warm_up;
      ASSERT_EQ(model.SetPolicy(policy), SEMKV_OK) << semkv_last_error();
      ASSERT_EQ(model.Index(), SEMKV_OK) << semkv_last_error();
      const Agreement agreement = Compare(&model, policy, 150);
      EXPECT_GE(agreement.same, agreement.cases - agreement.cases / 1000) << agreement.cases;
      EXPECT_LE(agreement.worst_output, 1e-4);
      // The counters say what was attended, warm-up steps included.
      EXPECT_EQ(model.Stats().attended_tokens, static_cast<uint64_t>(agreement.attended));
      const int32_t kept = std::min(c.prompt, static_cast<int32_t>(c.r * c.tau));
      EXPECT_EQ(model.Info().num_hidden, c.prompt - kept);
    }
  }
}

// Members of a list have 16 bits: such a prompt is kept in two pieces, cut between sentences.
TEST(SentenceKvPaperTest, APromptBeyondSixteenBitsIsKeptWhole) {
  const uint64_t seed = TestSeed(15);
  SEMKV_TRACE_SEED(seed);
  PaperShape shape;
  shape.layers = shape.kv_heads = 1;
  shape.heads = 2;
  shape.max_tokens = 70016;
  PaperModel model(seed, shape, 100, 900);
  model.Prefill(69900, /*attend=*/false);
  model.Prefill(69950);  // the window is all that must be attended to
  const semkv_policy policy = PaperPolicy(256, 4);
  ASSERT_EQ(model.SetPolicy(policy), SEMKV_OK) << semkv_last_error();
  ASSERT_EQ(model.Index(), SEMKV_OK) << semkv_last_error();
  const Agreement agreement = Compare(&model, policy, 20);
  EXPECT_EQ(agreement.same, agreement.cases);
  EXPECT_EQ(model.Info().num_hidden, 69950 - 1024);
}

TEST(SentenceKvPaperTest, AForkInheritsItsParentsWindow) {
  const uint64_t seed = TestSeed(12);
  SEMKV_TRACE_SEED(seed);
  PaperModel model(seed, PaperShape(), 4, 30);
  model.Prefill(600);  // under the dense policy, as integration/reference prefills a document
  model.Fork();
  const semkv_policy policy = PaperPolicy(96, 2);
  ASSERT_EQ(model.SetPolicy(policy), SEMKV_OK) << semkv_last_error();
  ASSERT_EQ(model.Index(), SEMKV_OK) << semkv_last_error();
  const Agreement agreement = Compare(&model, policy, 60);
  EXPECT_EQ(agreement.same, agreement.cases);
}

TEST(SentenceKvPaperTest, KeepSetHoldsTheWindowAndExactlyAsManyTokens) {  // A9
  const uint64_t seed = TestSeed(13);
  SEMKV_TRACE_SEED(seed);
  for (int32_t prompt : {33, 100, 191, 192, 193, 700}) {
    PaperModel model(seed, PaperShape(), 4, 30);
    model.Prefill(prompt);
    semkv_policy policy = PaperPolicy(64, 3);
    ASSERT_EQ(model.SetPolicy(policy), SEMKV_OK) << semkv_last_error();
    ASSERT_EQ(model.Index(), SEMKV_OK) << semkv_last_error();
    std::string text(1 << 16, ' ');
    ASSERT_EQ(semkv_explain(model.context(), text.data(), text.size(), nullptr), SEMKV_OK);
    EXPECT_NE(text.find("keeps " + std::to_string(std::min(prompt, 192)) + " of " +
                        std::to_string(prompt) + " prompt tokens per query head"),
              std::string::npos);
    const PaperModel::Step warm = model.Decode();  // the first step attends to all that is kept
    for (int32_t i = 0; i < 8; ++i) {
      std::set<int32_t> kept = warm.selected[i / 4][i % 4];
      EXPECT_EQ(kept.erase(prompt), 1u);
      EXPECT_EQ(static_cast<int32_t>(kept.size()), std::min(prompt, 192));
      for (int32_t t = std::max(0, prompt - kWindow); t < prompt; ++t)
        EXPECT_TRUE(kept.contains(t));
      const BruteForce oracle(&model, i / 4, i % 4, prompt, 64, 3, 1);
      EXPECT_EQ(kept, std::set<int32_t>(oracle.kept().begin(), oracle.kept().end()));
    }
  }
}

TEST(SentenceKvPaperTest, BudgetsBelowTheFixedRangesAreRefused) {  // A9, the clamp
  PaperModel model(1, PaperShape(), 4, 30);
  model.Prefill(500);
  for (int32_t tau : {1, 63}) {
    EXPECT_EQ(model.SetPolicy(PaperPolicy(tau, 3)), SEMKV_INVALID_ARGUMENT);
    EXPECT_NE(std::string(semkv_last_error()).find(std::to_string(tau)), std::string::npos);
    EXPECT_NE(std::string(semkv_last_error()).find("32 + 32"), std::string::npos);
  }
  for (int32_t tau : {64, 65}) {
    semkv_policy policy = PaperPolicy(tau, 3);
    policy.warm_up = 0;
    ASSERT_EQ(model.SetPolicy(policy), SEMKV_OK) << semkv_last_error();
    ASSERT_EQ(model.Index(), SEMKV_OK) << semkv_last_error();
    const PaperModel::Step step = model.Decode();
    for (int32_t h = 0; h < 4; ++h) {
      EXPECT_EQ(static_cast<int32_t>(step.selected[0][h].size()), tau);
    }
  }
}

TEST(SentenceKvPaperTest, EveryTokenOfALongOpenSentenceStaysInReach) {  // A9, last part
  const uint64_t seed = TestSeed(14);
  SEMKV_TRACE_SEED(seed);
  PaperModel model(seed, PaperShape(), 4, 30);
  std::fill(model.ids().begin() + 600, model.ids().end(), PaperModel::kWord);
  // At this budget an open sentence is closed at (96 - 32) / 2 tokens. Every such stretch of the
  // generated text has a direction of its own; the prompt has none.
  for (int32_t i = 0; i < 4; ++i) {
    for (int32_t t = 0; t < 800; ++t) {
      float* const key = model.Key(i / 2, t, i % 2);
      for (int32_t c = 0; c < 64; ++c) key[c] *= 0.01f;
      if (t >= 600) key[(t - 600) / 32] += 5;
    }
  }
  model.Prefill(600);
  semkv_policy policy = PaperPolicy(96, 3);
  policy.warm_up = 0;
  policy.mean_query = 0;
  ASSERT_EQ(model.SetPolicy(policy), SEMKV_OK) << semkv_last_error();
  ASSERT_EQ(model.Index(), SEMKV_OK) << semkv_last_error();
  for (int32_t t = 600; t < 800; ++t) {
    // The step's queries ask for one of the generated tokens, another one in every head.
    for (int32_t i = 0; i < 8; ++i) {
      const int32_t wanted = 600 + (t * 7 + i * 29) % (t - 599);
      const float* const key = model.Key(i / 4, wanted, model.KvHead(i % 4));
      for (int32_t c = 0; c < 64; ++c) model.Query(i / 4, t, i % 4)[c] = key[c];
    }
    const PaperModel::Step step = model.Decode();
    for (int32_t i = 0; i < 8; ++i) {
      const int32_t wanted = 600 + (t * 7 + i * 29) % (t - 599);
      EXPECT_TRUE(step.selected[i / 4][i % 4].contains(wanted)) << wanted << " at " << t;
      EXPECT_EQ(step.selected[i / 4][i % 4].size(), 96u);
    }
  }
}

TEST(SentenceKvPaperTest, RefusesWhatItCannotDoByName) {
  PaperShape shape;
  shape.query_window = 0;
  PaperModel none(1, shape, 4, 30);
  none.Prefill(300);
  EXPECT_EQ(none.SetPolicy(PaperPolicy(64, 3)), SEMKV_FAILED_PRECONDITION);
  EXPECT_NE(std::string(semkv_last_error()).find("query_window = 0"), std::string::npos);
  EXPECT_EQ(none.SetPolicy(PaperPolicy(64, 0)), SEMKV_OK);  // nothing is discarded

  PaperModel unseen(1, PaperShape(), 4, 30);
  unseen.Prefill(300, /*attend=*/false);
  ASSERT_EQ(unseen.SetPolicy(PaperPolicy(64, 3)), SEMKV_OK) << semkv_last_error();
  EXPECT_EQ(unseen.Index(), SEMKV_FAILED_PRECONDITION);
  EXPECT_NE(std::string(semkv_last_error()).find("last 0 tokens"), std::string::npos);

  semkv_policy policy = PaperPolicy(64, 3);
  policy.per_query_head = 0;
  EXPECT_EQ(unseen.SetPolicy(policy), SEMKV_INVALID_ARGUMENT);
  policy = PaperPolicy(64, 0.5f);
  EXPECT_EQ(unseen.SetPolicy(policy), SEMKV_INVALID_ARGUMENT);

  shape = PaperShape();
  shape.max_budget = 100;  // the warm-up step needs 192 + 1
  PaperModel narrow(1, shape, 4, 30);
  narrow.Prefill(300);
  ASSERT_EQ(narrow.SetPolicy(PaperPolicy(64, 3)), SEMKV_OK) << semkv_last_error();
  ASSERT_EQ(narrow.Index(), SEMKV_OK) << semkv_last_error();
  const semkv_sequence sequence = narrow.sequence();
  int32_t slot = 0;
  ASSERT_EQ(semkv_sequence_append(narrow.context(), sequence, 1, narrow.ids().data(), &slot),
            SEMKV_OK);
  EXPECT_EQ(semkv_plan_step(narrow.plan(), 1, &sequence, nullptr), SEMKV_OUT_OF_RANGE);
  EXPECT_NE(std::string(semkv_last_error()).find("193"), std::string::npos) << semkv_last_error();
}

}  // namespace
}  // namespace semkv
