#include "csrc/ops/attention/decode_attention_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>

#include "tests/ops/attention/decode_cases.h"

namespace semkv {
namespace {

DecodeAttentionBounds Llama8bBounds(int32_t num_rows, int32_t max_row_tokens) {
  DecodeAttentionBounds bounds;
  bounds.num_rows = num_rows;
  bounds.max_row_tokens = max_row_tokens;
  bounds.num_heads = 32;
  bounds.num_kv_heads = bounds.num_selections = 8;
  bounds.head_dim = 128;
  bounds.num_multiprocessors = 132;
  return bounds;
}

TEST(DecodeAttentionPlanTest, OneRowIsCutUntilTheGpuIsFullOrPartsAreSmall) {
  const DecodeAttentionPlan small = PlanDecodeAttention(Llama8bBounds(1, 2048));
  EXPECT_EQ(small.num_groups, 8);
  EXPECT_EQ(small.group_heads, 4);
  EXPECT_EQ(NumDecodeSplits(small, 32), 16);  // two tiles each: 128 CTAs
  const DecodeAttentionPlan large = PlanDecodeAttention(Llama8bBounds(1, 32768));
  EXPECT_EQ(NumDecodeSplits(large, 512), 33);  // 264 CTAs, two per multiprocessor
  EXPECT_EQ(NumDecodeSplits(large, 32), 16);
}

TEST(DecodeAttentionPlanTest, ManyRowsAreCutOnlyWhereTheyAreLong) {
  const DecodeAttentionPlan plan = PlanDecodeAttention(Llama8bBounds(64, 131072));
  EXPECT_EQ(NumDecodeSplits(plan, 1), 1);
  EXPECT_EQ(NumDecodeSplits(plan, 32), 1);
  EXPECT_EQ(NumDecodeSplits(plan, 33), 2);
  EXPECT_EQ(NumDecodeSplits(plan, 2048), 64);
  EXPECT_EQ(plan.max_splits, 64);
}

// What the kernel relies on: within the bounds the workspace never decides, and a part is neither
// empty nor, when the row is cut, below part_tiles.
TEST(DecodeAttentionPlanTest, EveryRowWithinTheBoundsHasItsSplits) {
  for (int32_t num_rows : {0, 1, 3, 40}) {
    for (int32_t max_tokens : {0, 1, 64, 65, 700, 5000}) {
      const DecodeAttentionPlan plan = PlanDecodeAttention(Llama8bBounds(num_rows, max_tokens));
      DecodeAttentionPlan roomy = plan;
      roomy.max_splits = 1 << 30;
      const int32_t max_tiles = CeilDiv(max_tokens, kDecodeTileTokens);
      for (int32_t tiles = 0; tiles <= max_tiles; ++tiles) {
        const int32_t splits = NumDecodeSplits(plan, tiles);
        EXPECT_EQ(splits, NumDecodeSplits(roomy, tiles));
        EXPECT_GE(splits, 1);
        if (splits > 1) {
          EXPECT_GE(tiles / splits, plan.part_tiles);
        }
      }
      EXPECT_GE(NumDecodeSplits(plan, 100 * max_tiles + 1), 1);
      EXPECT_LE(NumDecodeSplits(plan, 100 * max_tiles + 1), plan.max_splits);
    }
  }
}

TEST(DecodeAttentionPlanTest, HeadGroupsCoverEveryQueryHeadOnce) {
  for (int32_t num_kv_heads : {1, 2, 8}) {
    for (int32_t group : {1, 3, 4, 16, 17, 20, 40}) {
      const int32_t num_heads = num_kv_heads * group;
      for (int32_t num_selections : {num_kv_heads, num_heads}) {
        int32_t next = 0;
        for (int32_t i = 0; i < NumDecodeHeadGroups(num_heads, num_selections); ++i) {
          const DecodeHeadGroup g = GetDecodeHeadGroup(num_heads, num_kv_heads, num_selections, i);
          EXPECT_EQ(g.first_head, next);
          EXPECT_EQ(g.first_head / group, g.kv_head);
          EXPECT_EQ((g.first_head + g.num_heads - 1) / group, g.kv_head);
          EXPECT_EQ(g.first_head / (num_heads / num_selections), g.selection);
          EXPECT_LE(g.num_heads, kDecodeMaxGroupHeads);
          next += g.num_heads;
        }
        EXPECT_EQ(next, num_heads);
      }
    }
  }
}

TEST(DecodeAttentionPlanTest, RefusesByName) {
  std::mt19937_64 rng(1);
  testing::DecodeProblem problem = testing::DenseProblem(rng, {8, 2, 64, 4, DType::kFloat16});
  EXPECT_EQ(DecodeAttentionCudaUnsupported(problem.params), nullptr);
  const auto expect_refused = [&](auto change, const char* words) {
    DecodeAttentionParams params = problem.params;
    change(params);
    const char* reason = DecodeAttentionCudaUnsupported(params);
    ASSERT_NE(reason, nullptr) << words;
    EXPECT_NE(std::string(reason).find(words), std::string::npos) << reason;
  };
  const auto shift = [](const void* p) {
    return const_cast<char*>(static_cast<const char*>(p) + 8);
  };
  expect_refused([](auto& p) { p.head_dim = 72; }, "head_dim");
  expect_refused([](auto& p) { p.q_dtype = DType::kFloat32; }, "q is float32");
  expect_refused([](auto& p) { p.q_dtype = DType::kBFloat16; }, "position pool is not that of q");
  expect_refused(
      [](auto& p) {
        p.list = p.position;
        p.list.dtype = DType::kBFloat16;
      },
      "list pool is not that of q");
  expect_refused([](auto& p) { p.q_dtype = DType::kFloat8E4M3; }, "dtype of q is not");
  expect_refused([](auto& p) { p.position.k_scale = 2.0f; }, "not float8 e4m3");
  expect_refused([](auto& p) { p.position.v_scale = 0.5f; }, "not float8 e4m3");
  expect_refused([&](auto& p) { p.q = shift(p.q); }, "q is not aligned");
  expect_refused([](auto& p) { p.q_head += 4; }, "q is not aligned");
  expect_refused([](auto& p) { p.out_row += 4; }, "out is not aligned");
  expect_refused([&](auto& p) { p.position.v = shift(p.position.v); }, "position pool is not al");
  expect_refused([](auto& p) { p.position.k_token += 3; }, "position pool is not aligned");
  expect_refused(
      [](auto& p) {
        p.list = p.position;
        p.list.v_page += 1;
      },
      "list pool is not aligned");
  expect_refused([](auto& p) { p.num_rows = 65536; }, "num_rows");
}

TEST(DecodeAttentionPlanTest, PoolsOfE4M3AreServedWithEqualScales) {
  std::mt19937_64 rng(1);
  for (DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    const testing::DecodeProblem problem = testing::DenseProblem(rng, {8, 2, 64, 4, dtype, true});
    EXPECT_EQ(DecodeAttentionCudaUnsupported(problem.params), nullptr);
    EXPECT_NE(DecodeAttentionUnsupported(problem.params), nullptr);
    const auto expect_refused = [&](auto change, const char* words) {
      DecodeAttentionParams params = problem.params;
      params.list = params.position;
      ASSERT_EQ(DecodeAttentionCudaUnsupported(params), nullptr);
      change(params);
      const char* reason = DecodeAttentionCudaUnsupported(params);
      ASSERT_NE(reason, nullptr) << words;
      EXPECT_NE(std::string(reason).find(words), std::string::npos) << reason;
    };
    expect_refused([&](auto& p) { p.list.dtype = dtype; }, "differ in dtype");
    expect_refused([&](auto& p) { p.position.dtype = dtype; }, "differ in dtype");
    expect_refused([](auto& p) { p.list.k_scale *= 2.0f; }, "differ in k_scale");
    expect_refused([](auto& p) { p.position.v_scale *= 2.0f; }, "differ in k_scale");
    for (float bad : {0.0f, -1.0f, testing::kInfinity, std::nanf("")}) {
      expect_refused([&](auto& p) { p.list.k = nullptr, p.position.k_scale = bad; }, "k_scale");
      expect_refused([&](auto& p) { p.position.k = nullptr, p.list.v_scale = bad; }, "v_scale");
    }
    // A multiple of 8 elements is not one of 16 bytes.
    expect_refused([](auto& p) { p.position.k_token += 8; }, "position pool is not aligned");
    expect_refused([](auto& p) { p.list.v_head += 8; }, "list pool is not aligned");
  }
}

// A part's result weighs twice as much against keys and values of half the bytes.
TEST(DecodeAttentionPlanTest, PartsOfE4M3HaveMoreTiles) {
  DecodeAttentionBounds bounds = Llama8bBounds(1, 2048);
  bounds.kv_dtype = DType::kFloat8E4M3;
  EXPECT_EQ(NumDecodeSplits(PlanDecodeAttention(bounds), 32), 10);
  bounds.num_kv_heads = bounds.num_selections = 2;
  const DecodeAttentionPlan plan = PlanDecodeAttention(bounds);
  EXPECT_EQ(plan.part_tiles, 12);
}

TEST(DecodeAttentionPlanTest, APlanServesWhatItWasMadeFor) {
  std::mt19937_64 rng(1);
  const testing::DecodeProblem problem = testing::DenseProblem(rng, {32, 8, 128, 4});
  EXPECT_TRUE(PlanServes(PlanDecodeAttention(Llama8bBounds(1, 4)), problem.params));
  EXPECT_FALSE(PlanServes(PlanDecodeAttention(Llama8bBounds(0, 4)), problem.params));
  const auto expect_refused = [&](auto change) {
    DecodeAttentionBounds bounds = Llama8bBounds(1, 4);
    change(bounds);
    EXPECT_FALSE(PlanServes(PlanDecodeAttention(bounds), problem.params));
  };
  expect_refused([](auto& b) { b.head_dim = 64; });
  expect_refused([](auto& b) { b.num_heads = 16; });
  expect_refused([](auto& b) { b.num_kv_heads = b.num_selections = 4; });
}

}  // namespace
}  // namespace semkv
