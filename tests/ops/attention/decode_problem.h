// A decode attention call with its memory: dense or sparse rows over random keys and values.

#ifndef SEMKV_TESTS_OPS_ATTENTION_DECODE_PROBLEM_H_
#define SEMKV_TESTS_OPS_ATTENTION_DECODE_PROBLEM_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "csrc/ops/attention/decode_attention.h"
#include "csrc/ops/parallel/thread_pool.h"
#include "tests/ops/attention/attention_cases.h"
#include "tests/ops/attention/attention_pools.h"
#include "tests/testing/random.h"

namespace semkv::testing {

struct AttentionResult {
  std::vector<float> out;
  std::vector<float> lse;
  // Bit for bit: what is not a number equals itself.
  bool operator==(const AttentionResult& other) const {
    return HasBitsOf(out, other.out) && HasBitsOf(lse, other.lse);
  }

 private:
  static bool HasBitsOf(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() &&
           (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
  }
};

// One row's keys and values, [num_tokens][num_kv_heads][head_dim].
struct TokenRows {
  std::vector<float> k, v;
};

inline TokenRows RandomTokens(std::mt19937_64& rng, const AttentionShape& s) {
  const int64_t n = int64_t{s.num_tokens} * s.num_kv_heads * s.head_dim;
  return {RandomNormal(rng, n), RandomNormal(rng, n)};
}

inline std::vector<int32_t> Permutation(std::mt19937_64& rng, int32_t n) {
  std::vector<int32_t> x(n);
  std::iota(x.begin(), x.end(), 0);
  std::shuffle(x.begin(), x.end(), rng);
  return x;
}

// One of the blocks of memory that a call reads or writes.
struct Memory {
  const char* name;
  const void* data;
  int64_t bytes;
  bool is_output;
};

class DecodeProblem {
 public:
  DecodeProblem(const AttentionShape& shape, int32_t num_rows, std::vector<float> q)
      : shape_(shape) {
    const int64_t heads = int64_t{num_rows} * shape.num_heads;
    q_ = Encode(q, shape.dtype);
    params.num_rows = num_rows;
    params.num_heads = shape.num_heads;
    params.num_kv_heads = shape.num_kv_heads;
    params.head_dim = shape.head_dim;
    params.q_dtype = shape.dtype;
    params.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
    params.q = q_.data();
    params.q_head = params.out_head = shape.head_dim;
    params.q_row = params.out_row = int64_t{shape.num_heads} * shape.head_dim;
    out_ = std::make_unique<GuardedBytes>(heads * shape.head_dim * DTypeBytes(shape.dtype));
    lse_ = std::make_unique<GuardedBytes>(heads * sizeof(float));
    params.out = out_->data();
    params.lse = static_cast<float*>(lse_->data());
  }

  // Dense rows: row r holds `rows[r]`, in randomly placed pages.
  void SetDense(std::mt19937_64& rng, const std::vector<TokenRows>& rows, PoolLayout layout,
                int32_t page_tokens) {
    const int64_t row_width = int64_t{shape_.num_kv_heads} * shape_.head_dim;
    int32_t max_pages = 1, num_pages = 1;
    for (const TokenRows& row : rows) {
      row_tokens_.push_back(static_cast<int32_t>(row.k.size() / row_width));
      max_pages = std::max(max_pages, CeilDiv(row_tokens_.back(), page_tokens));
      num_pages += CeilDiv(row_tokens_.back(), page_tokens);
    }
    MakePool(layout, KvDType(shape_), num_pages, page_tokens, position_pool_, params.position);
    const std::vector<int32_t> pages = Permutation(rng, num_pages);
    block_table_.assign(rows.size() * max_pages, 0x7fffffff);
    for (size_t r = 0, next = 0; r < rows.size(); ++r) {
      for (int32_t t = 0; t < row_tokens_[r]; ++t) {
        int32_t& page = block_table_[r * max_pages + t / page_tokens];
        if (t % page_tokens == 0) page = pages[next++];
        WriteToken(*position_pool_, page * page_tokens + t % page_tokens, rows[r], t);
      }
    }
    params.block_table = block_table_.data();
    params.block_table_stride = max_pages;
    params.row_tokens = row_tokens_.data();
  }

  // Sparse rows over pools that MakePools made: for every (row, selection) the slots of each pool.
  void SetSlots(int32_t num_selections, const std::vector<std::vector<int32_t>>& position,
                const std::vector<std::vector<int32_t>>& list) {
    params.num_selections = num_selections;
    params.position_slots = Flatten(num_selections, position, position_slots_, position_counts_);
    params.list_slots = Flatten(num_selections, list, list_slots_, list_counts_);
  }

  void MakePools(PoolLayout layout, DType position_dtype, DType list_dtype, int32_t num_slots,
                 int32_t page_tokens) {
    const int32_t pages = CeilDiv(num_slots, page_tokens);
    MakePool(layout, position_dtype, pages, page_tokens, position_pool_, params.position);
    MakePool(PoolLayout::kRowPairs, list_dtype, CeilDiv(num_slots, 16), 16, list_pool_,
             params.list);
  }

  void WriteToken(TestPool& pool, int32_t slot, const TokenRows& rows, int64_t t) {
    for (int32_t g = 0; g < shape_.num_kv_heads; ++g) {
      const int64_t at = (t * shape_.num_kv_heads + g) * shape_.head_dim;
      pool.Write(slot, g, rows.k.data() + at, rows.v.data() + at);
    }
  }

  // The slots of the first tokens of a dense row, at most `max_tokens` of them, newest first.
  std::vector<int32_t> DenseSlots(int32_t r, int32_t max_tokens) const {
    std::vector<int32_t> slots;
    const int32_t page_tokens = params.position.page_tokens;
    for (int32_t t = std::min(max_tokens, row_tokens_[r]) - 1; t >= 0; --t) {
      const int32_t page = block_table_[r * params.block_table_stride + t / page_tokens];
      slots.push_back(page * page_tokens + t % page_tokens);
    }
    return slots;
  }

  void MakeSparse(int32_t r) { row_tokens_[r] = -1; }

  TestPool& position_pool() { return *position_pool_; }
  TestPool& list_pool() { return *list_pool_; }

  AttentionResult RunHost(ThreadPool& pool, int32_t max_row_tokens) {
    Poison();
    const size_t bytes = DecodeAttentionWorkspaceBytes(
        params.num_rows, params.num_heads, params.num_kv_heads, params.head_dim, max_row_tokens);
    AlignedBytes workspace(bytes);
    DecodeAttentionHost(params, workspace.data(), bytes, pool);
    EXPECT_TRUE(workspace.GuardIntact()) << "write beyond the workspace";
    return Result();
  }

  AttentionResult RunReference() {
    return Run([&] { DecodeAttentionReference(params); });
  }

  // What run() makes of poisoned outputs.
  template <typename F>
  AttentionResult Run(const F& run) {
    Poison();
    run();
    return Result();
  }

  // Everything but the rest, which the caller owns. The outputs end before their guards.
  std::vector<Memory> AllMemory() const {
    std::vector<Memory> memory;
    const auto add = [&](const char* name, const auto& data, size_t bytes, bool is_output) {
      if (bytes > 0) memory.push_back({name, data, static_cast<int64_t>(bytes), is_output});
    };
    add("q", q_.data(), q_.size(), false);
    add("out", out_->data(), out_->size(), true);
    add("lse", lse_->data(), lse_->size(), true);
    for (const auto& [name, pool] :
         {std::pair{"position", position_pool_.get()}, std::pair{"list", list_pool_.get()}}) {
      if (pool != nullptr) add(name, pool->storage().data(), pool->storage().size(), false);
    }
    const auto add_ids = [&](const char* name, const std::vector<int32_t>& ids) {
      add(name, ids.data(), ids.size() * sizeof(int32_t), false);
    };
    add_ids("block table", block_table_);
    add_ids("row tokens", row_tokens_);
    add_ids("position slots", position_slots_);
    add_ids("position counts", position_counts_);
    add_ids("list slots", list_slots_);
    add_ids("list counts", list_counts_);
    return memory;
  }

  DecodeAttentionParams params;

 private:
  void MakePool(PoolLayout layout, DType dtype, int32_t num_pages, int32_t page_tokens,
                std::unique_ptr<TestPool>& pool, KvView& view) {
    pool = std::make_unique<TestPool>(layout, dtype, num_pages, page_tokens, shape_.num_kv_heads,
                                      shape_.head_dim);
    view = pool->view();
  }

  // Entries beyond the counts are poison.
  static SlotLists Flatten(int32_t num_selections, const std::vector<std::vector<int32_t>>& lists,
                           std::vector<int32_t>& slots, std::vector<int32_t>& counts) {
    SlotLists result;
    if (lists.empty()) return result;
    size_t stride = 3;
    for (const auto& list : lists) stride = std::max(stride, list.size() + 3);
    slots.assign(lists.size() * stride, 0x7fffffff);
    counts.clear();
    for (size_t i = 0; i < lists.size(); ++i) {
      std::copy(lists[i].begin(), lists[i].end(), slots.begin() + i * stride);
      counts.push_back(static_cast<int32_t>(lists[i].size()));
    }
    result.slots = slots.data();
    result.counts = counts.data();
    result.selection_stride = static_cast<int64_t>(stride);
    result.row_stride = num_selections * static_cast<int64_t>(stride);
    return result;
  }

  void Poison() {
    std::memset(out_->data(), 0xff, out_->size());
    std::memset(lse_->data(), 0xff, lse_->size());
  }

  AttentionResult Result() const {
    EXPECT_TRUE(out_->GuardsIntact()) << "write beyond out";
    EXPECT_TRUE(lse_->GuardsIntact()) << "write beyond lse";
    AttentionResult result;
    const int64_t heads = int64_t{params.num_rows} * params.num_heads;
    for (int64_t i = 0; i < heads * params.head_dim; ++i) {
      result.out.push_back(LoadAsFloat(params.out, params.q_dtype, i));
    }
    result.lse.assign(params.lse, params.lse + heads);
    return result;
  }

  AttentionShape shape_;
  std::vector<uint8_t> q_;
  std::unique_ptr<GuardedBytes> out_, lse_;
  std::unique_ptr<TestPool> position_pool_, list_pool_;
  std::vector<int32_t> block_table_, row_tokens_;
  std::vector<int32_t> position_slots_, position_counts_, list_slots_, list_counts_;
};

inline std::vector<float> RandomQueries(std::mt19937_64& rng, const AttentionShape& s,
                                        int32_t num_rows) {
  return RandomNormal(rng, int64_t{num_rows} * s.num_heads * s.head_dim);
}

inline ::testing::AssertionResult ResultsNear(const AttentionResult& actual,
                                              const AttentionResult& expected, DType dtype,
                                              float share_of_tolerance = 1.0f) {
  const ::testing::AssertionResult lse = AllNear(actual.lse, expected.lse, 1e-5f);
  if (!lse) return lse;
  return AllNear(actual.out, expected.out, share_of_tolerance * AttentionTolerance(dtype));
}

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_OPS_ATTENTION_DECODE_PROBLEM_H_
