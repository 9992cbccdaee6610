// Inverted lists as the retrieval operations see them: a view of one partition of one segment for
// one (layer, selection head). Storage belongs to csrc/api; the operations only read.

#ifndef SEMKV_OPS_RETRIEVAL_INVERTED_LISTS_H_
#define SEMKV_OPS_RETRIEVAL_INVERTED_LISTS_H_

#include <cstdint>

#include "csrc/ops/numeric/float_convert.h"
#include "semkv/types.h"

namespace semkv {

// How the semantic vectors of the lists are stored.
enum class CentroidForm : int32_t {
  kInt8 = 0,      // centroid = center + scales[i] * int8 vector; center is the segment's mean key
  kBFloat16 = 1,  // centroid = center + bf16 vector
  kFloat32 = 2,   // centroid itself; center is not added
  kInt4 = 3,      // as kInt8 with codes in [-7, 7], two to a byte (Int4Code), in blocks of 32
                  // channels (Int4Channels). The query is rounded too (Int4QueryStep)
  kBounds = 4,    // Quest: least and greatest key per channel, bf16 rounded outwards; no center
};

// Whether a list has codes and a scale.
SEMKV_HOST_DEVICE constexpr bool HasScales(CentroidForm form) {
  return form == CentroidForm::kInt8 || form == CentroidForm::kInt4;
}

// Whether a list's vector counts from the segment's mean key.
SEMKV_HOST_DEVICE constexpr bool HasCenter(CentroidForm form) {
  return HasScales(form) || form == CentroidForm::kBFloat16;
}

// The greatest code: scale * code is the channel farthest from 0.
SEMKV_HOST_DEVICE constexpr float GreatestCode(CentroidForm form) {
  return form == CentroidForm::kInt4 ? 7.0f : 127.0f;
}

// Of 32 neighbouring channels the first 16 are the lower halves of 16 bytes, the others the upper:
// a shift and a sign extension make vectors of neighbours of either. The byte of channel c, its
// code there, and the channels that a list's blocks have; those behind head_dim are 0.
constexpr int32_t kInt4Block = 32;
SEMKV_HOST_DEVICE constexpr int32_t Int4Byte(int32_t c) { return c / kInt4Block * 16 + c % 16; }
SEMKV_HOST_DEVICE constexpr int32_t Int4Code(uint8_t byte, int32_t c) {
  const int32_t half = (c % kInt4Block < 16 ? byte : byte >> 4) & 15;
  return half < 8 ? half : half - 16;
}
SEMKV_HOST_DEVICE constexpr int32_t Int4Channels(int32_t head_dim) {
  return (head_dim + kInt4Block - 1) / kInt4Block * kInt4Block;
}

// Bytes of one list's vectors.
SEMKV_HOST_DEVICE constexpr int32_t CentroidRowBytes(CentroidForm form, int32_t head_dim) {
  switch (form) {
    case CentroidForm::kInt4:
      return Int4Channels(head_dim) / 2;
    case CentroidForm::kInt8:
      return head_dim;
    case CentroidForm::kBFloat16:
      return 2 * head_dim;
    case CentroidForm::kFloat32:
    case CentroidForm::kBounds:
      break;
  }
  return 4 * head_dim;
}

// What a query head is rounded to multiples of before it is multiplied with kInt4 lists (its
// product with the center is exact): 8 bits, a step 18 times finer than the codes'. `largest`: its
// greatest magnitude. A multiple is round(channel / step), in float32; 0 for a query that is as
// good as 0.
SEMKV_HOST_DEVICE constexpr float Int4QueryStep(float largest) { return largest / 127.0f; }
constexpr float kLeastQueryStep = 1e-37f;  // 1 / step may overflow below

struct ListsView {
  int32_t nlist = 0;           // at most 65,535
  int32_t partition = 0;       // 0 or 1; a token is in at most one list of each
  int32_t first_position = 0;  // position of the segment's first token; members count from it
  CentroidForm form = CentroidForm::kInt8;
  const void* centroids = nullptr;    // [nlist, head_dim]; kInt4: [nlist, Int4Channels] codes;
                                      // kBounds: [nlist, 2, head_dim], least first
  const float* scales = nullptr;      // [nlist], where HasScales
  const float* center = nullptr;      // [head_dim], where HasCenter
  const float* variances = nullptr;   // [nlist]; null: the variance term is 0
  const uint16_t* offsets = nullptr;  // [nlist + 1]; list i has offsets[i + 1] - offsets[i] members
  const uint16_t* members = nullptr;  // [offsets[nlist]], ascending within a list; null: the list
                                      // is the range of tokens [offsets[i], offsets[i + 1])
  const int32_t* first_page = nullptr;  // [nlist]: home page in which list i begins; its pages are
                                        // neighbours, its members fill them in order. Null: the
                                        // lists have no pages
  const uint16_t* value_means = nullptr;  // [nlist, head_dim] bf16; null: lists are never estimated
  const uint16_t* excluded = nullptr;     // [num_excluded]: tokens of the segment whose key is not
  int32_t num_excluded = 0;               // finite; never selected, not even as sink or recent
};

inline int32_t ListSize(const ListsView& view, int32_t i) {
  return view.offsets[i + 1] - view.offsets[i];
}

// Position in the row of member `j` of list `i`.
inline int32_t MemberPosition(const ListsView& view, int32_t i, int32_t j) {
  const int32_t at = view.offsets[i] + j;
  return view.first_position + (view.members != nullptr ? view.members[at] : at);
}

// What the ranking adds for the spread of a list's keys around its centroid, v = scale^2 *
// |q|^2 / head_dim * variance (docs/design.md, section 4).
enum class VarianceTerm : int32_t {
  kBounded = 0,  // v / 2 while v <= 2 ln size, then sqrt(2 v ln size) - ln size
  kHalf = 1,     // v / 2
  kNone = 2,     // as in the papers
};

// How the query heads of a selection are combined into one rank key.
enum class GroupRank : int32_t {
  kShareSum = 0,  // sum over heads of exp(s) / Z_head, Z_head = sum of size * exp(s)
  kShareMax = 1,  // max over heads of the same
};

enum class TrimKeep : int32_t { kMostRecent = 0, kEarliest = 1 };

// What is selected for one row. Positions [0, num_sinks) and [num_tokens - num_recent, num_tokens)
// are always taken; lists fill the rest of the budget.
struct RetrievalRow {
  int32_t num_tokens = 0;  // context, the current token included
  int32_t budget = 0;      // tokens per selection, everything included; >= num_sinks + num_recent
  int32_t num_sinks = 0;
  int32_t num_recent = 0;
  VarianceTerm variance = VarianceTerm::kBounded;
  GroupRank rank = GroupRank::kShareSum;
  TrimKeep trim = TrimKeep::kMostRecent;
  float rank_weight[2] = {1.0f, 1.0f};  // per partition, positive: a list's key is that many shares
  float mass_target = 0.0f;  // in (0, 1): stop at the fewest lists whose estimated share of the
                             // lists' mass reaches it; 0: fill the budget
  const int32_t* block_table = nullptr;  // the row's pages
};

}  // namespace semkv

#endif  // SEMKV_OPS_RETRIEVAL_INVERTED_LISTS_H_
