// A model of random keys and queries that runs through the C ABI, and attention by plain loops:
// what the tests of the papers' modes compare with. Sentences are marked by two token ids: a
// period, whose fate the library knows one token later, and an ideographic stop.

#ifndef SEMKV_TESTS_API_PAPER_MODEL_H_
#define SEMKV_TESTS_API_PAPER_MODEL_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "semkv/semkv.h"
#include "tests/testing/random.h"

namespace semkv::testing {

struct PaperShape {
  int32_t layers = 2, heads = 4, kv_heads = 2, dim = 64;
  int32_t max_tokens = 2048;
  int32_t query_window = 32;
  int32_t max_budget = 2048;
};

class PaperModel {
 public:
  static constexpr int32_t kWord = 0, kPeriod = 1, kStop = 2;

  // Sentences of `min_sentence` to `max_sentence` tokens.
  PaperModel(uint64_t seed, const PaperShape& shape, int32_t min_sentence, int32_t max_sentence)
      : shape_(shape), rng_(seed) {
    ids_.assign(shape.max_tokens, kWord);
    std::uniform_int_distribution<int32_t> length(min_sentence, max_sentence);
    for (int32_t t = length(rng_) - 1; t < shape.max_tokens; t += length(rng_)) {
      ids_[t] = rng_() % 2 == 0 ? kPeriod : kStop;
    }
    const int64_t tokens = int64_t{shape.max_tokens} * shape.layers;
    keys_ = RandomNormal(rng_, tokens * shape.kv_heads * shape.dim);
    values_ = RandomNormal(rng_, tokens * shape.kv_heads * shape.dim);
    queries_ = RandomNormal(rng_, tokens * shape.heads * shape.dim, 1.5f);
    Create();
  }
  PaperModel(const PaperModel&) = delete;
  PaperModel& operator=(const PaperModel&) = delete;
  ~PaperModel() {
    semkv_plan_destroy(plan_);
    semkv_context_destroy(context_);
  }

  // Appends, writes and, with `attend`, attends to tokens up to `length` of `sequence`, in chunks.
  void Prefill(int32_t length, bool attend = true) {
    while (length_ < length) {
      const int32_t n = std::min(113, length - length_);
      Append(n);
      if (attend) {
        ASSERT_EQ(semkv_plan_step(plan_, 1, &sequence_, &n), SEMKV_OK) << semkv_last_error();
      }
      for (int32_t layer = 0; layer < shape_.layers; ++layer) {
        Write(layer, n);
        if (!attend) continue;
        std::vector<float> out(n * shape_.heads * shape_.dim);
        const semkv_attend_args args = Args(layer, length_ - n, out.data());
        ASSERT_EQ(semkv_attend(plan_, layer, &args), SEMKV_OK) << semkv_last_error();
      }
    }
  }

  int SetPolicy(const semkv_policy& policy) {
    return semkv_sequence_set_policy(context_, sequence_, &policy);
  }
  int Index() { return semkv_index(context_, sequence_); }
  // From now on the model works on a fork.
  void Fork() { ASSERT_EQ(semkv_sequence_fork(context_, sequence_, &sequence_), SEMKV_OK); }

  // One decode step. Positions selected and output, by [layer][query head].
  struct Step {
    std::vector<std::vector<std::set<int32_t>>> selected;
    std::vector<std::vector<std::vector<float>>> out;
  };
  Step Decode() {
    Step step;
    step.selected.resize(shape_.layers);
    step.out.resize(shape_.layers);
    Append(1);
    EXPECT_EQ(semkv_plan_step(plan_, 1, &sequence_, nullptr), SEMKV_OK) << semkv_last_error();
    for (int32_t layer = 0; layer < shape_.layers; ++layer) {
      Write(layer, 1);
      std::vector<float> out(shape_.heads * shape_.dim);
      const semkv_attend_args args = Args(layer, length_ - 1, out.data());
      EXPECT_EQ(semkv_select(plan_, layer, &args), SEMKV_OK) << semkv_last_error();
      EXPECT_EQ(semkv_attend(plan_, layer, &args), SEMKV_OK) << semkv_last_error();
      for (int32_t h = 0; h < shape_.heads; ++h) {
        const int32_t* positions = nullptr;
        int32_t count = 0;
        EXPECT_EQ(semkv_select_result(plan_, 0, h, &positions, &count), SEMKV_OK)
            << semkv_last_error();
        step.selected[layer].emplace_back(positions, positions + count);
        EXPECT_EQ(static_cast<int32_t>(step.selected[layer].back().size()), count);
        step.out[layer].emplace_back(out.begin() + h * shape_.dim,
                                     out.begin() + (h + 1) * shape_.dim);
      }
    }
    EXPECT_EQ(semkv_observe(context_, sequence_), SEMKV_OK) << semkv_last_error();
    return step;
  }

  semkv_sequence_info Info() const {
    semkv_sequence_info info = {};
    info.struct_size = sizeof(info);
    EXPECT_EQ(semkv_sequence_info_get(context_, sequence_, &info), SEMKV_OK);
    return info;
  }
  semkv_stats Stats() const {
    semkv_stats stats = {};
    stats.struct_size = sizeof(stats);
    EXPECT_EQ(semkv_stats_get(context_, &stats), SEMKV_OK);
    return stats;
  }

  // A row of dim channels.
  float* Key(int32_t layer, int32_t t, int32_t kv_head) { return At(&keys_, layer, t, kv_head); }
  float* Query(int32_t layer, int32_t t, int32_t head) {
    return &queries_[((int64_t{layer} * shape_.max_tokens + t) * shape_.heads + head) * shape_.dim];
  }
  int32_t KvHead(int32_t head) const { return head * shape_.kv_heads / shape_.heads; }
  bool Closes(int32_t t) const { return ids_[t] != kWord; }
  std::vector<int32_t>& ids() { return ids_; }
  const PaperShape& shape() const { return shape_; }
  int32_t length() const { return length_; }
  semkv_context* context() const { return context_; }
  semkv_plan* plan() const { return plan_; }
  semkv_sequence sequence() const { return sequence_; }

  double Dot(const float* a, const float* b) const {
    double sum = 0;
    for (int32_t c = 0; c < shape_.dim; ++c) sum += static_cast<double>(a[c]) * b[c];
    return sum;
  }

  // The greatest difference of `out` to softmax attention over `positions` by token t's query.
  double OutputError(int32_t layer, int32_t t, int32_t head, const std::set<int32_t>& positions,
                     const std::vector<float>& out) {
    std::vector<double> expected(shape_.dim);
    double sum = 0;
    for (int32_t p : positions) {
      const double logit = Dot(Query(layer, t, head), Key(layer, p, KvHead(head)));
      const double weight = std::exp(logit / std::sqrt(static_cast<double>(shape_.dim)));
      const float* const value = At(&values_, layer, p, KvHead(head));
      sum += weight;
      for (int32_t c = 0; c < shape_.dim; ++c) expected[c] += weight * value[c];
    }
    double worst = 0;
    for (int32_t c = 0; c < shape_.dim; ++c) {
      worst = std::max(worst, std::abs(expected[c] / sum - out[c]));
    }
    return worst;
  }

 private:
  void Create() {
    semkv_options options;
    ASSERT_EQ(semkv_options_init(&options), SEMKV_OK);
    options.num_layers = shape_.layers;
    options.num_heads = shape_.heads;
    options.num_kv_heads = shape_.kv_heads;
    options.head_dim = shape_.dim;
    options.num_pages = shape_.max_tokens / 8;
    options.max_sequence_tokens = shape_.max_tokens;
    options.num_threads = 2;
    options.query_window = shape_.query_window;
    ASSERT_EQ(semkv_context_create(&options, &context_), SEMKV_OK) << semkv_last_error();
    const char bytes[] = " word.\xe3\x80\x82";
    const int64_t offsets[] = {0, 5, 6, 9};
    ASSERT_EQ(semkv_vocabulary_set(context_, 3, bytes, offsets), SEMKV_OK);
    ASSERT_EQ(semkv_plan_create(context_, 1, shape_.max_budget, &plan_), SEMKV_OK)
        << semkv_last_error();
    ASSERT_EQ(semkv_sequence_create(context_, 0, &sequence_), SEMKV_OK);
    semkv_policy dense;
    ASSERT_EQ(semkv_policy_init(&dense, SEMKV_POLICY_DENSE), SEMKV_OK);
    ASSERT_EQ(SetPolicy(dense), SEMKV_OK);
  }

  void Append(int32_t n) {
    slots_.resize(n);
    ASSERT_EQ(semkv_sequence_append(context_, sequence_, n, ids_.data() + length_, slots_.data()),
              SEMKV_OK)
        << semkv_last_error();
    length_ += n;
  }

  // The last `n` tokens of a layer.
  void Write(int32_t layer, int32_t n) {
    semkv_write_args write = {};
    write.struct_size = sizeof(write);
    write.num_tokens = n;
    write.slots = slots_.data();
    write.k = Key(layer, length_ - n, 0);
    write.v = At(&values_, layer, length_ - n, 0);
    ASSERT_EQ(semkv_write_kv(context_, layer, &write), SEMKV_OK) << semkv_last_error();
  }

  semkv_attend_args Args(int32_t layer, int32_t first, float* out) {
    semkv_attend_args args = {};
    args.struct_size = sizeof(args);
    args.q = Query(layer, first, 0);
    args.out = out;
    return args;
  }

  float* At(std::vector<float>* rows, int32_t layer, int32_t t, int32_t kv_head) const {
    const int64_t row = (int64_t{layer} * shape_.max_tokens + t) * shape_.kv_heads + kv_head;
    return &(*rows)[row * shape_.dim];
  }

  const PaperShape shape_;
  std::mt19937_64 rng_;
  std::vector<int32_t> ids_;
  std::vector<float> keys_, values_, queries_;
  semkv_context* context_ = nullptr;
  semkv_plan* plan_ = nullptr;
  semkv_sequence sequence_ = 0;
  int32_t length_ = 0;
  std::vector<int32_t> slots_;
};

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_API_PAPER_MODEL_H_
