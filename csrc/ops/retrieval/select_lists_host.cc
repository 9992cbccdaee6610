// A histogram over the leading bits of the keys, weighted by list size, finds a threshold above
// which the lists are sure to fill the budget; only those are sorted. They are walked in order and
// their members marked in a bitmap of the row's tokens, which is then written out as slots.

#include "csrc/ops/retrieval/select_lists.h"

#include <algorithm>
#include <bit>
#include <cstdint>

#include "csrc/ops/numeric/float_convert.h"
#include "csrc/ops/parallel/thread_pool.h"
#include "csrc/ops/retrieval/retrieval_tasks.h"
#include "csrc/ops/retrieval/workspace.h"

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "csrc/ops/retrieval/select_lists_host.cc"
#include <hwy/foreach_target.h>  // before highway.h
#include <hwy/cache_control.h>
#include <hwy/highway.h>
// clang-format on

#ifndef SEMKV_OPS_RETRIEVAL_SELECT_LISTS_HOST_ONCE_
#define SEMKV_OPS_RETRIEVAL_SELECT_LISTS_HOST_ONCE_

namespace semkv {

// A key's bin is its exponent and first three bits of mantissa: 9 % wide.
constexpr int kBinShift = 20;
constexpr int32_t kBins = 1 << (31 - kBinShift);
// How many lists ahead of the walk members are asked for; they are read once and lie scattered.
constexpr int32_t kPrefetchLists = 8;

// (~key bits, view, list): ascending order is descending key, then ascending list id.
using Candidate = uint64_t;

struct SelectScratch {
  SelectScratch(Workspace& workspace, int32_t num_tokens, int32_t lists)
      : num_words(CeilDiv(num_tokens, 64)),
        taken(workspace.Take<uint64_t>(num_words)),
        histogram(workspace.Take<uint32_t>(kBins)),
        candidates(workspace.Take<Candidate>(lists)) {}

  int32_t num_words;
  uint64_t* taken;        // one bit per token of the row
  uint32_t* histogram;    // members of the lists of each bin
  Candidate* candidates;  // [lists]
};

struct ListRef {
  int32_t view;
  int32_t list;
  float key;
};

inline ListRef Decode(Candidate candidate) {
  return {static_cast<int32_t>(candidate >> 16 & 0xffff), static_cast<int32_t>(candidate & 0xffff),
          FloatFromBits(~static_cast<uint32_t>(candidate >> 32))};
}

}  // namespace semkv

#endif  // SEMKV_OPS_RETRIEVAL_SELECT_LISTS_HOST_ONCE_

HWY_BEFORE_NAMESPACE();
namespace semkv {
namespace HWY_NAMESPACE {

// Compiled per target for its bit-counting instructions.
class Selector {
 public:
  Selector(const SelectListsParams& params, int64_t task, const float* keys, Workspace& workspace)
      : row_(params.rows[task / params.num_selections]),
        views_(params.views + params.view_begin[task]),
        num_views_(params.view_begin[task + 1] - params.view_begin[task]),
        keys_(keys),
        heads_(params.heads_per_selection),
        scratch_(workspace, row_.num_tokens, CountLists(views_, num_views_)) {}

  void Select() {
    std::fill_n(scratch_.taken, scratch_.num_words, uint64_t{0});
    remaining_ = row_.budget - MarkRange(0, std::min(row_.num_sinks, row_.num_tokens));
    remaining_ -= MarkRange(std::max(row_.num_tokens - row_.num_recent, 0), row_.num_tokens);
    if (remaining_ <= 0) return;
    // A token is in at most one list of each of two partitions, so lists of twice the tokens that
    // are left fill the budget; unless some were taken before, and then the rest follows.
    const int32_t bin = FindBin(2 * int64_t{remaining_});
    if (!Walk(Collect(bin, kBins)) && bin > 0) Walk(Collect(0, bin));
  }

  // Writes what was taken in ascending order and returns how much it was.
  int32_t Write(int32_t page_tokens, int32_t* slots, int32_t* positions) const {
    const int32_t shift = std::countr_zero(static_cast<uint32_t>(page_tokens));
    int32_t count = 0;
    for (int32_t w = 0; w < scratch_.num_words; ++w) {
      for (uint64_t bits = scratch_.taken[w]; bits != 0; bits &= bits - 1) {
        const int32_t position = w * 64 + std::countr_zero(bits);
        slots[count] =
            row_.block_table[position >> shift] << shift | (position & (page_tokens - 1));
        if (positions != nullptr) positions[count] = position;
        ++count;
      }
    }
    return count;
  }

 private:
  static int32_t Bin(float key) { return (FloatBits(key) & 0x7fffffffu) >> kBinShift; }

  // The highest bin such that it and those above hold `members` members, or 0.
  int32_t FindBin(int64_t members) {
    uint32_t* const histogram = scratch_.histogram;
    std::fill_n(histogram, kBins, 0u);
    const float* key = keys_;
    for (int32_t v = 0; v < num_views_; ++v) {
      const uint16_t* const offsets = views_[v].offsets;
      for (int32_t i = 0; i < views_[v].nlist; ++i, ++key) {
        if (*key >= 0.0f) histogram[Bin(*key)] += offsets[i + 1] - offsets[i];
      }
    }
    int32_t bin = kBins;
    while (bin > 0 && members > 0) members -= histogram[--bin];
    return bin;
  }

  // The lists with bins in [begin, end), sorted; returns their number.
  int32_t Collect(int32_t begin, int32_t end) {
    Candidate* const candidates = scratch_.candidates;
    int32_t count = 0;
    const float* key = keys_;
    for (int32_t v = 0; v < num_views_; ++v) {
      for (int32_t i = 0; i < views_[v].nlist; ++i, ++key) {
        if (!(*key >= 0.0f) || Bin(*key) < begin || Bin(*key) >= end) continue;
        const uint32_t bits = FloatBits(*key) & 0x7fffffffu;
        candidates[count++] = Candidate{~bits} << 32 | static_cast<uint32_t>(v) << 16 | i;
      }
    }
    std::sort(candidates, candidates + count);
    return count;
  }

  // Takes the first `count` candidates in order; returns whether that was enough.
  bool Walk(int32_t count) {
    for (int32_t c = 0; c < count; ++c) {
      if (c + kPrefetchLists < count) PrefetchMembers(scratch_.candidates[c + kPrefetchLists]);
      const ListRef ref = Decode(scratch_.candidates[c]);
      const int32_t taken = TakeList(views_[ref.view], ref.list);
      remaining_ -= taken;
      if (remaining_ == 0) return true;
      mass_ += double{ref.key} * taken / heads_;
      if (row_.mass_target > 0.0f && mass_ >= row_.mass_target) return true;
    }
    return false;
  }

  void PrefetchMembers(Candidate candidate) const {
    const ListRef ref = Decode(candidate);
    const ListsView& view = views_[ref.view];
    if (view.members == nullptr) return;
    const uint16_t* const first = view.members + view.offsets[ref.list];
    hwy::Prefetch(first);
    hwy::Prefetch(first + 32);  // a cache line of members later
  }

  int32_t TakeList(const ListsView& view, int32_t list) {
    const int32_t size = ListSize(view, list);
    if (size > remaining_) return TakeSome(view, list, size);
    if (view.members == nullptr) {
      const int32_t begin = view.first_position + view.offsets[list];
      return MarkRange(std::min(begin, row_.num_tokens), std::min(begin + size, row_.num_tokens));
    }
    const uint16_t* const members = view.members + view.offsets[list];
    int32_t taken = 0;
    for (int32_t j = 0; j < size; ++j) taken += Mark(view.first_position + members[j]);
    return taken;
  }

  // Until the budget is full, from the end that is to be kept.
  int32_t TakeSome(const ListsView& view, int32_t list, int32_t size) {
    int32_t taken = 0;
    for (int32_t j = 0; j < size && taken < remaining_; ++j) {
      const int32_t member = row_.trim == TrimKeep::kMostRecent ? size - 1 - j : j;
      taken += Mark(MemberPosition(view, list, member));
    }
    return taken;
  }

  // How many tokens this takes that were not taken.
  int32_t Mark(int32_t position) {
    if (position >= row_.num_tokens) return 0;
    uint64_t& word = scratch_.taken[position >> 6];
    const uint64_t bit = uint64_t{1} << (position & 63);
    const int32_t is_new = (word & bit) == 0;
    word |= bit;
    return is_new;
  }

  int32_t MarkRange(int32_t begin, int32_t end) {
    int32_t taken = 0;
    while (begin < end) {
      const int32_t in_word = std::min(64 - (begin & 63), end - begin);
      const uint64_t bits = ~uint64_t{0} >> (64 - in_word) << (begin & 63);
      uint64_t& word = scratch_.taken[begin >> 6];
      taken += std::popcount(bits & ~word);
      word |= bits;
      begin += in_word;
    }
    return taken;
  }

  const RetrievalRow& row_;
  const ListsView* const views_;
  const int32_t num_views_;
  const float* const keys_;
  const int32_t heads_;
  const SelectScratch scratch_;
  int32_t remaining_ = 0;
  double mass_ = 0;
};

void SelectLists(const SelectListsParams& params, int64_t task, const float* keys,
                 Workspace workspace) {
  Selector selector(params, task, keys, workspace);
  selector.Select();
  int32_t* const positions =
      params.positions != nullptr ? params.positions + task * params.slots_stride : nullptr;
  params.counts[task] =
      selector.Write(params.page_tokens, params.slots + task * params.slots_stride, positions);
}

}  // namespace HWY_NAMESPACE
}  // namespace semkv
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace semkv {

HWY_EXPORT(SelectLists);

void SelectListsTask(const SelectListsParams& params, int64_t task, const float* keys,
                     Workspace workspace) {
  HWY_DYNAMIC_DISPATCH(SelectLists)(params, task, keys, workspace);
}

size_t SelectListsWorkspaceBytes(int32_t max_row_tokens, int32_t max_lists, int num_threads) {
  Workspace measure;
  const SelectScratch scratch(measure, max_row_tokens, max_lists);
  return Workspace::TotalBytes(measure.used_bytes(), num_threads);
}

void SelectListsHost(const SelectListsParams& params, void* workspace, size_t workspace_bytes,
                     ThreadPool& pool) {
  const int num_threads = pool.num_threads();
  pool.Run(int64_t{params.num_rows} * params.num_selections, [&](int64_t task, int thread) {
    SelectListsTask(params, task, params.keys + task * params.keys_stride,
                    Workspace(workspace, workspace_bytes, num_threads, thread));
  });
}

size_t RetrieveWorkspaceBytes(int32_t num_heads, int32_t num_selections, int32_t head_dim,
                              int32_t max_row_tokens, int32_t max_lists, int num_threads) {
  Workspace keys;
  keys.Take<float>(max_lists);
  const size_t each =
      std::max(ScoreListsWorkspaceBytes(num_heads, num_selections, head_dim, max_lists, 1),
               SelectListsWorkspaceBytes(max_row_tokens, max_lists, 1));
  return Workspace::TotalBytes(keys.used_bytes() + each, num_threads);
}

void RetrieveHost(const ScoreListsParams& score, const SelectListsParams& select, void* workspace,
                  size_t workspace_bytes, ThreadPool& pool) {
  const int num_threads = pool.num_threads();
  pool.Run(int64_t{score.num_rows} * score.num_selections, [&](int64_t task, int thread) {
    Workspace share(workspace, workspace_bytes, num_threads, thread);
    const int32_t first_view = score.view_begin[task];
    const int32_t lists =
        CountLists(score.views + first_view, score.view_begin[task + 1] - first_view);
    float* const keys =
        score.keys != nullptr ? score.keys + task * score.keys_stride : share.Take<float>(lists);
    ScoreListsTask(score, task, keys, share);
    SelectListsTask(select, task, keys, share);
  });
}

}  // namespace semkv
#endif  // HWY_ONCE
