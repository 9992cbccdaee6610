// What SentenceKV keeps: the host form against the reference and against a brute force written from
// the paper's text (research checks A8 and A9).

#include "csrc/ops/retrieval/keep_tokens.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "csrc/ops/parallel/thread_pool.h"
#include "tests/testing/random.h"
#include "tests/testing/simd_targets.h"

namespace semkv {
namespace {

using testing::Encode;
using testing::ForEachSimdTarget;
using testing::RandomNormal;
using testing::SoakFactor;
using testing::TestSeed;

constexpr int32_t kPageTokens = 16;

// Keys of one layer in pages of a shuffled order, and the window's queries.
struct Input {
  Input(uint64_t seed, int32_t tokens, int32_t window, int32_t heads, int32_t kv_heads, int32_t dim,
        DType dtype = DType::kFloat32)
      : rng(seed), keys(RandomNormal(rng, int64_t{tokens} * kv_heads * dim)) {
    q = RandomNormal(rng, int64_t{window} * heads * dim, 2.0f);
    params.num_window = window;
    params.num_heads = heads;
    params.num_kv_heads = kv_heads;
    params.head_dim = dim;
    params.scale = 1.0f / std::sqrt(static_cast<float>(dim));
    params.num_tokens = tokens;
    params.position.dtype = dtype;
    pages.resize(CeilDiv(tokens, kPageTokens));
    std::iota(pages.begin(), pages.end(), 0);
    std::shuffle(pages.begin(), pages.end(), rng);
  }

  KeepTokensParams Params(int32_t num_kept) {
    const int64_t row = int64_t{params.num_kv_heads} * params.head_dim;
    std::vector<float> paged(pages.size() * kPageTokens * row);
    for (int32_t t = 0; t < params.num_tokens; ++t) {
      const int64_t slot = pages[t / kPageTokens] * kPageTokens + t % kPageTokens;
      std::copy_n(keys.begin() + t * row, row, paged.begin() + slot * row);
    }
    stored = Encode(paged, params.position.dtype);
    alpha.assign(int64_t{params.num_heads} * (params.num_tokens - params.num_window), -7.0f);
    kept.assign(int64_t{params.num_heads} * num_kept, -7);
    KeepTokensParams p = params;
    p.q = q.data();
    p.position.k = stored.data();
    p.position.k_page = kPageTokens * row;
    p.position.k_head = params.head_dim;
    p.position.k_token = row;
    p.position.page_tokens = kPageTokens;
    p.position.num_pages = static_cast<int32_t>(pages.size());
    p.block_table = pages.data();
    p.num_kept = num_kept;
    p.alpha = alpha.data();
    p.kept = kept.data();
    return p;
  }

  void RunHost(int32_t num_kept, int threads = 1) {
    const KeepTokensParams p = Params(num_kept);
    std::vector<uint8_t> workspace(
        KeepTokensWorkspaceBytes(p.num_tokens, p.num_window, p.head_dim, threads));
    ThreadPool pool(threads);
    KeepTokensHost(p, workspace.data(), workspace.size(), pool);
  }

  std::mt19937_64 rng;
  std::vector<float> keys, q;  // [tokens, kv heads, dim], [window, heads, dim]
  KeepTokensParams params;
  std::vector<int32_t> pages;
  std::vector<uint8_t> stored;
  std::vector<float> alpha;
  std::vector<int32_t> kept;
};

// alpha of head `h` as section 4.1 has it, and the mass that each window query gives to it and to
// the window's own columns.
std::vector<double> BruteForceAlpha(const Input& in, int32_t h, std::vector<double>* mass) {
  const KeepTokensParams& p = in.params;
  const int32_t kv_head = h * p.num_kv_heads / p.num_heads, before = p.num_tokens - p.num_window;
  std::vector<double> alpha(before);
  for (int32_t j = 0; j < p.num_window; ++j) {
    std::vector<double> weight;
    double sum = 0;
    for (int32_t t = 0; t <= before + j; ++t) {
      double dot = 0;
      for (int32_t c = 0; c < p.head_dim; ++c) {
        dot += static_cast<double>(in.q[(j * p.num_heads + h) * p.head_dim + c]) *
               in.keys[(t * p.num_kv_heads + kv_head) * p.head_dim + c];
      }
      weight.push_back(std::exp(dot / std::sqrt(static_cast<double>(p.head_dim))));
      sum += weight.back();
    }
    double window = 0;
    for (int32_t t = 0; t <= before + j; ++t) {
      if (t < before) {
        alpha[t] += weight[t] / sum;
      } else {
        window += weight[t] / sum;
      }
    }
    mass->push_back(window);
  }
  return alpha;
}

TEST(KeepTokensTest, AlphaEqualsBruteForceAndLosesNoMass) {  // A8
  const uint64_t seed = TestSeed(1);
  SEMKV_TRACE_SEED(seed);
  Input in(seed, 4096, 32, 4, 2, 128);
  in.RunHost(500, 2);
  for (int32_t h = 0; h < 4; ++h) {
    std::vector<double> window_mass;
    const std::vector<double> alpha = BruteForceAlpha(in, h, &window_mass);
    double total = std::accumulate(window_mass.begin(), window_mass.end(), 0.0);
    for (int32_t t = 0; t < 4064; ++t) {
      EXPECT_NEAR(in.alpha[h * 4064 + t], alpha[t], 1e-4 * alpha[t]) << "token " << t;
      total += in.alpha[h * 4064 + t];
    }
    EXPECT_NEAR(total, 32.0, 32e-4);
  }
}

TEST(KeepTokensTest, KeptEqualsBruteForceOnRandomShapes) {  // A9
  for (int round = 0; round < 20 * SoakFactor(); ++round) {
    const uint64_t seed = TestSeed(100) + round;
    SEMKV_TRACE_SEED(seed);
    std::mt19937_64 rng(seed);
    const int32_t window = 1 + rng() % 32, tokens = window + rng() % 600;
    const int32_t group = 1 + rng() % 4, kv_heads = 1 + rng() % 2;
    Input in(seed, tokens, window, group * kv_heads, kv_heads, rng() % 2 == 0 ? 64 : 80);
    const int32_t num_kept = window + rng() % (tokens - window + 1);
    in.params.pool_width = 1 + 2 * (rng() % 4);
    in.RunHost(num_kept);
    for (int32_t h = 0; h < group * kv_heads; ++h) {
      const float* const alpha = in.alpha.data() + h * (tokens - window);
      // Pooling by its definition, edges included; the order by (pooled, position).
      std::vector<std::pair<float, int32_t>> order;
      for (int32_t i = 0; i < tokens - window; ++i) {
        float best = 0;
        for (int32_t o = -in.params.pool_width / 2; o <= in.params.pool_width / 2; ++o) {
          if (i + o >= 0 && i + o < tokens - window) best = std::max(best, alpha[i + o]);
        }
        order.emplace_back(-best, i);
      }
      std::sort(order.begin(), order.end());
      std::set<int32_t> expected;
      for (int32_t i = 0; i < num_kept - window; ++i) expected.insert(order[i].second);
      for (int32_t t = tokens - window; t < tokens; ++t) expected.insert(t);
      const std::vector<int32_t> kept(in.kept.begin() + h * num_kept,
                                      in.kept.begin() + (h + 1) * num_kept);
      EXPECT_EQ(kept, std::vector<int32_t>(expected.begin(), expected.end()));
    }
  }
}

TEST(KeepTokensTest, HostEqualsReferenceOnEveryTargetAndDtype) {
  for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (int32_t dim : {64, 80, 96, 128, 256}) {
      const uint64_t seed = TestSeed(7) + dim;
      SEMKV_TRACE_SEED(seed);
      Input in(seed, 700, 32, 4, 2, dim, dtype);
      KeepTokensReference(in.Params(150));
      const std::vector<float> alpha = in.alpha;
      const std::vector<int32_t> kept = in.kept;
      ForEachSimdTarget([&] {
        in.RunHost(150, 3);
        for (size_t i = 0; i < alpha.size(); ++i) {
          ASSERT_NEAR(in.alpha[i], alpha[i], 1e-4f * alpha[i] + 1e-9f) << i;
        }
        // float32 may order two scores that nearly tie the other way: at most a pair per head.
        std::vector<int32_t> differ;
        for (int32_t h = 0; h < 4; ++h) {
          std::set_symmetric_difference(kept.begin() + h * 150, kept.begin() + (h + 1) * 150,
                                        in.kept.begin() + h * 150, in.kept.begin() + (h + 1) * 150,
                                        std::back_inserter(differ));
        }
        EXPECT_LE(differ.size(), 8u);
      });
    }
  }
}

TEST(KeepTokensTest, TheWindowAloneAndTheWholePrompt) {
  Input in(3, 200, 32, 2, 1, 64);
  ForEachSimdTarget([&] {
    in.RunHost(32);
    for (int32_t i = 0; i < 32; ++i) EXPECT_EQ(in.kept[i], 168 + i);
    in.RunHost(200);
    for (int32_t i = 0; i < 200; ++i) EXPECT_EQ(in.kept[200 + i], i);
  });
  Input all_window(4, 20, 20, 2, 2, 64);
  all_window.RunHost(20);
  for (int32_t i = 0; i < 40; ++i) EXPECT_EQ(all_window.kept[i], i % 20);
}

TEST(KeepTokensTest, KeysThatAreNotFiniteComeLastAndChangeNothingElse) {
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  Input in(5, 300, 32, 2, 1, 64);
  in.keys[100 * 64 + 3] = kNaN;
  in.keys[101 * 64 + 63] = -kInfinity;
  in.keys[290 * 64] = kInfinity;                      // in the window
  in.q[(31 * 2 + 1) * 64 + 5] = kNaN;                 // one query of head 1
  std::fill_n(in.keys.begin() + 50 * 64, 64, 3e38f);  // a product that overflows
  const KeepTokensParams p = in.Params(298);
  KeepTokensReference(p);
  const std::vector<float> alpha = in.alpha;
  const std::vector<int32_t> kept = in.kept;
  ForEachSimdTarget([&] {
    in.RunHost(298);
    for (size_t i = 0; i < alpha.size(); ++i) {
      ASSERT_NEAR(in.alpha[i], alpha[i], 1e-4f * alpha[i] + 1e-9f) << i;
    }
    EXPECT_FALSE(std::count(in.kept.begin(), in.kept.end(), 100));
    EXPECT_FALSE(std::count(in.kept.begin(), in.kept.end(), 101));
    EXPECT_EQ(in.alpha[100], 0.0f);
    EXPECT_EQ(in.alpha[101], 0.0f);
    EXPECT_EQ(in.kept, kept);
  });
}

}  // namespace
}  // namespace semkv
