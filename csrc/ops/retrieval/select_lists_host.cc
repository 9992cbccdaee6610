// A search over the float bits of the keys, weighted by list size, finds a threshold above which
// the lists are sure to fill the budget; only those are looked at further. Of them, the best lists
// that together cannot exceed the budget are taken whole in any order (in order where list pages
// are wanted), twice; only what is left is sorted and walked in order. Members are marked in a
// bitmap of the row's tokens, which is then written out as slots.

#include "csrc/ops/retrieval/select_lists.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

#include "csrc/ops/numeric/float_convert.h"
#include "csrc/ops/parallel/thread_pool.h"
#include "csrc/ops/retrieval/retrieval_tasks.h"
#include "csrc/ops/retrieval/select_lists_scratch.h"
#include "csrc/ops/retrieval/workspace.h"

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "csrc/ops/retrieval/select_lists_host.cc"
#include <hwy/foreach_target.h>  // before highway.h
#include <hwy/cache_control.h>
#include <hwy/highway.h>
#include "csrc/ops/retrieval/write_slots-inl.h"
// clang-format on

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
        wanted_(params.wanted != nullptr ? params.wanted + task * params.wanted_stride : nullptr),
        wanted_stride_(params.wanted_stride),
        list_page_tokens_(params.list_page_tokens),
        scratch_(workspace, row_.num_tokens, CountLists(views_, num_views_)) {
    LoadLists(keys);
  }

  void Select() {
    std::fill_n(scratch_.taken, scratch_.num_words, uint64_t{0});
    if (wanted_ != nullptr) std::fill_n(scratch_.in_pages, scratch_.num_words, uint64_t{0});
    // What must not be taken counts as taken until the budget is full.
    SetExcluded(true);
    Fill();
    SetExcluded(false);
    if (wanted_ == nullptr) return;
    for (int32_t w = 0; w < scratch_.num_words; ++w) scratch_.taken[w] &= ~scratch_.in_pages[w];
  }

  // What was taken and is in no wanted page, for a SlotWriter.
  TakenTokens Taken(int32_t page_tokens) const {
    return {scratch_.taken, 2 * scratch_.num_words, row_.num_tokens, row_.block_table,
            page_tokens,    scratch_.filled};
  }

  int32_t num_wanted() const { return num_wanted_; }

 private:
  void Fill() {
    remaining_ = row_.budget - MarkRange(0, std::min(row_.num_sinks, row_.num_tokens));
    remaining_ -= MarkRange(std::max(row_.num_tokens - row_.num_recent, 0), row_.num_tokens);
    for (int32_t i = 0; i < always_.count && remaining_ > 0; ++i) {
      remaining_ -= Mark(always_.positions[i]);
    }
    if (remaining_ <= 0) return;
    // A token is in at most one list of each of two partitions, so lists of twice the tokens that
    // are left fill the budget; unless some were taken before, and then the rest follows.
    const int64_t members = 2 * int64_t{remaining_};
    const uint32_t greatest = FloatBits(greatest_key_);
    const uint32_t first = greatest > kFirstBits ? greatest - kFirstBits : 0;
    const uint32_t least = Narrow(scratch_.all, {first, greatest + 1}, members, 2 * members).low;
    if (TakeBetween(least, greatest)) return;
    if (least > 0) TakeBetween(0, least - 1);
  }

  // Takes lists with key bits in [least, greatest], best first; returns whether that was enough.
  bool TakeBetween(uint32_t least, uint32_t greatest) {
    Collect(FloatFromBits(least), FloatFromBits(greatest));
    // With a mass target the walk may stop at any list, so it has to see all of them in order.
    if (row_.mass_target <= 0.0f) {
      const PackedLists& near = scratch_.near;
      const KeyBracket all = {least, greatest + 1};
      for (int round = 0; round < kBulkRounds; ++round) {
        const int32_t count = Extract(Narrow(near, all, int64_t{remaining_} + 1, 0).high);
        // Whose pages a token is in depends on the order.
        if (Walk(wanted_ != nullptr ? Sort(count) : count)) return true;
      }
      const int64_t members = 2 * int64_t{remaining_};
      if (Walk(Sort(Extract(Narrow(near, all, members, 2 * members).low)))) return true;
    }
    return Walk(Sort(Extract(least)));
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
    const int32_t lists = CountLists(views_, num_views_);
    scratch_.all.count = lists;
    std::copy_n(keys, lists, scratch_.all.keys);
    std::fill_n(scratch_.all.keys + lists, kScratchPadding, -1.0f);
    int32_t* sizes = scratch_.all.sizes;
    for (int32_t v = 0; v < num_views_; ++v) {
      const uint16_t* const offsets = views_[v].offsets;
      const int32_t nlist = views_[v].nlist;
      for (int32_t i = 0; i < nlist; ++i) sizes[i] = offsets[i + 1] - offsets[i];
      sizes += nlist;
    }
    std::fill_n(sizes, kScratchPadding, 0);
    const DF df;
    auto greatest = hn::Zero(df);
    for (int32_t i = 0; i < lists; i += hn::Lanes(df)) {
      const auto key = hn::Load(df, scratch_.all.keys + i);
      greatest = hn::IfThenElse(hn::Gt(key, greatest), key, greatest);  // not for NaN
    }
    greatest_key_ = hn::GetLane(hn::MaxOfLanes(df, greatest));
  }

  // members[j] = of lists with key >= thresholds[j].
  static void CountMembers(const PackedLists& lists, const float* thresholds, int64_t* members) {
    const DF df;
    const DI di;
    hn::Vec<DI> sums[kSplit];
    for (int j = 0; j < kSplit; ++j) sums[j] = hn::Zero(di);
    for (int32_t i = 0; i < lists.count; i += hn::Lanes(df)) {
      const auto key = hn::Load(df, lists.keys + i);
      const auto size = hn::Load(di, lists.sizes + i);
      for (int j = 0; j < kSplit; ++j) {
        const auto above = hn::RebindMask(di, hn::Ge(key, hn::Set(df, thresholds[j])));
        sums[j] = hn::Add(sums[j], hn::IfThenElseZero(above, size));
      }
    }
    for (int j = 0; j < kSplit; ++j) members[j] = hn::GetLane(hn::SumOfLanes(di, sums[j]));
  }

  // Where lists of descending key come to hold `members` members; stops early once lists of at
  // least the lower key hold no more than `enough`.
  static KeyBracket Narrow(const PackedLists& lists, KeyBracket bracket, int64_t members,
                           int64_t enough) {
    for (int round = 0; round < kSplitRounds; ++round) {
      const uint32_t step = (bracket.high - bracket.low) / kSplit;
      if (step == 0) break;
      float thresholds[kSplit];
      int64_t above[kSplit];
      for (int j = 0; j < kSplit; ++j) thresholds[j] = FloatFromBits(bracket.low + j * step);
      CountMembers(lists, thresholds, above);
      int j = kSplit - 1;
      while (j >= 0 && above[j] < members) --j;
      if (j < 0) {
        bracket = {0, bracket.low};
        continue;
      }
      if (j + 1 < kSplit) bracket.high = bracket.low + (j + 1) * step;
      bracket.low += j * step;
      if (above[j] <= enough) break;
    }
    return bracket;
  }

  // Packs the lists with keys in [least, greatest].
  void Collect(float least, float greatest) {
    const DF df;
    const DI di;
    const int32_t lanes = hn::Lanes(df);
    const auto from_0 = hn::Iota(di, 0);
    PackedLists& near = scratch_.near;
    near.count = 0;
    int32_t i = 0;  // of the view's first list among all
    for (int32_t v = 0; v < num_views_; i += views_[v++].nlist) {
      for (int32_t first = 0; first < views_[v].nlist; first += lanes) {
        const auto key = hn::LoadU(df, scratch_.all.keys + i + first);
        const auto in_view = hn::FirstN(df, views_[v].nlist - first);
        const auto in_range =
            hn::And(hn::Ge(key, hn::Set(df, least)), hn::Le(key, hn::Set(df, greatest)));
        const auto wanted = hn::And(in_range, in_view);
        const auto wanted_int = hn::RebindMask(di, wanted);
        const auto size = hn::LoadU(di, scratch_.all.sizes + i + first);
        const auto list = hn::Add(from_0, hn::Set(di, v << 16 | first));
        hn::StoreU(hn::Compress(key, wanted), df, near.keys + near.count);
        hn::StoreU(hn::Compress(size, wanted_int), di, near.sizes + near.count);
        hn::StoreU(hn::Compress(list, wanted_int), di, scratch_.near_lists + near.count);
        near.count += static_cast<int32_t>(hn::CountTrue(df, wanted));
      }
    }
    std::fill_n(near.keys + near.count, kScratchPadding, -1.0f);
  }

  // Moves the packed lists with key bits >= `least` to the candidates; returns their number.
  int32_t Extract(uint32_t least) {
    const DF df;
    const auto bound = hn::Set(df, FloatFromBits(least));
    float* const keys = scratch_.near.keys;
    int32_t count = 0;
    for (int32_t first = 0; first < scratch_.near.count; first += hn::Lanes(df)) {
      const auto key = hn::Load(df, keys + first);
      const auto wanted = hn::Ge(key, bound);
      HWY_ALIGN uint64_t bits = 0;
      hn::StoreMaskBits(df, wanted, reinterpret_cast<uint8_t*>(&bits));
      for (; bits != 0; bits &= bits - 1) {
        const int32_t i = first + std::countr_zero(bits);
        const uint32_t key_bits = FloatBits(keys[i]) & 0x7fffffffu;  // -0 is 0
        scratch_.candidates[count++] =
            Candidate{~key_bits} << 32 | static_cast<uint32_t>(scratch_.near_lists[i]);
      }
      hn::Store(hn::IfThenElse(wanted, hn::Set(df, -1.0f), key), df, keys + first);
    }
    return count;
  }

  int32_t Sort(int32_t count) const {
    std::sort(scratch_.candidates, scratch_.candidates + count);
    return count;
  }

  // Takes the first `count` candidates in order; returns whether that was enough.
  bool Walk(int32_t count) {
    for (int32_t c = 0; c < std::min(count, kPrefetchLists); ++c) {
      PrefetchMembers(scratch_.candidates[c]);
    }
    for (int32_t c = 0; c < count; ++c) {
      if (c + kPrefetchLists < count) PrefetchMembers(scratch_.candidates[c + kPrefetchLists]);
      const ListRef ref = Decode(scratch_.candidates[c]);
      const int32_t taken = TakeList(views_[ref.view], ref.list);
      remaining_ -= taken;
      if (remaining_ == 0 || is_out_of_pages_) return true;
      if (row_.mass_target <= 0.0f) continue;
      mass_ += double{ref.key} * taken / heads_;
      if (mass_ >= row_.mass_target) return true;
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
    if (wanted_ != nullptr && view.first_page != nullptr) return TakePages(view, list);
    const int32_t size = ListSize(view, list);
    if (size > remaining_) return TakeSome(view, list, size);
    if (view.members == nullptr) {
      const int32_t begin = view.first_position + view.offsets[list];
      return MarkRange(std::min(begin, row_.num_tokens), std::min(begin + size, row_.num_tokens));
    }
    const uint16_t* const members = view.members + view.offsets[list];
    int32_t inside = size;  // members ascend
    while (inside > 0 && view.first_position + members[inside - 1] >= row_.num_tokens) --inside;
    return MarkAscending(view.first_position, members, inside);
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

  // Pages of a list until the budget is full, from the end that is to be kept.
  int32_t TakePages(const ListsView& view, int32_t list) {
    const int32_t size = ListSize(view, list);
    const int32_t num_pages = CeilDiv(size, list_page_tokens_);
    const bool is_last_first = row_.trim == TrimKeep::kMostRecent;
    int32_t taken = 0;
    for (int32_t i = 0; i < num_pages && taken < remaining_; ++i) {
      const int32_t page = is_last_first ? num_pages - 1 - i : i;
      const int32_t begin = page * list_page_tokens_;
      const int32_t end = std::min(begin + list_page_tokens_, size);
      uint32_t tokens = NotTaken(view, list, begin, end);
      if (tokens == 0) continue;
      if (num_wanted_ == wanted_stride_) {
        is_out_of_pages_ = true;
        break;
      }
      for (int32_t room = remaining_ - taken; std::popcount(tokens) > room;) {
        tokens &= is_last_first ? tokens - 1 : ~std::bit_floor(tokens);
      }
      for (uint32_t bits = tokens; bits != 0; bits &= bits - 1) {
        const int32_t position = MemberPosition(view, list, begin + std::countr_zero(bits));
        const uint64_t bit = uint64_t{1} << (position & 63);
        scratch_.taken[position >> 6] |= bit;
        scratch_.in_pages[position >> 6] |= bit;
      }
      taken += std::popcount(tokens);
      wanted_[num_wanted_++] = {view.first_page[list] + page, tokens};
    }
    return taken;
  }

  // Of a list's members [begin, end), at most 32, those that are not taken: bit k is begin + k.
  uint32_t NotTaken(const ListsView& view, int32_t list, int32_t begin, int32_t end) const {
    uint32_t tokens = 0;
    for (int32_t j = begin; j < end; ++j) {
      const int32_t position = MemberPosition(view, list, j);
      if (position >= row_.num_tokens) break;  // members ascend
      const auto is_new = static_cast<uint32_t>(~scratch_.taken[position >> 6] >> (position & 63));
      tokens |= (is_new & 1) << (j - begin);
    }
    return tokens;
  }

  // How many tokens this takes that were not taken.
  int32_t Mark(int32_t position) { return position < row_.num_tokens ? MarkInside(position) : 0; }

  int32_t MarkInside(int32_t position) {
    uint64_t& word = scratch_.taken[position >> 6];
    const uint64_t bit = uint64_t{1} << (position & 63);
    const int32_t is_new = (word & bit) == 0;
    word |= bit;
    return is_new;
  }

  // Neighbours fall into the same word, whose bits are gathered in a register: through memory each
  // would wait for the one before.
  int32_t MarkAscending(int32_t first_position, const uint16_t* members, int32_t count) {
    int32_t taken = 0, at = 0;
    uint64_t bits = 0;
    for (int32_t j = 0; j < count; ++j) {
      const int32_t position = first_position + members[j];
      if (position >> 6 != at) {
        taken += MarkBits(at, bits);
        at = position >> 6;
        bits = 0;
      }
      bits |= uint64_t{1} << (position & 63);
    }
    return taken + MarkBits(at, bits);
  }

  int32_t MarkBits(int32_t w, uint64_t bits) {
    uint64_t& word = scratch_.taken[w];
    const int32_t taken = std::popcount(bits & ~word);
    word |= bits;
    return taken;
  }

  int32_t MarkRange(int32_t begin, int32_t end) {
    int32_t taken = 0;
    while (begin < end) {
      const int32_t in_word = std::min(64 - (begin & 63), end - begin);
      const uint64_t bits = ~uint64_t{0} >> (64 - in_word) << (begin & 63);
      taken += MarkBits(begin >> 6, bits);
      begin += in_word;
    }
    return taken;
  }

  const RetrievalRow& row_;
  const ListsView* const views_;
  const int32_t num_views_;
  const int32_t heads_;
  const AlwaysTaken always_;
  WantedPage* const wanted_;  // of this task; null: every token gets a slot
  const int32_t wanted_stride_;
  const int32_t list_page_tokens_;
  SelectScratch scratch_;
  float greatest_key_ = 0;
  int32_t remaining_ = 0;
  double mass_ = 0;
  int32_t num_wanted_ = 0;
  bool is_out_of_pages_ = false;
};

void SelectLists(const SelectListsParams& params, int64_t task, const float* keys,
                 Workspace workspace) {
  Selector selector(params, task, keys, workspace);
  selector.Select();
  int32_t* const positions =
      params.positions != nullptr ? params.positions + task * params.slots_stride : nullptr;
  params.counts[task] = SlotWriter(selector.Taken(params.page_tokens),
                                   params.slots + task * params.slots_stride, positions)
                            .Write();
  if (params.wanted != nullptr) params.wanted_counts[task] = selector.num_wanted();
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
