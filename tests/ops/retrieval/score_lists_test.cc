#include "csrc/ops/retrieval/score_lists.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "csrc/ops/parallel/thread_pool.h"
#include "tests/ops/retrieval/each_target.h"
#include "tests/ops/retrieval/retrieval_cases.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using ::semkv::testing::ForEachTarget;
using ::semkv::testing::RetrievalCase;
using ::semkv::testing::RetrievalCases;
using ::semkv::testing::RetrievalInput;
using ::semkv::testing::SoakFactor;
using ::semkv::testing::TestSeed;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kPoison = -12345.0f;

// Keys of `input` by the host operation; what lies past the lists of a task stays poisoned.
std::vector<float> HostKeys(RetrievalInput& input, int num_threads) {
  ThreadPool pool(num_threads);
  std::fill(input.keys.begin(), input.keys.end(), kPoison);
  const ScoreListsParams p = input.Score();
  std::vector<uint8_t> workspace(ScoreListsWorkspaceBytes(p.num_heads, p.num_selections, p.head_dim,
                                                          input.max_lists(), num_threads));
  ScoreListsHost(p, workspace.data(), workspace.size(), pool);
  return input.keys;
}

std::vector<float> ReferenceKeys(RetrievalInput& input) {
  std::fill(input.keys.begin(), input.keys.end(), kPoison);
  ScoreListsReference(input.Score());
  return input.keys;
}

void ExpectNear(const std::vector<float>& keys, const std::vector<float>& expected,
                double relative) {
  ASSERT_EQ(keys.size(), expected.size());
  for (size_t i = 0; i < keys.size(); ++i) {
    // Below 1e-30 float32 runs out of exponent before float64 does.
    ASSERT_NEAR(keys[i], expected[i], relative * std::abs(expected[i]) + 1e-30) << "list " << i;
  }
}

class ScoreListsCaseTest : public ::testing::TestWithParam<RetrievalCase> {};

TEST_P(ScoreListsCaseTest, EqualsTheReferenceOnEveryTarget) {
  RetrievalInput input(GetParam(), 1);
  const std::vector<float> expected = ReferenceKeys(input);
  ForEachTarget([&] { ExpectNear(HostKeys(input, 1), expected, 1e-4); });
}

TEST_P(ScoreListsCaseTest, DoesNotDependOnThreads) {
  RetrievalInput input(GetParam(), 2);
  const std::vector<float> one = HostKeys(input, 1);
  EXPECT_EQ(HostKeys(input, 3), one);
}

INSTANTIATE_TEST_SUITE_P(Cases, ScoreListsCaseTest, ::testing::ValuesIn(RetrievalCases()),
                         [](const auto& info) { return info.param.name; });

TEST(ScoreListsTest, EqualsTheReferenceOnRandomRaggedRows) {
  const uint64_t seed = TestSeed(3);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (int round = 0; round < 20 * SoakFactor(); ++round) {
    RetrievalCase c;
    c.num_selections = 1 + rng() % 3;
    c.num_heads = c.num_selections * (1 + rng() % 9);
    c.head_dim = 16 * (1 + rng() % 16);
    c.form = static_cast<CentroidForm>(rng() % 4);
    c.q_dtype = static_cast<DType>(rng() % 3);
    c.variance = static_cast<VarianceTerm>(rng() % 3);
    c.rank = static_cast<GroupRank>(rng() % 2);
    c.sentence_tokens = rng() % 3 == 0 ? 0 : 1 + rng() % 40;
    c.cluster_tokens = rng() % 3 == 0 ? 0 : 1 + rng() % 40;
    c.contexts.assign(1 + rng() % 3, 0);
    for (int32_t& context : c.contexts) context = 1 + rng() % 1500;
    SCOPED_TRACE("round " + std::to_string(round));
    RetrievalInput input(c, rng());
    const std::vector<float> expected = ReferenceKeys(input);
    ForEachTarget([&] { ExpectNear(HostKeys(input, 2), expected, 2e-4); });
  }
}

// One selection over `centroids` [nlist, 16] in float32, scale 1, lists of `size` tokens.
struct SmallInput {
  explicit SmallInput(std::vector<float> vectors, int32_t size = 1) : centroids(vectors) {
    const int32_t nlist = static_cast<int32_t>(centroids.size() / 16);
    for (int32_t i = 0; i <= nlist; ++i) offsets.push_back(static_cast<uint16_t>(i * size));
    q.assign(16, 0.0f);
    view.nlist = nlist;
    view.form = CentroidForm::kFloat32;
    view_begin = {0, 1};
    keys.resize(nlist);
  }

  std::vector<float> Keys() {
    view.centroids = centroids.data();
    view.offsets = offsets.data();
    view.variances = variances.empty() ? nullptr : variances.data();
    ScoreListsParams p;
    p.q = q.data();
    p.q_head = 16;
    p.num_rows = p.num_selections = 1;
    p.num_heads = static_cast<int32_t>(q.size() / 16);
    p.head_dim = 16;
    p.scale = 1.0f;
    p.rows = &row;
    p.views = &view;
    p.view_begin = view_begin.data();
    p.keys = keys.data();
    p.keys_stride = static_cast<int64_t>(keys.size());
    ScoreListsReference(p);
    const std::vector<float> expected = keys;
    ForEachTarget([&] {
      ThreadPool pool(1);
      std::vector<uint8_t> workspace(ScoreListsWorkspaceBytes(p.num_heads, 1, 16, view.nlist, 1));
      ScoreListsHost(p, workspace.data(), workspace.size(), pool);
      ExpectNear(keys, expected, 1e-4);
    });
    return keys;
  }

  std::vector<float> centroids, q, variances, keys;
  std::vector<uint16_t> offsets;
  std::vector<int32_t> view_begin;
  ListsView view;
  RetrievalRow row;
};

// [nlist, 16] with `values` in the first channel.
std::vector<float> FirstChannel(const std::vector<float>& values) {
  std::vector<float> centroids(values.size() * 16, 0.0f);
  for (size_t i = 0; i < values.size(); ++i) centroids[i * 16] = values[i];
  return centroids;
}

TEST(ScoreListsTest, OrdersListsByScoreForEveryNumberOfLists) {
  for (int32_t nlist : {1, 2, 100, 128, 200, 206, 255, 256, 257, 409, 1638}) {
    std::mt19937_64 rng(nlist);
    std::vector<float> scores(nlist);
    for (int32_t i = 0; i < nlist; ++i) scores[i] = 0.01f * static_cast<float>(i);
    std::shuffle(scores.begin(), scores.end(), rng);
    SmallInput input(FirstChannel(scores));
    input.q[0] = 1.0f;
    const std::vector<float> keys = input.Keys();
    std::vector<int32_t> order(nlist), expected(nlist);
    std::iota(order.begin(), order.end(), 0);
    expected = order;
    std::sort(order.begin(), order.end(), [&](int a, int b) { return keys[a] > keys[b]; });
    std::sort(expected.begin(), expected.end(),
              [&](int a, int b) { return scores[a] > scores[b]; });
    EXPECT_EQ(order, expected) << nlist << " lists";
  }
}

TEST(ScoreListsTest, LeavesOutListsWhoseScoreIsNotANumber) {
  SmallInput input(FirstChannel({1.0f, kNan, 2.0f, 0.0f}));
  input.q[0] = 1.0f;
  const std::vector<float> keys = input.Keys();
  EXPECT_EQ(keys[1], -1.0f);
  EXPECT_NEAR(keys[0] + keys[2] + keys[3], 1.0f, 1e-5f);
}

TEST(ScoreListsTest, LeavesOutEmptyListsWhateverTheirCentroid) {
  SmallInput input(FirstChannel({1.0f, 100.0f, 2.0f}));
  input.q[0] = 1.0f;
  input.offsets = {0, 5, 5, 9};
  const std::vector<float> keys = input.Keys();
  EXPECT_EQ(keys[1], -1.0f);
  EXPECT_NEAR(5 * keys[0] + 4 * keys[2], 1.0f, 1e-5f);
}

TEST(ScoreListsTest, GivesInfiniteScoresAllTheMass) {
  SmallInput input(FirstChannel({1.0f, kInfinity, kInfinity, -kInfinity}), 2);
  input.q.assign(16, 0.0f);
  input.q[0] = 1.0f;
  input.centroids[16 + 1] = 3.0f;
  const std::vector<float> keys = input.Keys();
  EXPECT_EQ(keys, (std::vector<float>{0.0f, 0.25f, 0.25f, 0.0f}));
}

TEST(ScoreListsTest, RanksEveryListAlikeForAZeroQuery) {
  SmallInput input(FirstChannel({1.0f, 2.0f, 3.0f, 4.0f}));
  EXPECT_EQ(input.Keys(), (std::vector<float>{0.25f, 0.25f, 0.25f, 0.25f}));
}

TEST(ScoreListsTest, SelectsNothingForAQueryThatIsNotFinite) {
  for (float bad : {kNan, kInfinity, -kInfinity}) {
    SmallInput input(FirstChannel({1.0f, 2.0f, 3.0f}));
    input.q.assign(32, 1.0f);  // two heads, one of them good
    input.q[20] = bad;
    EXPECT_EQ(input.Keys(), (std::vector<float>{-1.0f, -1.0f, -1.0f}));
  }
}

TEST(ScoreListsTest, AddsTheVarianceTermOfItsFormula) {
  for (VarianceTerm term : {VarianceTerm::kBounded, VarianceTerm::kHalf, VarianceTerm::kNone}) {
    SmallInput input(FirstChannel({0.0f, 0.0f, 0.0f, 0.0f, 0.0f}));
    input.q.assign(16, 2.0f);  // |q|^2 / head_dim = 4
    input.row.variance = term;
    input.offsets = {0, 1, 9, 17, 25, 26};
    input.variances = {0.5f, 0.1f, 1.0f, 3.0f, 0.0f};  // v = 2, 0.4, 4, 12, 0; 2 ln 8 = 4.16
    const std::vector<float> keys = input.Keys();
    const double log8 = std::log(8.0);
    std::vector<double> f = {0.0, 0.2, 2.0, std::sqrt(2 * 12 * log8) - log8, 0.0};
    if (term == VarianceTerm::kHalf) f = {1.0, 0.2, 2.0, 6.0, 0.0};
    if (term == VarianceTerm::kNone) f = {0.0, 0.0, 0.0, 0.0, 0.0};
    for (int i = 0; i < 4; ++i) {
      EXPECT_NEAR(std::log(keys[i] / keys[4]), f[i], 1e-4) << "list " << i;
    }
  }
}

TEST(ScoreListsTest, AnswersEveryKvHeadFromItsOwnChannels) {
  // KV head s has keys on channels [8 s, 8 s + 8) only; swapping two heads swaps their keys.
  RetrievalCase c;
  c.contexts = {800};
  c.num_heads = 4;
  c.num_selections = 2;
  c.head_dim = 16;
  c.form = CentroidForm::kFloat32;
  c.segment_tokens = 1024;
  RetrievalInput input(c, 11);
  for (int32_t s = 0; s < 2; ++s) {
    for (int32_t v = 2 * s; v < 2 * s + 2; ++v) {
      float* const x = static_cast<float*>(const_cast<void*>(input.views()[v].centroids));
      for (int32_t i = 0; i < 16 * input.views()[v].nlist; ++i) {
        if (i % 16 / 8 != s) x[i] = 0.0f;
      }
    }
  }
  const std::vector<float> keys = HostKeys(input, 1);
  // Queries on the other head's channels say nothing here.
  float* const q = reinterpret_cast<float*>(input.q().data());
  for (int32_t h = 0; h < 4; ++h) {
    for (int32_t ch = 0; ch < 16; ++ch) {
      if (ch / 8 != h / 2) q[h * 16 + ch] = 0.0f;
    }
  }
  for (ListsView& view : input.views()) view.variances = nullptr;
  const std::vector<float> masked = HostKeys(input, 1);
  std::swap_ranges(q, q + 32, q + 32);
  std::swap(input.views()[0], input.views()[2]);
  std::swap(input.views()[1], input.views()[3]);
  const std::vector<float> swapped = HostKeys(input, 1);
  const int64_t stride = input.max_lists();
  for (int64_t i = 0; i < stride; ++i) {
    EXPECT_EQ(swapped[i], masked[stride + i]);
    EXPECT_EQ(swapped[stride + i], masked[i]);
  }
  EXPECT_NE(keys, masked);  // the variance term was there before
}

TEST(ScoreListsTest, RanksInt8LikeTheFloatsTheyStandFor) {
  RetrievalCase c;
  c.contexts = {4000};
  c.num_heads = c.num_selections = 1;
  c.head_dim = 128;
  RetrievalInput input(c, 12);
  const std::vector<float> keys = HostKeys(input, 1);
  std::vector<std::vector<float>> decoded;
  for (ListsView& view : input.views()) {
    std::vector<float>& x = decoded.emplace_back();
    for (int32_t i = 0; i < view.nlist * 128; ++i) {
      const float code = static_cast<const int8_t*>(view.centroids)[i];
      x.push_back(view.center[i % 128] + view.scales[i / 128] * code);
    }
    view.form = CentroidForm::kFloat32;
  }
  for (size_t v = 0; v < decoded.size(); ++v) input.views()[v].centroids = decoded[v].data();
  const std::vector<float> floats = HostKeys(input, 1);
  for (size_t i = 0; i < keys.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      if (floats[i] > floats[j] * 1.0002f) {
        ASSERT_GT(keys[i], keys[j]) << i << " and " << j;
      }
    }
  }
}

}  // namespace
}  // namespace semkv
