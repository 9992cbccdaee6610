// Acceptance checks A16-A18 on generator S1: how much of the softmax mass the best lists hold, of
// the mass that the best tokens hold. Selection here is plain loops over float32 mean keys, so that
// the partitions alone are judged.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <numeric>
#include <vector>

#include "faiss_index/partitioner.h"
#include "tests/testing/generator_s1.h"

namespace semkv {
namespace {

using testing::S1Data;
using testing::S1Options;

constexpr int32_t kSinks = 16;

// Lists of the tokens after the sinks, with the mean key and the variance of each.
struct Index {
  std::vector<std::vector<int32_t>> lists;
  std::vector<double> means, variances;
};

Index Build(const S1Data& data, const Partitioner& partitioner) {
  const int32_t d = data.options.head_dim;
  PartitionInput input;
  input.num_tokens = data.options.num_tokens - kSinks;
  input.head_dim = d;
  input.keys = data.key(kSinks);
  input.closes = data.closes.data() + kSinks;
  Lists lists;
  EXPECT_TRUE(partitioner.Partition(input, &lists).ok());
  Index index;
  for (int32_t i = 0; i < lists.nlist(); ++i) {
    std::vector<int32_t> members;
    for (int32_t j = lists.offsets[i]; j < lists.offsets[i + 1]; ++j) {
      members.push_back(kSinks + (lists.members.empty() ? j : lists.members[j]));
    }
    std::vector<double> mean(d, 0.0);
    double squares = 0.0, norm = 0.0;
    for (int32_t token : members) {
      for (int32_t c = 0; c < d; ++c) {
        mean[c] += data.key(token)[c] / static_cast<double>(members.size());
        squares +=
            double{data.key(token)[c]} * data.key(token)[c] / static_cast<double>(members.size());
      }
    }
    for (double m : mean) norm += m * m;
    index.means.insert(index.means.end(), mean.begin(), mean.end());
    index.variances.push_back(squares - norm);
    index.lists.push_back(std::move(members));
  }
  return index;
}

// The sinks and, in the order of the estimated mass per token (docs/design.md, section 4), members
// of lists up to the budget; of the last list the most recent.
std::vector<int32_t> Select(const S1Data& data, const Index& index, const float* query,
                            int32_t budget) {
  const int32_t d = data.options.head_dim;
  const double norm = std::inner_product(query, query + d, query, 0.0);
  std::vector<std::pair<double, int32_t>> ranked;
  for (size_t i = 0; i < index.lists.size(); ++i) {
    const double dot = std::inner_product(query, query + d, &index.means[i * d], 0.0);
    const double v = norm / d * index.variances[i] / d;
    const double log_size = std::log(static_cast<double>(index.lists[i].size()));
    const double f = v <= 2 * log_size ? v / 2 : std::sqrt(2 * v * log_size) - log_size;
    ranked.emplace_back(-(dot / std::sqrt(static_cast<double>(d)) + f), static_cast<int32_t>(i));
  }
  std::sort(ranked.begin(), ranked.end());
  std::vector<int32_t> tokens(kSinks);
  std::iota(tokens.begin(), tokens.end(), 0);
  for (const auto& [score, i] : ranked) {
    const std::vector<int32_t>& list = index.lists[i];
    const int32_t room = budget - static_cast<int32_t>(tokens.size());
    const int32_t taken = std::min<int32_t>(room, static_cast<int32_t>(list.size()));
    tokens.insert(tokens.end(), list.end() - taken, list.end());
  }
  return tokens;
}

struct Quality {
  double mass = 0.0;   // captured, of what the best tokens capture
  double error = 0.0;  // |outputs - dense outputs| / |dense outputs|, over all queries
};

// What all queries ask of a text, computed once.
class Judge {
 public:
  explicit Judge(const S1Options& options) : data_(testing::GenerateS1(options)) {
    for (int32_t i = 0; i < options.num_queries; ++i) {
      masses_.push_back(testing::SoftmaxMass(data_, i));
      dense_.push_back(Output(masses_[i], nullptr));
    }
  }
  const S1Data& data() const { return data_; }

  Quality Measure(const Index& index, int32_t budget) const {
    double captured = 0.0, oracle = 0.0, difference = 0.0, norm = 0.0;
    for (int32_t i = 0; i < data_.options.num_queries; ++i) {
      const std::vector<int32_t> tokens = Select(data_, index, data_.query(i), budget);
      EXPECT_EQ(tokens.size(), static_cast<size_t>(budget));
      const double sum = testing::CapturedMass(masses_[i], tokens);
      captured += sum;
      oracle += testing::OracleMass(masses_[i], budget);
      const std::vector<double> sparse = Output(masses_[i], &tokens);
      for (size_t c = 0; c < sparse.size(); ++c) {
        const double error = sparse[c] / sum - dense_[i][c];
        difference += error * error;
        norm += dense_[i][c] * dense_[i][c];
      }
    }
    return {captured / oracle, std::sqrt(difference / norm)};
  }

 private:
  // The sum of values by mass, over `tokens`, or all.
  std::vector<double> Output(const std::vector<double>& mass,
                             const std::vector<int32_t>* tokens) const {
    std::vector<double> output(data_.options.head_dim, 0.0);
    const size_t count = tokens != nullptr ? tokens->size() : mass.size();
    for (size_t j = 0; j < count; ++j) {
      const int32_t token = tokens != nullptr ? (*tokens)[j] : static_cast<int32_t>(j);
      for (size_t c = 0; c < output.size(); ++c) output[c] += mass[token] * data_.value(token)[c];
    }
    return output;
  }

  S1Data data_;
  std::vector<std::vector<double>> masses_, dense_;
};

std::unique_ptr<Partitioner> Clusters(ClusterMetric metric = ClusterMetric::kCenteredL2,
                                      int32_t iterations = 10) {
  ClusterOptions options;
  options.metric = metric;
  options.iterations = iterations;
  return *MakeClusterPartitioner(options);
}

std::unique_ptr<Partitioner> Sentences() { return *MakeSentencePartitioner({}); }
std::unique_ptr<Partitioner> Pages() { return *MakePagePartitioner(16); }

TEST(PartitionQualityTest, A16ClustersAndSentencesCaptureTheMass) {
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    S1Options options;
    options.seed = seed;
    const Judge judge(options);
    const Index clusters = Build(judge.data(), *Clusters()),
                sentences = Build(judge.data(), *Sentences());
    const Index pages = Build(judge.data(), *Pages());
    for (int32_t budget : {256, 1024}) {
      const Quality c = judge.Measure(clusters, budget), s = judge.Measure(sentences, budget);
      const Quality p = judge.Measure(pages, budget);
      std::printf(
          "A16 seed %d budget %4d: mass clusters %.4f sentences %.4f pages %.4f; error "
          "%.3f %.3f %.3f\n",
          int(seed), budget, c.mass, s.mass, p.mass, c.error, s.error, p.error);
      EXPECT_GE(c.mass, 0.99);
      EXPECT_GE(s.mass, 0.98);
      EXPECT_LE(c.error, 0.5 * p.error);
    }
  }
}

TEST(PartitionQualityTest, A17FiveIterationsAreNearlyEnough) {
  for (uint64_t seed = 1; seed <= 2; ++seed) {
    S1Options options;
    options.seed = seed;
    const Judge judge(options);
    double mass[3];
    const int32_t iterations[] = {1, 5, 20};
    for (int i = 0; i < 3; ++i) {
      const auto partitioner = Clusters(ClusterMetric::kCosine, iterations[i]);
      mass[i] = judge.Measure(Build(judge.data(), *partitioner), 256).mass;
    }
    std::printf("A17 seed %d: mass after 1, 5, 20 iterations %.4f %.4f %.4f\n", int(seed), mass[0],
                mass[1], mass[2]);
    EXPECT_GE(mass[1], 0.97 * mass[2]);
  }
}

TEST(PartitionQualityTest, A17SentencesMatchClustersWithoutFunctionWords) {
  S1Options options;
  options.function_share = 0.0f;
  const Judge judge(options);
  const Index clusters = Build(judge.data(), *Clusters()),
              sentences = Build(judge.data(), *Sentences());
  for (int32_t budget : {256, 1024}) {
    const double c = judge.Measure(clusters, budget).mass;
    const double s = judge.Measure(sentences, budget).mass;
    std::printf("A17 no function words, budget %4d: clusters %.4f sentences %.4f\n", budget, c, s);
    EXPECT_NEAR(c, s, 0.003);
  }
}

TEST(PartitionQualityTest, A18CenteredClustersBearOutlierChannels) {
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    S1Options options;
    options.seed = seed;
    options.outlier_channels = 4;
    const Judge judge(options);
    const Index centered = Build(judge.data(), *Clusters());
    const Index raw = Build(judge.data(), *Clusters(ClusterMetric::kCosine));
    for (int32_t budget : {256, 1024}) {
      const double c = judge.Measure(centered, budget).mass;
      std::printf("A18 seed %d budget %4d: centred L2 %.4f, raw cosine %.4f\n", int(seed), budget,
                  c, judge.Measure(raw, budget).mass);
      EXPECT_GE(c, budget == 256 ? 0.96 : 0.98);
    }
  }
}

}  // namespace
}  // namespace semkv
