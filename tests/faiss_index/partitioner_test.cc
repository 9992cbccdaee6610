#include "faiss_index/partitioner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "tests/testing/generator_s1.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using ::testing::ElementsAre;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<uint16_t> Members(const Lists& lists, int32_t i) {
  std::vector<uint16_t> members(lists.offsets[i + 1] - lists.offsets[i]);
  if (lists.members.empty()) {
    std::iota(members.begin(), members.end(), lists.offsets[i]);
  } else {
    std::copy_n(lists.members.begin() + lists.offsets[i], members.size(), members.begin());
  }
  return members;
}

// A5, A11: every token in exactly one list, none empty, members ascending.
void ExpectPartition(const Lists& lists, int32_t num_tokens) {
  if (num_tokens == 0) {
    EXPECT_EQ(lists.nlist(), 0);
    return;
  }
  ASSERT_GE(lists.nlist(), 1);
  ASSERT_EQ(lists.offsets[0], 0);
  ASSERT_EQ(lists.offsets.back(), num_tokens);
  std::vector<int32_t> times(num_tokens, 0);
  for (int32_t i = 0; i < lists.nlist(); ++i) {
    const std::vector<uint16_t> members = Members(lists, i);
    ASSERT_FALSE(members.empty());
    for (size_t j = 0; j < members.size(); ++j) {
      ASSERT_LT(members[j], num_tokens);
      ++times[members[j]];
      ASSERT_TRUE(j == 0 || members[j - 1] < members[j]);
    }
  }
  EXPECT_EQ(std::count(times.begin(), times.end(), 1), num_tokens);
}

Lists PartitionSentences(const std::vector<uint8_t>& closes, const SentenceOptions& options) {
  PartitionInput input;
  input.num_tokens = static_cast<int32_t>(closes.size());
  input.closes = closes.data();
  Lists lists;
  EXPECT_TRUE((*MakeSentencePartitioner(options))->Partition(input, &lists).ok());
  return lists;
}

Lists PartitionKeys(const float* keys, int32_t num_tokens, int32_t head_dim,
                    const ClusterOptions& options) {
  PartitionInput input;
  input.num_tokens = num_tokens;
  input.head_dim = head_dim;
  input.keys = keys;
  Lists lists;
  EXPECT_TRUE((*MakeClusterPartitioner(options))->Partition(input, &lists).ok());
  return lists;
}

TEST(SentencePartitionerTest, ListsEndWhereSentencesClose) {
  EXPECT_THAT(PartitionSentences({0, 0, 1, 0, 1, 0}, {1, 64}).offsets, ElementsAre(0, 3, 5, 6));
}

TEST(SentencePartitionerTest, FragmentsJoinWhatFollows) {
  EXPECT_THAT(PartitionSentences({1, 0, 1, 0, 0, 1}, {3, 64}).offsets, ElementsAre(0, 3, 6));
}

TEST(SentencePartitionerTest, LastFragmentJoinsTheListBeforeIfItFits) {
  EXPECT_THAT(PartitionSentences({0, 0, 1, 0}, {2, 4}).offsets, ElementsAre(0, 4));
  EXPECT_THAT(PartitionSentences({0, 0, 1, 0}, {2, 3}).offsets, ElementsAre(0, 3, 4));
}

TEST(SentencePartitionerTest, TextWithoutStopsIsSplitAtTheCap) {
  const Lists lists = PartitionSentences(std::vector<uint8_t>(2000, 0), {8, 64});
  ExpectPartition(lists, 2000);
  EXPECT_EQ(lists.nlist(), 32);
}

TEST(SentencePartitionerTest, RandomFlagsKeepTheContract) {
  for (uint64_t round = 0; round < 200u * testing::SoakFactor(); ++round) {
    const uint64_t seed = testing::TestSeed(3) + round;
    SEMKV_TRACE_SEED(seed);
    std::mt19937_64 rng(seed);
    SentenceOptions options;
    options.min_tokens = 1 + rng() % 12;
    options.max_tokens = options.min_tokens + rng() % 60;
    std::vector<uint8_t> closes(rng() % 700);
    for (uint8_t& c : closes) c = rng() % 15 == 0;
    const int32_t num_tokens = static_cast<int32_t>(closes.size());
    const Lists lists = PartitionSentences(closes, options);
    ExpectPartition(lists, num_tokens);
    EXPECT_EQ(lists.nonfinite_list(), -1);
    for (int32_t i = 0; i < lists.nlist(); ++i) {
      const int32_t size = lists.offsets[i + 1] - lists.offsets[i];
      EXPECT_LE(size, options.max_tokens);
      if (i + 1 == lists.nlist()) continue;
      EXPECT_GE(size, options.min_tokens);
      EXPECT_TRUE(closes[lists.offsets[i + 1] - 1] != 0 || size == options.max_tokens);
    }
  }
}

TEST(PagePartitionerTest, EveryPageIsAList) {
  PartitionInput input;
  for (int32_t num_tokens : {0, 1, 15, 16, 17, 8192, kMaxPartitionTokens}) {
    input.num_tokens = num_tokens;
    Lists lists;
    ASSERT_TRUE((*MakePagePartitioner(16))->Partition(input, &lists).ok());
    ExpectPartition(lists, num_tokens);
    EXPECT_EQ(lists.nlist(), (num_tokens + 15) / 16);
  }
}

TEST(PartitionerTest, RefusesBadOptionsAndInputs) {
  constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(MakeSentencePartitioner({0, 64}).status().code(), kInvalid);
  EXPECT_EQ(MakeSentencePartitioner({65, 64}).status().code(), kInvalid);
  EXPECT_EQ(MakePagePartitioner(0).status().code(), kInvalid);
  ClusterOptions options;
  options.mean_size = 0;
  EXPECT_EQ(MakeClusterPartitioner(options).status().code(), kInvalid);
  for (float share : {-0.1f, 1.0f, kNan}) {
    ClusterOptions lone;
    lone.lone_share = share;
    EXPECT_EQ(MakeClusterPartitioner(lone).status().code(), kInvalid) << share;
  }
  Lists lists;
  PartitionInput input;
  input.num_tokens = kMaxPartitionTokens + 1;
  EXPECT_EQ((*MakePagePartitioner(16))->Partition(input, &lists).code(), kInvalid);
  input.num_tokens = 4;
  EXPECT_EQ((*MakeSentencePartitioner({}))->Partition(input, &lists).code(), kInvalid);
  EXPECT_EQ((*MakeClusterPartitioner({}))->Partition(input, &lists).code(), kInvalid);
}

TEST(ClusterPartitionerTest, RandomKeysKeepTheContract) {
  for (uint64_t round = 0; round < 60u * testing::SoakFactor(); ++round) {
    const uint64_t seed = testing::TestSeed(5) + round;
    SEMKV_TRACE_SEED(seed);
    std::mt19937_64 rng(seed);
    const int32_t num_tokens = static_cast<int32_t>(rng() % 400);
    const int32_t head_dim = 1 + static_cast<int32_t>(rng() % 40);
    std::vector<float> keys = testing::RandomNormal(rng, int64_t{num_tokens} * head_dim);
    int32_t num_bad = 0;
    for (int32_t token = 0; token < num_tokens; ++token) {
      float* key = keys.data() + token * head_dim;
      const uint64_t kind = rng() % 16;
      if (kind == 0) std::fill_n(key, head_dim, 0.0f);
      if (kind == 1) key[rng() % head_dim] = rng() % 2 == 0 ? kNan : -kInf;
      if (kind == 2 && token > 0) std::copy_n(keys.data(), head_dim, key);
      num_bad += !std::all_of(key, key + head_dim, [](float x) { return std::isfinite(x); });
    }
    ClusterOptions options;
    options.mean_size = 1 + static_cast<int32_t>(rng() % 64);
    options.metric = rng() % 2 == 0 ? ClusterMetric::kCosine : ClusterMetric::kCenteredL2;
    options.init = rng() % 2 == 0 ? KMeansInit::kStrided : KMeansInit::kStratified;
    if (rng() % 8 == 0) options.backend = ClusterBackend::kFaiss;
    if (rng() % 2 == 0) options.lone_share = 0.125f * static_cast<float>(rng() % 8);
    const Lists lists = PartitionKeys(keys.data(), num_tokens, head_dim, options);
    ExpectPartition(lists, num_tokens);
    EXPECT_EQ(lists.num_nonfinite, num_bad);
    EXPECT_LE(lists.nlist(), std::max(1, num_tokens / options.mean_size) + 1);
  }
}

TEST(ClusterPartitionerTest, NlistIsClampedToTheTokens) {
  std::mt19937_64 rng(1);
  const std::vector<float> keys = testing::RandomNormal(rng, 5 * 8);
  ClusterOptions options;
  options.nlist = 100;
  const Lists lists = PartitionKeys(keys.data(), 5, 8, options);
  ExpectPartition(lists, 5);
  EXPECT_EQ(lists.nlist(), 5);
}

TEST(ClusterPartitionerTest, ShortInputsGetSmallerClusters) {
  ClusterOptions options;
  options.mean_size = 32;
  const auto lists = [&](int32_t min_nlist, int32_t nlist, int32_t num_tokens) {
    options.min_nlist = min_nlist;
    options.nlist = nlist;
    return NumClusters(options, num_tokens);
  };
  EXPECT_EQ(lists(0, 0, 8192), 256);
  EXPECT_EQ(lists(256, 0, 8192), 256);
  EXPECT_EQ(lists(256, 0, 16384), 512);
  EXPECT_EQ(lists(256, 0, 6000), 256);  // of 23 tokens
  EXPECT_EQ(lists(256, 0, 4096), 256);
  EXPECT_EQ(lists(256, 0, 2000), 125);  // of 16: not below half
  EXPECT_EQ(lists(256, 0, 15), 1);
  EXPECT_EQ(lists(256, 10, 2000), 10);  // a number given is taken
  options.mean_size = 1;
  EXPECT_EQ(lists(256, 0, 100), 100);
}

TEST(ClusterPartitionerTest, EqualKeysMakeOneList) {
  for (ClusterMetric metric : {ClusterMetric::kCenteredL2, ClusterMetric::kCosine}) {
    ClusterOptions options;
    options.metric = metric;
    options.lone_share = 0.5f;
    const std::vector<float> keys(300 * 16, 0.37f);
    const Lists lists = PartitionKeys(keys.data(), 300, 16, options);
    ExpectPartition(lists, 300);
    EXPECT_EQ(lists.nlist(), 1);
  }
}

// Tokens by distance to their centroid, the farthest first; unit keys if `unit`.
std::vector<uint16_t> ByDistance(const KMeansResult& trained, const std::vector<float>& keys,
                                 int32_t head_dim, bool unit) {
  std::vector<std::pair<double, uint16_t>> tokens;
  for (size_t token = 0; token < trained.labels.size(); ++token) {
    double squared = 0.0, norm = 0.0;
    for (int32_t d = 0; d < head_dim; ++d) {
      norm += double{keys[token * head_dim + d]} * keys[token * head_dim + d];
    }
    for (int32_t d = 0; d < head_dim; ++d) {
      const double x = keys[token * head_dim + d] / (unit ? std::sqrt(norm) : 1.0) -
                       double{trained.centroids[trained.labels[token] * head_dim + d]};
      squared += x * x;
    }
    tokens.emplace_back(-squared, static_cast<uint16_t>(token));
  }
  std::sort(tokens.begin(), tokens.end());
  std::vector<uint16_t> order;
  for (const auto& [squared, token] : tokens) order.push_back(token);
  return order;
}

TEST(ClusterPartitionerTest, LoneKeysAreTheFarthestFromTheirCentroids) {
  for (ClusterMetric metric : {ClusterMetric::kCenteredL2, ClusterMetric::kCosine}) {
    std::mt19937_64 rng(7);
    const std::vector<float> keys = testing::RandomNormal(rng, 500 * 16);
    ClusterOptions options;
    options.metric = metric;
    options.nlist = 15;
    const Lists without = PartitionKeys(keys.data(), 500, 16, options);
    KMeansOptions training;
    training.nlist = 15;
    training.metric = metric;
    training.init = options.init;
    training.iterations = options.iterations;
    training.seed = options.seed;
    std::vector<uint16_t> lone = ByDistance(*TrainKMeans(keys.data(), 500, 16, training), keys, 16,
                                            metric == ClusterMetric::kCosine);
    lone.resize(5);
    options.nlist = 20;
    options.lone_share = 0.25f;
    const Lists lists = PartitionKeys(keys.data(), 500, 16, options);
    ASSERT_EQ(lists.nlist(), 20);
    for (int32_t i = 0; i < 5; ++i) EXPECT_THAT(Members(lists, 15 + i), ElementsAre(lone[i]));
    for (int32_t i = 0; i < 15; ++i) {
      std::vector<uint16_t> rest = Members(without, i);
      std::erase_if(rest, [&](uint16_t token) {
        return std::find(lone.begin(), lone.end(), token) != lone.end();
      });
      EXPECT_EQ(Members(lists, i), rest);
    }
  }
}

// A15: a window knows nothing of the tokens around it.
TEST(ClusterPartitionerTest, WindowsPartitionedApartEqualSeparateOnes) {
  testing::S1Options s1;
  s1.num_tokens = 960;
  const testing::S1Data data = testing::GenerateS1(s1);
  ClusterOptions options;
  options.nlist = 10;
  const std::unique_ptr<Partitioner> shared = *MakeClusterPartitioner(options);
  for (int32_t window = 0; window < 3; ++window) {
    PartitionInput input;
    input.num_tokens = 320;
    input.head_dim = s1.head_dim;
    input.keys = data.key(window * 320);
    Lists lists;
    ASSERT_TRUE(shared->Partition(input, &lists).ok());
    const std::vector<float> copy(data.key(window * 320), data.key(window * 320) + 320 * 128);
    const Lists apart = PartitionKeys(copy.data(), 320, 128, options);
    EXPECT_EQ(lists.members, apart.members);
    EXPECT_EQ(lists.offsets, apart.offsets);
  }
}

// A18: one NaN key, one Inf key, 1 % zero keys.
TEST(ClusterPartitionerTest, BadAndZeroKeysLeaveTheOtherClustersAlone) {
  const testing::S1Data data = testing::GenerateS1({});
  const int32_t head_dim = data.options.head_dim;
  std::vector<float> keys = data.keys, kept_keys;
  std::vector<uint16_t> kept, zero;
  keys[int64_t{1234} * head_dim + 7] = kNan;
  keys[int64_t{4321} * head_dim] = kInf;
  for (int32_t token = 0; token < data.options.num_tokens; ++token) {
    float* key = keys.data() + int64_t{token} * head_dim;
    if (token % 100 == 50) {
      std::fill_n(key, head_dim, 0.0f);
      zero.push_back(static_cast<uint16_t>(token));
    } else if (token != 1234 && token != 4321) {
      kept.push_back(static_cast<uint16_t>(token));
      kept_keys.insert(kept_keys.end(), key, key + head_dim);
    }
  }
  for (ClusterMetric metric : {ClusterMetric::kCenteredL2, ClusterMetric::kCosine}) {
    ClusterOptions options;
    options.metric = metric;
    const Lists lists = PartitionKeys(keys.data(), data.options.num_tokens, head_dim, options);
    const Lists without =
        PartitionKeys(kept_keys.data(), static_cast<int32_t>(kept.size()), head_dim, options);
    ExpectPartition(lists, data.options.num_tokens);
    ASSERT_EQ(lists.nlist(), without.nlist() + 2);
    EXPECT_EQ(lists.num_nonfinite, 2);
    EXPECT_THAT(Members(lists, lists.nonfinite_list()), ElementsAre(1234, 4321));
    EXPECT_EQ(Members(lists, lists.nlist() - 2), zero);
    for (int32_t i = 0; i < without.nlist(); ++i) {
      std::vector<uint16_t> expected = Members(without, i);
      for (uint16_t& member : expected) member = kept[member];
      ASSERT_EQ(Members(lists, i), expected);
    }
  }
}

}  // namespace
}  // namespace semkv
