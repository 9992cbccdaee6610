// The inverted file of a sequence: every token in one list of each partition, folding token by
// token equal to folding at once, forks that do not see each other, and selections of exactly the
// budget.

#include "csrc/api/sequence_index.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include "tests/api/index_fixture.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using testing::IndexFixture;
using testing::RandomNormal;
using testing::SoakFactor;
using testing::TestSeed;

constexpr int32_t kHeads = 2;
constexpr int32_t kDim = 64;

std::vector<uint8_t> RandomCloses(std::mt19937_64& rng, int32_t n) {
  std::vector<uint8_t> closes(n);
  for (uint8_t& c : closes) c = rng() % 13 == 0;
  return closes;
}

semkv_policy SmallPolicy(int32_t kind) {
  semkv_policy policy = DefaultPolicy(kind);
  policy.budget = 200;
  return policy;
}

std::vector<ListsView> Views(const SequenceIndex& index, int32_t cell) {
  std::vector<ListsView> views(index.max_views());
  views.resize(index.Views(cell, views.data()));
  return views;
}

// How often each token is in a list of `partition`.
std::map<int32_t, int> Coverage(const SequenceIndex& index, int32_t cell, int32_t partition) {
  std::map<int32_t, int> times;
  for (const ListsView& view : Views(index, cell)) {
    if (view.partition != partition) continue;
    for (int32_t list = 0; list < view.nlist; ++list) {
      for (int32_t j = 0; j < ListSize(view, list); ++j) ++times[MemberPosition(view, list, j)];
    }
  }
  return times;
}

// Everything a decode step would read, as bytes.
std::vector<uint8_t> Bytes(const SequenceIndex& index, int32_t num_cells) {
  std::vector<uint8_t> bytes;
  const auto add = [&](const void* data, int64_t n) {
    const uint8_t* const from = static_cast<const uint8_t*>(data);
    bytes.insert(bytes.end(), from, from + n);
  };
  for (int32_t cell = 0; cell < num_cells; ++cell) {
    for (const ListsView& view : Views(index, cell)) {
      add(&view.partition, 4);
      add(&view.first_position, 4);
      add(view.centroids, int64_t{view.nlist} * CentroidRowBytes(view.form, kDim));
      add(view.scales, int64_t{4} * view.nlist);
      add(view.variances, int64_t{4} * view.nlist);
      add(view.offsets, int64_t{2} * (view.nlist + 1));
      for (int32_t list = 0; list < view.nlist; ++list) {
        for (int32_t j = 0; j < ListSize(view, list); ++j) {
          const int32_t position = MemberPosition(view, list, j);
          add(&position, 4);
        }
      }
    }
  }
  return bytes;
}

// Every token from `begin` on is in a list of each partition that the policy has, and before `once`
// in no second one.
void ExpectReachable(const SequenceIndex& index, int32_t kind, int32_t begin, int32_t once) {
  for (int32_t partition : {0, 1}) {
    if (partition == 0 ? kind == SEMKV_POLICY_CLUSTER : kind == SEMKV_POLICY_SENTENCE) continue;
    const std::map<int32_t, int> times = Coverage(index, 0, partition);
    for (int32_t t = begin; t < index.reachable_end(); ++t) {
      ASSERT_TRUE(times.contains(t)) << t;
      if (t < once) {
        ASSERT_EQ(times.at(t), 1) << t;
      }
    }
  }
}

class CountingPartitioner : public Partitioner {
 public:
  explicit CountingPartitioner(const Partitioner* partitioner) : partitioner_(partitioner) {}

  bool uses_keys() const override { return partitioner_->uses_keys(); }
  bool uses_boundaries() const override { return partitioner_->uses_boundaries(); }
  absl::Status Partition(const PartitionInput& input, Lists* lists) const override {
    ++calls_;
    return partitioner_->Partition(input, lists);
  }
  // Since the last time.
  int32_t Take() const { return calls_.exchange(0); }

 private:
  const Partitioner* const partitioner_;
  mutable std::atomic<int32_t> calls_{0};
};

class SequenceIndexTest : public ::testing::Test {
 protected:
  void Fill(int32_t num_tokens, uint64_t seed) {
    std::mt19937_64 rng(seed);
    keys_ = RandomNormal(rng, int64_t{num_tokens} * kHeads * kDim);
    values_ = RandomNormal(rng, int64_t{num_tokens} * kHeads * kDim);
    queries_ = RandomNormal(rng, int64_t{64} * 2 * kDim, 2.0f);
    closes_ = RandomCloses(rng, num_tokens);
  }
  IndexFixture Make(int32_t kind) {
    return IndexFixture(kHeads, kDim, keys_, values_, SmallPolicy(kind));
  }

  std::vector<float> keys_, values_, queries_;
  std::vector<uint8_t> closes_;
};

TEST_F(SequenceIndexTest, ASegmentHoldsEveryTokenOnceInEachPartition) {
  for (int32_t length : {17, 100, 1000, 8192, 8193, 9000}) {
    Fill(length, 1);
    IndexFixture fixture = Make(SEMKV_POLICY_HYBRID);
    fixture.Index(length, closes_.data());
    for (int32_t cell = 0; cell < kHeads; ++cell) {
      for (int32_t partition : {0, 1}) {
        const std::map<int32_t, int> times = Coverage(fixture.index(), cell, partition);
        EXPECT_EQ(static_cast<int32_t>(times.size()), length - 16);
        for (const auto& [position, n] : times) {
          EXPECT_EQ(n, 1) << "token " << position;
          EXPECT_TRUE(position >= 16 && position < length);
        }
      }
    }
  }
}

// Of one partition, whichever the policy has: what estimate_rest adds up.
TEST_F(SequenceIndexTest, MeanValuesAreOfEveryTokenOnce) {
  constexpr int32_t kLength = 9000, kSinks = 16;
  Fill(kLength + 400, 10);
  for (int32_t kind :
       {SEMKV_POLICY_HYBRID, SEMKV_POLICY_SENTENCE, SEMKV_POLICY_CLUSTER, SEMKV_POLICY_PAGES}) {
    SCOPED_TRACE(PolicyName(kind));
    semkv_policy policy = SmallPolicy(kind);
    policy.estimate_rest = 1;
    IndexFixture fixture(kHeads, kDim, keys_, values_, policy);
    fixture.Index(kLength, closes_.data());
    fixture.Observe(kLength + 400, closes_.data());  // a window and provisional lists
    for (int32_t cell = 0; cell < kHeads; ++cell) {
      std::map<int32_t, int> times;
      std::vector<double> sums(kDim);
      for (const ListsView& view : Views(fixture.index(), cell)) {
        for (int32_t list = 0; list < view.nlist && view.value_means != nullptr; ++list) {
          for (int32_t j = 0; j < ListSize(view, list); ++j) ++times[MemberPosition(view, list, j)];
          for (int32_t c = 0; c < kDim; ++c) {
            sums[c] += ListSize(view, list) *
                       double{FloatFromBFloat16(view.value_means[int64_t{list} * kDim + c])};
          }
        }
      }
      // A page may begin before the sentence or window that replaces others of its tokens ends.
      for (int32_t t = kSinks; t < kLength; ++t) ASSERT_EQ(times[t], 1) << t;
      for (int32_t t = kSinks; t < fixture.index().reachable_end(); ++t)
        ASSERT_GE(times[t], 1) << t;
      for (const auto& [t, n] : times) {
        for (int32_t c = 0; c < kDim; ++c)
          sums[c] -= n * double{values_[(t * kHeads + cell) * kDim + c]};
      }
      for (double sum : sums) EXPECT_NEAR(sum, 0.0, 1.0);  // of 9,000 numbers, bfloat16 means
    }
  }
}

TEST_F(SequenceIndexTest, NoTokenOfTheTailIsOutOfReach) {
  Fill(2000, 2);
  for (int32_t kind : {SEMKV_POLICY_HYBRID, SEMKV_POLICY_SENTENCE, SEMKV_POLICY_CLUSTER,
                       SEMKV_POLICY_PAGES, SEMKV_POLICY_QUEST}) {
    IndexFixture fixture = Make(kind);
    fixture.Index(1003, closes_.data());
    for (int32_t length = 1004; length <= 2000; length += 83) {
      fixture.Observe(length, closes_.data());
      EXPECT_GT(fixture.index().reachable_end(), length - kProvisionalTokens);
      const int32_t last_partition = kind == SEMKV_POLICY_HYBRID ? 1 : 0;
      for (int32_t partition = 0; partition <= last_partition; ++partition) {
        const int32_t p = kind == SEMKV_POLICY_CLUSTER ? 1 : partition;
        const std::map<int32_t, int> times = Coverage(fixture.index(), 1, p);
        for (int32_t t = 16; t < fixture.index().reachable_end(); ++t) {
          EXPECT_TRUE(times.contains(t)) << PolicyName(kind) << " token " << t << " of " << length;
        }
      }
    }
  }
}

TEST_F(SequenceIndexTest, FoldingTokenByTokenEqualsFoldingAtOnce) {
  for (int round = 0; round < SoakFactor(); ++round) {
    const uint64_t seed = TestSeed(3) + round;
    SEMKV_TRACE_SEED(seed);
    Fill(1800, seed);
    for (int32_t kind : {SEMKV_POLICY_HYBRID, SEMKV_POLICY_SENTENCE, SEMKV_POLICY_CLUSTER}) {
      IndexFixture slow = Make(kind), fast = Make(kind);
      slow.Index(700, closes_.data());
      fast.Index(700, closes_.data());
      for (int32_t length = 701; length <= 1800; ++length) slow.Observe(length, closes_.data());
      fast.Observe(1800, closes_.data());
      EXPECT_EQ(Bytes(slow.index(), kHeads), Bytes(fast.index(), kHeads)) << PolicyName(kind);
    }
  }
}

TEST_F(SequenceIndexTest, SentencesOfTheTailAreThoseOfABatch) {
  Fill(3000, 4);
  IndexFixture whole = Make(SEMKV_POLICY_SENTENCE), parts = Make(SEMKV_POLICY_SENTENCE);
  whole.Index(3000, closes_.data());
  parts.Index(16, closes_.data());  // nothing but sinks: every sentence is the tail's
  parts.Observe(3000, closes_.data());
  const ListsView batch = Views(whole.index(), 0)[0], tail = Views(parts.index(), 0)[0];
  ASSERT_EQ(batch.first_position, tail.first_position);
  // The batch has one more: the last, open sentence, which the tail holds in provisional lists.
  ASSERT_GE(batch.nlist, tail.nlist);
  ASSERT_LE(batch.nlist, tail.nlist + 1);
  // A last fragment below the minimum is merged backwards in a batch, so the last border may
  // differ.
  for (int32_t i = 0; i + 1 < tail.nlist; ++i) EXPECT_EQ(batch.offsets[i], tail.offsets[i]) << i;
}

TEST_F(SequenceIndexTest, WindowsDoNotTouchWhatStands) {
  Fill(2000, 5);
  IndexFixture fixture = Make(SEMKV_POLICY_CLUSTER);
  fixture.Index(500, closes_.data());
  fixture.Observe(500 + kWindowTokens, closes_.data());
  const std::vector<uint8_t> before = Bytes(fixture.index(), 1);
  const ListsView clusters_before = Views(fixture.index(), 0)[1];
  fixture.Observe(500 + 2 * kWindowTokens, closes_.data());
  EXPECT_EQ(fixture.progress().windows, 1);
  const ListsView clusters = Views(fixture.index(), 0)[1];
  const int32_t cluster_size = DefaultPolicy(SEMKV_POLICY_CLUSTER).cluster_size;
  ASSERT_EQ(clusters.nlist, clusters_before.nlist + kWindowTokens / cluster_size);
  EXPECT_EQ(std::memcmp(clusters.centroids, clusters_before.centroids,
                        int64_t{clusters_before.nlist} * CentroidRowBytes(clusters.form, kDim)),
            0);
  for (int32_t list = 0; list < clusters_before.nlist; ++list) {
    for (int32_t j = 0; j < ListSize(clusters, list); ++j) {
      EXPECT_LT(MemberPosition(clusters, list, j), 500 + kWindowTokens);
    }
  }
}

TEST_F(SequenceIndexTest, AFullTailIsRepartitionedAsABatchIs) {
  constexpr int32_t kStart = 500;
  for (int32_t kind : {SEMKV_POLICY_HYBRID, SEMKV_POLICY_SENTENCE, SEMKV_POLICY_CLUSTER}) {
    SCOPED_TRACE(PolicyName(kind));
    semkv_policy policy = SmallPolicy(kind);
    policy.segment_tokens = 1024;
    const int32_t full = kStart + policy.segment_tokens, end = full + kRepartitionTokens;
    Fill(end + 50, 6);
    IndexFixture fixture(kHeads, kDim, keys_, values_, policy);
    IndexFixture batch(kHeads, kDim, keys_, values_, policy);
    fixture.Index(kStart, closes_.data());
    fixture.Observe(end - 1, closes_.data());
    EXPECT_EQ(fixture.progress().repartitions, 0);
    ExpectReachable(fixture.index(), kind, 16, kStart);
    fixture.Observe(end, closes_.data());
    EXPECT_EQ(fixture.progress().repartitions, 1);
    ExpectReachable(fixture.index(), kind, 16, full);
    EXPECT_GE(fixture.index().reachable_end(), end - kProvisionalTokens);

    batch.Index(kStart, closes_.data());
    batch.Index(full, closes_.data());
    batch.Observe(end, closes_.data());
    EXPECT_EQ(Bytes(fixture.index(), kHeads), Bytes(batch.index(), kHeads));
  }
}

// An engine that prefills in chunks has the full segments built as they come.
TEST_F(SequenceIndexTest, ObservedChunksOfAPromptAreIndexedAsAtOnce) {
  for (int32_t kind : {SEMKV_POLICY_HYBRID, SEMKV_POLICY_SENTENCE, SEMKV_POLICY_CLUSTER}) {
    SCOPED_TRACE(PolicyName(kind));
    semkv_policy policy = SmallPolicy(kind);
    policy.segment_tokens = 512;
    Fill(1400, 11);
    IndexFixture chunks(kHeads, kDim, keys_, values_, policy);
    IndexFixture whole(kHeads, kDim, keys_, values_, policy);
    for (int32_t length : {1, 511, 512, 700, 1100, 1300}) {
      chunks.Observe(length, closes_.data());
      EXPECT_EQ(chunks.index().num_segments(), length / 512) << length;
      EXPECT_FALSE(chunks.index().indexed());
    }
    chunks.Index(1300, closes_.data());
    EXPECT_EQ(chunks.progress().segments, 1);
    EXPECT_EQ(chunks.progress().first_token, 1024);
    chunks.Observe(1400, closes_.data());
    whole.Index(1300, closes_.data());
    whole.Observe(1400, closes_.data());
    EXPECT_EQ(Bytes(chunks.index(), kHeads), Bytes(whole.index(), kHeads));
  }
}

TEST_F(SequenceIndexTest, AdoptedSegmentsMayBeObservedBeforeTheRestIsIndexed) {
  semkv_policy policy = SmallPolicy(SEMKV_POLICY_HYBRID);
  policy.segment_tokens = 512;
  Fill(1300, 12);
  IndexFixture donor(kHeads, kDim, keys_, values_, policy);
  IndexFixture heir(kHeads, kDim, keys_, values_, policy);
  donor.Index(700, closes_.data());
  EXPECT_EQ(heir.index().AdoptSegments(donor.index(), 700), 512);
  heir.Observe(1200, closes_.data());
  EXPECT_EQ(heir.index().num_segments(), 2);
  heir.Index(1300, closes_.data());
  IndexFixture whole(kHeads, kDim, keys_, values_, policy);
  whole.Index(1300, closes_.data());
  EXPECT_EQ(Bytes(heir.index(), kHeads), Bytes(whole.index(), kHeads));
}

// A step must not wait for all of it.
TEST_F(SequenceIndexTest, EachTokenBuildsItsShareOfARepartition) {
  constexpr int32_t kStart = 500;
  semkv_policy policy = SmallPolicy(SEMKV_POLICY_HYBRID);
  policy.segment_tokens = 1024;
  const int32_t full = kStart + policy.segment_tokens, end = full + kRepartitionTokens;
  Fill(end, 8);
  IndexFixture fixture(kHeads, kDim, keys_, values_, policy);
  absl::StatusOr<IndexRecipe> recipe = MakeIndexRecipe(policy);
  ASSERT_TRUE(recipe.ok()) << recipe.status();
  const auto counting =
      std::make_shared<CountingPartitioner>(recipe->later_clusters.partitioner.get());
  // The border at 1,024 makes two segments of the tail: of each, heads are built one by one.
  IndexRecipe counted = *recipe;
  counted.first_clusters.partitioner = counted.later_clusters.partitioner = counting;
  fixture.index() = SequenceIndex(counted);
  fixture.Index(kStart, closes_.data());
  counting->Take();
  int32_t total = 0;
  for (int32_t length = kStart + 1; length <= end; ++length) {
    fixture.Observe(length, closes_.data());
    const int32_t built = counting->Take();
    EXPECT_LE(built, 2) << length;  // as many as there are threads
    if (length < full) {
      EXPECT_EQ(built, 0) << length;
    }
    total += built;
  }
  EXPECT_EQ(total, 2 * kHeads);
}

TEST_F(SequenceIndexTest, ARepartitionDoesNotDependOnCallsOrForks) {
  constexpr int32_t kStart = 500;
  semkv_policy policy = SmallPolicy(SEMKV_POLICY_HYBRID);
  policy.segment_tokens = 512;
  for (int round = 0; round < SoakFactor(); ++round) {
    const uint64_t seed = TestSeed(9) + round;
    SEMKV_TRACE_SEED(seed);
    const int32_t length = kStart + 3 * policy.segment_tokens + 100;
    Fill(length, seed);
    IndexFixture whole(kHeads, kDim, keys_, values_, policy);
    IndexFixture pieces(kHeads, kDim, keys_, values_, policy);
    whole.Index(kStart, closes_.data());
    pieces.Index(kStart, closes_.data());
    std::mt19937_64 rng(seed);
    for (int32_t at = kStart; at < length;) {
      at = std::min<int32_t>(length, at + 1 + static_cast<int32_t>(rng() % 40));
      if (rng() % 4 == 0) {  // a fork goes on, and what it was forked from goes on beside it
        SequenceIndex fork = pieces.index();
        pieces.Observe(at, closes_.data());
        std::swap(pieces.index(), fork);
      }
      pieces.Observe(at, closes_.data());
      if (rng() % 8 != 0) continue;
      IndexFixture at_once(kHeads, kDim, keys_, values_, policy);
      at_once.Index(kStart, closes_.data());
      at_once.Observe(at, closes_.data());
      ASSERT_EQ(Bytes(pieces.index(), kHeads), Bytes(at_once.index(), kHeads)) << at;
    }
    whole.Observe(length, closes_.data());
    EXPECT_EQ(Bytes(pieces.index(), kHeads), Bytes(whole.index(), kHeads));
    EXPECT_GE(whole.index().num_segments(), 3);
  }
}

TEST_F(SequenceIndexTest, AForkDoesNotSeeWhatItsParentFolds) {
  Fill(1500, 7);
  IndexFixture fixture = Make(SEMKV_POLICY_HYBRID);
  fixture.Index(800, closes_.data());
  fixture.Observe(900, closes_.data());
  const SequenceIndex fork = fixture.index();
  const std::vector<uint8_t> before = Bytes(fork, kHeads);
  fixture.Observe(1500, closes_.data());
  EXPECT_EQ(Bytes(fork, kHeads), before);
  EXPECT_NE(Bytes(fixture.index(), kHeads), before);
}

TEST_F(SequenceIndexTest, SelectionsHoldExactlyTheBudgetAndNoTokenTwice) {
  for (int round = 0; round < 5 * SoakFactor(); ++round) {
    const uint64_t seed = TestSeed(8) + round;
    SEMKV_TRACE_SEED(seed);
    Fill(1500, seed);
    for (int32_t kind : {SEMKV_POLICY_HYBRID, SEMKV_POLICY_SENTENCE, SEMKV_POLICY_CLUSTER,
                         SEMKV_POLICY_PAGES, SEMKV_POLICY_QUEST}) {
      IndexFixture fixture = Make(kind);
      fixture.Index(700, closes_.data());
      for (int32_t length : {701, 777, 1021, 1500}) {
        fixture.Observe(length, closes_.data());
        const int32_t recent = std::max(64, length - fixture.index().reachable_end());
        const std::vector<int32_t> taken =
            fixture.Select(queries_.data() + (length % 60) * kDim, 2, 1, length, recent);
        ASSERT_EQ(taken.size(), 200u);
        EXPECT_TRUE(std::is_sorted(taken.begin(), taken.end()));
        EXPECT_EQ(std::set<int32_t>(taken.begin(), taken.end()).size(), taken.size());
        for (int32_t i = 0; i < 16; ++i) EXPECT_EQ(taken[i], i);
        for (int32_t i = 0; i < 64; ++i) EXPECT_EQ(taken[199 - i], length - 1 - i);
      }
    }
  }
}

// Index bytes of 8,192 tokens beside the sinks as a share of their KV at 16 bits.
double IndexShare(const semkv_policy& policy, int32_t head_dim, int32_t sentence_tokens) {
  const int32_t length = 16 + 8192;
  std::mt19937_64 rng(TestSeed(10));
  const int64_t floats = int64_t{length} * kHeads * head_dim;
  const std::vector<float> keys = RandomNormal(rng, floats), values = RandomNormal(rng, floats);
  std::vector<uint8_t> closes(length, 0);
  for (int32_t t = 15 + sentence_tokens; t < length; t += sentence_tokens) closes[t] = 1;
  IndexFixture fixture(kHeads, head_dim, keys, values, policy);
  fixture.Index(length, closes.data());
  const SequenceIndex& index = fixture.index();
  EXPECT_GE(index.reserved_bytes(), index.bytes());
  // Counted again by what the views show; the places of ranges are stored once for all cells.
  int64_t bytes = 0;
  for (int32_t cell = 0; cell < kHeads; ++cell) {
    for (const ListsView& view : Views(index, cell)) {
      bytes += view.nlist * (int64_t{CentroidRowBytes(view.form, head_dim)} + 4 + 4) +
               int64_t{4} * head_dim;
      if (view.members != nullptr || cell == 0) bytes += 2 * (view.nlist + 1);
      if (view.members != nullptr) bytes += int64_t{2} * view.offsets[view.nlist];
    }
  }
  EXPECT_NEAR(static_cast<double>(index.bytes()), static_cast<double>(bytes), 64);
  const double share = static_cast<double>(index.bytes()) / static_cast<double>(2 * 2 * floats);
  std::printf("head_dim %d, sentences of %d: %.4f\n", head_dim, sentence_tokens, share);
  return share;
}

TEST_F(SequenceIndexTest, AFewPercentOfTheKvHoldTheIndex) {
  const semkv_policy hybrid = DefaultPolicy(SEMKV_POLICY_HYBRID);
  // Ordinary prose has sentences of 25 tokens; those of the generated documents have about 14.
  EXPECT_LE(IndexShare(hybrid, 128, 25), 0.024);
  EXPECT_LE(IndexShare(hybrid, 64, 25), 0.030);
  EXPECT_LE(IndexShare(hybrid, 128, 14), 0.037);
  EXPECT_LE(IndexShare(hybrid, 64, 14), 0.044);
  semkv_policy clusters = DefaultPolicy(SEMKV_POLICY_CLUSTER);
  clusters.cluster_size = 80;
  EXPECT_LE(IndexShare(clusters, 128, 25), 0.012);
}

TEST_F(SequenceIndexTest, KeysThatAreNotFiniteAreNeverSelected) {
  Fill(600, 9);
  IndexFixture clean = Make(SEMKV_POLICY_HYBRID);
  clean.Index(600, closes_.data());
  keys_[(100 * kHeads + 0) * kDim + 3] = std::numeric_limits<float>::quiet_NaN();
  keys_[(200 * kHeads + 0) * kDim + 5] = std::numeric_limits<float>::infinity();
  keys_[(2 * kHeads + 0) * kDim + 5] = 0.0f;
  IndexFixture dirty = Make(SEMKV_POLICY_HYBRID);
  dirty.Index(600, closes_.data());
  for (int32_t q = 0; q < 32; ++q) {
    const std::vector<int32_t> taken = dirty.Select(queries_.data() + q * kDim, 2, 0, 600, 64);
    EXPECT_EQ(taken.size(), 200u);
    EXPECT_FALSE(std::binary_search(taken.begin(), taken.end(), 100));
    EXPECT_FALSE(std::binary_search(taken.begin(), taken.end(), 200));
    // The other head has no such key and is not touched.
    EXPECT_EQ(dirty.Select(queries_.data() + q * kDim, 2, 1, 600, 64),
              clean.Select(queries_.data() + q * kDim, 2, 1, 600, 64));
  }
}

}  // namespace
}  // namespace semkv
