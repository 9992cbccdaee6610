// One task of decode attention: up to kMaxPieceHeads query heads of one KV head over up to
// kDecodeSplitTokens tokens of one pool, on one thread. decode_attention_host.cc cuts the work into
// pieces and merges them.
//
// A piece walks its tokens in tiles: scores of all its query heads, online softmax, weighted
// values; while a tile is worked on, the rows of the next are prefetched.
// docs/kernels/decode_attention.md has the arithmetic and the measurements behind the constants.

#ifndef SEMKV_OPS_ATTENTION_DECODE_ATTENTION_PIECE_H_
#define SEMKV_OPS_ATTENTION_DECODE_ATTENTION_PIECE_H_

#include <cstdint>

#include "csrc/ops/attention/decode_attention.h"
#include "semkv/types.h"

namespace semkv {

// Larger groups are read once per 16 query heads; by then arithmetic, not memory, is the limit.
constexpr int32_t kMaxPieceHeads = 16;
constexpr int32_t kMaxHeadDim = 256;

struct DecodePiece {
  const KvView* view = nullptr;
  const int32_t* block_table = nullptr;  // dense: page ids of the row
  const int32_t* slots = nullptr;        // sparse: slots of the row and selection
  int32_t first_token = 0;               // within the block table or the slots
  int32_t num_tokens = 0;
  int32_t kv_head = 0;
  int32_t row = 0;
  int32_t first_head = 0;
  int32_t num_heads = 0;  // at most kMaxPieceHeads
  // Results of head h of the piece, normalised: out + h * out_head and lse + h * lse_head.
  float* out = nullptr;
  float* lse = nullptr;
  int64_t out_head = 0;
  int64_t lse_head = 0;
};

// Uses the best instructions the processor has. REQUIRES: num_tokens > 0, num_heads > 0.
void AttendPiece(const DecodeAttentionParams& params, const DecodePiece& piece);

}  // namespace semkv

#endif  // SEMKV_OPS_ATTENTION_DECODE_ATTENTION_PIECE_H_
