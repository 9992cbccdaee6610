// Cuts rows into pieces, runs them on the pool's threads, and merges the pieces of a head in order.
// The thread that finishes the last piece of a group of heads merges it: no second region, and the
// order of the sum is that of the pieces, whoever adds.

#include "csrc/ops/attention/decode_attention.h"

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "csrc/ops/attention/decode_attention_piece.h"
#include "csrc/ops/numeric/float_convert.h"
#include "csrc/ops/parallel/thread_pool.h"

namespace semkv {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();
constexpr size_t kAlignment = 64;

size_t AlignUp(size_t bytes) { return CeilDiv(bytes, kAlignment) * kAlignment; }

int32_t NumPieces(int32_t tokens) { return CeilDiv(std::max(tokens, 0), kDecodeSplitTokens); }

bool IsDense(const DecodeAttentionParams& p, int32_t r) {
  return p.row_tokens != nullptr && p.row_tokens[r] >= 0;
}

int32_t Count(const DecodeAttentionParams& p, const SlotLists& lists, int32_t r, int32_t s) {
  return lists.slots == nullptr ? 0 : lists.counts[static_cast<int64_t>(r) * p.num_selections + s];
}

const int32_t* Slots(const SlotLists& lists, int32_t r, int32_t s) {
  return lists.slots + r * lists.row_stride + s * lists.selection_stride;
}

// The query heads of a row that are attended together: one KV head's, or one selection's, at most
// kMaxPieceHeads.
struct HeadGroup {
  int32_t selection;  // KV head of a dense row
  int32_t kv_head;
  int32_t first_head;
  int32_t num_heads;
};

int32_t NumHeadGroups(const DecodeAttentionParams& p, int32_t num_selections) {
  return num_selections * CeilDiv(p.num_heads / num_selections, kMaxPieceHeads);
}

HeadGroup GetHeadGroup(const DecodeAttentionParams& p, int32_t num_selections, int32_t i) {
  const int32_t heads = p.num_heads / num_selections;
  const int32_t parts = CeilDiv(heads, kMaxPieceHeads);
  HeadGroup group;
  group.selection = i / parts;
  group.kv_head = group.selection / (num_selections / p.num_kv_heads);
  group.first_head = group.selection * heads + i % parts * kMaxPieceHeads;
  group.num_heads = std::min(kMaxPieceHeads, heads - i % parts * kMaxPieceHeads);
  return group;
}

// Pieces of one selection of one row. A sparse row's list slots come first: they are the longer
// ones, and long tasks belong at the front.
int32_t NumPieces(const DecodeAttentionParams& p, int32_t r, int32_t selection) {
  if (IsDense(p, r)) return NumPieces(p.row_tokens[r]);
  return NumPieces(Count(p, p.list_slots, r, selection)) +
         NumPieces(Count(p, p.position_slots, r, selection));
}

DecodePiece GetPiece(const DecodeAttentionParams& p, int32_t r, const HeadGroup& group, int32_t i) {
  DecodePiece piece;
  int32_t tokens = 0;
  if (IsDense(p, r)) {
    piece.view = &p.position;
    piece.block_table = p.block_table + r * p.block_table_stride;
    tokens = p.row_tokens[r];
  } else {
    const int32_t list_pieces = NumPieces(Count(p, p.list_slots, r, group.selection));
    const bool is_list = i < list_pieces;
    const SlotLists& lists = is_list ? p.list_slots : p.position_slots;
    if (!is_list) i -= list_pieces;
    piece.view = is_list ? &p.list : &p.position;
    piece.slots = Slots(lists, r, group.selection);
    tokens = Count(p, lists, r, group.selection);
  }
  piece.first_token = i * kDecodeSplitTokens;
  piece.num_tokens = std::min(kDecodeSplitTokens, tokens - piece.first_token);
  piece.row = r;
  piece.kv_head = group.kv_head;
  piece.first_head = group.first_head;
  piece.num_heads = group.num_heads;
  return piece;
}

// Results of pieces in the caller's workspace.
struct Partials {
  std::atomic<int32_t>* num_finished;  // [num_rows, num_heads], used at the first head of a group
  float* lse;                          // [num_rows, num_heads, max_pieces]
  float* out;                          // [num_rows, num_heads, max_pieces, head_dim]
  int32_t max_pieces;
  size_t bytes;
};

Partials CarveWorkspace(int64_t row_heads, int32_t head_dim, int32_t max_pieces, void* workspace) {
  const size_t finished_bytes = AlignUp(row_heads * sizeof(std::atomic<int32_t>));
  const size_t lse_bytes = AlignUp(row_heads * max_pieces * sizeof(float));
  const size_t out_bytes = AlignUp(row_heads * max_pieces * head_dim * sizeof(float));
  char* base = static_cast<char*>(workspace);
  Partials partials;
  partials.num_finished = reinterpret_cast<std::atomic<int32_t>*>(base);
  partials.lse = reinterpret_cast<float*>(base + finished_bytes);
  partials.out = reinterpret_cast<float*>(base + finished_bytes + lse_bytes);
  partials.max_pieces = max_pieces;
  partials.bytes = finished_bytes + lse_bytes + out_bytes;
  return partials;
}

// Merges normalised results by log-sum-exp: adds a set of tokens to those merged so far. A set
// without tokens, or with all scores -inf, changes nothing.
struct Merged {
  float max = kLowest;  // greatest lse so far
  float sum = 0.0f;     // of exp(lse - max)
  float out[kMaxHeadDim] = {};

  void Add(float lse, const float* values, int32_t head_dim) {
    if (lse == kLowest) return;
    const float new_max = lse > max ? lse : max;
    const float keep = max == kLowest ? 0.0f : std::exp(max - new_max);
    const float weight = std::exp(lse - new_max);
    sum = sum * keep + weight;
    for (int32_t c = 0; c < head_dim; ++c) out[c] = out[c] * keep + weight * values[c];
    max = new_max;
  }
};

void StoreOutput(const DecodeAttentionParams& p, int32_t r, int32_t h, const Merged& merged) {
  const float inverse = merged.sum == 0.0f ? 0.0f : 1.0f / merged.sum;
  const int64_t first = r * p.out_row + h * p.out_head;
  for (int32_t c = 0; c < p.head_dim; ++c) {
    StoreFromFloat(p.out, p.q_dtype, first + c, merged.out[c] * inverse);
  }
  if (p.lse != nullptr) {
    p.lse[static_cast<int64_t>(r) * p.num_heads + h] = merged.max + std::log(merged.sum);
  }
}

void MergePieces(const DecodeAttentionParams& p, int32_t r, const HeadGroup& group,
                 int32_t num_pieces, const Partials& partials) {
  for (int32_t h = group.first_head; h < group.first_head + group.num_heads; ++h) {
    const int64_t row_head = static_cast<int64_t>(r) * p.num_heads + h;
    const int64_t first = row_head * partials.max_pieces;
    Merged merged;
    for (int32_t i = 0; i < num_pieces; ++i) {
      merged.Add(partials.lse[first + i], partials.out + (first + i) * p.head_dim, p.head_dim);
    }
    if (p.rest_lse != nullptr && !IsDense(p, r)) {
      merged.Add(p.rest_lse[row_head], p.rest_out + row_head * p.head_dim, p.head_dim);
    }
    StoreOutput(p, r, h, merged);
  }
}

// One task: piece `i` of one head group of one row, and the merge if it was the last to finish.
void RunTask(const DecodeAttentionParams& p, int32_t r, int32_t group_index, int32_t i,
             const Partials& partials) {
  const int32_t num_selections = IsDense(p, r) ? p.num_kv_heads : p.num_selections;
  if (group_index >= NumHeadGroups(p, num_selections)) return;
  const HeadGroup group = GetHeadGroup(p, num_selections, group_index);
  const int32_t num_pieces = NumPieces(p, r, group.selection);
  if (i >= std::max(num_pieces, 1)) return;
  const int64_t row_head = static_cast<int64_t>(r) * p.num_heads + group.first_head;
  if (num_pieces > 0) {
    DecodePiece piece = GetPiece(p, r, group, i);
    const int64_t first = row_head * partials.max_pieces + i;
    piece.lse = partials.lse + first;
    piece.lse_head = partials.max_pieces;
    piece.out = partials.out + first * p.head_dim;
    piece.out_head = static_cast<int64_t>(partials.max_pieces) * p.head_dim;
    AttendPiece(p, piece);
    // Releases this piece's results and, for the last, acquires the others'.
    std::atomic<int32_t>& finished = partials.num_finished[row_head];
    if (finished.fetch_add(1, std::memory_order_acq_rel) + 1 < num_pieces) return;
  }
  MergePieces(p, r, group, num_pieces, partials);
}

const char* PagesUnsupported(const KvView& view) {
  if (view.page_tokens < 1 || view.page_tokens > 1024 ||
      (view.page_tokens & (view.page_tokens - 1)) != 0) {
    return "page_tokens is not a power of two in [1, 1024]";
  }
  return nullptr;
}

const char* DTypeUnsupported(const KvView& view) {
  if (view.dtype == DType::kFloat8E4M3) {
    return "dtype of K and V is float8 e4m3, which is served on a device only";
  }
  if (view.dtype != DType::kFloat32 && view.dtype != DType::kFloat16 &&
      view.dtype != DType::kBFloat16) {
    return "dtype of K and V is not float32, float16 or bfloat16";
  }
  return nullptr;
}

}  // namespace

const char* DecodeShapeUnsupported(const DecodeAttentionParams& p) {
  constexpr int32_t kHeadDims[] = {64, 80, 96, 128, 256};
  if (std::find(std::begin(kHeadDims), std::end(kHeadDims), p.head_dim) == std::end(kHeadDims)) {
    return "head_dim is not 64, 80, 96, 128 or 256";
  }
  if (p.num_kv_heads < 1 || p.num_heads < 1 || p.num_heads % p.num_kv_heads != 0) {
    return "num_heads is not a positive multiple of num_kv_heads";
  }
  if (p.num_selections != 0 && p.num_selections != p.num_kv_heads &&
      p.num_selections != p.num_heads) {
    return "num_selections is neither num_kv_heads nor num_heads";
  }
  const char* reason = PagesUnsupported(p.position);
  if (reason == nullptr && p.list.k != nullptr) reason = PagesUnsupported(p.list);
  return reason;
}

const char* DecodeAttentionUnsupported(const DecodeAttentionParams& p) {
  const char* reason = DecodeShapeUnsupported(p);
  if (reason != nullptr) return reason;
  if (p.q_dtype != DType::kFloat32 && p.q_dtype != DType::kFloat16 &&
      p.q_dtype != DType::kBFloat16) {
    return "dtype of q is not float32, float16 or bfloat16";
  }
  reason = DTypeUnsupported(p.position);
  if (reason == nullptr && p.list.k != nullptr) reason = DTypeUnsupported(p.list);
  return reason;
}

size_t DecodeAttentionWorkspaceBytes(int32_t max_rows, int32_t num_heads, int32_t num_kv_heads,
                                     int32_t head_dim, int32_t max_row_tokens) {
  // Each of the two pools of a sparse row may end in a piece that is not full.
  const int32_t max_pieces = NumPieces(max_row_tokens) + 1;
  const int64_t row_heads = static_cast<int64_t>(max_rows) * num_heads;
  return CarveWorkspace(row_heads, head_dim, max_pieces, nullptr).bytes;
}

void DecodeAttentionHost(const DecodeAttentionParams& p, void* workspace, size_t workspace_bytes,
                         ThreadPool& pool) {
  assert(DecodeAttentionUnsupported(p) == nullptr);
  int32_t max_pieces = 1;
  int32_t max_groups = 1;
  for (int32_t r = 0; r < p.num_rows; ++r) {
    const int32_t num_selections = IsDense(p, r) ? p.num_kv_heads : p.num_selections;
    max_groups = std::max(max_groups, NumHeadGroups(p, num_selections));
    for (int32_t s = 0; s < num_selections; ++s) {
      max_pieces = std::max(max_pieces, NumPieces(p, r, s));
    }
  }
  const int64_t row_heads = static_cast<int64_t>(p.num_rows) * p.num_heads;
  const Partials partials = CarveWorkspace(row_heads, p.head_dim, max_pieces, workspace);
  assert(partials.bytes <= workspace_bytes);
  for (int64_t i = 0; i < row_heads; ++i) {
    partials.num_finished[i].store(0, std::memory_order_relaxed);
  }
  const int64_t row_tasks = static_cast<int64_t>(max_pieces) * max_groups;
  pool.Run(p.num_rows * row_tasks, [&](int64_t index, int) {
    const int32_t r = static_cast<int32_t>(index / row_tasks);
    const int32_t in_row = static_cast<int32_t>(index % row_tasks);
    RunTask(p, r, in_row % max_groups, in_row / max_groups, partials);
  });
}

}  // namespace semkv
