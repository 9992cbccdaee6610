// Generator S1: synthetic keys with known structure, the data of the retrieval quality checks
// A16-A18 (papers file, section 6). Topics and "function words" are normal vectors; a text is a
// sequence of sentences of one topic each; a token's key is the vector of its topic, or of a
// function word, plus noise; a query is a topic vector plus noise. Options add what real keys have:
// a few outlier channels and a mean key that differs from segment to segment.
//
// Also here: the softmax mass of each token under a query, and the mass of the best `budget`
// tokens, the oracle that every selection is compared with.

#ifndef SEMKV_TESTS_TESTING_GENERATOR_S1_H_
#define SEMKV_TESTS_TESTING_GENERATOR_S1_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#include "tests/testing/random.h"

namespace semkv::testing {

struct S1Options {
  uint64_t seed = 1;
  int32_t num_tokens = 8192;
  int32_t head_dim = 128;
  int32_t num_queries = 64;
  int32_t num_topics = 64;
  int32_t num_function_words = 8;
  int32_t min_sentence = 10;  // tokens, uniform
  int32_t max_sentence = 40;
  float function_share = 0.3f;  // of the tokens
  float key_noise = 0.7f;       // standard deviation
  float query_noise = 0.3f;
  int32_t outlier_channels =
      0;  // 4 in A18: +outlier, -outlier, ... on channels spread over the head
  float outlier = 12.0f;
  float outlier_noise = 0.2f;  // multiplicative, per token
  int32_t segment_tokens = 0;  // > 0: every so many tokens the keys get another mean
  float segment_mean = 0.0f;   // standard deviation of that mean's channels
};

struct S1Data {
  S1Options options;
  std::vector<float> keys;             // [num_tokens, head_dim]
  std::vector<float> values;           // [num_tokens, head_dim]
  std::vector<float> queries;          // [num_queries, head_dim]
  std::vector<uint8_t> closes;         // [num_tokens]: 1 at the last token of a sentence
  std::vector<int32_t> sentence_ends;  // ascending, one past the last token of each sentence
  std::vector<int32_t> sources;        // [num_tokens]: topic, or num_topics + function word
  std::vector<int32_t> query_topics;   // [num_queries]

  const float* key(int32_t token) const { return keys.data() + int64_t{token} * options.head_dim; }
  const float* value(int32_t token) const {
    return values.data() + int64_t{token} * options.head_dim;
  }
  const float* query(int32_t i) const { return queries.data() + int64_t{i} * options.head_dim; }
};

// What each token is about, and where sentences end.
inline void WriteS1Text(std::mt19937_64& rng, S1Data* data) {
  const S1Options& o = data->options;
  std::uniform_int_distribution<int32_t> length(o.min_sentence, o.max_sentence);
  std::uniform_int_distribution<int32_t> topic(0, o.num_topics - 1);
  std::uniform_int_distribution<int32_t> word(0, std::max(1, o.num_function_words) - 1);
  std::bernoulli_distribution is_word(o.num_function_words > 0 ? o.function_share : 0.0f);
  for (int32_t token = 0; token < o.num_tokens;) {
    const int32_t end = std::min(o.num_tokens, token + length(rng));
    const int32_t sentence_topic = topic(rng);
    for (; token < end; ++token) {
      data->sources.push_back(is_word(rng) ? o.num_topics + word(rng) : sentence_topic);
      data->closes.push_back(token + 1 == end ? 1 : 0);
    }
    data->sentence_ends.push_back(end);
  }
}

inline void AddOutliers(std::mt19937_64& rng, S1Data* data) {
  const S1Options& o = data->options;
  std::normal_distribution<float> normal(0.0f, 1.0f);
  for (int32_t token = 0; token < o.num_tokens; ++token) {
    for (int32_t i = 0; i < o.outlier_channels; ++i) {
      const int32_t channel = (2 * i + 1) * o.head_dim / (2 * o.outlier_channels);
      const float sign = i % 2 == 0 ? 1.0f : -1.0f;
      data->keys[int64_t{token} * o.head_dim + channel] +=
          sign * o.outlier * (1.0f + o.outlier_noise * normal(rng));
    }
  }
}

inline void AddSegmentMeans(std::mt19937_64& rng, S1Data* data) {
  const S1Options& o = data->options;
  std::vector<float> mean;
  for (int32_t token = 0; token < o.num_tokens; ++token) {
    if (token % o.segment_tokens == 0) mean = RandomNormal(rng, o.head_dim, o.segment_mean);
    for (int32_t d = 0; d < o.head_dim; ++d) {
      data->keys[int64_t{token} * o.head_dim + d] += mean[d];
    }
  }
}

inline S1Data GenerateS1(const S1Options& options) {
  S1Data data;
  data.options = options;
  std::mt19937_64 rng(options.seed);
  const int64_t dim = options.head_dim;
  const std::vector<float> vectors =
      RandomNormal(rng, (options.num_topics + options.num_function_words) * dim);
  WriteS1Text(rng, &data);
  data.keys = RandomNormal(rng, options.num_tokens * dim, options.key_noise);
  for (int32_t token = 0; token < options.num_tokens; ++token) {
    const float* vector = vectors.data() + data.sources[token] * dim;
    for (int64_t d = 0; d < dim; ++d) data.keys[token * dim + d] += vector[d];
  }
  data.values = RandomNormal(rng, options.num_tokens * dim);
  data.queries = RandomNormal(rng, options.num_queries * dim, options.query_noise);
  std::uniform_int_distribution<int32_t> topic(0, options.num_topics - 1);
  for (int32_t i = 0; i < options.num_queries; ++i) {
    data.query_topics.push_back(topic(rng));
    const float* vector = vectors.data() + data.query_topics[i] * dim;
    for (int64_t d = 0; d < dim; ++d) data.queries[i * dim + d] += vector[d];
  }
  if (options.outlier_channels > 0) AddOutliers(rng, &data);
  if (options.segment_tokens > 0) AddSegmentMeans(rng, &data);
  return data;
}

// softmax(query . keys / sqrt(head_dim)) over `num_tokens` keys.
inline std::vector<double> SoftmaxMass(const float* query, const float* keys, int32_t num_tokens,
                                       int32_t head_dim) {
  std::vector<double> mass(num_tokens);
  for (int32_t token = 0; token < num_tokens; ++token) {
    const float* key = keys + int64_t{token} * head_dim;
    double dot = 0.0;
    for (int32_t d = 0; d < head_dim; ++d) dot += double{query[d]} * key[d];
    mass[token] = dot / std::sqrt(static_cast<double>(head_dim));
  }
  const double greatest = num_tokens > 0 ? *std::max_element(mass.begin(), mass.end()) : 0.0;
  double sum = 0.0;
  for (double& m : mass) sum += m = std::exp(m - greatest);
  for (double& m : mass) m /= sum;
  return mass;
}

inline std::vector<double> SoftmaxMass(const S1Data& data, int32_t query) {
  return SoftmaxMass(data.query(query), data.keys.data(), data.options.num_tokens,
                     data.options.head_dim);
}

// The mass of a selection; no token may be in it twice.
inline double CapturedMass(const std::vector<double>& mass, const std::vector<int32_t>& tokens) {
  double sum = 0.0;
  for (int32_t token : tokens) sum += mass[token];
  return sum;
}

// The most that any `budget` tokens can capture.
inline double OracleMass(std::vector<double> mass, int32_t budget) {
  const auto end = mass.begin() + std::min<int64_t>(budget, static_cast<int64_t>(mass.size()));
  std::partial_sort(mass.begin(), end, mass.end(), std::greater<>());
  return std::accumulate(mass.begin(), end, 0.0);
}

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_TESTING_GENERATOR_S1_H_
