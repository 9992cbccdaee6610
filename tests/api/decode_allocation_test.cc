// A steady decode step through the C ABI allocates nothing: append, plan, write, select, attend,
// observe, also when a sentence closes or a provisional list is made. Only a window's end (every
// 320 tokens) may.

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <vector>

#include "semkv/semkv.h"
#include "tests/testing/count_allocations.h"
#include "tests/testing/random.h"

namespace {

constexpr int32_t kLayers = 2, kHeads = 4, kKvHeads = 2, kDim = 64;
constexpr int32_t kPrompt = 1000, kWarm = 40, kSteady = 260;

class DecodeAllocationTest : public ::testing::TestWithParam<int32_t> {
 protected:
  void SetUp() override {
    semkv_options options;
    ASSERT_EQ(semkv_options_init(&options), SEMKV_OK);
    options.num_layers = kLayers;
    options.num_heads = kHeads;
    options.num_kv_heads = kKvHeads;
    options.head_dim = kDim;
    options.num_pages = 256;
    options.max_sequence_tokens = 2048;
    options.num_threads = 2;
    options.query_window = 32;
    ASSERT_EQ(semkv_context_create(&options, &context_), SEMKV_OK) << semkv_last_error();
    const char bytes[] = " word.";
    const int64_t offsets[] = {0, 5, 6};
    ASSERT_EQ(semkv_vocabulary_set(context_, 2, bytes, offsets), SEMKV_OK);
    // Warm-up steps of sentencekv attend to more than its budget.
    ASSERT_EQ(semkv_plan_create(context_, 1, 1024, &plan_), SEMKV_OK);
    ASSERT_EQ(semkv_sequence_create(context_, 0, &sequence_), SEMKV_OK);
    semkv_policy policy;
    ASSERT_EQ(semkv_policy_init(&policy, GetParam()), SEMKV_OK);
    policy.budget = 128;
    policy.force_sparse = 1;
    ASSERT_EQ(semkv_sequence_set_policy(context_, sequence_, &policy), SEMKV_OK);
    std::mt19937_64 rng(1);
    kv_ = semkv::testing::RandomNormal(rng, int64_t{kPrompt} * kKvHeads * kDim);
    q_ = semkv::testing::RandomNormal(rng, int64_t{kHeads} * kDim);
    out_.resize(q_.size());
    Prefill();
  }

  void TearDown() override {
    semkv_plan_destroy(plan_);
    semkv_context_destroy(context_);
  }

  void Write(int32_t layer, int32_t first, const std::vector<int32_t>& slots) {
    semkv_write_args write = {};
    write.struct_size = sizeof(write);
    write.num_tokens = static_cast<int32_t>(slots.size());
    write.slots = slots.data();
    write.k = write.v = kv_.data() + int64_t{first % 700} * kKvHeads * kDim;
    ASSERT_EQ(semkv_write_kv(context_, layer, &write), SEMKV_OK) << semkv_last_error();
  }

  void Prefill() {
    const int32_t n = kPrompt;
    std::vector<int32_t> ids(kPrompt, 0), slots(kPrompt);
    for (int32_t t = 11; t < kPrompt; t += 12) ids[t] = 1;
    ASSERT_EQ(semkv_sequence_append(context_, sequence_, kPrompt, ids.data(), slots.data()),
              SEMKV_OK);
    ASSERT_EQ(semkv_plan_step(plan_, 1, &sequence_, &n), SEMKV_OK) << semkv_last_error();
    std::vector<float> q(int64_t{kPrompt} * kHeads * kDim, 0.1f), out(q.size());
    semkv_attend_args args = {};
    args.struct_size = sizeof(args);
    args.q = q.data();
    args.out = out.data();
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      Write(layer, 0, slots);
      ASSERT_EQ(semkv_attend(plan_, layer, &args), SEMKV_OK) << semkv_last_error();
    }
    ASSERT_EQ(semkv_index(context_, sequence_), SEMKV_OK) << semkv_last_error();
  }

  // Returns how many calls failed.
  int Step(int32_t t) {
    const int32_t id = t % 12 == 11 ? 1 : 0;
    int failures = semkv_sequence_append(context_, sequence_, 1, &id, slot_.data()) != SEMKV_OK;
    failures += semkv_plan_step(plan_, 1, &sequence_, nullptr) != SEMKV_OK;
    semkv_attend_args args = {};
    args.struct_size = sizeof(args);
    args.q = q_.data();
    args.out = out_.data();
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      Write(layer, t, slot_);
      failures += semkv_select(plan_, layer, &args) != SEMKV_OK;
      failures += semkv_attend(plan_, layer, &args) != SEMKV_OK;
    }
    return failures + (semkv_observe(context_, sequence_) != SEMKV_OK);
  }

  semkv_context* context_ = nullptr;
  semkv_plan* plan_ = nullptr;
  semkv_sequence sequence_ = 0;
  std::vector<float> kv_, q_, out_;
  std::vector<int32_t> slot_ = {-1};
};

TEST_P(DecodeAllocationTest, ASteadyStepAllocatesNothing) {
  for (int32_t t = 0; t < kWarm; ++t) ASSERT_EQ(Step(kPrompt + t), 0) << semkv_last_error();
  const int64_t before = semkv::testing::NumAllocations();
  int failures = 0;
  for (int32_t t = 0; t < kSteady; ++t) failures += Step(kPrompt + kWarm + t);
  EXPECT_EQ(semkv::testing::NumAllocations() - before, 0);
  EXPECT_EQ(failures, 0) << semkv_last_error();
  semkv_stats stats = {};
  stats.struct_size = sizeof(stats);
  ASSERT_EQ(semkv_stats_get(context_, &stats), SEMKV_OK);
  EXPECT_EQ(stats.layer_rows[SEMKV_ROW_SPARSE], uint64_t{kLayers} * (kWarm + kSteady));
}

INSTANTIATE_TEST_SUITE_P(Policies, DecodeAllocationTest,
                         ::testing::Values(SEMKV_POLICY_HYBRID, SEMKV_POLICY_SENTENCE,
                                           SEMKV_POLICY_CLUSTER, SEMKV_POLICY_QUEST,
                                           SEMKV_POLICY_WINDOW, SEMKV_POLICY_SENTENCEKV),
                         [](const auto& info) {
                           return std::string(semkv_policy_name(info.param));
                         });

}  // namespace
