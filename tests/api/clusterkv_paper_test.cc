// Policy clusterkv against a brute force written from ClusterKV's text (research section 1.2,
// checks A10, A11, A13, A15 and A28). The paper starts k-means from random keys, so the test takes
// the library's clusters, holds them to what the paper says of them, and does the rest itself:
// plain loops in float64.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <set>
#include <utility>
#include <vector>

#include "csrc/api/policy.h"
#include "csrc/api/sequence_index.h"
#include "faiss_index/partitioner.h"
#include "semkv/semkv.h"
#include "tests/api/paper_model.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using testing::PaperModel;
using testing::PaperShape;
using testing::SoakFactor;
using testing::TestSeed;

constexpr int32_t kSinks = 16;

semkv_policy PaperPolicy(int32_t budget) {
  semkv_policy policy;
  EXPECT_EQ(semkv_policy_init(&policy, SEMKV_POLICY_CLUSTERKV), SEMKV_OK);
  policy.budget = budget;
  policy.force_sparse = 1;
  return policy;
}

struct Cluster {
  std::vector<int32_t> members;  // positions, ascending
  std::vector<double> mean;      // of the raw keys
};

// The library's clusters of [first, end) in one (layer, KV head).
std::vector<Cluster> Clusters(PaperModel* model, const Partitioner& partitioner, int32_t layer,
                              int32_t kv_head, int32_t first, int32_t end) {
  const int32_t dim = model->shape().dim;
  std::vector<float> keys;
  for (int32_t t = first; t < end; ++t) {
    const float* const key = model->Key(layer, t, kv_head);
    keys.insert(keys.end(), key, key + dim);
  }
  PartitionInput input;
  input.num_tokens = end - first;
  input.head_dim = dim;
  input.keys = keys.data();
  Lists lists;
  EXPECT_TRUE(partitioner.Partition(input, &lists).ok());
  std::vector<Cluster> clusters(lists.nlist());
  for (int32_t i = 0; i < lists.nlist(); ++i) {
    clusters[i].mean.resize(dim);
    const int32_t size = lists.offsets[i + 1] - lists.offsets[i];
    for (int32_t j = lists.offsets[i]; j < lists.offsets[i + 1]; ++j) {
      const int32_t t = first + lists.members[j];
      clusters[i].members.push_back(t);
      for (int32_t c = 0; c < dim; ++c) {
        clusters[i].mean[c] += model->Key(layer, t, kv_head)[c] / static_cast<double>(size);
      }
    }
  }
  return clusters;
}

// Section III-B: a partition of [first, end) in which each key is with the centroid of greatest
// cosine. `settled`: the least share of keys for which that must hold; the last move of the
// centroids may still change the nearest of a few.
void ExpectClusters(PaperModel* model, const std::vector<Cluster>& clusters, int32_t layer,
                    int32_t kv_head, int32_t first, int32_t end, double settled) {
  std::set<int32_t> seen;
  int32_t nearest = 0;
  for (size_t own = 0; own < clusters.size(); ++own) {
    EXPECT_TRUE(std::is_sorted(clusters[own].members.begin(), clusters[own].members.end()));
    for (int32_t t : clusters[own].members) {
      EXPECT_TRUE(seen.insert(t).second);
      const float* const key = model->Key(layer, t, kv_head);
      size_t best = 0;
      double greatest = -2;
      for (size_t i = 0; i < clusters.size(); ++i) {
        double dot = 0, norm = 0;
        for (int32_t c = 0; c < model->shape().dim; ++c) {
          dot += key[c] * clusters[i].mean[c];
          norm += clusters[i].mean[c] * clusters[i].mean[c];
        }
        if (dot / std::sqrt(norm) > greatest) {
          greatest = dot / std::sqrt(norm);
          best = i;
        }
      }
      nearest += best == own ? 1 : 0;
    }
  }
  EXPECT_EQ(static_cast<int32_t>(seen.size()), end - first);
  EXPECT_EQ(*seen.begin(), first);
  EXPECT_EQ(*seen.rbegin(), end - 1);
  EXPECT_GE(nearest, settled * (end - first));
}

// Section III-C for one query head: sinks, clusters by q . centroid until `budget` holds, the last
// one cut, and the tokens that no cluster holds yet, from `open` on, beside the budget.
std::set<int32_t> Select(PaperModel* model, const std::vector<Cluster>& clusters,
                         const float* query, int32_t budget, int32_t open, int32_t t) {
  std::vector<std::pair<double, size_t>> order;
  for (size_t i = 0; i < clusters.size(); ++i) {
    double score = 0;
    for (int32_t c = 0; c < model->shape().dim; ++c) score += query[c] * clusters[i].mean[c];
    order.emplace_back(-score, i);
  }
  std::sort(order.begin(), order.end());
  std::set<int32_t> taken;
  for (int32_t i = 0; i < kSinks; ++i) taken.insert(i);
  for (const auto& [score, i] : order) {
    for (int32_t member : clusters[i].members) {
      if (static_cast<int32_t>(taken.size()) < budget) taken.insert(member);
    }
  }
  for (int32_t i = open; i <= t; ++i) taken.insert(i);
  return taken;
}

// Decodes `steps` tokens and compares each selection with the brute force.
void RunCase(uint64_t seed, const PaperShape& shape, int32_t prompt, int32_t budget,
             int32_t steps) {
  PaperModel model(seed, shape, 4, 30);
  model.Prefill(prompt, /*attend=*/false);
  const semkv_policy policy = PaperPolicy(budget);
  ASSERT_EQ(model.SetPolicy(policy), SEMKV_OK) << semkv_last_error();
  ASSERT_EQ(model.Index(), SEMKV_OK) << semkv_last_error();
  const absl::StatusOr<IndexRecipe> recipe = MakeIndexRecipe(policy);
  ASSERT_TRUE(recipe.ok());
  const int32_t cells = shape.layers * shape.kv_heads;
  std::vector<std::vector<Cluster>> clusters(cells);
  for (int32_t cell = 0; cell < cells; ++cell) {
    const int32_t layer = cell / shape.kv_heads, kv_head = cell % shape.kv_heads;
    clusters[cell] =
        Clusters(&model, *recipe->first_clusters.partitioner, layer, kv_head, kSinks, prompt);
    EXPECT_EQ(static_cast<int32_t>(clusters[cell].size()), (prompt - kSinks) / 80);
    ExpectClusters(&model, clusters[cell], layer, kv_head, kSinks, prompt, 0.98);
  }
  // One segment, whatever the length: the whole prompt was clustered at once.
  EXPECT_EQ(model.Info().num_segments, 1);
  EXPECT_EQ(model.Info().num_lists, cells * ((prompt - kSinks) / 80));

  int64_t same = 0, cases = 0, attended = 0;
  int32_t open = prompt;
  for (int32_t t = prompt; t < prompt + steps; ++t) {
    if (t - open == 320) {  // section III-D: the window before this token is full
      for (int32_t cell = 0; cell < cells; ++cell) {
        const int32_t layer = cell / shape.kv_heads, kv_head = cell % shape.kv_heads;
        const std::vector<Cluster> window =
            Clusters(&model, *recipe->window_clusters.partitioner, layer, kv_head, open, t);
        EXPECT_EQ(window.size(), 4u);
        ExpectClusters(&model, window, layer, kv_head, open, t, 0.98);
        clusters[cell].insert(clusters[cell].end(), window.begin(), window.end());
      }
      open = t;
    }
    const PaperModel::Step step = model.Decode();
    for (int32_t i = 0; i < shape.layers * shape.heads; ++i) {
      const int32_t layer = i / shape.heads, head = i % shape.heads;
      const int32_t cell = layer * shape.kv_heads + model.KvHead(head);
      const std::set<int32_t> expected =
          Select(&model, clusters[cell], model.Query(layer, t, head), budget, open, t);
      const std::set<int32_t>& selected = step.selected[layer][head];
      ++cases;
      attended += static_cast<int64_t>(selected.size());
      // The accuracy path's budget: sinks and clusters fill it, generated tokens come on top.
      EXPECT_EQ(static_cast<int32_t>(selected.size()), budget + t + 1 - open);
      if (selected != expected) continue;
      ++same;
      EXPECT_LE(model.OutputError(layer, t, head, expected, step.out[layer][head]), 1e-4);
    }
  }
  EXPECT_GE(same, cases - cases / 1000) << cases;
  EXPECT_EQ(model.Stats().attended_tokens, static_cast<uint64_t>(attended));
}

TEST(ClusterKvPaperTest, AttendsToWhatTheBruteForceAttendsTo) {  // A28
  for (int round = 0; round < SoakFactor(); ++round) {
    const uint64_t seed = TestSeed(21) + round;
    SEMKV_TRACE_SEED(seed);
    RunCase(seed, PaperShape(), 1200, 200, 700);   // over the ends of two windows
    RunCase(seed + 1, PaperShape(), 700, 17, 20);  // less than one cluster fits
  }
}

TEST(ClusterKvPaperTest, APromptLongerThanOurSegmentsIsClusteredAtOnce) {
  const uint64_t seed = TestSeed(22);
  SEMKV_TRACE_SEED(seed);
  PaperShape shape;
  shape.layers = 1;
  shape.heads = 2;
  shape.kv_heads = 1;
  shape.max_tokens = 20000;
  RunCase(seed, shape, 19000, 512, 40);
}

TEST(ClusterKvPaperTest, BesideTheBudgetIsAnOption) {
  const uint64_t seed = TestSeed(23);
  SEMKV_TRACE_SEED(seed);
  PaperModel model(seed, PaperShape(), 4, 30);
  model.Prefill(900, /*attend=*/false);
  semkv_policy policy = PaperPolicy(128);
  policy.open_beside = 0;
  ASSERT_EQ(model.SetPolicy(policy), SEMKV_OK) << semkv_last_error();
  ASSERT_EQ(model.Index(), SEMKV_OK) << semkv_last_error();
  for (int32_t t = 900; t < 960; ++t) {
    const PaperModel::Step step = model.Decode();
    for (int32_t h = 0; h < 4; ++h) {
      const std::set<int32_t>& selected = step.selected[0][h];
      EXPECT_EQ(selected.size(), 128u);
      for (int32_t i = 900; i <= t; ++i) EXPECT_TRUE(selected.contains(i));
    }
  }
}

TEST(ClusterKvPaperTest, WindowsLeaveThePromptsClustersAlone) {  // A15
  const uint64_t seed = TestSeed(24);
  SEMKV_TRACE_SEED(seed);
  PaperModel model(seed, PaperShape(), 4, 30);
  model.Prefill(1000, /*attend=*/false);
  ASSERT_EQ(model.SetPolicy(PaperPolicy(64)), SEMKV_OK);
  ASSERT_EQ(model.Index(), SEMKV_OK) << semkv_last_error();
  const int64_t lists = model.Info().num_lists;
  for (int32_t t = 1000; t < 1000 + 2 * 320; ++t) {
    EXPECT_EQ(model.Info().num_lists, lists + 4 * 4 * ((t - 1000) / 320)) << t;
    model.Decode();
  }
  EXPECT_EQ(model.Info().num_lists, lists + 4 * 4 * 2);
  EXPECT_EQ(model.Info().num_segments, 1);
}

}  // namespace
}  // namespace semkv
