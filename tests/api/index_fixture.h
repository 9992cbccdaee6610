// A sequence's inverted file over keys given as plain arrays: one layer, pages in a shuffled order,
// and a selection through the host operations. For tests of the index and of retrieval quality.

#ifndef SEMKV_TESTS_API_INDEX_FIXTURE_H_
#define SEMKV_TESTS_API_INDEX_FIXTURE_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "csrc/api/policy.h"
#include "csrc/api/sequence_index.h"
#include "csrc/ops/numeric/float_convert.h"
#include "csrc/ops/retrieval/select_lists.h"

namespace semkv::testing {

class IndexFixture {
 public:
  // Keys and values, [num_tokens, num_kv_heads, head_dim], float32.
  IndexFixture(int32_t num_kv_heads, int32_t head_dim, const std::vector<float>& keys,
               const std::vector<float>& values, const semkv_policy& policy, int num_threads = 2)
      : num_kv_heads_(num_kv_heads),
        head_dim_(head_dim),
        num_tokens_(static_cast<int32_t>(keys.size() / (int64_t{num_kv_heads} * head_dim))),
        policy_(policy),
        pool_(num_threads),
        scratch_(head_dim, num_threads) {
    Store(keys, values);
    absl::StatusOr<IndexRecipe> recipe = MakeIndexRecipe(policy);
    EXPECT_TRUE(recipe.ok()) << recipe.status();
    index_ = SequenceIndex(*std::move(recipe));
  }

  void Index(int32_t length, const uint8_t* closes) {
    const absl::Status status = index_.Index(source(), length, closes, &progress_);
    ASSERT_TRUE(status.ok()) << status;
  }
  void Observe(int32_t length, const uint8_t* closes) {
    const absl::Status status = index_.Observe(source(), length, closes, length, &progress_);
    ASSERT_TRUE(status.ok()) << status;
  }

  // The lists stay; they do not depend on it.
  void SetBudget(int32_t budget) { policy_.budget = budget; }

  // Positions selected for KV head `head` by one query per head of its group, [group, head_dim].
  std::vector<int32_t> Select(const float* queries, int32_t group, int32_t head, int32_t length,
                              int32_t num_recent) {
    std::vector<ListsView> views(index_.max_views());
    views.resize(index_.Views(head, views.data()));
    const int32_t view_begin[] = {0, static_cast<int32_t>(views.size())};
    RetrievalRow row;
    row.num_tokens = length;
    row.budget = policy_.budget;
    row.num_sinks = std::min(policy_.sinks, length);
    row.num_recent = num_recent;
    row.variance = static_cast<VarianceTerm>(policy_.variance_term);
    row.rank = static_cast<GroupRank>(policy_.group_rank);
    row.rank_weight[0] = SentenceWeight(policy_);
    row.mass_target = policy_.mass_target;
    row.block_table = pages_.data();
    ScoreListsParams score;
    score.q = queries;
    score.q_row = int64_t{group} * head_dim_;
    score.q_head = head_dim_;
    score.num_rows = 1;
    score.num_heads = group;
    score.num_selections = 1;
    score.head_dim = head_dim_;
    score.scale = 1.0f / std::sqrt(static_cast<float>(head_dim_));
    score.rows = &row;
    score.views = views.data();
    score.view_begin = view_begin;
    std::vector<int32_t> slots(policy_.budget), positions(policy_.budget);
    int32_t count = -1;
    SelectListsParams select;
    select.num_rows = 1;
    select.num_selections = 1;
    select.heads_per_selection = group;
    select.page_tokens = kPageTokens;
    select.rows = &row;
    select.views = views.data();
    select.view_begin = view_begin;
    select.slots = slots.data();
    select.positions = positions.data();
    select.counts = &count;
    select.slots_stride = policy_.budget;
    std::vector<uint8_t> workspace(RetrieveWorkspaceBytes(
        group, 1, head_dim_, num_tokens_, index_.max_lists() + 1, pool_.num_threads()));
    RetrieveHost(score, select, workspace.data(), workspace.size(), pool_);
    positions.resize(count);
    for (int32_t i = 0; i < count; ++i) {
      EXPECT_EQ(slots[i],
                pages_[positions[i] / kPageTokens] * kPageTokens + positions[i] % kPageTokens);
    }
    return positions;
  }

  KeySource source() {
    KeySource source;
    source.layers = absl::MakeConstSpan(&view_, 1);
    source.pages = pages_.data();
    source.num_kv_heads = num_kv_heads_;
    source.head_dim = head_dim_;
    source.pool = &pool_;
    source.scratch = &scratch_;
    return source;
  }
  SequenceIndex& index() { return index_; }
  const SequenceIndex::Progress& progress() const { return progress_; }
  int32_t num_tokens() const { return num_tokens_; }

 private:
  static constexpr int32_t kPageTokens = 16;

  void Store(const std::vector<float>& keys, const std::vector<float>& values) {
    const int32_t num_pages = CeilDiv(num_tokens_, kPageTokens);
    pages_.resize(num_pages);
    std::iota(pages_.begin(), pages_.end(), 0);
    std::shuffle(pages_.begin(), pages_.end(), std::mt19937_64(7));
    const int64_t row = int64_t{num_kv_heads_} * head_dim_;
    k_.resize(num_pages * kPageTokens * row);
    v_.resize(k_.size());
    view_.k = k_.data();
    view_.v = v_.data();
    view_.k_token = view_.v_token = row;
    view_.k_page = view_.v_page = kPageTokens * row;
    view_.k_head = view_.v_head = head_dim_;
    view_.page_tokens = kPageTokens;
    view_.num_pages = num_pages;
    for (int32_t t = 0; t < num_tokens_; ++t) {
      const int64_t slot = pages_[t / kPageTokens] * kPageTokens + t % kPageTokens;
      std::copy_n(keys.begin() + t * row, row, k_.begin() + slot * row);
      std::copy_n(values.begin() + t * row, row, v_.begin() + slot * row);
    }
  }

  const int32_t num_kv_heads_;
  const int32_t head_dim_;
  const int32_t num_tokens_;
  semkv_policy policy_;
  std::vector<float> k_, v_;
  std::vector<int32_t> pages_;
  KvView view_;
  ThreadPool pool_;
  IndexScratch scratch_;
  SequenceIndex index_;
  SequenceIndex::Progress progress_;
};

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_API_INDEX_FIXTURE_H_
