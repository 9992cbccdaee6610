// A search over the float bits of the keys, weighted by list size, finds a threshold above which
// the lists are sure to fill the budget; only those are sorted. They are walked in order and their
// members marked in a bitmap of the row's tokens, which is then written out as slots.

#include "csrc/ops/retrieval/select_lists.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

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

// The search divides the interval of key bits by kSplit a few times: from 256 octaves to less than
// a tenth of one.
constexpr int kSplit = 8;
constexpr int kSplitRounds = 4;
constexpr uint32_t kEndOfKeyBits = 0x7f800001u;  // one more than infinity's
// How many lists ahead of the walk members are asked for; they are read once and lie scattered.
constexpr int32_t kPrefetchLists = 8;

// (~key bits, view, list): ascending order is descending key, then ascending list id.
using Candidate = uint64_t;

struct SelectScratch {
  SelectScratch(Workspace& workspace, int32_t num_tokens, int32_t lists)
      : num_words(CeilDiv(num_tokens, 64)),
        num_lists(lists),
        taken(workspace.Take<uint64_t>(num_words)),
        keys(workspace.Take<float>(ScratchStride(lists))),
        sizes(workspace.Take<int32_t>(ScratchStride(lists))),
        candidates(workspace.Take<Candidate>(lists)) {}

  int32_t num_words;
  int32_t num_lists;
  uint64_t* taken;        // one bit per token of the row
  float* keys;            // [num_lists], then -1 to the end of a vector
  int32_t* sizes;         // [num_lists], then 0
  Candidate* candidates;  // [num_lists]
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

namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;
using DI = hn::ScalableTag<int32_t>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

class Selector {
 public:
  Selector(const SelectListsParams& params, int64_t task, const float* keys, Workspace& workspace)
      : row_(params.rows[task / params.num_selections]),
        views_(params.views + params.view_begin[task]),
        num_views_(params.view_begin[task + 1] - params.view_begin[task]),
        heads_(params.heads_per_selection),
        always_(params.always != nullptr ? params.always[task] : AlwaysTaken()),
        scratch_(workspace, row_.num_tokens, CountLists(views_, num_views_)) {
    LoadLists(keys);
  }

  void Select() {
    std::fill_n(scratch_.taken, scratch_.num_words, uint64_t{0});
    // What must not be taken counts as taken until the budget is full.
    SetExcluded(true);
    Fill();
    SetExcluded(false);
  }

  // Writes what was taken in ascending order and returns how much it was.
  int32_t Write(int32_t page_tokens, int32_t* slots, int32_t* positions) const {
    int32_t buffer[kWriteBuffer];
    int32_t buffered = 0, count = 0;
    for (int32_t w = 0; w <= scratch_.num_words; ++w) {
      if (w == scratch_.num_words || buffered > kWriteBuffer - kWordRoom) {
        WriteSlots(buffer, buffered, page_tokens, slots + count);
        if (positions != nullptr) std::copy_n(buffer, buffered, positions + count);
        count += buffered;
        buffered = 0;
      }
      if (w < scratch_.num_words && scratch_.taken[w] != 0) {
        buffered += ExpandWord(w, buffer + buffered);
      }
    }
    return count;
  }

 private:
  static constexpr int32_t kWriteBuffer = 512;
  static constexpr int32_t kWordRoom = 64 + kScratchPadding;  // of positions, and a vector's tail

  // The positions of the bits of word `w`; returns their number. May write a vector too much.
  int32_t ExpandWord(int32_t w, int32_t* out) const {
#if HWY_TARGET == HWY_SCALAR
    int32_t count = 0;
    for (uint64_t bits = scratch_.taken[w]; bits != 0; bits &= bits - 1) {
      out[count++] = w * 64 + std::countr_zero(bits);
    }
    return count;
#else
    // A loop over bits mispredicts its end once per word; this has no branch.
    const DI di;
    const int32_t lanes = hn::Lanes(di);
    const auto from_0 = hn::Iota(di, 0);
    const uint64_t word = scratch_.taken[w];
    const uint8_t* const bytes = reinterpret_cast<const uint8_t*>(scratch_.taken + w);
    int32_t count = 0;
    for (int32_t first = 0; first < 64; first += lanes) {
      const auto positions = hn::Add(from_0, hn::Set(di, w * 64 + first));
      hn::StoreU(hn::CompressBits(positions, bytes + first / 8), di, out + count);
      count += std::popcount(word >> first & ((uint64_t{1} << lanes) - 1));
    }
    return count;
#endif
  }

  void WriteSlots(const int32_t* positions, int32_t count, int32_t page_tokens,
                  int32_t* slots) const {
    const DI di;
    const int32_t shift = std::countr_zero(static_cast<uint32_t>(page_tokens));
    const auto in_page = hn::Set(di, page_tokens - 1);
    const int32_t* const table = row_.block_table;
    int32_t k = 0;
    for (const int32_t lanes = hn::Lanes(di); k + lanes <= count; k += lanes) {
      const auto position = hn::LoadU(di, positions + k);
      const auto page = hn::GatherIndex(di, table, hn::ShiftRightSame(position, shift));
      hn::StoreU(hn::Or(hn::ShiftLeftSame(page, shift), hn::And(position, in_page)), di, slots + k);
    }
    for (; k < count; ++k) {
      slots[k] = table[positions[k] >> shift] << shift | (positions[k] & (page_tokens - 1));
    }
  }

  void Fill() {
    remaining_ = row_.budget - MarkRange(0, std::min(row_.num_sinks, row_.num_tokens));
    remaining_ -= MarkRange(std::max(row_.num_tokens - row_.num_recent, 0), row_.num_tokens);
    for (int32_t i = 0; i < always_.count && remaining_ > 0; ++i) {
      remaining_ -= Mark(always_.positions[i]);
    }
    if (remaining_ <= 0) return;
    // A token is in at most one list of each of two partitions, so lists of twice the tokens that
    // are left fill the budget; unless some were taken before, and then the rest follows.
    const float threshold = FindThreshold(2 * int64_t{remaining_});
    if (!Walk(Collect(threshold, kInfinity)) && threshold > 0.0f) {
      Walk(Collect(0.0f, FloatFromBits(FloatBits(threshold) - 1)));
    }
  }

  void SetExcluded(bool taken) {
    for (int32_t v = 0; v < num_views_; ++v) {
      for (int32_t i = 0; i < views_[v].num_excluded; ++i) {
        const int32_t position = views_[v].first_position + views_[v].excluded[i];
        if (position >= row_.num_tokens) continue;
        const uint64_t bit = uint64_t{1} << (position & 63);
        uint64_t& word = scratch_.taken[position >> 6];
        word = taken ? word | bit : word & ~bit;
      }
    }
  }

  void LoadLists(const float* keys) {
    const int32_t lists = scratch_.num_lists;
    std::copy_n(keys, lists, scratch_.keys);
    std::fill_n(scratch_.keys + lists, kScratchPadding, -1.0f);
    int32_t* sizes = scratch_.sizes;
    for (int32_t v = 0; v < num_views_; ++v) {
      const uint16_t* const offsets = views_[v].offsets;
      const int32_t nlist = views_[v].nlist;
      for (int32_t i = 0; i < nlist; ++i) sizes[i] = offsets[i + 1] - offsets[i];
      sizes += nlist;
    }
    std::fill_n(sizes, kScratchPadding, 0);
  }

  // members[j] = of lists with key >= thresholds[j].
  void CountMembers(const float* thresholds, int64_t* members) const {
    const DF df;
    const DI di;
    hn::Vec<DI> sums[kSplit];
    for (int j = 1; j < kSplit; ++j) sums[j] = hn::Zero(di);
    for (int32_t i = 0; i < scratch_.num_lists; i += hn::Lanes(df)) {
      const auto key = hn::Load(df, scratch_.keys + i);
      const auto size = hn::Load(di, scratch_.sizes + i);
      for (int j = 1; j < kSplit; ++j) {
        const auto above = hn::RebindMask(di, hn::Ge(key, hn::Set(df, thresholds[j])));
        sums[j] = hn::Add(sums[j], hn::IfThenElseZero(above, size));
      }
    }
    for (int j = 1; j < kSplit; ++j) members[j] = hn::GetLane(hn::SumOfLanes(di, sums[j]));
  }

  // A key such that lists of no lesser key hold `members` members, and not many more; else 0.
  float FindThreshold(int64_t members) const {
    uint32_t low = 0, high = kEndOfKeyBits;
    for (int round = 0; round < kSplitRounds; ++round) {
      const uint32_t step = (high - low) / kSplit;
      float thresholds[kSplit];
      int64_t above[kSplit];
      for (int j = 1; j < kSplit; ++j) thresholds[j] = FloatFromBits(low + j * step);
      CountMembers(thresholds, above);
      int j = kSplit - 1;
      while (j > 0 && above[j] < members) --j;
      if (j + 1 < kSplit) high = low + (j + 1) * step;
      low += j * step;
      if (j > 0 && above[j] <= members + members / 4) break;
    }
    return FloatFromBits(low);
  }

  // The lists with keys in [least, greatest], sorted; returns their number.
  int32_t Collect(float least, float greatest) {
    const DF df;
    const int32_t lanes = hn::Lanes(df);
    Candidate* const candidates = scratch_.candidates;
    const float* keys = scratch_.keys;
    int32_t count = 0;
    for (int32_t v = 0; v < num_views_; keys += views_[v++].nlist) {
      for (int32_t first = 0; first < views_[v].nlist; first += lanes) {
        const auto key = hn::LoadU(df, keys + first);
        const auto in_view = hn::FirstN(df, views_[v].nlist - first);
        const auto in_range =
            hn::And(hn::Ge(key, hn::Set(df, least)), hn::Le(key, hn::Set(df, greatest)));
        HWY_ALIGN uint64_t bits = 0;
        hn::StoreMaskBits(df, hn::And(in_range, in_view), reinterpret_cast<uint8_t*>(&bits));
        for (; bits != 0; bits &= bits - 1) {
          const int32_t i = first + std::countr_zero(bits);
          const uint32_t key_bits = FloatBits(keys[i]) & 0x7fffffffu;  // -0 is 0
          candidates[count++] = Candidate{~key_bits} << 32 | static_cast<uint32_t>(v) << 16 | i;
        }
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
  const int32_t heads_;
  const AlwaysTaken always_;
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
