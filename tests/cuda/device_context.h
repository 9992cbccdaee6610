// A context in device memory and one on the host with the same tokens, keys and values, driven
// through semkv.h as an engine would, and what both say compared.

#ifndef SEMKV_TESTS_CUDA_DEVICE_CONTEXT_H_
#define SEMKV_TESTS_CUDA_DEVICE_CONTEXT_H_

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "semkv/semkv.h"
#include "tests/cuda/device_context_shape.h"
#include "tests/cuda/device_copy.h"
#include "tests/cuda/head_reference.h"
#include "tests/testing/random.h"

namespace semkv::testing {

#define SEMKV_ASSERT_OK(call) ASSERT_EQ((call), SEMKV_OK) << semkv_last_error()
#define SEMKV_EXPECT_OK(call) EXPECT_EQ((call), SEMKV_OK) << semkv_last_error()

// A vocabulary of ten tokens, one of which ends sentences.
inline void SetVocabulary(semkv_context* context) {
  const std::string bytes = " a b c d e f g h i.";
  std::vector<int64_t> offsets;
  for (int64_t i = 0; i <= 9; ++i) offsets.push_back(2 * i);
  offsets.push_back(static_cast<int64_t>(bytes.size()));
  SEMKV_ASSERT_OK(semkv_vocabulary_set(context, 10, bytes.data(), offsets.data()));
}

class TwoContexts {
 public:
  explicit TwoContexts(const DeviceContextShape& shape, uint64_t seed = 1)
      : shape_(shape), rng_(seed) {
    semkv_options o;
    semkv_options_init(&o);
    o.num_layers = shape.num_layers;
    o.num_heads = shape.num_heads;
    o.num_kv_heads = shape.num_kv_heads;
    o.head_dim = shape.head_dim;
    o.kv_dtype = shape.args_dtype();
    o.page_tokens = shape.page_tokens;
    o.num_pages = shape.num_pages;
    o.max_sequence_tokens = shape.max_sequence_tokens;
    o.num_threads = 2;
    SEMKV_EXPECT_OK(semkv_context_create(&o, &host_));
    o.device = 0;
    o.kv_dtype = shape.kv_dtype;
    o.k_scale = shape.k_scale;
    o.v_scale = shape.v_scale;
    o.borrow_storage = shape.layout != PoolLayout::kOwned;
    SEMKV_EXPECT_OK(semkv_context_create(&o, &device_));
    if (o.borrow_storage != 0) LendPool();
    SetVocabulary(host_);
    SetVocabulary(device_);
    topics_ = RandomNormal(rng_, kTopics * shape.head_dim);
  }
  TwoContexts(const TwoContexts&) = delete;
  TwoContexts& operator=(const TwoContexts&) = delete;
  // The clusters of both differ: a head may lose by it, all of them together must not.
  ~TwoContexts() {
    if (num_masses_ > 0) {
      EXPECT_LE(mass_lost_ / num_masses_, 0.01);
    }
    for (const auto& [rows, plan] : plans_) {
      semkv_plan_destroy(plan.first);
      semkv_plan_destroy(plan.second);
    }
    semkv_context_destroy(host_);
    semkv_context_destroy(device_);
    for (void* memory : lent_) cudaFree(memory);
  }

  semkv_context* host() { return host_; }
  semkv_context* device() { return device_; }
  const DeviceContextShape& shape() const { return shape_; }
  // Whether Append writes keys and values to the device too, or leaves that to the test.
  void set_writes_device(bool writes) { writes_device_ = writes; }

  // The context's stream, on which steps run too. Outlives its use here.
  void SetStream(cudaStream_t stream) {
    stream_ = stream;
    SEMKV_EXPECT_OK(semkv_set_stream(device_, stream));
  }
  // Append writes to the device on this stream, and nobody waits for it.
  void set_producer(cudaStream_t stream) { producer_ = stream; }

  // Sequences have the same ids in both.
  semkv_sequence NewSequence(const semkv_policy& policy) {
    semkv_sequence a = 0, b = 0;
    SEMKV_EXPECT_OK(semkv_sequence_create(host_, 0, &a));
    SEMKV_EXPECT_OK(semkv_sequence_create(device_, 0, &b));
    EXPECT_EQ(a, b);
    SetPolicy(a, policy);
    return a;
  }

  void SetPolicy(semkv_sequence sequence, const semkv_policy& policy) {
    SEMKV_EXPECT_OK(semkv_sequence_set_policy(host_, sequence, &policy));
    SEMKV_EXPECT_OK(semkv_sequence_set_policy(device_, sequence, &policy));
    policies_[sequence] = policy;
  }

  semkv_sequence Fork(semkv_sequence sequence) {
    semkv_sequence a = 0, b = 0;
    SEMKV_EXPECT_OK(semkv_sequence_fork(host_, sequence, &a));
    SEMKV_EXPECT_OK(semkv_sequence_fork(device_, sequence, &b));
    EXPECT_EQ(a, b);
    tokens_[a] = tokens_[sequence];
    policies_[a] = policies_[sequence];
    return a;
  }

  // Tokens with random ids; topics last some tokens, so that sentences and clusters mean something.
  // Keys of `poisoned` positions are not finite. Returns their slots.
  std::vector<int32_t> Append(semkv_sequence sequence, int32_t n,
                              const std::vector<int32_t>& poisoned = {}) {
    const int32_t first = static_cast<int32_t>(tokens_[sequence].size());
    std::vector<int32_t> ids(n), slots(n), device_slots(n);
    for (int32_t& id : ids) id = static_cast<int32_t>(rng_() % 10);
    SEMKV_EXPECT_OK(semkv_sequence_append(host_, sequence, n, ids.data(), slots.data()));
    SEMKV_EXPECT_OK(semkv_sequence_append(device_, sequence, n, ids.data(), device_slots.data()));
    EXPECT_EQ(slots, device_slots);
    std::vector<Token> added(n);
    for (int32_t i = 0; i < n; ++i) added[i] = NewToken(first + i, poisoned);
    for (int32_t layer = 0; layer < shape_.num_layers; ++layer) {
      Write(layer, slots, added, writes_device_);
    }
    std::vector<Token>& tokens = tokens_[sequence];
    tokens.insert(tokens.end(), added.begin(), added.end());
    return slots;
  }

  void Index(semkv_sequence sequence) {
    SEMKV_EXPECT_OK(semkv_index(host_, sequence));
    SEMKV_EXPECT_OK(semkv_index(device_, sequence));
  }

  void Observe(semkv_sequence sequence) {
    SEMKV_EXPECT_OK(semkv_observe(host_, sequence));
    SEMKV_EXPECT_OK(semkv_observe(device_, sequence));
  }

  // Plans for steps of up to `max_rows` rows, of the host and of the device.
  std::pair<semkv_plan*, semkv_plan*> Plans(int32_t max_rows, int32_t max_budget) {
    auto& plans = plans_[{max_rows, max_budget}];
    if (plans.first == nullptr) {
      SEMKV_EXPECT_OK(semkv_plan_create(host_, max_rows, max_budget, &plans.first));
      SEMKV_EXPECT_OK(semkv_plan_create(device_, max_rows, max_budget, &plans.second));
    }
    return plans;
  }

  // Queries that ask for topics, [rows, num_heads, head_dim] in the pool's dtype.
  std::vector<uint8_t> NewQueries(int32_t rows) {
    std::vector<float> q = RandomNormal(rng_, rows * shape_.query_floats(), 0.5f);
    for (size_t i = 0; i < q.size(); ++i) {
      const size_t row_head = i / shape_.head_dim, channel = i % shape_.head_dim;
      q[i] += 1.5f * topics_[(row_head * 7 + 3) % kTopics * shape_.head_dim + channel];
    }
    return Encode(q, dtype());
  }

  // One step of `rows`, one query each, on both. Expects that rows are attended for the same
  // reasons, that the device's attention is that of the tokens it selected, and that it selected
  // what the host did, but for a few tokens at the cut (scores are of other precision). With an
  // estimate of the rest, that attention is the host's where both have the same lists and selected
  // the same.
  void StepAndCompare(const std::vector<semkv_sequence>& rows, int32_t max_budget);

  static constexpr int32_t kMaxRows = 4;  // of StepAndCompare

  // Decodes `steps` tokens; every `every`th step, the first of all, is StepAndCompare's.
  void DecodeAndCompare(semkv_sequence sequence, int32_t steps, int32_t max_budget, int32_t every) {
    for (int32_t i = 0; i < steps; ++i) {
      Append(sequence, 1);
      if (i % every == 0) StepAndCompare({sequence}, max_budget);
      Observe(sequence);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }

  // What StepAndCompare expects of a layer that has run on the device: `out` is of queries `q`.
  void CheckLayer(const std::vector<semkv_sequence>& rows, int32_t layer,
                  std::pair<semkv_plan*, semkv_plan*> plans, const std::vector<uint8_t>& q,
                  const std::vector<uint8_t>& out);

  semkv_attend_args AttendArgs() const {
    semkv_attend_args args = {};
    args.struct_size = sizeof(args);
    args.dtype = shape_.args_dtype();
    args.stream = stream_;
    return args;
  }

  // Keys and values of the sequence's last token in a layer, in the pool's dtype.
  std::vector<uint8_t> LastKeys(semkv_sequence sequence, int32_t layer) const {
    return LastRow(sequence, 2 * layer);
  }
  std::vector<uint8_t> LastValues(semkv_sequence sequence, int32_t layer) const {
    return LastRow(sequence, 2 * layer + 1);
  }

  DType dtype() const { return static_cast<DType>(shape_.args_dtype()); }
  // Of the query heads with an estimate: how many had the host's attention, and how far they are
  // from attention to all tokens, summed, and would be without.
  int32_t num_estimates() const { return num_estimates_; }
  double estimate_error() const { return estimate_error_; }
  double plain_error() const { return plain_error_; }
  int32_t length(semkv_sequence sequence) { return static_cast<int32_t>(tokens_[sequence].size()); }

 private:
  static constexpr int32_t kTopics = 16;
  // Keys and values of a token in every layer, [num_layers, 2, token_floats].
  using Token = std::vector<float>;

  struct WriteSources {
    WriteSources(const std::vector<int32_t>& s, const std::vector<uint8_t>& keys,
                 const std::vector<uint8_t>& values)
        : slots(s), k(keys), v(values) {}
    DeviceCopy slots, k, v;
  };

  Token NewToken(int32_t position, const std::vector<int32_t>& poisoned) {
    const int64_t d = shape_.head_dim;
    Token token = RandomNormal(rng_, shape_.num_layers * 2 * shape_.token_floats(), 0.3f);
    const bool is_poisoned =
        std::find(poisoned.begin(), poisoned.end(), position) != poisoned.end();
    for (int32_t layer = 0; layer < shape_.num_layers; ++layer) {
      float* const key = token.data() + layer * 2 * shape_.token_floats();
      for (int64_t i = 0; i < shape_.token_floats(); ++i) {
        const int64_t topic = (position / 23 + 5 * layer + i / d) % kTopics;
        key[i] += topics_[topic * d + i % d];
        // Of one KV head, so that cells have different numbers of lists.
        if (is_poisoned && i == 17) key[i] = std::nanf("");
      }
    }
    // What the pool holds of them.
    for (size_t i = 0; i < token.size(); ++i) {
      float& x = token[i];
      const int64_t row = static_cast<int64_t>(i) / shape_.token_floats();
      if (shape_.is_e4m3()) {
        const float scale = shape_.scale(static_cast<int32_t>(row / 2), row % 2 == 0);
        x = FloatFromE4M3(E4M3FromFloat(x / scale)) * scale;
      }
      float stored = 0;
      StoreFromFloat(&stored, dtype(), 0, x);
      x = LoadAsFloat(&stored, dtype(), 0);
    }
    return token;
  }

  void Write(int32_t layer, const std::vector<int32_t>& slots, const std::vector<Token>& tokens,
             bool to_device) {
    std::vector<float> k, v;
    for (const Token& token : tokens) {
      const auto at = token.begin() + layer * 2 * shape_.token_floats();
      k.insert(k.end(), at, at + shape_.token_floats());
      v.insert(v.end(), at + shape_.token_floats(), at + 2 * shape_.token_floats());
    }
    const std::vector<uint8_t> k_bytes = Encode(k, dtype()), v_bytes = Encode(v, dtype());
    semkv_write_args args = {};
    args.struct_size = sizeof(args);
    args.dtype = shape_.args_dtype();
    args.num_tokens = static_cast<int32_t>(slots.size());
    args.slots = slots.data();
    args.k = k_bytes.data();
    args.v = v_bytes.data();
    SEMKV_ASSERT_OK(semkv_write_kv(host_, layer, &args));
    if (!to_device) return;
    auto sources = std::make_unique<WriteSources>(slots, k_bytes, v_bytes);
    args.slots = static_cast<const int32_t*>(sources->slots.data());
    args.k = sources->k.data();
    args.v = sources->v.data();
    args.stream = producer_;
    SEMKV_ASSERT_OK(semkv_write_kv(device_, layer, &args));
    if (producer_ != nullptr) {
      produced_.push_back(std::move(sources));  // freeing memory waits
    } else {
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    }
  }

  // Pools of keys and of values with gaps between pages.
  void LendPool() {
    const int64_t d = shape_.head_dim, tokens = shape_.page_tokens, heads = shape_.num_kv_heads;
    const bool tokens_inside = shape_.layout == PoolLayout::kTokensInside;
    for (int32_t layer = 0; layer < shape_.num_layers; ++layer) {
      semkv_kv_view view = {};
      view.struct_size = sizeof(view);
      view.layer = layer;
      view.k_token = view.v_token = tokens_inside ? d : heads * d;
      view.k_head = view.v_head = tokens_inside ? tokens * d + 16 : d;
      view.k_page = view.v_page = tokens * heads * d + 64;
      if (shape_.k_scale != 0) {
        view.k_scale = shape_.scale(layer, /*of_keys=*/true);
        view.v_scale = shape_.scale(layer, /*of_keys=*/false);
      }
      for (void** base : {&view.k, &view.v}) {
        ASSERT_EQ(cudaMalloc(base, 2 * view.k_page * shape_.num_pages), cudaSuccess);
        lent_.push_back(*base);
      }
      SEMKV_EXPECT_OK(semkv_register_kv(device_, &view));
    }
  }

  void CompareLayer(const std::vector<semkv_sequence>& rows, int32_t layer,
                    std::pair<semkv_plan*, semkv_plan*> plans);
  void CheckRow(semkv_sequence sequence, int32_t layer, int32_t r, bool is_sparse,
                std::pair<semkv_plan*, semkv_plan*> plans, const std::vector<uint8_t>& q,
                const std::vector<uint8_t>& out, const std::vector<uint8_t>& host_out);
  static bool HasClusters(const semkv_policy& policy) {
    return policy.kind == SEMKV_POLICY_HYBRID || policy.kind == SEMKV_POLICY_CLUSTER ||
           policy.kind == SEMKV_POLICY_CLUSTERKV;
  }
  double tolerance() const { return dtype() == DType::kBFloat16 ? 1.6e-2 : 2e-3; }
  std::vector<uint8_t> LastRow(semkv_sequence sequence, int64_t row) const {
    const auto at = tokens_.at(sequence).back().begin() + row * shape_.token_floats();
    return Encode(std::vector<float>(at, at + shape_.token_floats()), dtype());
  }
  void ExpectAsGood(semkv_sequence sequence, const std::vector<int32_t>& taken,
                    const std::vector<int32_t>& expected,
                    const std::function<double(const std::vector<int32_t>&)>& mass);
  // The positions that a row of the device's step attends to, per KV head or query head.
  std::vector<int32_t> Selected(semkv_plan* plan, int32_t row, int32_t selection) {
    const int32_t* positions = nullptr;
    int32_t count = 0;
    SEMKV_EXPECT_OK(semkv_select_result(plan, row, selection, &positions, &count));
    return std::vector<int32_t>(positions, positions + count);
  }

  const DeviceContextShape shape_;
  std::mt19937_64 rng_;
  semkv_context* host_ = nullptr;
  semkv_context* device_ = nullptr;
  bool writes_device_ = true;
  cudaStream_t stream_ = nullptr, producer_ = nullptr;
  std::vector<std::unique_ptr<WriteSources>> produced_;
  std::vector<void*> lent_;
  std::vector<float> topics_;
  std::map<semkv_sequence, std::vector<Token>> tokens_;
  std::map<semkv_sequence, semkv_policy> policies_;
  std::map<std::pair<int32_t, int32_t>, std::pair<semkv_plan*, semkv_plan*>> plans_;
  int32_t num_estimates_ = 0, num_masses_ = 0;
  double mass_lost_ = 0;
  double estimate_error_ = 0, plain_error_ = 0;
};

// Clusters of the device are others than the host's, and as good on average; of one head either may
// be the better by a sixth of its mass, of which a list of a small budget can be a large part.
inline void TwoContexts::ExpectAsGood(
    semkv_sequence sequence, const std::vector<int32_t>& taken,
    const std::vector<int32_t>& expected,
    const std::function<double(const std::vector<int32_t>&)>& mass) {
  const semkv_policy& policy = policies_.at(sequence);
  ASSERT_TRUE(std::is_sorted(taken.begin(), taken.end()));
  ASSERT_EQ(std::adjacent_find(taken.begin(), taken.end()), taken.end());
  if (policy.mass_target == 0.0f) {
    ASSERT_EQ(taken.size(), expected.size());
  }
  if (HasClusters(policy)) {
    const double lost = mass(expected) - mass(taken);
    EXPECT_LE(std::abs(lost), 0.2);
    mass_lost_ += lost;
    ++num_masses_;
    return;
  }
  std::vector<int32_t> both;
  std::set_intersection(taken.begin(), taken.end(), expected.begin(), expected.end(),
                        std::back_inserter(both));
  EXPECT_GE(both.size() + 2 + taken.size() / 50, taken.size());
}

inline void TwoContexts::StepAndCompare(const std::vector<semkv_sequence>& rows,
                                        int32_t max_budget) {
  const auto plans = Plans(kMaxRows, max_budget);
  const int32_t n = static_cast<int32_t>(rows.size());
  SEMKV_ASSERT_OK(semkv_plan_step(plans.first, n, rows.data(), nullptr));
  SEMKV_ASSERT_OK(semkv_plan_step(plans.second, n, rows.data(), nullptr));
  for (int32_t layer = 0; layer < shape_.num_layers; ++layer) CompareLayer(rows, layer, plans);
}

inline void TwoContexts::CompareLayer(const std::vector<semkv_sequence>& rows, int32_t layer,
                                      std::pair<semkv_plan*, semkv_plan*> plans) {
  const std::vector<uint8_t> q = NewQueries(static_cast<int32_t>(rows.size()));
  DeviceCopy device_q(q), device_out(std::vector<uint8_t>(q.size(), 0xff));
  semkv_attend_args args = AttendArgs();
  args.q = device_q.data();
  args.out = device_out.data();
  SEMKV_ASSERT_OK(semkv_run_layer(plans.second, layer, nullptr, &args));
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  CheckLayer(rows, layer, plans, q, device_out.Read());
}

inline void TwoContexts::CheckLayer(const std::vector<semkv_sequence>& rows, int32_t layer,
                                    std::pair<semkv_plan*, semkv_plan*> plans,
                                    const std::vector<uint8_t>& q,
                                    const std::vector<uint8_t>& out) {
  std::vector<uint8_t> host_out(q.size());
  semkv_attend_args args = AttendArgs();
  args.q = q.data();
  args.out = host_out.data();
  SEMKV_ASSERT_OK(semkv_run_layer(plans.first, layer, nullptr, &args));
  for (int32_t r = 0; r < static_cast<int32_t>(rows.size()); ++r) {
    SCOPED_TRACE("layer " + std::to_string(layer) + ", row " + std::to_string(r));
    int32_t reason = -1, host_reason = -1;
    SEMKV_ASSERT_OK(semkv_plan_row(plans.first, layer, r, &host_reason));
    SEMKV_ASSERT_OK(semkv_plan_row(plans.second, layer, r, &reason));
    ASSERT_EQ(reason, host_reason);
    CheckRow(rows[r], layer, r, reason == SEMKV_ROW_SPARSE, plans, q, out, host_out);
  }
}

inline void TwoContexts::CheckRow(semkv_sequence sequence, int32_t layer, int32_t r, bool is_sparse,
                                  std::pair<semkv_plan*, semkv_plan*> plans,
                                  const std::vector<uint8_t>& q, const std::vector<uint8_t>& out,
                                  const std::vector<uint8_t>& host_out) {
  const semkv_policy& policy = policies_.at(sequence);
  const int32_t selections = policy.per_query_head != 0 ? shape_.num_heads : shape_.num_kv_heads;
  std::vector<int32_t> all(tokens_.at(sequence).size());
  std::iota(all.begin(), all.end(), 0);
  for (int32_t h = 0; h < shape_.num_heads; ++h) {
    SCOPED_TRACE("head " + std::to_string(h));
    const HeadReference head(shape_, tokens_.at(sequence), layer, h, q, r);
    std::vector<int32_t> taken = all, host_taken = all;
    if (is_sparse) {
      const int32_t s = h * selections / shape_.num_heads;
      taken = Selected(plans.second, r, s);
      host_taken = Selected(plans.first, r, s);
      ExpectAsGood(sequence, taken, host_taken,
                   [&](const auto& positions) { return head.Mass(all, positions); });
    }
    std::vector<double> expected = head.Attend(taken);
    const int64_t first = r * shape_.query_floats() + h * shape_.head_dim;
    if (is_sparse && policy.estimate_rest != 0) {
      const std::vector<double> dense = head.Attend(all);
      for (int32_t c = 0; c < shape_.head_dim; ++c) {
        estimate_error_ += std::abs(LoadAsFloat(out.data(), dtype(), first + c) - dense[c]);
        plain_error_ += std::abs(expected[c] - dense[c]);
        expected[c] = LoadAsFloat(host_out.data(), dtype(), first + c);
      }
      if (HasClusters(policy) || taken != host_taken) continue;
      ++num_estimates_;
    }
    for (int32_t c = 0; c < shape_.head_dim; ++c) {
      const float x = LoadAsFloat(out.data(), dtype(), first + c);
      if (std::isnan(expected[c]) && std::isnan(x)) continue;
      ASSERT_NEAR(x, expected[c], tolerance()) << c;
    }
  }
}

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_CUDA_DEVICE_CONTEXT_H_
