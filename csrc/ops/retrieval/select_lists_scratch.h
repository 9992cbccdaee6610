// What the host form of select_lists works on, and how its search is tuned. Internal to
// select_lists_host.cc.

#ifndef SEMKV_OPS_RETRIEVAL_SELECT_LISTS_SCRATCH_H_
#define SEMKV_OPS_RETRIEVAL_SELECT_LISTS_SCRATCH_H_

#include <cstdint>

#include "csrc/ops/numeric/float_convert.h"
#include "csrc/ops/retrieval/retrieval_tasks.h"
#include "csrc/ops/retrieval/workspace.h"

namespace semkv {

// A search divides the interval of key bits by kSplit a few times. It begins kFirstBits (16
// octaves) below the greatest key, where the lists that matter are: 2 octaves, then a quarter of
// one.
constexpr int kSplit = 8;
constexpr int kSplitRounds = 4;
constexpr uint32_t kFirstBits = 16u << 23;
// How often lists are taken whole before the rest is sorted: the first time takes all but what two
// partitions have in common, the second most of that.
constexpr int kBulkRounds = 2;
// How many lists ahead of the walk members are asked for; they are read once and lie scattered.
constexpr int32_t kPrefetchLists = 8;

// (~key bits, view, list): ascending order is descending key, then ascending list id.
using Candidate = uint64_t;

// Lists with what selection needs of them, densely packed. After the last one, kScratchPadding keys
// are -1.
struct PackedLists {
  PackedLists(Workspace& workspace, int32_t lists)
      : keys(workspace.Take<float>(ScratchStride(lists))),
        sizes(workspace.Take<int32_t>(ScratchStride(lists))) {}

  float* keys;
  int32_t* sizes;
  int32_t count = 0;
};

struct SelectScratch {
  SelectScratch(Workspace& workspace, int32_t num_tokens, int32_t lists)
      : num_words(CeilDiv(num_tokens, 64)),
        taken(workspace.Take<uint64_t>(num_words)),
        in_pages(workspace.Take<uint64_t>(num_words)),
        filled(workspace.Take<int32_t>(ScratchStride(2 * num_words))),
        all(workspace, lists),
        near(workspace, lists),
        near_lists(workspace.Take<int32_t>(ScratchStride(lists))),
        candidates(workspace.Take<Candidate>(lists)) {}

  int32_t num_words;
  uint64_t* taken;        // one bit per token of the row
  uint64_t* in_pages;     // of those taken, the ones in wanted pages; not used without
  int32_t* filled;        // for TakenTokens
  PackedLists all;        // in order of list id
  PackedLists near;       // those above the threshold, in the same order
  int32_t* near_lists;    // view << 16 | list
  Candidate* candidates;  // what is sorted
};

// Key bits between which a sum over lists of descending key passes a number of members.
struct KeyBracket {
  uint32_t low;   // lists of no lesser key hold at least as many; or 0
  uint32_t high;  // lists of no lesser key hold fewer
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

#endif  // SEMKV_OPS_RETRIEVAL_SELECT_LISTS_SCRATCH_H_
