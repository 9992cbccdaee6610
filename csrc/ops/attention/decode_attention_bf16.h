// Scores and values of a tile of bfloat16 rows by AVX-512 bf16 dot products: vdpbf16ps multiplies
// and adds two neighbouring numbers a lane and takes rows as they are stored. Highway 1.0.3 has no
// target with it, so these two inner loops are written in intrinsics, behind a run-time check.
//
// Queries are bfloat16, so scores are those of float32 queries but for the order of sums. Weights
// are split into two bfloat16 numbers each, which leaves 2^-17 of them: values lose nothing either.

#ifndef SEMKV_OPS_ATTENTION_DECODE_ATTENTION_BF16_H_
#define SEMKV_OPS_ATTENTION_DECODE_ATTENTION_BF16_H_

#include <hwy/base.h>

#include <cstddef>
#include <cstdint>

#include "csrc/ops/attention/decode_attention_tile.h"

namespace semkv {

// head_dim is a multiple of it.
constexpr size_t kBf16DotChannels = 64;

// Where the instruction is used.
enum class Bf16Dot {
  // On AMD: Zen 4 starts one a cycle, as it does a multiply-add, for twice the products. An Intel
  // with AMX starts one every two cycles, and a multiply-add every half, so it is better off
  // widening (docs/kernels/decode_attention.md).
  kWhereFaster,
  kWhereAvailable,
  kNever,
};

bool UsesBf16Dot();
void SetBf16DotForTest(Bf16Dot use);  // kWhereFaster unless set

// scores, [quads][head][token] = factor * sum over channels of q[head] * key of the token, four
// heads: q is [4, head_dim]. Tokens that a partial last quad lacks get -infinity. 64-byte aligned.
void ScoreTileBf16(const Tile<hwy::bfloat16_t>& tile, const uint16_t* q, size_t head_dim,
                   float factor, float* scores, Prefetcher<hwy::bfloat16_t>& prefetcher);

// acc[head] = rescale[head][0] * acc[head] + sum over tokens of weight * value; `weights` is laid
// out as scores, rescale is [head][4], acc [4, head_dim] in an order of its own (UnpackBf16Row).
void AddTileValuesBf16(const Tile<hwy::bfloat16_t>& tile, const float* weights,
                       const float* rescale, size_t head_dim, float* acc,
                       Prefetcher<hwy::bfloat16_t>& prefetcher);

// to[c] = factor * channel c of a row of acc.
void UnpackBf16Row(const float* from, size_t head_dim, float factor, float* to);

}  // namespace semkv

#endif  // SEMKV_OPS_ATTENTION_DECODE_ATTENTION_BF16_H_
