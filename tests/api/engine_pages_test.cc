// An engine that chooses the pages: whatever pages it takes, what is selected and what comes out
// is, bit for bit, what a context gives that chooses its own.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "semkv/semkv.h"
#include "tests/testing/random.h"

namespace {

using semkv::testing::RandomNormal;

constexpr int32_t kLayers = 2, kHeads = 4, kKvHeads = 2, kDim = 64;
constexpr int32_t kPageTokens = 32, kPages = 64;
constexpr int32_t kPrompt = 900, kSteps = 360, kTokens = kPrompt + kSteps;

semkv_options Options(bool engine_pages) {
  semkv_options options;
  EXPECT_EQ(semkv_options_init(&options), SEMKV_OK);
  options.num_layers = kLayers;
  options.num_heads = kHeads;
  options.num_kv_heads = kKvHeads;
  options.head_dim = kDim;
  options.page_tokens = kPageTokens;
  options.num_pages = kPages;
  options.max_sequence_tokens = kPages * kPageTokens;
  options.num_threads = 2;
  options.engine_pages = engine_pages ? 1 : 0;
  return options;
}

// One context with one sequence, and the engine that drives it.
class Driver {
 public:
  Driver(const std::vector<float>& data, const std::vector<int32_t>& ids, int32_t kind,
         std::vector<int32_t> pages)
      : data_(data), ids_(ids), kind_(kind), pages_(std::move(pages)) {
    const semkv_options options = Options(!pages_.empty());
    EXPECT_EQ(semkv_context_create(&options, &context_), SEMKV_OK) << semkv_last_error();
    const char bytes[] = " word.";
    const int64_t offsets[] = {0, 5, 6};
    EXPECT_EQ(semkv_vocabulary_set(context_, 2, bytes, offsets), SEMKV_OK);
    EXPECT_EQ(semkv_plan_create(context_, 1, 256, &plan_), SEMKV_OK);
    Create();
  }
  ~Driver() {
    semkv_plan_destroy(plan_);
    semkv_context_destroy(context_);
  }

  semkv_context* context() { return context_; }
  semkv_sequence sequence() const { return sequence_; }

  void Create() {
    ASSERT_EQ(semkv_sequence_create(context_, 0, &sequence_), SEMKV_OK) << semkv_last_error();
    SetSegmentTokens(8192);
  }

  void SetSegmentTokens(int32_t segment_tokens) {
    semkv_policy policy;
    ASSERT_EQ(semkv_policy_init(&policy, kind_), SEMKV_OK);
    policy.budget = 256;
    policy.force_sparse = 1;
    policy.segment_tokens = segment_tokens;
    ASSERT_EQ(semkv_sequence_set_policy(context_, sequence_, &policy), SEMKV_OK);
  }

  // Tokens [first, first + n): their pages or slots, then their keys and values if `writes`.
  void Append(int32_t first, int32_t n, bool writes = true) {
    std::vector<int32_t> slots(n);
    if (pages_.empty()) {
      ASSERT_EQ(semkv_sequence_append(context_, sequence_, n, &ids_[first], slots.data()),
                SEMKV_OK);
    } else {
      const int32_t begin = (first + kPageTokens - 1) / kPageTokens;
      const int32_t end = (first + n + kPageTokens - 1) / kPageTokens;
      ASSERT_EQ(semkv_sequence_append_pages(context_, sequence_, n, &ids_[first], end - begin,
                                            pages_.data() + begin),
                SEMKV_OK)
          << semkv_last_error();
      for (int32_t i = 0; i < n; ++i) {
        slots[i] = pages_[(first + i) / kPageTokens] * kPageTokens + (first + i) % kPageTokens;
      }
    }
    for (int32_t layer = 0; layer < kLayers && writes; ++layer) {
      semkv_write_args write = {};
      write.struct_size = sizeof(write);
      write.num_tokens = n;
      write.slots = slots.data();
      write.k = Rows(layer, first);
      write.v = Rows(kLayers + layer, first);
      ASSERT_EQ(semkv_write_kv(context_, layer, &write), SEMKV_OK) << semkv_last_error();
    }
  }

  void Index() { ASSERT_EQ(semkv_index(context_, sequence_), SEMKV_OK) << semkv_last_error(); }

  // Outputs and selections of a decode step over all layers and heads.
  void Step(std::vector<float>* out, std::vector<int32_t>* selected) {
    ASSERT_EQ(semkv_plan_step(plan_, 1, &sequence_, nullptr), SEMKV_OK) << semkv_last_error();
    out->resize(int64_t{kLayers} * kHeads * kDim);
    selected->clear();
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      semkv_attend_args args = {};
      args.struct_size = sizeof(args);
      args.q = Rows(layer, 17 * layer);
      args.out = out->data() + int64_t{layer} * kHeads * kDim;
      ASSERT_EQ(semkv_select(plan_, layer, &args), SEMKV_OK) << semkv_last_error();
      ASSERT_EQ(semkv_attend(plan_, layer, &args), SEMKV_OK) << semkv_last_error();
      for (int32_t head = 0; head < kKvHeads; ++head) {
        const int32_t* positions = nullptr;
        int32_t count = 0;
        ASSERT_EQ(semkv_select_result(plan_, 0, head, &positions, &count), SEMKV_OK);
        selected->insert(selected->end(), positions, positions + count);
      }
    }
    ASSERT_EQ(semkv_observe(context_, sequence_), SEMKV_OK) << semkv_last_error();
  }

 private:
  const float* Rows(int32_t part, int32_t first) const {
    return data_.data() + (int64_t{part} * kTokens + first) * kKvHeads * kDim;
  }

  const std::vector<float>& data_;  // [keys by layer, then values by layer][token][head][channel]
  const std::vector<int32_t>& ids_;
  const int32_t kind_;
  const std::vector<int32_t> pages_;  // empty: the context chooses
  semkv_context* context_ = nullptr;
  semkv_plan* plan_ = nullptr;
  semkv_sequence sequence_ = 0;
};

void ExpectEqualStep(Driver& own, Driver& engine) {
  std::vector<float> expected, out;
  std::vector<int32_t> expected_positions, positions;
  own.Step(&expected, &expected_positions);
  engine.Step(&out, &positions);
  ASSERT_EQ(positions, expected_positions);
  ASSERT_EQ(out, expected);
}

class EnginePagesTest : public ::testing::TestWithParam<int32_t> {
 protected:
  void SetUp() override {
    std::mt19937_64 rng(seed_);
    data_ = RandomNormal(rng, int64_t{2} * kLayers * kTokens * kKvHeads * kDim);
    ids_.resize(kTokens);
    for (int32_t& id : ids_) id = rng() % 11 == 0 ? 1 : 0;
    pages_.resize(kPages);
    std::iota(pages_.begin(), pages_.end(), 0);
    std::shuffle(pages_.begin(), pages_.end(), rng);
  }

  const uint64_t seed_ = semkv::testing::TestSeed(41);
  std::vector<float> data_;
  std::vector<int32_t> ids_, pages_;
};

TEST_P(EnginePagesTest, EveryStepIsAsWithPagesOfOnesOwn) {
  SEMKV_TRACE_SEED(seed_);
  Driver own(data_, ids_, GetParam(), {}), engine(data_, ids_, GetParam(), pages_);
  for (Driver* driver : {&own, &engine}) {
    for (int32_t first = 0; first < kPrompt; first += 250) {
      driver->Append(first, std::min(250, kPrompt - first));
    }
    driver->Index();
  }
  for (int32_t t = kPrompt; t < kTokens; ++t) {
    own.Append(t, 1);
    engine.Append(t, 1);
    ExpectEqualStep(own, engine);
    if (HasFatalFailure()) FAIL() << "token " << t;
  }
}

// An engine's prefix cache offers pages again: the keys are there, the lists are made anew.
TEST_P(EnginePagesTest, ASequenceOverPagesThatAreFullAlready) {
  SEMKV_TRACE_SEED(seed_);
  Driver own(data_, ids_, GetParam(), {}), engine(data_, ids_, GetParam(), pages_);
  own.Append(0, kPrompt);
  engine.Append(0, kPrompt);
  ASSERT_EQ(semkv_sequence_release(engine.context(), engine.sequence()), SEMKV_OK);
  engine.Create();
  engine.Append(0, kPrompt, /*writes=*/false);
  own.Index();
  engine.Index();
  own.Append(kPrompt, 1);
  engine.Append(kPrompt, 1);
  ExpectEqualStep(own, engine);
}

// A second sequence with the same first pages takes the first one's full segments; what is selected
// and attended is as if it had built them.
TEST_P(EnginePagesTest, SharedListsAreThoseThatWouldBeBuilt) {
  SEMKV_TRACE_SEED(seed_);
  Driver own(data_, ids_, GetParam(), {}), engine(data_, ids_, GetParam(), pages_);
  for (Driver* driver : {&own, &engine}) driver->SetSegmentTokens(1024);
  own.Append(0, kTokens - 1);
  engine.Append(0, kTokens - 1);
  engine.Index();
  const semkv_sequence first = engine.sequence();
  engine.Create();
  engine.SetSegmentTokens(1024);
  engine.Append(0, kTokens - 1, /*writes=*/false);
  int32_t num_shared = -1;
  ASSERT_EQ(semkv_sequence_share_lists(engine.context(), engine.sequence(), first, &num_shared),
            SEMKV_OK)
      << semkv_last_error();
  EXPECT_EQ(num_shared, GetParam() == SEMKV_POLICY_WINDOW ? 0 : 1024);
  own.Index();
  engine.Index();
  if (num_shared > 0) {
    EXPECT_EQ(semkv_sequence_share_lists(engine.context(), engine.sequence(), first, &num_shared),
              SEMKV_FAILED_PRECONDITION);
  }
  own.Append(kTokens - 1, 1);
  engine.Append(kTokens - 1, 1);
  ExpectEqualStep(own, engine);
}

TEST_P(EnginePagesTest, ListsAreNotSharedAcrossOtherPagesOrPolicies) {
  SEMKV_TRACE_SEED(seed_);
  Driver engine(data_, ids_, GetParam(), pages_);
  engine.SetSegmentTokens(1024);
  engine.Append(0, kTokens - 1);
  engine.Index();
  const semkv_sequence first = engine.sequence();
  engine.Create();
  engine.SetSegmentTokens(2048);
  engine.Append(0, kTokens - 1, /*writes=*/false);
  int32_t num_shared = -1;
  ASSERT_EQ(semkv_sequence_share_lists(engine.context(), engine.sequence(), first, &num_shared),
            SEMKV_OK);
  EXPECT_EQ(num_shared, 0) << "other segments";
  engine.Create();
  engine.SetSegmentTokens(1024);
  std::vector<int32_t> others(pages_.begin(), pages_.begin() + 40);
  std::swap(others[31], others[39]);  // the last page of the first segment
  ASSERT_EQ(semkv_sequence_append_pages(engine.context(), engine.sequence(), 1280, nullptr, 40,
                                        others.data()),
            SEMKV_OK);
  ASSERT_EQ(semkv_sequence_share_lists(engine.context(), engine.sequence(), first, &num_shared),
            SEMKV_OK);
  EXPECT_EQ(num_shared, 0) << "other pages";
}

INSTANTIATE_TEST_SUITE_P(Policies, EnginePagesTest,
                         ::testing::Values(SEMKV_POLICY_HYBRID, SEMKV_POLICY_SENTENCE,
                                           SEMKV_POLICY_CLUSTER, SEMKV_POLICY_WINDOW),
                         [](const auto& info) {
                           return std::string(semkv_policy_name(info.param));
                         });

TEST(EnginePagesErrorsTest, EachModeRefusesTheOthersCalls) {
  semkv_context* own = nullptr;
  semkv_context* engine = nullptr;
  semkv_options options = Options(false);
  ASSERT_EQ(semkv_context_create(&options, &own), SEMKV_OK);
  options = Options(true);
  ASSERT_EQ(semkv_context_create(&options, &engine), SEMKV_OK);
  semkv_sequence mine = 0, theirs = 0;
  ASSERT_EQ(semkv_sequence_create(own, 0, &mine), SEMKV_OK);
  ASSERT_EQ(semkv_sequence_create(engine, 0, &theirs), SEMKV_OK);
  const int32_t page = 3, beyond = kPages;
  EXPECT_EQ(semkv_sequence_append_pages(own, mine, 1, nullptr, 1, &page),
            SEMKV_FAILED_PRECONDITION);
  EXPECT_EQ(semkv_pages_forget(own, 1, &page), SEMKV_FAILED_PRECONDITION);
  EXPECT_EQ(semkv_sequence_append(engine, theirs, 1, nullptr, nullptr), SEMKV_FAILED_PRECONDITION);
  EXPECT_EQ(semkv_sequence_append_pages(engine, theirs, 1, nullptr, 0, nullptr),
            SEMKV_INVALID_ARGUMENT);
  EXPECT_STREQ(semkv_last_error(), "0 pages for 1 tokens after 0, need 1");
  EXPECT_EQ(semkv_sequence_append_pages(engine, theirs, 1, nullptr, 1, &beyond),
            SEMKV_INVALID_ARGUMENT);
  EXPECT_EQ(semkv_sequence_append_pages(engine, theirs, 1, nullptr, 1, nullptr),
            SEMKV_INVALID_ARGUMENT);
  EXPECT_EQ(semkv_sequence_append_pages(engine, theirs, 1, nullptr, -1, &page),
            SEMKV_INVALID_ARGUMENT);
  int32_t length = -1;
  ASSERT_EQ(semkv_sequence_length(engine, theirs, &length), SEMKV_OK);
  EXPECT_EQ(length, 0);
  ASSERT_EQ(semkv_sequence_append_pages(engine, theirs, 1, nullptr, 1, &page), SEMKV_OK);
  EXPECT_EQ(semkv_pages_forget(engine, 1, &page), SEMKV_FAILED_PRECONDITION);
  ASSERT_EQ(semkv_sequence_release(engine, theirs), SEMKV_OK);
  semkv_page_tag before = {}, after = {};
  before.struct_size = after.struct_size = sizeof(before);
  ASSERT_EQ(semkv_pages_get_tag(engine, page, &before), SEMKV_OK);
  EXPECT_EQ(semkv_pages_forget(engine, 1, &page), SEMKV_OK);
  ASSERT_EQ(semkv_pages_get_tag(engine, page, &after), SEMKV_OK);
  EXPECT_EQ(after.generation, before.generation + 1);
  semkv_context_destroy(own);
  semkv_context_destroy(engine);
}

}  // namespace
