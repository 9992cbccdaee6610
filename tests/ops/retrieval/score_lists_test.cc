#include "csrc/ops/retrieval/score_lists.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "csrc/ops/parallel/thread_pool.h"
#include "tests/ops/retrieval/retrieval_cases.h"
#include "tests/ops/retrieval/score_lists_cases.h"
#include "tests/testing/random.h"
#include "tests/testing/simd_targets.h"

namespace semkv {
namespace {

using ::semkv::testing::ExpectKeysNear;
using ::semkv::testing::FirstChannel;
using ::semkv::testing::ForEachSimdTarget;
using ::semkv::testing::kInfinity;
using ::semkv::testing::kNan;
using ::semkv::testing::kPoison;
using ::semkv::testing::RandomScoreCase;
using ::semkv::testing::ReferenceKeys;
using ::semkv::testing::RetrievalCase;
using ::semkv::testing::RetrievalCases;
using ::semkv::testing::RetrievalInput;
using ::semkv::testing::SmallScoreInput;
using ::semkv::testing::SoakFactor;
using ::semkv::testing::TestSeed;

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

class ScoreListsCaseTest : public ::testing::TestWithParam<RetrievalCase> {};

TEST_P(ScoreListsCaseTest, EqualsTheReferenceOnEveryTarget) {
  RetrievalInput input(GetParam(), 1);
  const std::vector<float> expected = ReferenceKeys(input);
  ForEachSimdTarget([&] { ExpectKeysNear(HostKeys(input, 1), expected, 1e-4); });
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
    const RetrievalCase c = RandomScoreCase(rng);
    SCOPED_TRACE("round " + std::to_string(round));
    RetrievalInput input(c, rng());
    const std::vector<float> expected = ReferenceKeys(input);
    ForEachSimdTarget([&] { ExpectKeysNear(HostKeys(input, 2), expected, 2e-4); });
  }
}

TEST(ScoreListsTest, WeighsTheKeysOfEachPartition) {
  RetrievalCase c;
  RetrievalInput plain(c, 4);
  c.sentence_weight = 0.25f;
  c.cluster_weight = 2.0f;
  RetrievalInput weighed(c, 4);
  std::vector<float> expected = HostKeys(plain, 1);
  const ScoreListsParams p = plain.Score();
  for (int32_t task = 0; task < p.num_rows * p.num_selections; ++task) {
    float* keys = expected.data() + task * p.keys_stride;
    for (int32_t v = p.view_begin[task]; v < p.view_begin[task + 1]; ++v) {
      const float weight = p.views[v].partition == 0 ? c.sentence_weight : c.cluster_weight;
      for (int32_t i = 0; i < p.views[v].nlist; ++i, ++keys) {
        if (*keys >= 0) *keys *= weight;
      }
    }
  }
  EXPECT_EQ(HostKeys(weighed, 1), expected);  // powers of two: to the bit
}

// By the host on every target, which must agree with the reference.
std::vector<float> Keys(SmallScoreInput& input) {
  const ScoreListsParams p = input.Params();
  ScoreListsReference(p);
  const std::vector<float> expected = input.keys;
  ForEachSimdTarget([&] {
    ThreadPool pool(1);
    std::vector<uint8_t> workspace(
        ScoreListsWorkspaceBytes(p.num_heads, 1, 16, input.view.nlist, 1));
    ScoreListsHost(p, workspace.data(), workspace.size(), pool);
    ExpectKeysNear(input.keys, expected, 1e-4);
  });
  return input.keys;
}

TEST(ScoreListsTest, OrdersListsByScoreForEveryNumberOfLists) {
  for (int32_t nlist : {1, 2, 100, 128, 200, 206, 255, 256, 257, 409, 1638}) {
    std::mt19937_64 rng(nlist);
    std::vector<float> scores(nlist);
    for (int32_t i = 0; i < nlist; ++i) scores[i] = 0.01f * static_cast<float>(i);
    std::shuffle(scores.begin(), scores.end(), rng);
    SmallScoreInput input(FirstChannel(scores));
    input.q[0] = 1.0f;
    const std::vector<float> keys = Keys(input);
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
  SmallScoreInput input = testing::NotANumberCase();
  const std::vector<float> keys = Keys(input);
  EXPECT_EQ(keys[1], -1.0f);
  EXPECT_NEAR(keys[0] + keys[2] + keys[3], 1.0f, 1e-5f);
}

TEST(ScoreListsTest, LeavesOutEmptyListsWhateverTheirCentroid) {
  SmallScoreInput input = testing::EmptyListCase();
  const std::vector<float> keys = Keys(input);
  EXPECT_EQ(keys[1], -1.0f);
  EXPECT_NEAR(5 * keys[0] + 4 * keys[2], 1.0f, 1e-5f);
}

TEST(ScoreListsTest, GivesInfiniteScoresAllTheMass) {
  SmallScoreInput input = testing::InfiniteScoresCase();
  const std::vector<float> keys = Keys(input);
  EXPECT_EQ(keys, (std::vector<float>{0.0f, 0.25f, 0.25f, 0.0f}));
}

TEST(ScoreListsTest, RanksEveryListAlikeForAZeroQuery) {
  SmallScoreInput input = testing::ZeroQueryCase();
  EXPECT_EQ(Keys(input), (std::vector<float>{0.25f, 0.25f, 0.25f, 0.25f}));
}

TEST(ScoreListsTest, SelectsNothingForAQueryThatIsNotFinite) {
  for (float bad : {kNan, kInfinity, -kInfinity}) {
    SmallScoreInput input = testing::QueryNotFiniteCase(bad);
    EXPECT_EQ(Keys(input), (std::vector<float>{-1.0f, -1.0f, -1.0f}));
  }
}

TEST(ScoreListsTest, AddsTheVarianceTermOfItsFormula) {
  for (VarianceTerm term : {VarianceTerm::kBounded, VarianceTerm::kHalf, VarianceTerm::kNone}) {
    SmallScoreInput input = testing::VarianceCase(term);
    const std::vector<float> keys = Keys(input);
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
