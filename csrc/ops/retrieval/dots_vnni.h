// Dot products of query heads with int8 or int4 lists by AVX-512 VNNI (csrc/ops/vnni.h).
//
// The Highway code of list_dots-inl.h computes the same sums, bit for bit, on every other machine.

#ifndef SEMKV_OPS_RETRIEVAL_DOTS_VNNI_H_
#define SEMKV_OPS_RETRIEVAL_DOTS_VNNI_H_

#include <cstdint>

#include "csrc/ops/retrieval/inverted_lists.h"

namespace semkv {

constexpr int kVnniHeads = 4;      // of one call
constexpr int kVnniChannels = 16;  // head_dim is a multiple of it
constexpr int kVnniLists = 4;      // dots are written in such blocks

// A query head as DotsVnni reads it: every kVnniChannels channels, the even ones four times, then
// the odd ones four times.
constexpr int64_t VnniQueryElements(int32_t head_dim) { return int64_t{4} * head_dim; }
void SplitQueryForVnni(const int16_t* query, int32_t head_dim, int16_t* out);

// dots[h * stride + i] = sum over channels of query[h, c] * centroid[i, c], for kVnniHeads heads
// and a view of kInt8 lists. queries: [kVnniHeads, VnniQueryElements(head_dim)], 64-byte aligned.
// dots may be written up to kVnniLists - 1 past nlist. What else scoring reads of the lists is
// brought nearer meanwhile, and with the last of them the beginning of `next`, which will be read
// after them; null: what follows them.
//
// REQUIRES: HasVnni().
void DotsVnni(const ListsView& view, const void* next, const int16_t* queries, int32_t head_dim,
              float* dots, int64_t stride);

// The same of CentroidForm::kInt4 lists and queries of 8 bits: every 16 channels four times.
void SplitQueryForVnniInt4(const int16_t* query, int32_t head_dim, int8_t* out);
void DotsVnniInt4(const ListsView& view, const void* next, const int8_t* queries, int32_t head_dim,
                  float* dots, int64_t stride);

}  // namespace semkv

#endif  // SEMKV_OPS_RETRIEVAL_DOTS_VNNI_H_
