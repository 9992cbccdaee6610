#include "csrc/ops/attention/prefill_attention.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>

#include "csrc/ops/parallel/thread_pool.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "csrc/ops/attention/prefill_attention_host.cc"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>

#include "csrc/ops/attention/prefill_attention_simd-inl.h"
#include "csrc/ops/numeric/float_convert-inl.h"

// What every instruction set shares.
#ifndef SEMKV_OPS_ATTENTION_PREFILL_ATTENTION_HOST_ONCE_
#define SEMKV_OPS_ATTENTION_PREFILL_ATTENTION_HOST_ONCE_

namespace semkv {
namespace {

// Tokens of keys and values that are converted to float32 scratch at a time.
constexpr int kTileTokens = 128;
// Lanes of a block of queries: each tile is gathered once for all of them, and with the tile they
// stay within 1 MiB of L2 at head_dim 128.
constexpr int kBlockLanes = 192;
// Lanes are padded to whole panels; this is a multiple of the panel of every instruction set.
constexpr int kPanelPadding = 48;

// One KV head's share of a block of query tokens of one row.
struct PrefillTask {
  int32_t row;
  int32_t head;         // KV head
  int32_t first_query;  // token in q
  int32_t num_queries;
  int32_t first_position;  // of the first query
};

// One thread's scratch.
struct PrefillScratch {
  float* queries;        // [panels][head_dim][panel lanes], scaled
  float* out;            // [panels][head_dim][panel lanes]
  float* greatest;       // [lanes]
  float* sum;            // [lanes]
  int32_t* limits;       // [lanes]: tokens of the row that the lane sees
  float* keys;           // [kTileTokens][head_dim]
  float* values;         // [kTileTokens][head_dim]
  float* scores;         // [kTileTokens][panel lanes]
  float* rescale;        // [panel lanes]
  int32_t* tile_limits;  // [panel lanes]
  float* row;            // [head_dim]
};

}  // namespace
}  // namespace semkv

#endif  // SEMKV_OPS_ATTENTION_PREFILL_ATTENTION_HOST_ONCE_

HWY_BEFORE_NAMESPACE();
namespace semkv {
namespace HWY_NAMESPACE {
namespace {

// Lane l is query token l / group, query head l % group of the KV head's group.
struct Lanes {
  int group;
  int used;
  int padded;  // whole panels
};

Lanes LanesOf(const PrefillAttentionParams& p, const PrefillTask& task) {
  const int group = p.num_heads / p.num_kv_heads;
  const int used = task.num_queries * group;
  return {group, used, CeilDiv(used, kPanelLanes) * kPanelLanes};
}

void PackQueries(const PrefillAttentionParams& p, const PrefillTask& task, const Lanes& lanes,
                 const PrefillScratch& scratch) {
  std::fill_n(scratch.queries, int64_t{lanes.padded} * p.head_dim, 0.0f);
  std::fill_n(scratch.out, int64_t{lanes.padded} * p.head_dim, 0.0f);
  // Not -inf: a lane that sees nothing of its first tile would make a NaN of inf - inf.
  std::fill_n(scratch.greatest, lanes.padded, std::numeric_limits<float>::lowest());
  std::fill_n(scratch.sum, lanes.padded, 0.0f);
  // Scores are in powers of two, the cap's tanh comes before that.
  const float factor = p.logit_cap != 0.0f ? p.scale : p.scale * kLog2E;
  for (int l = 0; l < lanes.padded; ++l) {
    const int used = std::min(l, lanes.used - 1);
    scratch.limits[l] = task.first_position + used / lanes.group + 1;
    if (l >= lanes.used) continue;
    const int64_t offset = (task.first_query + l / lanes.group) * p.q_token +
                           (task.head * lanes.group + l % lanes.group) * p.q_head;
    DispatchDType(p.q_dtype, [&](auto tag) {
      using Type = typename Element<decltype(tag)::kDType>::Type;
      ConvertRow<decltype(tag)::kDType, DType::kFloat32>(static_cast<const Type*>(p.q) + offset,
                                                         p.head_dim, scratch.row);
    });
    float* lane =
        scratch.queries + int64_t{l / kPanelLanes} * p.head_dim * kPanelLanes + l % kPanelLanes;
    for (int c = 0; c < p.head_dim; ++c) lane[c * kPanelLanes] = scratch.row[c] * factor;
  }
}

// Rows of a page may lie far apart, which the hardware's prefetcher does not follow.
constexpr int kPrefetchTokens = 8;

// Keys and values of tokens [first, first + num_tokens) of the task's row as float32 rows.
template <DType kDType>
void GatherTile(const PrefillAttentionParams& p, const PrefillTask& task, int32_t first,
                int num_tokens, const PrefillScratch& scratch) {
  using Type = typename Element<kDType>::Type;
  const KvView& view = p.position;
  const int32_t* pages = p.block_table + task.row * p.block_table_stride;
  const int shift = __builtin_ctz(static_cast<uint32_t>(view.page_tokens));
  const auto key = [&](int32_t position) {
    return static_cast<const Type*>(view.k) + task.head * view.k_head +
           pages[position >> shift] * view.k_page +
           (position & (view.page_tokens - 1)) * view.k_token;
  };
  const auto value = [&](int32_t position) {
    return static_cast<const Type*>(view.v) + task.head * view.v_head +
           pages[position >> shift] * view.v_page +
           (position & (view.page_tokens - 1)) * view.v_token;
  };
  constexpr int kLineElements = 64 / sizeof(Type);
  for (int t = 0; t < num_tokens; ++t) {
    const int32_t ahead = first + std::min(t + kPrefetchTokens, num_tokens - 1);
    const Type* next_key = key(ahead);
    const Type* next_value = value(ahead);
    for (int c = 0; c < p.head_dim; c += kLineElements) {
      hwy::Prefetch(next_key + c);
      hwy::Prefetch(next_value + c);
    }
    ConvertRow<kDType, DType::kFloat32>(key(first + t), p.head_dim, scratch.keys + t * p.head_dim);
    ConvertRow<kDType, DType::kFloat32>(value(first + t), p.head_dim,
                                        scratch.values + t * p.head_dim);
  }
  // ScoreTile computes whole groups of kRows tokens; nobody reads the scores of these.
  const int padding = CeilDiv(num_tokens, kRows) * kRows - num_tokens;
  std::fill_n(scratch.keys + num_tokens * p.head_dim, padding * p.head_dim, 0.0f);
}

// One panel against the gathered tile, whose first token is the row's token `first`.
template <int kHeadDim>
void AttendPanel(const PrefillAttentionParams& p, int panel, int32_t first, int num_tokens,
                 const PrefillScratch& scratch) {
  const int lane = panel * kPanelLanes;
  const int32_t* limits = scratch.limits + lane;
  const int tokens = std::min(num_tokens, limits[kPanelLanes - 1] - first);
  if (tokens <= 0) return;
  const int64_t panel_offset = int64_t{lane} * kHeadDim;
  const PanelState state = {scratch.greatest + lane, scratch.sum + lane,
                            scratch.out + panel_offset};
  ScoreTile<kHeadDim>(scratch.queries + panel_offset, scratch.keys, tokens, scratch.scores);
  if (p.logit_cap != 0.0f) CapScores(p.logit_cap, tokens, scratch.scores);
  if (limits[0] - first < tokens) {
    for (int l = 0; l < kPanelLanes; ++l) scratch.tile_limits[l] = limits[l] - first;
    MaskScores(scratch.tile_limits, tokens, scratch.scores);
  }
  UpdateSoftmax(tokens, scratch.scores, state, scratch.rescale);
  AddValues<kHeadDim>(scratch.scores, scratch.values, tokens, scratch.rescale, state.out);
}

template <int kHeadDim>
void AttendBlock(const PrefillAttentionParams& p, const PrefillTask& task, const Lanes& lanes,
                 const PrefillScratch& scratch) {
  const int32_t end = task.first_position + task.num_queries;
  for (int32_t first = 0; first < end; first += kTileTokens) {
    const int num_tokens = std::min(kTileTokens, end - first);
    DispatchDType(p.position.dtype, [&](auto tag) {
      GatherTile<decltype(tag)::kDType>(p, task, first, num_tokens, scratch);
    });
    for (int panel = 0; panel < lanes.padded / kPanelLanes; ++panel) {
      AttendPanel<kHeadDim>(p, panel, first, num_tokens, scratch);
    }
  }
}

void WriteOut(const PrefillAttentionParams& p, const PrefillTask& task, const Lanes& lanes,
              const PrefillScratch& scratch) {
  for (int l = 0; l < lanes.used; ++l) {
    const int64_t token = task.first_query + l / lanes.group;
    const int32_t h = task.head * lanes.group + l % lanes.group;
    const float* lane =
        scratch.out + int64_t{l / kPanelLanes} * p.head_dim * kPanelLanes + l % kPanelLanes;
    const float factor = 1.0f / scratch.sum[l];
    for (int c = 0; c < p.head_dim; ++c) scratch.row[c] = lane[c * kPanelLanes] * factor;
    DispatchDType(p.q_dtype, [&](auto tag) {
      using Type = typename Element<decltype(tag)::kDType>::Type;
      ConvertRow<DType::kFloat32, decltype(tag)::kDType>(
          scratch.row, p.head_dim,
          static_cast<Type*>(p.out) + token * p.out_token + h * p.out_head);
    });
    if (p.lse != nullptr) {
      p.lse[token * p.num_heads + h] = kLn2 * (scratch.greatest[l] + std::log2(scratch.sum[l]));
    }
  }
}

void Attend(const PrefillAttentionParams& p, const PrefillTask& task,
            const PrefillScratch& scratch) {
  const Lanes lanes = LanesOf(p, task);
  PackQueries(p, task, lanes, scratch);
  switch (p.head_dim) {
    case 64:
      AttendBlock<64>(p, task, lanes, scratch);
      break;
    case 80:
      AttendBlock<80>(p, task, lanes, scratch);
      break;
    case 96:
      AttendBlock<96>(p, task, lanes, scratch);
      break;
    case 128:
      AttendBlock<128>(p, task, lanes, scratch);
      break;
    case 256:
      AttendBlock<256>(p, task, lanes, scratch);
      break;
    default:
      assert(false);  // the caller ignored PrefillAttentionUnsupported
  }
  WriteOut(p, task, lanes, scratch);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace semkv
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace semkv {
namespace {

HWY_EXPORT(Attend);

int32_t BlockQueries(int32_t num_heads, int32_t num_kv_heads) {
  return std::max(1, kBlockLanes / (num_heads / num_kv_heads));
}

// Cuts one thread's scratch out of `memory`; with null, only the size is of use.
struct ScratchLayout {
  PrefillScratch scratch;
  size_t bytes;
};

ScratchLayout LayOut(char* memory, int32_t num_heads, int32_t num_kv_heads, int32_t head_dim) {
  const int64_t group = num_heads / num_kv_heads;
  const int64_t lanes =
      CeilDiv<int64_t>(BlockQueries(num_heads, num_kv_heads) * group, kPanelPadding) *
      kPanelPadding;
  size_t bytes = 0;
  const auto take = [&](int64_t count) {
    char* p = memory != nullptr ? memory + bytes : nullptr;
    bytes += CeilDiv<size_t>(count * sizeof(float), 64) * 64;
    return reinterpret_cast<float*>(p);
  };
  PrefillScratch s;
  s.queries = take(lanes * head_dim);
  s.out = take(lanes * head_dim);
  s.greatest = take(lanes);
  s.sum = take(lanes);
  s.limits = reinterpret_cast<int32_t*>(take(lanes));
  s.keys = take(int64_t{kTileTokens} * head_dim);
  s.values = take(int64_t{kTileTokens} * head_dim);
  s.scores = take(int64_t{kTileTokens} * kPanelPadding);
  s.rescale = take(kPanelPadding);
  s.tile_limits = reinterpret_cast<int32_t*>(take(kPanelPadding));
  s.row = take(head_dim);
  return {s, bytes};
}

// The blocks of one row end at row_tokens - queries + min((b + 1) * size, queries): how many of
// them end at or after token `end`?
int64_t BlocksEndingFrom(const PrefillAttentionParams& p, int32_t r, int32_t size, int32_t end) {
  const int32_t queries = p.query_start[r + 1] - p.query_start[r];
  if (queries == 0 || end > p.row_tokens[r]) return 0;
  const int32_t blocks = CeilDiv(queries, size);
  const int32_t before = (end - 1 - (p.row_tokens[r] - queries)) / size;
  return blocks - std::clamp(before, 0, blocks - 1);
}

int64_t BlocksEndingFrom(const PrefillAttentionParams& p, int32_t size, int32_t end) {
  int64_t blocks = 0;
  for (int32_t r = 0; r < p.num_rows; ++r) blocks += BlocksEndingFrom(p, r, size, end);
  return blocks;
}

// Task `index` when tasks are sorted by their last token, latest (longest) first. The order is
// found by bisection instead of sorting because there is no memory for a list of tasks.
PrefillTask TaskAt(const PrefillAttentionParams& p, int32_t size, int32_t max_tokens,
                   int64_t index) {
  int64_t rank = index / p.num_kv_heads;
  int32_t low = 1, high = max_tokens;  // the greatest end from which on more than `rank` blocks end
  while (low < high) {
    const int32_t middle = low + (high - low + 1) / 2;
    if (BlocksEndingFrom(p, size, middle) > rank) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  rank -= BlocksEndingFrom(p, size, low + 1);
  int32_t r = 0;
  while (true) {  // at most one block of a row ends at `low`
    const int64_t here = BlocksEndingFrom(p, r, size, low) - BlocksEndingFrom(p, r, size, low + 1);
    if (here > rank) break;
    rank -= here;
    ++r;
  }
  const int32_t queries = p.query_start[r + 1] - p.query_start[r];
  const int32_t first = p.row_tokens[r] - queries;
  const int32_t first_query = (low - first - 1) / size * size;
  PrefillTask task;
  task.row = r;
  task.head = static_cast<int32_t>(index % p.num_kv_heads);
  task.first_query = p.query_start[r] + first_query;
  task.num_queries = low - first - first_query;
  task.first_position = first + first_query;
  return task;
}

}  // namespace

const char* PrefillAttentionUnsupported(const PrefillAttentionParams& params) {
  const int32_t dim = params.head_dim;
  if (dim != 64 && dim != 80 && dim != 96 && dim != 128 && dim != 256) {
    return "head_dim is not 64, 80, 96, 128 or 256";
  }
  if (params.num_kv_heads < 1 || params.num_heads < 1 ||
      params.num_heads % params.num_kv_heads != 0) {
    return "num_heads is not a multiple of num_kv_heads";
  }
  const int32_t page_tokens = params.position.page_tokens;
  if (page_tokens < 1 || page_tokens > 1024 || (page_tokens & (page_tokens - 1)) != 0) {
    return "page_tokens is not a power of two in [1, 1024]";
  }
  return nullptr;
}

size_t PrefillAttentionWorkspaceBytes(int32_t num_heads, int32_t num_kv_heads, int32_t head_dim,
                                      int num_threads) {
  return num_threads * LayOut(nullptr, num_heads, num_kv_heads, head_dim).bytes;
}

void PrefillAttentionHost(const PrefillAttentionParams& params, void* workspace,
                          size_t workspace_bytes, ThreadPool& pool) {
  assert(PrefillAttentionUnsupported(params) == nullptr);
  const auto layout = [&](char* memory) {
    return LayOut(memory, params.num_heads, params.num_kv_heads, params.head_dim);
  };
  const size_t thread_bytes = layout(nullptr).bytes;
  assert(workspace_bytes >= thread_bytes * pool.num_threads());
  const int32_t size = BlockQueries(params.num_heads, params.num_kv_heads);
  const int32_t max_tokens =
      params.num_rows > 0
          ? *std::max_element(params.row_tokens, params.row_tokens + params.num_rows)
          : 0;
  const int64_t num_tasks = BlocksEndingFrom(params, size, 1) * params.num_kv_heads;
  pool.Run(num_tasks, [&](int64_t index, int thread) {
    const PrefillScratch scratch =
        layout(static_cast<char*>(workspace) + thread * thread_bytes).scratch;
    HWY_DYNAMIC_DISPATCH(Attend)(params, TaskAt(params, size, max_tokens, index), scratch);
  });
}

}  // namespace semkv

#endif  // HWY_ONCE
