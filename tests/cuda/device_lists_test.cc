// Inverted lists that are built in device memory, beside those that the host builds of the same
// keys: equal ranges, clusters as good, every vector the mean of its members. Emulated only: these
// are the library's insides.

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "csrc/api/policy.h"
#include "csrc/api/sequence_index.h"
#include "csrc/ops/numeric/float_convert.h"
#include "tests/cuda/device_copy.h"
#include "tests/cuda/run_captured.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

constexpr int32_t kLayers = 3, kHeads = 2, kDim = 64, kPageTokens = 16;
constexpr int32_t kCells = kLayers * kHeads;
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// A view whose arrays have been read back.
struct ReadLists {
  ListsView view;
  std::vector<uint8_t> centroids;
  std::vector<float> scales, variances, center;
  std::vector<uint16_t> offsets, members, excluded, value_means;

  bool are_ranges() const { return members.empty(); }
  int32_t size(int32_t list) const { return offsets[list + 1] - offsets[list]; }
  int32_t position(int32_t list, int32_t j) const {
    const int32_t at = offsets[list] + j;
    return view.first_position + (are_ranges() ? at : members[at]);
  }
  float Channel(int32_t list, int32_t c) const {
    const int64_t at = int64_t{list} * kDim + c;
    switch (view.form) {
      case CentroidForm::kInt8:
        return center[c] + scales[list] * static_cast<int8_t>(centroids[at]);
      case CentroidForm::kInt4:
        return center[c] + scales[list] * Int4Code(centroids[list * kDim / 2 + Int4Byte(c)], c);
      case CentroidForm::kBFloat16:
        return center[c] + LoadAsFloat(centroids.data(), DType::kBFloat16, at);
      default:
        return LoadAsFloat(centroids.data(), DType::kFloat32, at);
    }
  }
};

// Copies of a view's arrays, which are in device memory or not.
class Reader {
 public:
  explicit Reader(bool is_device) : is_device_(is_device) {}

  ReadLists operator()(const ListsView& view) const {
    ReadLists lists;
    lists.view = view;
    lists.offsets = Read(view.offsets, view.nlist + 1);
    lists.members = Read(view.members, lists.offsets.back());
    lists.centroids = Read(static_cast<const uint8_t*>(view.centroids),
                           view.nlist * CentroidRowBytes(view.form, kDim));
    lists.scales = Read(view.scales, view.nlist);
    lists.variances = Read(view.variances, view.nlist);
    lists.center = Read(view.center, kDim);
    lists.excluded = Read(view.excluded, view.num_excluded);
    lists.value_means = Read(view.value_means, int64_t{view.nlist} * kDim);
    std::sort(lists.excluded.begin(), lists.excluded.end());
    return lists;
  }

 private:
  template <typename T>
  std::vector<T> Read(const T* from, int64_t count) const {
    if (from == nullptr || count == 0) return {};
    if (!is_device_) return std::vector<T>(from, from + count);
    std::vector<T> to(count);
    EXPECT_EQ(cudaMemcpy(to.data(), from, count * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess);
    return to;
  }

  const bool is_device_;
};

std::vector<ReadLists> ReadBack(const SequenceIndex& index, int32_t cell, bool is_device) {
  std::vector<ListsView> views(index.max_views());
  views.resize(index.Views(cell, views.data()));
  std::vector<ReadLists> lists;
  for (const ListsView& view : views) lists.push_back(Reader(is_device)(view));
  return lists;
}

// The same keys in host and device memory, and an index of each.
class TwoIndexes {
 public:
  TwoIndexes(const semkv_policy& policy, int32_t num_tokens, DType dtype, uint64_t seed)
      : dtype_(dtype), num_tokens_(num_tokens), rng_(seed), pool_(2), device_(*OpenDevice(0)) {
    const int32_t num_pages = CeilDiv(num_tokens, kPageTokens);
    pages_.resize(num_pages);
    std::iota(pages_.begin(), pages_.end(), 0);
    std::shuffle(pages_.begin(), pages_.end(), rng_);
    for (int32_t t = 0; t < num_tokens; ++t) closes_.push_back(rng_() % 11 == 0);
    absl::StatusOr<IndexRecipe> recipe = MakeIndexRecipe(policy);
    EXPECT_TRUE(recipe.ok()) << recipe.status();
    host_ = device_index_ = SequenceIndex(*std::move(recipe));
    bytes_.resize(kLayers, std::vector<uint8_t>(2 * num_pages * kPageTokens * kHeads * kDim));
    keys_.resize(int64_t{kCells} * num_tokens * kDim);
    FillKeys();
  }

  float* Key(int32_t cell, int32_t position) {
    return &keys_[(int64_t{cell} * num_tokens_ + position) * kDim];
  }

  // Keys as the pools hold them, after they were changed.
  void Store() {
    device_bytes_.clear();
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      for (int32_t cell = layer * kHeads; cell < (layer + 1) * kHeads; ++cell) {
        for (int32_t t = 0; t < num_tokens_; ++t) StoreKey(layer, cell, t);
      }
      device_bytes_.push_back(std::make_unique<testing::DeviceCopy>(bytes_[layer]));
    }
  }

  void Index(int32_t length) {
    SequenceIndex::Progress progress;
    for (bool on_device : {false, true}) {
      const absl::Status status =
          index(on_device).Index(Source(on_device), length, closes_.data(), &progress);
      ASSERT_TRUE(status.ok()) << status;
    }
  }
  void Observe(SequenceIndex& index, bool on_device, int32_t length) {
    SequenceIndex::Progress progress;
    const absl::Status status =
        index.Observe(Source(on_device), length, closes_.data(), length, &progress);
    ASSERT_TRUE(status.ok()) << status;
  }
  void Observe(int32_t length) {
    for (bool on_device : {false, true}) Observe(index(on_device), on_device, length);
  }
  SequenceIndex& index(bool on_device) { return on_device ? device_index_ : host_; }

  void ExpectAlike() { ExpectAlike(device_index_); }
  void ExpectAlike(const SequenceIndex& device_index) {
    device_objective_ = host_objective_ = 0;
    for (int32_t cell = 0; cell < kCells; ++cell) {
      SCOPED_TRACE("cell " + std::to_string(cell));
      const std::vector<ReadLists> host = ReadBack(host_, cell, false),
                                   device = ReadBack(device_index, cell, true);
      ASSERT_EQ(device.size(), host.size());
      for (size_t i = 0; i < host.size(); ++i) {
        ASSERT_EQ(device[i].view.partition, host[i].view.partition);
        ASSERT_EQ(device[i].view.first_position, host[i].view.first_position);
        EXPECT_EQ(device[i].excluded, host[i].excluded);
        ASSERT_EQ(device[i].are_ranges(), host[i].are_ranges());
        if (host[i].are_ranges()) {
          EXPECT_EQ(device[i].offsets, host[i].offsets);
        } else {
          CompareClusters(cell, device[i], host[i]);
        }
        ExpectVectors(cell, device[i]);
        ASSERT_EQ(device[i].value_means.empty(), host[i].value_means.empty());
        if (!host[i].value_means.empty()) ExpectValueMeans(cell, device[i]);
        for (size_t c = 0; c < host[i].center.size(); ++c) {
          EXPECT_NEAR(device[i].center[c], host[i].center[c], 1e-4);
        }
      }
    }
    // Another rounding may end in another local minimum, better or worse.
    EXPECT_LE(device_objective_, 1.05 * host_objective_);
  }

 private:
  void FillKeys() {
    constexpr int32_t kTopics = 24;
    const std::vector<float> topics = testing::RandomNormal(rng_, kTopics * kDim);
    const std::vector<float> noise =
        testing::RandomNormal(rng_, static_cast<int64_t>(keys_.size()), 0.3f);
    for (int32_t cell = 0; cell < kCells; ++cell) {
      for (int32_t t = 0; t < num_tokens_; ++t) {
        const int64_t topic = (t / 19 + 7 * cell) % kTopics;
        for (int32_t c = 0; c < kDim; ++c) {
          const int64_t at = Key(cell, t) + c - keys_.data();
          keys_[at] = topics[topic * kDim + c] + noise[at] + (c == 5 ? 8.0f : 0.0f);
        }
      }
    }
    Store();
  }

  void StoreKey(int32_t layer, int32_t cell, int32_t t) {
    const int64_t slot = int64_t{pages_[t / kPageTokens]} * kPageTokens + t % kPageTokens;
    const int64_t row = (slot * kHeads + cell % kHeads) * kDim;
    for (int32_t c = 0; c < kDim; ++c) {
      float& x = Key(cell, t)[c];
      StoreFromFloat(bytes_[layer].data(), dtype_, row + c, x);
      x = LoadAsFloat(bytes_[layer].data(), dtype_, row + c);
    }
  }

  KeySource Source(bool on_device) {
    views_.resize(kLayers);
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      KvView& view = views_[layer];
      view.k = on_device ? device_bytes_[layer]->data() : bytes_[layer].data();
      // Values of a head are the other's keys.
      view.v = static_cast<uint16_t*>(view.k) + (kHeads - 1) * kDim;
      view.k_head = kDim;
      view.v_head = -kDim;
      view.k_token = view.v_token = kHeads * kDim;
      view.k_page = view.v_page = kPageTokens * view.k_token;
      view.page_tokens = kPageTokens;
      view.num_pages = static_cast<int32_t>(pages_.size());
      view.dtype = dtype_;
    }
    KeySource source;
    source.layers = views_;
    source.pages = pages_.data();
    source.num_kv_heads = kHeads;
    source.head_dim = kDim;
    source.pool = &pool_;
    source.scratch = &scratch_;
    if (on_device) source.device = device_.get();
    return source;
  }

  bool IsFinite(int32_t cell, int32_t position) {
    const float* const key = Key(cell, position);
    return std::all_of(key, key + kDim, [](float x) { return std::isfinite(x); });
  }

  struct MeanKey {
    std::vector<double> mean = std::vector<double>(kDim), least, greatest;
    double squares = 0;  // sum of squared distances to the mean
    int32_t count = 0;   // of finite keys
  };
  MeanKey MeanOf(int32_t cell, const ReadLists& lists, int32_t list) {
    MeanKey m;
    m.least.assign(kDim, INFINITY);
    m.greatest.assign(kDim, -INFINITY);
    const auto for_each = [&](auto use) {
      for (int32_t j = 0; j < lists.size(list); ++j) {
        const int32_t position = lists.position(list, j);
        if (!IsFinite(cell, position)) continue;
        for (int32_t c = 0; c < kDim; ++c) use(c, double{Key(cell, position)[c]});
        m.count += 1;
      }
    };
    for_each([&](int32_t c, double x) {
      m.mean[c] += x;
      m.least[c] = std::min(m.least[c], x);
      m.greatest[c] = std::max(m.greatest[c], x);
    });
    for (double& x : m.mean) x /= std::max(1, m.count);
    m.count = 0;
    for_each([&](int32_t c, double x) { m.squares += (x - m.mean[c]) * (x - m.mean[c]); });
    return m;
  }

  void ExpectVectors(int32_t cell, const ReadLists& lists) {
    for (int32_t list = 0; list < lists.view.nlist; ++list) {
      SCOPED_TRACE("list " + std::to_string(list));
      const MeanKey m = MeanOf(cell, lists, list);
      if (m.count == 0) continue;
      if (lists.view.form == CentroidForm::kBounds) {
        for (int32_t c = 0; c < kDim; ++c) {
          const int64_t at = 2 * int64_t{list} * kDim + c;
          const float least = LoadAsFloat(lists.centroids.data(), DType::kBFloat16, at);
          const float greatest = LoadAsFloat(lists.centroids.data(), DType::kBFloat16, at + kDim);
          EXPECT_LE(least, m.least[c]);
          EXPECT_GE(greatest, m.greatest[c]);
          EXPECT_NEAR(least, m.least[c], 0.01 * std::abs(m.least[c]) + 1e-6);
          EXPECT_NEAR(greatest, m.greatest[c], 0.01 * std::abs(m.greatest[c]) + 1e-6);
        }
        continue;
      }
      for (int32_t c = 0; c < kDim; ++c) {
        double tolerance =
            1e-4 + 0.004 * std::abs(m.mean[c] - (lists.center.empty() ? 0 : lists.center[c]));
        if (HasScales(lists.view.form)) tolerance = 1e-4 + 0.51 * lists.scales[list];
        EXPECT_NEAR(lists.Channel(list, c), m.mean[c], tolerance) << "channel " << c;
      }
      EXPECT_NEAR(lists.variances[list], m.squares / m.count, 1e-3 * m.squares / m.count + 1e-4);
    }
  }

  void ExpectValueMeans(int32_t cell, const ReadLists& lists) {
    const int32_t head = cell % kHeads, of_values = cell - head + kHeads - 1 - head;
    for (int32_t list = 0; list < lists.view.nlist; ++list) {
      const MeanKey m = MeanOf(of_values, lists, list);
      for (int32_t c = 0; c < kDim; ++c) {
        EXPECT_NEAR(FloatFromBFloat16(lists.value_means[int64_t{list} * kDim + c]), m.mean[c],
                    0.004 * std::abs(m.mean[c]) + 1e-5)
            << "list " << list << ", channel " << c;
      }
    }
  }

  void CompareClusters(int32_t cell, const ReadLists& device, const ReadLists& host) {
    const auto objective = [&](const ReadLists& lists, std::vector<int32_t>* tokens) {
      double sum = 0;
      for (int32_t list = 0; list < lists.view.nlist; ++list) {
        for (int32_t j = 0; j < lists.size(list); ++j) tokens->push_back(lists.position(list, j));
        sum += MeanOf(cell, lists, list).squares;
      }
      std::sort(tokens->begin(), tokens->end());
      return sum;
    };
    std::vector<int32_t> device_tokens, host_tokens;
    const double ours = objective(device, &device_tokens), theirs = objective(host, &host_tokens);
    EXPECT_EQ(device_tokens, host_tokens);
    device_objective_ += ours;
    host_objective_ += theirs;
  }

  const DType dtype_;
  const int32_t num_tokens_;
  std::mt19937_64 rng_;
  ThreadPool pool_;
  IndexScratch scratch_{kDim, 2};
  std::unique_ptr<Device> device_;
  std::vector<int32_t> pages_;
  std::vector<uint8_t> closes_;
  std::vector<float> keys_;                  // [kCells, num_tokens, kDim], as stored
  std::vector<std::vector<uint8_t>> bytes_;  // of each layer
  std::vector<std::unique_ptr<testing::DeviceCopy>> device_bytes_;
  std::vector<KvView> views_;
  SequenceIndex host_, device_index_;
  double device_objective_ = 0, host_objective_ = 0;  // of k-means, over all cells
};

semkv_policy SmallPolicy(int32_t kind) {
  semkv_policy policy = DefaultPolicy(kind);
  policy.budget = 128;
  policy.segment_tokens = 1024;
  policy.kmeans_iterations = 3;
  return policy;
}

// Whose lists have mean values too.
semkv_policy EstimatingPolicy(int32_t kind) {
  semkv_policy policy = SmallPolicy(kind);
  policy.estimate_rest = 1;
  return policy;
}

TEST(DeviceListsTest, AreThoseOfTheHost) {
  const uint64_t seed = testing::TestSeed(3);
  SEMKV_TRACE_SEED(seed);
  std::vector<semkv_policy> policies;
  for (int32_t kind : {SEMKV_POLICY_HYBRID, SEMKV_POLICY_SENTENCE, SEMKV_POLICY_CLUSTER,
                       SEMKV_POLICY_QUEST, SEMKV_POLICY_PAGES, SEMKV_POLICY_CLUSTERKV}) {
    policies.push_back(SmallPolicy(kind));
  }
  policies.push_back(EstimatingPolicy(SEMKV_POLICY_HYBRID));
  policies.back().centroid_form = SEMKV_CENTROID_BF16;
  policies.back().cluster_metric = SEMKV_METRIC_COSINE;
  for (int32_t form : {int32_t{SEMKV_CENTROID_INT4}, int32_t{SEMKV_CENTROID_INT8}}) {
    policies.push_back(EstimatingPolicy(SEMKV_POLICY_HYBRID));
    policies.back().centroid_form = form;
  }
  for (size_t i = 0; i < policies.size(); ++i) {
    SCOPED_TRACE(std::string(PolicyName(policies[i].kind)) + ", case " + std::to_string(i));
    TwoIndexes indexes(policies[i], 700, i % 2 == 0 ? DType::kFloat16 : DType::kBFloat16, seed);
    indexes.Index(339);
    indexes.ExpectAlike();
    for (int32_t length : {340, 360, 700}) {
      indexes.Observe(length);
      indexes.ExpectAlike();
      if (::testing::Test::HasFailure()) return;
    }
  }
}

TEST(DeviceListsTest, FullTailsBecomeSegments) {
  const uint64_t seed = testing::TestSeed(4);
  SEMKV_TRACE_SEED(seed);
  TwoIndexes indexes(EstimatingPolicy(SEMKV_POLICY_HYBRID), 1500, DType::kBFloat16, seed);
  indexes.Index(120);
  for (int32_t length : {1100, 1200, 1500}) {
    indexes.Observe(length);
    indexes.ExpectAlike();
  }
  EXPECT_EQ(indexes.index(/*on_device=*/true).num_segments(), 3);
}

TEST(DeviceListsTest, ZeroKeysAndThoseThatAreNotFiniteHaveListsOfTheirOwn) {
  const uint64_t seed = testing::TestSeed(5);
  SEMKV_TRACE_SEED(seed);
  for (int32_t kind : {SEMKV_POLICY_HYBRID, SEMKV_POLICY_PAGES}) {
    TwoIndexes indexes(EstimatingPolicy(kind), 330, DType::kFloat16, seed);
    for (int32_t position : {20, 21, 299}) indexes.Key(0, position)[3] = kNaN;
    indexes.Key(3, 100)[kDim - 1] = -INFINITY;
    indexes.Key(4, 329)[0] = INFINITY;  // a cell's only one, its last token
    for (int32_t position : {40, 41, 200}) std::fill_n(indexes.Key(1, position), kDim, 0.0f);
    indexes.Store();
    indexes.Index(330);
    indexes.ExpectAlike();
  }
}

// A fork shares its parent's memory until one of them gets more lists.
TEST(DeviceListsTest, ForksDoNotSeeEachOther) {
  const uint64_t seed = testing::TestSeed(6);
  SEMKV_TRACE_SEED(seed);
  TwoIndexes indexes(EstimatingPolicy(SEMKV_POLICY_HYBRID), 800, DType::kBFloat16, seed);
  indexes.Index(100);
  indexes.Observe(430);
  testing::TakeRuntimeCalls();
  SequenceIndex fork = indexes.index(/*on_device=*/true);
  EXPECT_TRUE(testing::TakeRuntimeCalls().empty());
  indexes.Observe(500);
  indexes.ExpectAlike();
  // The fork's lists are those of 430 tokens still: folding the rest of them now gives the same.
  indexes.Observe(fork, /*on_device=*/true, 500);
  indexes.ExpectAlike(fork);
  indexes.Observe(800);
  indexes.Observe(fork, /*on_device=*/true, 800);
  indexes.ExpectAlike();
  indexes.ExpectAlike(fork);
}

TEST(DeviceListsTest, ObservingWaitsForNothing) {
  TwoIndexes indexes(SmallPolicy(SEMKV_POLICY_HYBRID), 500, DType::kBFloat16, 7);
  indexes.Index(100);
  testing::TakeRuntimeCalls();
  indexes.Observe(indexes.index(/*on_device=*/true), /*on_device=*/true, 500);
  for (const auto& [call, count] : testing::TakeRuntimeCalls()) {
    EXPECT_TRUE(call == "launch" || call == "cudaMemcpy2DAsync" || call == "cudaMallocAsync" ||
                call == "cudaFreeAsync" || call == "cudaMemsetAsync" || call == "cudaGetDevice")
        << count << " " << call;
  }
}

}  // namespace
}  // namespace semkv
