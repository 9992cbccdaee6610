#include "csrc/ops/attention/decode_attention_piece.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

// The baseline for processors without AVX2: 128-bit vectors that the compiler maps to SSE2. Highway
// 1.0.3 replaces it by single floats for GCC below 12.3 because of a wrong high half of 16-bit
// products (GCC bug 106322), which nothing here computes; the tests run this target, too.
#define HWY_BROKEN_EMU128 0
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "csrc/ops/attention/decode_attention_piece.cc"
#include "hwy/foreach_target.h"
//
#include "csrc/ops/attention/attention_simd-inl.h"
#include "csrc/ops/attention/decode_attention_bf16.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace semkv {
namespace HWY_NAMESPACE {

constexpr size_t kTileQuads = kTileTokens / kQuadTokens;
constexpr size_t kMaxQuads = kMaxPieceHeads / kQuadHeads;

// Value channels that accumulate in registers at once: 4 heads * 4 vectors where there are 32
// registers.
constexpr size_t kValueVectors = HWY_MAX_BYTES == 64 ? 4 : 2;

// Working set of a piece. Rows of q and acc are in the channel order of the pool's dtype.
struct PieceScratch {
  alignas(64) float q[kMaxPieceHeads * kMaxHeadDim];
  alignas(64) float acc[kMaxPieceHeads * kMaxHeadDim];
  alignas(64) float scores[kTileQuads * kQuadScores];
  SoftmaxState softmax[kMaxQuads];
};

// Where the rows of a piece's tokens are. The loops of the two kinds of piece are apart, since a
// tile asks for little else and every instruction here is paid for by each token and head.
template <typename T>
class RowFinder {
 public:
  explicit RowFinder(const DecodePiece& piece)
      : piece_(piece),
        shift_(__builtin_ctz(static_cast<uint32_t>(piece.view->page_tokens))),
        mask_(piece.view->page_tokens - 1),
        k_(static_cast<const T*>(piece.view->k) + KeyOffset(*piece.view, 0, piece.kv_head)),
        v_(static_cast<const T*>(piece.view->v) + ValueOffset(*piece.view, 0, piece.kv_head)) {}

  // The tile that begins at token `begin` of the piece; behind the piece's end, its last token.
  void FillTile(size_t begin, Tile<T>& tile) const {
    begin = std::min<size_t>(begin, piece_.num_tokens - 1);
    tile.num_tokens = std::min(kTileTokens, piece_.num_tokens - begin);
    const int32_t first = piece_.first_token + static_cast<int32_t>(begin);
    if (piece_.slots != nullptr) {
      FillFromSlots(piece_.slots + first, tile);
    } else {
      FillFromPages(first, tile);
    }
    for (size_t i = 2 * tile.num_tokens; i < 2 * kTileTokens; ++i) tile.rows[i] = tile.rows[i - 2];
  }

 private:
  void FillFromSlots(const int32_t* slots, Tile<T>& tile) const {
    const KvView& view = *piece_.view;
    size_t num_neighbours = 0;
    for (size_t i = 0; i < tile.num_tokens; ++i) {
      if (i > 0) num_neighbours += slots[i] == slots[i - 1] + 1;
      const int64_t page = slots[i] >> shift_;
      const int64_t in_page = slots[i] & mask_;
      tile.rows[2 * i] = k_ + page * view.k_page + in_page * view.k_token;
      tile.rows[2 * i + 1] = v_ + page * view.v_page + in_page * view.v_token;
    }
    tile.is_scattered = 2 * num_neighbours < tile.num_tokens;
  }

  // Asks the block table once per page, whose tokens are a stride apart.
  void FillFromPages(int32_t first, Tile<T>& tile) const {
    tile.is_scattered = false;
    const KvView& view = *piece_.view;
    for (size_t i = 0; i < tile.num_tokens;) {
      const int32_t t = first + static_cast<int32_t>(i);
      const int64_t page = piece_.block_table[t >> shift_];
      const int32_t in_page = t & mask_;
      const size_t end = std::min(tile.num_tokens, i + view.page_tokens - in_page);
      const T* key = k_ + page * view.k_page + in_page * view.k_token;
      const T* value = v_ + page * view.v_page + in_page * view.v_token;
      for (; i < end; ++i, key += view.k_token, value += view.v_token) {
        tile.rows[2 * i] = key;
        tile.rows[2 * i + 1] = value;
      }
    }
  }

  const DecodePiece& piece_;
  const int32_t shift_;
  const int32_t mask_;
  const T* const k_;
  const T* const v_;
};

// ------------------------------ Scores

template <size_t kVectors, typename T>
HWY_INLINE void AddProducts(const T* const (&k)[kQuadTokens], const float* HWY_RESTRICT q,
                            size_t head_dim, size_t c, FloatVec (&acc)[kScoreHeads][kQuadTokens]) {
  const FloatTag d;
  FloatVec x[kQuadTokens][kVectors];
  for (size_t t = 0; t < kQuadTokens; ++t) WidenRow(k[t] + c, x[t]);
  for (size_t i = 0; i < kVectors; ++i) {
    for (size_t h = 0; h < kScoreHeads; ++h) {
      const auto query = hn::Load(d, q + h * head_dim + c + i * kLanes);
      for (size_t t = 0; t < kQuadTokens; ++t) acc[h][t] = hn::MulAdd(query, x[t][i], acc[h][t]);
    }
  }
}

// Scores of four tokens for four heads, as [head][token].
template <typename T>
HWY_INLINE void ScoreQuad(const T* const (&k)[kQuadTokens], const float* HWY_RESTRICT q,
                          size_t head_dim, float* HWY_RESTRICT scores, Prefetcher<T>& prefetcher) {
  const FloatTag d;
  // Two tokens per quad here, and two while values are added.
  constexpr size_t kStepLines = kQuadTokens * 2 * kLanes * sizeof(T) / kLineBytes;
  for (size_t first = 0; first < kQuadHeads; first += kScoreHeads) {
    FloatVec acc[kScoreHeads][kQuadTokens];
    for (size_t h = 0; h < kScoreHeads; ++h) {
      for (size_t t = 0; t < kQuadTokens; ++t) acc[h][t] = hn::Zero(d);
    }
    const float* heads = q + first * head_dim;
    const size_t lines = Share(kStepLines, first / kScoreHeads, kQuadHeads / kScoreHeads);
    size_t c = 0;
    for (; c + 2 * kLanes <= head_dim; c += 2 * kLanes) {
      prefetcher.Touch(lines);
      AddProducts<2>(k, heads, head_dim, c, acc);
    }
    if (c < head_dim) AddProducts<1>(k, heads, head_dim, c, acc);
    StoreSums(acc, scores + first * kQuadTokens);
  }
}

template <typename T>
void ScoreTile(const Tile<T>& tile, const float* HWY_RESTRICT q, size_t head_dim,
               float* HWY_RESTRICT scores, Prefetcher<T>& prefetcher) {
  for (size_t i = 0; i < tile.num_quads(); ++i) {
    const T* k[kQuadTokens];
    for (size_t t = 0; t < kQuadTokens; ++t) k[t] = tile.key(i * kQuadTokens + t);
    ScoreQuad(k, q, head_dim, scores + i * kQuadScores, prefetcher);
  }
  // The last quad may be partial.
  for (size_t t = tile.num_tokens; t < tile.num_quads() * kQuadTokens; ++t) {
    for (size_t h = 0; h < kQuadHeads; ++h) {
      scores[(tile.num_quads() - 1) * kQuadScores + h * kQuadTokens + t % kQuadTokens] =
          -std::numeric_limits<float>::infinity();
    }
  }
}

// ------------------------------ Values

// acc[head][c, c + kVectors * kLanes) = rescale[head] * acc + sum over tokens of weight * value.
template <size_t kVectors, typename T>
HWY_INLINE void AddValues(const Tile<T>& tile, const float* HWY_RESTRICT weights,
                          const float* HWY_RESTRICT rescale, size_t head_dim, size_t c,
                          float* HWY_RESTRICT acc, Prefetcher<T>& prefetcher) {
  const FloatTag d;
  constexpr size_t kLines = kQuadTokens * kVectors * kLanes * sizeof(T) / kLineBytes;
  FloatVec sum[kQuadHeads][kVectors];
  for (size_t h = 0; h < kQuadHeads; ++h) {
    const auto factor = hn::Set(d, rescale[h * kQuadTokens]);
    for (size_t i = 0; i < kVectors; ++i) {
      sum[h][i] = hn::Mul(factor, hn::Load(d, acc + h * head_dim + c + i * kLanes));
    }
  }
  const auto add = [&](const T* row, const float* HWY_RESTRICT weight) HWY_ATTR {
    FloatVec x[kVectors];
    WidenRow(row + c, x);
    for (size_t h = 0; h < kQuadHeads; ++h) {
      const auto w = hn::Set(d, weight[h * kQuadTokens]);
      for (size_t i = 0; i < kVectors; ++i) sum[h][i] = hn::MulAdd(w, x[i], sum[h][i]);
    }
  };
  size_t t = 0;
  for (; t + kQuadTokens <= tile.num_tokens; t += kQuadTokens, weights += kQuadScores) {
    for (size_t i = 0; i < kQuadTokens; ++i) {
      prefetcher.Touch(Share(kLines, i, kQuadTokens));
      add(tile.value(t + i), weights + i);
    }
  }
  for (; t < tile.num_tokens; ++t) add(tile.value(t), weights + t % kQuadTokens);
  for (size_t h = 0; h < kQuadHeads; ++h) {
    for (size_t i = 0; i < kVectors; ++i) {
      hn::Store(sum[h][i], d, acc + h * head_dim + c + i * kLanes);
    }
  }
}

template <typename T>
void AddTileValues(const Tile<T>& tile, const float* HWY_RESTRICT weights,
                   const float* HWY_RESTRICT rescale, size_t head_dim, float* HWY_RESTRICT acc,
                   Prefetcher<T>& prefetcher) {
  size_t c = 0;
  for (; c + kValueVectors * kLanes <= head_dim; c += kValueVectors * kLanes) {
    AddValues<kValueVectors>(tile, weights, rescale, head_dim, c, acc, prefetcher);
  }
  if constexpr (kValueVectors > 2) {
    if (c + 2 * kLanes <= head_dim) {
      AddValues<2>(tile, weights, rescale, head_dim, c, acc, prefetcher);
      c += 2 * kLanes;
    }
  }
  if (c < head_dim) AddValues<1>(tile, weights, rescale, head_dim, c, acc, prefetcher);
}

// ------------------------------ Piece

// Queries of the piece as floats, scaled, in stored channel order; heads that fill up the last quad
// are zero.
template <typename T>
void LoadQueries(const DecodeAttentionParams& params, const DecodePiece& piece, size_t num_quads,
                 float* HWY_RESTRICT q) {
  const size_t head_dim = params.head_dim;
  const float factor = params.logit_cap != 0.0f ? params.scale : params.scale * kLog2E;
  alignas(64) float row[kMaxHeadDim];
  for (size_t h = 0; h < num_quads * kQuadHeads; ++h) {
    if (h >= static_cast<size_t>(piece.num_heads)) {
      std::memset(q + h * head_dim, 0, head_dim * sizeof(float));
      continue;
    }
    const int64_t first = piece.row * params.q_row + (piece.first_head + h) * params.q_head;
    LoadRow(params.q, params.q_dtype, first, head_dim, row);
    PackRow<T>(row, head_dim, factor, q + h * head_dim);
  }
}

// unpack(row of acc, head_dim, factor, out): its channels in natural order, times factor.
template <typename Unpack>
void StoreResults(const DecodePiece& piece, const PieceScratch& scratch, size_t head_dim,
                  const Unpack& unpack) {
  for (size_t h = 0; h < static_cast<size_t>(piece.num_heads); ++h) {
    const SoftmaxState& state = scratch.softmax[h / kQuadHeads];
    const size_t lane = h % kQuadHeads * kQuadTokens;
    const float* s = state.sum + lane;
    const float sum = (s[0] + s[1]) + (s[2] + s[3]);
    const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
    unpack(scratch.acc + h * head_dim, head_dim, inverse, piece.out + h * piece.out_head);
    piece.lse[h * piece.lse_head] = kLn2 * (state.max[lane] + std::log2(sum));
  }
}

template <typename T>
void AttendStored(const DecodeAttentionParams& params, const DecodePiece& piece) {
  const size_t head_dim = params.head_dim;
  const size_t num_quads = CeilDiv<size_t>(piece.num_heads, kQuadHeads);
  const size_t num_tokens = piece.num_tokens;
  const RowFinder<T> rows(piece);
  Tile<T> tiles[3];  // the current one, the next, and the one after that
  for (size_t i = 0; i < 3; ++i) rows.FillTile(i * kTileTokens, tiles[i]);
  Prefetcher<T>(tiles[0], tiles[1], head_dim).TouchAll();

  PieceScratch scratch;
  LoadQueries<T>(params, piece, num_quads, scratch.q);
  std::memset(scratch.acc, 0, num_quads * kQuadHeads * head_dim * sizeof(float));
  for (size_t quad = 0; quad < num_quads; ++quad) Reset(scratch.softmax[quad]);

  for (size_t begin = 0, i = 0; begin < num_tokens; begin += kTileTokens, i = (i + 1) % 3) {
    const Tile<T>& tile = tiles[i];
    Prefetcher<T> prefetcher(tiles[(i + 1) % 3], tiles[(i + 2) % 3], head_dim);
    for (size_t quad = 0; quad < num_quads; ++quad) {
      const size_t first = quad * kQuadHeads * head_dim;
      ScoreTile(tile, scratch.q + first, head_dim, scratch.scores, prefetcher);
      if (params.logit_cap != 0.0f) CapScores(tile.num_quads(), params.logit_cap, scratch.scores);
      alignas(64) float rescale[kQuadScores];
      UpdateSoftmax(tile.num_quads(), scratch.scores, scratch.softmax[quad], rescale);
      if (quad == 0) prefetcher.TouchIfAtOnce();
      AddTileValues(tile, scratch.scores, rescale, head_dim, scratch.acc + first, prefetcher);
    }
    rows.FillTile(begin + 3 * kTileTokens, tiles[i]);
  }
  StoreResults(piece, scratch, head_dim, UnpackRow<T>);
}

#if HWY_TARGET == HWY_AVX3

bool TakesBf16Dots(const DecodeAttentionParams& params) {
  return params.q_dtype == DType::kBFloat16 && params.head_dim % kBf16DotChannels == 0 &&
         UsesBf16Dot();
}

// AttendStored of rows that are multiplied as they are stored.
void AttendBf16(const DecodeAttentionParams& params, const DecodePiece& piece) {
  const size_t head_dim = params.head_dim;
  const size_t num_quads = CeilDiv<size_t>(piece.num_heads, kQuadHeads);
  const float factor = params.logit_cap != 0.0f ? params.scale : params.scale * kLog2E;
  const RowFinder<hwy::bfloat16_t> rows(piece);
  Tile<hwy::bfloat16_t> tiles[3];
  for (size_t i = 0; i < 3; ++i) rows.FillTile(i * kTileTokens, tiles[i]);
  Prefetcher<hwy::bfloat16_t>(tiles[0], tiles[1], head_dim).TouchAll();

  PieceScratch scratch;
  auto* const q = reinterpret_cast<uint16_t*>(scratch.q);
  std::memset(q, 0, num_quads * kQuadHeads * head_dim * sizeof(uint16_t));
  for (int32_t h = 0; h < piece.num_heads; ++h) {
    const int64_t first = piece.row * params.q_row + (piece.first_head + h) * params.q_head;
    std::memcpy(q + h * head_dim, static_cast<const uint16_t*>(params.q) + first,
                head_dim * sizeof(uint16_t));
  }
  std::memset(scratch.acc, 0, num_quads * kQuadHeads * head_dim * sizeof(float));
  for (size_t quad = 0; quad < num_quads; ++quad) Reset(scratch.softmax[quad]);

  const size_t num_tokens = piece.num_tokens;
  for (size_t begin = 0, i = 0; begin < num_tokens; begin += kTileTokens, i = (i + 1) % 3) {
    const Tile<hwy::bfloat16_t>& tile = tiles[i];
    Prefetcher<hwy::bfloat16_t> prefetcher(tiles[(i + 1) % 3], tiles[(i + 2) % 3], head_dim);
    for (size_t quad = 0; quad < num_quads; ++quad) {
      const size_t first = quad * kQuadHeads * head_dim;
      ScoreTileBf16(tile, q + first, head_dim, factor, scratch.scores, prefetcher);
      if (params.logit_cap != 0.0f) CapScores(tile.num_quads(), params.logit_cap, scratch.scores);
      alignas(64) float rescale[kQuadScores];
      UpdateSoftmax(tile.num_quads(), scratch.scores, scratch.softmax[quad], rescale);
      if (quad == 0) prefetcher.TouchIfAtOnce();
      AddTileValuesBf16(tile, scratch.scores, rescale, head_dim, scratch.acc + first, prefetcher);
    }
    rows.FillTile(begin + 3 * kTileTokens, tiles[i]);
  }
  StoreResults(piece, scratch, head_dim, UnpackBf16Row);
}

#endif  // HWY_TARGET == HWY_AVX3

void AttendPieceTarget(const DecodeAttentionParams& params, const DecodePiece& piece) {
  switch (piece.view->dtype) {
    case DType::kFloat16:
      return AttendStored<hwy::float16_t>(params, piece);
    case DType::kBFloat16:
#if HWY_TARGET == HWY_AVX3
      if (TakesBf16Dots(params)) return AttendBf16(params, piece);
#endif
      return AttendStored<hwy::bfloat16_t>(params, piece);
    case DType::kFloat8E4M3:  // DecodeAttentionUnsupported
      assert(false);
      return;
    case DType::kFloat32:
      return AttendStored<float>(params, piece);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace semkv
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace semkv {

HWY_EXPORT(AttendPieceTarget);

void AttendPiece(const DecodeAttentionParams& params, const DecodePiece& piece) {
  HWY_DYNAMIC_DISPATCH(AttendPieceTarget)(params, piece);
}

}  // namespace semkv
#endif  // HWY_ONCE
