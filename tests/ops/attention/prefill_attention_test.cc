#include "csrc/ops/attention/prefill_attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "csrc/ops/numeric/float_convert.h"
#include "csrc/ops/parallel/thread_pool.h"
#include "tests/testing/random.h"
#include "tests/testing/simd_targets.h"

namespace semkv {
namespace {

constexpr uint8_t kGuard = 0xa5;

struct Case {
  std::vector<int32_t> contexts;  // per row, the chunk included
  std::vector<int32_t> chunks;    // per row
  int32_t num_heads = 4;
  int32_t num_kv_heads = 2;
  int32_t head_dim = 64;
  int32_t page_tokens = 16;
  DType q_dtype = DType::kFloat32;
  DType kv_dtype = DType::kFloat32;
  float logit_cap = 0.0f;
  int32_t padding = 0;  // elements between heads, tokens and pages
  float deviation = 1.0f;
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  for (size_t r = 0; r < c.chunks.size(); ++r) {
    out << c.chunks[r] << "/" << c.contexts[r] << " ";
  }
  return out << "heads " << c.num_heads << "/" << c.num_kv_heads << " dim " << c.head_dim
             << " page " << c.page_tokens << " q " << static_cast<int>(c.q_dtype) << " kv "
             << static_cast<int>(c.kv_dtype) << " cap " << c.logit_cap << " padding " << c.padding;
}

double Tolerance(const Case& c) {
  const DType coarsest = std::max(c.q_dtype, c.kv_dtype);
  if (coarsest == DType::kBFloat16) return 1.6e-2;
  return coarsest == DType::kFloat16 ? 2e-3 : 1e-5;
}

// Inputs, pages in random order, and outputs with guard bytes around them.
class Problem {
 public:
  Problem(const Case& c, std::mt19937_64& rng) : case_(c) {
    const int32_t num_rows = static_cast<int32_t>(c.contexts.size());
    starts_.push_back(0);
    for (int32_t chunk : c.chunks) starts_.push_back(starts_.back() + chunk);
    int32_t stride = 1, num_pages = 0;
    for (int32_t context : c.contexts) {
      stride = std::max(stride, CeilDiv(context, c.page_tokens));
      num_pages += CeilDiv(context, c.page_tokens);
    }
    std::vector<int32_t> pages(num_pages);
    std::iota(pages.begin(), pages.end(), 0);
    std::shuffle(pages.begin(), pages.end(), rng);
    table_.assign(int64_t{num_rows} * stride, -1);
    for (int32_t r = 0, next = 0; r < num_rows; ++r) {
      for (int32_t i = 0; i < CeilDiv(c.contexts[r], c.page_tokens); ++i) {
        table_[int64_t{r} * stride + i] = pages[next++];
      }
    }
    SetParams(num_rows, num_pages, stride, rng);
  }

  // Runs the host form into fresh outputs.
  void RunHost(int num_threads) {
    ResetOutputs();
    ThreadPool pool(num_threads);
    const size_t bytes = PrefillAttentionWorkspaceBytes(case_.num_heads, case_.num_kv_heads,
                                                        case_.head_dim, num_threads);
    std::vector<uint8_t> memory(bytes + 128, kGuard);
    uint8_t* workspace = memory.data() + 64 - reinterpret_cast<uintptr_t>(memory.data()) % 64;
    PrefillAttentionHost(params, workspace, bytes, pool);
    for (uint8_t* p = workspace + bytes; p < memory.data() + memory.size(); ++p) {
      ASSERT_EQ(*p, kGuard) << "behind the workspace";
    }
    ExpectGuardsIntact();
  }

  void RunReference() {
    ResetOutputs();
    PrefillAttentionReference(params);
  }

  std::vector<float> Out() const {
    std::vector<float> out;
    for (int32_t t = 0; t < starts_.back(); ++t) {
      for (int32_t h = 0; h < case_.num_heads; ++h) {
        for (int32_t d = 0; d < case_.head_dim; ++d) {
          out.push_back(LoadAsFloat(params.out, case_.q_dtype,
                                    t * params.out_token + h * params.out_head + d));
        }
      }
    }
    return out;
  }

  std::vector<float> Lse() const {
    return std::vector<float>(params.lse, params.lse + starts_.back() * case_.num_heads);
  }

  PrefillAttentionParams params;

 private:
  void SetParams(int32_t num_rows, int32_t num_pages, int32_t stride, std::mt19937_64& rng) {
    const Case& c = case_;
    params.q_dtype = c.q_dtype;
    params.q_head = c.head_dim + c.padding;
    params.q_token = c.num_heads * params.q_head + c.padding;
    params.out_head = c.head_dim + 2 * c.padding;
    params.out_token = c.num_heads * params.out_head + c.padding;
    params.num_rows = num_rows;
    params.num_heads = c.num_heads;
    params.num_kv_heads = c.num_kv_heads;
    params.head_dim = c.head_dim;
    params.scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
    params.logit_cap = c.logit_cap;
    KvView& view = params.position;
    view.page_tokens = c.page_tokens;
    view.num_pages = num_pages;
    view.dtype = c.kv_dtype;
    // Keys token-major within a page, values head-major: both must be read by their strides.
    view.k_head = c.head_dim + c.padding;
    view.k_token = c.num_kv_heads * view.k_head + c.padding;
    view.k_page = c.page_tokens * view.k_token + c.padding;
    view.v_token = c.head_dim + c.padding;
    view.v_head = c.page_tokens * view.v_token + c.padding;
    view.v_page = c.num_kv_heads * view.v_head + c.padding;
    q_ = testing::Encode(
        testing::RandomNormal(rng, starts_.back() * params.q_token + 1, c.deviation), c.q_dtype);
    k_ = testing::Encode(testing::RandomNormal(rng, num_pages * view.k_page + 1), c.kv_dtype);
    v_ = testing::Encode(testing::RandomNormal(rng, num_pages * view.v_page + 1), c.kv_dtype);
    params.q = q_.data();
    view.k = k_.data();
    view.v = v_.data();
    params.query_start = starts_.data();
    params.row_tokens = case_.contexts.data();
    params.block_table = table_.data();
    params.block_table_stride = stride;
  }

  void ResetOutputs() {
    out_.assign(128 + starts_.back() * params.out_token * DTypeBytes(case_.q_dtype), kGuard);
    lse_.assign(32 + starts_.back() * case_.num_heads, kLseGuard);
    params.out = out_.data() + 64;
    params.lse = lse_.data() + 16;
  }

  // Every byte of the output buffer that is no output.
  void ExpectGuardsIntact() const {
    std::vector<uint8_t> bytes = out_;
    const int64_t width = DTypeBytes(case_.q_dtype);
    for (int32_t t = 0; t < starts_.back(); ++t) {
      for (int32_t h = 0; h < case_.num_heads; ++h) {
        std::memset(bytes.data() + 64 + (t * params.out_token + h * params.out_head) * width,
                    kGuard, case_.head_dim * width);
      }
    }
    EXPECT_TRUE(std::all_of(bytes.begin(), bytes.end(), [](uint8_t b) { return b == kGuard; }));
    for (int i = 0; i < 16; ++i) {
      EXPECT_EQ(lse_[i], kLseGuard);
      EXPECT_EQ(lse_[lse_.size() - 1 - i], kLseGuard);
    }
  }

  static constexpr float kLseGuard = -12345.0f;

  Case case_;
  std::vector<int32_t> starts_, table_;
  std::vector<uint8_t> q_, k_, v_, out_;
  std::vector<float> lse_;
};

void ExpectClose(const std::vector<float>& got, const std::vector<float>& want, double tolerance,
                 const char* what) {
  ASSERT_EQ(got.size(), want.size());
  double worst = -1.0;
  size_t at = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_TRUE(std::isfinite(got[i])) << what << " " << i << " is " << got[i];
    const double error = std::abs(double{got[i]} - want[i]) / (1.0 + std::abs(want[i]));
    if (error > worst) {
      worst = error;
      at = i;
    }
  }
  EXPECT_LE(worst, tolerance) << what << " differs most at " << at << ": " << got[at] << ", not "
                              << want[at];
}

void ExpectHostEqualsReference(const Case& c, std::mt19937_64& rng, int num_threads) {
  Problem problem(c, rng);
  ASSERT_EQ(PrefillAttentionUnsupported(problem.params), nullptr);
  problem.RunReference();
  const std::vector<float> out = problem.Out(), lse = problem.Lse();
  testing::ForEachSimdTarget([&] {
    problem.RunHost(num_threads);
    ExpectClose(problem.Out(), out, Tolerance(c), "out");
    ExpectClose(problem.Lse(), lse, 1e-5, "lse");
  });
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (int32_t chunk : {1, 15, 16, 17, 64, 65}) {
    for (int32_t context : {1, 16, 17, 127, 128, 129, 700}) {
      if (chunk <= context) cases.push_back({.contexts = {context}, .chunks = {chunk}});
    }
  }
  cases.push_back({.contexts = {1000}, .chunks = {1000}, .num_heads = 1, .num_kv_heads = 1});
  cases.push_back({.contexts = {4097}, .chunks = {65}, .num_heads = 2, .num_kv_heads = 1});
  cases.push_back({.contexts = {4096}, .chunks = {17}, .num_heads = 1, .num_kv_heads = 1});
  for (int32_t head_dim : {64, 80, 96, 128, 256}) {
    for (DType kv : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      for (DType q : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
        cases.push_back({.contexts = {150},
                         .chunks = {33},
                         .head_dim = head_dim,
                         .q_dtype = q,
                         .kv_dtype = kv,
                         .padding = 3});
      }
    }
  }
  for (int32_t group : {1, 3, 5, 7, 71, 200}) {
    cases.push_back({.contexts = {140}, .chunks = {20}, .num_heads = group, .num_kv_heads = 1});
  }
  cases.push_back({.contexts = {140}, .chunks = {140}, .num_heads = 12, .num_kv_heads = 12});
  for (int32_t page_tokens : {1, 2, 64, 1024}) {
    cases.push_back({.contexts = {333}, .chunks = {50}, .page_tokens = page_tokens});
  }
  cases.push_back({.contexts = {200, 31, 300, 5, 128}, .chunks = {10, 0, 64, 5, 0}});
  cases.push_back({.contexts = {200}, .chunks = {70}, .logit_cap = 5.0f, .deviation = 8.0f});
  cases.push_back({.contexts = {300}, .chunks = {70}, .deviation = 10.0f});
  return cases;
}

TEST(PrefillAttentionTest, EqualsTheReferenceOnEverySimdTarget) {
  const uint64_t seed = testing::TestSeed(7);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (const Case& c : Cases()) {
    SCOPED_TRACE(::testing::PrintToString(c));
    ExpectHostEqualsReference(c, rng, 1);
    if (HasFailure()) return;
  }
}

TEST(PrefillAttentionTest, RandomCasesEqualTheReference) {
  const uint64_t seed = testing::TestSeed(11);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  const auto pick = [&](auto... options) {
    const std::vector<int32_t> values = {options...};
    return values[rng() % values.size()];
  };
  for (int round = 0; round < 30 * testing::SoakFactor(); ++round) {
    Case c;
    for (int32_t rows = pick(1, 2, 5); rows > 0; --rows) {
      c.contexts.push_back(1 + static_cast<int32_t>(rng() % 300));
      c.chunks.push_back(static_cast<int32_t>(rng() % (std::min(c.contexts.back(), 80) + 1)));
    }
    c.num_kv_heads = pick(1, 2, 3);
    c.num_heads = c.num_kv_heads * pick(1, 2, 3, 8);
    c.head_dim = pick(64, 80, 96, 128, 256);
    c.page_tokens = pick(1, 8, 16, 32, 256);
    c.q_dtype = static_cast<DType>(pick(0, 1, 2));
    c.kv_dtype = static_cast<DType>(pick(0, 1, 2));
    c.logit_cap = pick(0, 0, 30);
    c.padding = pick(0, 1, 16);
    SCOPED_TRACE(::testing::PrintToString(c));
    ExpectHostEqualsReference(c, rng, pick(1, 2, 3));
    if (HasFailure()) return;
  }
}

// The tiles of a row begin at its first token whatever the chunk, so chunks give the very bits of
// the whole prompt.
TEST(PrefillAttentionTest, ChunksGiveTheBitsOfTheWholePrompt) {
  for (int32_t chunk : {1, 15, 16, 17, 64, 65, 1000}) {
    const int32_t context = chunk == 1 ? 150 : 1030;
    SCOPED_TRACE("chunk " + std::to_string(chunk));
    std::mt19937_64 rng(3);
    Problem problem({.contexts = {context}, .chunks = {context}}, rng);
    problem.RunHost(2);
    const std::vector<float> whole = problem.Out(), whole_lse = problem.Lse();

    ThreadPool pool(2);
    const size_t bytes = PrefillAttentionWorkspaceBytes(4, 2, 64, 2);
    std::vector<float> workspace(bytes / 4 + 16);
    void* aligned =
        workspace.data() + (64 - reinterpret_cast<uintptr_t>(workspace.data()) % 64) / 4;
    std::vector<float> out(whole.size()), lse(whole_lse.size());
    for (int32_t begin = 0; begin < context; begin += chunk) {
      const int32_t end = std::min(begin + chunk, context);
      const int32_t starts[2] = {0, end - begin};
      PrefillAttentionParams p = problem.params;
      p.q = static_cast<const float*>(p.q) + begin * p.q_token;
      p.out = out.data() + begin * p.out_token;
      p.lse = lse.data() + begin * p.num_heads;
      p.query_start = starts;
      p.row_tokens = &end;
      PrefillAttentionHost(p, aligned, bytes, pool);
    }
    EXPECT_EQ(out, whole);
    EXPECT_EQ(lse, whole_lse);
  }
}

TEST(PrefillAttentionTest, NumberOfThreadsNeverChangesABit) {
  std::mt19937_64 rng(5);
  Problem problem({.contexts = {900, 40, 300, 300}, .chunks = {400, 40, 0, 65}, .head_dim = 96},
                  rng);
  problem.RunHost(1);
  const std::vector<float> out = problem.Out(), lse = problem.Lse();
  for (int num_threads : {2, 3, 8}) {
    problem.RunHost(num_threads);
    EXPECT_EQ(problem.Out(), out) << num_threads;
    EXPECT_EQ(problem.Lse(), lse) << num_threads;
  }
}

// Weights far below the greatest vanish; as subnormal numbers they would cost 60 times as much.
TEST(PrefillAttentionTest, WideScoresMakeNoSubnormalNumbers) {
  std::mt19937_64 rng(5);
  for (const float deviation : {8.0f, 40.0f, 1000.0f}) {
    Problem problem({.contexts = {700}, .chunks = {65}, .deviation = deviation}, rng);
    testing::ForEachSimdTarget([&] {
      std::feclearexcept(FE_ALL_EXCEPT);
      problem.RunHost(1);
      EXPECT_EQ(std::fetestexcept(FE_UNDERFLOW), 0) << "deviation " << deviation;
    });
  }
}

TEST(PrefillAttentionTest, LseMayBeNull) {
  std::mt19937_64 rng(5);
  Problem problem({.contexts = {90}, .chunks = {40}}, rng);
  problem.RunHost(1);
  const std::vector<float> out = problem.Out();
  ThreadPool pool(1);
  problem.params.lse = nullptr;
  const size_t bytes = PrefillAttentionWorkspaceBytes(4, 2, 64, 1);
  std::vector<float> workspace(bytes / 4 + 16);
  PrefillAttentionHost(
      problem.params,
      workspace.data() + (64 - reinterpret_cast<uintptr_t>(workspace.data()) % 64) / 4, bytes,
      pool);
  EXPECT_EQ(problem.Out(), out);
}

TEST(PrefillAttentionTest, RefusesShapesByName) {
  std::mt19937_64 rng(5);
  Problem problem({.contexts = {9}, .chunks = {4}}, rng);
  PrefillAttentionParams p = problem.params;
  p.head_dim = 72;
  EXPECT_NE(std::string(PrefillAttentionUnsupported(p)).find("head_dim"), std::string::npos);
  p = problem.params;
  p.num_heads = 5;
  EXPECT_NE(std::string(PrefillAttentionUnsupported(p)).find("num_heads"), std::string::npos);
  p = problem.params;
  p.position.page_tokens = 24;
  EXPECT_NE(std::string(PrefillAttentionUnsupported(p)).find("page_tokens"), std::string::npos);
}

}  // namespace
}  // namespace semkv
