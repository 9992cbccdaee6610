#include "csrc/ops/attention/decode_attention_bf16.h"

#include <atomic>
#include <limits>

namespace semkv {
namespace {

std::atomic<Bf16Dot> bf16_dot_use{Bf16Dot::kWhereFaster};

}  // namespace

void SetBf16DotForTest(Bf16Dot use) { bf16_dot_use = use; }

// Of 32 channels, two neighbouring rows are interleaved in 128-bit blocks: of each block of 8
// channels the lower four lie in the first vector and the upper four in the second.
void UnpackBf16Row(const float* from, size_t head_dim, float factor, float* to) {
  for (size_t c = 0; c < head_dim; ++c) {
    const size_t block = c % 32 / 8, upper = c % 8 / 4;
    to[c] = factor * from[c / 32 * 32 + upper * 16 + block * 4 + c % 4];
  }
}

}  // namespace semkv

#if defined(__x86_64__)

#if defined(__GNUC__) && !defined(__clang__)
// GCC's own headers: their undefined vectors are meant (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#define SEMKV_BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#define SEMKV_BF16_INLINE SEMKV_BF16 __attribute__((always_inline)) inline

namespace semkv {
namespace {

using Row = const hwy::bfloat16_t*;

SEMKV_BF16_INLINE __m512i LoadRow(const void* row, size_t channel) {
  return _mm512_loadu_si512(static_cast<const uint16_t*>(row) + channel);
}

SEMKV_BF16_INLINE __m512 AddDots(__m512 sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

// Block by block: {sum of x[0]'s lanes, of x[1]'s, of x[2]'s, of x[3]'s}.
SEMKV_BF16_INLINE __m512 SumWithinBlocks(const __m512 (&x)[kQuadTokens]) {
  const __m512d s01 = _mm512_castps_pd(
      _mm512_add_ps(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1])));
  const __m512d s23 = _mm512_castps_pd(
      _mm512_add_ps(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3])));
  return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(s01, s23)),
                       _mm512_castpd_ps(_mm512_unpackhi_pd(s01, s23)));
}

// {sums of a's blocks 0 and 2, 1 and 3, of b's likewise}.
SEMKV_BF16_INLINE __m512 SumHalves(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
}

// Block h of the result: the sum of the blocks of x[h].
SEMKV_BF16_INLINE __m512 SumBlocks(const __m512 (&x)[kQuadHeads]) {
  const __m512 x01 = SumHalves(x[0], x[1]), x23 = SumHalves(x[2], x[3]);
  return _mm512_add_ps(_mm512_shuffle_f32x4(x01, x23, 0x88), _mm512_shuffle_f32x4(x01, x23, 0xdd));
}

// Two tokens of the next tile per quad here, and two while values are added.
constexpr size_t kScoreStepLines = 4;
constexpr size_t kValueStepLines = 4;  // of two tokens and 64 channels

template <size_t kHeadDim>
SEMKV_BF16_INLINE void ScoreTile(const Tile<hwy::bfloat16_t>& tile, const uint16_t* q,
                                 size_t head_dim, float factor, float* scores,
                                 Prefetcher<hwy::bfloat16_t>& prefetcher) {
  const size_t channels = kHeadDim != 0 ? kHeadDim : head_dim;
  for (size_t quad = 0; quad < tile.num_quads(); ++quad) {
    const Row* rows = tile.rows + 2 * quad * kQuadTokens;
    __m512 sum[kQuadHeads][kQuadTokens];
    for (size_t h = 0; h < kQuadHeads; ++h) {
      for (size_t t = 0; t < kQuadTokens; ++t) sum[h][t] = _mm512_setzero_ps();
    }
    for (size_t c = 0; c < channels; c += 32) {
      prefetcher.Touch(kScoreStepLines);
      __m512i key[kQuadTokens];
      for (size_t t = 0; t < kQuadTokens; ++t) key[t] = LoadRow(rows[2 * t], c);
      for (size_t h = 0; h < kQuadHeads; ++h) {
        const __m512i query = LoadRow(q + h * channels, c);
        for (size_t t = 0; t < kQuadTokens; ++t) sum[h][t] = AddDots(sum[h][t], query, key[t]);
      }
    }
    __m512 heads[kQuadHeads];
    for (size_t h = 0; h < kQuadHeads; ++h) heads[h] = SumWithinBlocks(sum[h]);
    _mm512_store_ps(scores + quad * kQuadScores,
                    _mm512_mul_ps(_mm512_set1_ps(factor), SumBlocks(heads)));
  }
  for (size_t t = tile.num_tokens; t < tile.num_quads() * kQuadTokens; ++t) {
    for (size_t h = 0; h < kQuadHeads; ++h) {
      scores[(tile.num_quads() - 1) * kQuadScores + h * kQuadTokens + t % kQuadTokens] =
          -std::numeric_limits<float>::infinity();
    }
  }
}

// Weights as pairs of neighbouring tokens, [quad][head][2 pairs]: weight = high + low.
struct WeightPairs {
  alignas(64) uint32_t high[kTileTokens * kQuadHeads / 2];
  alignas(64) uint32_t low[kTileTokens * kQuadHeads / 2];
};

SEMKV_BF16_INLINE void SplitWeights(const float* weights, size_t num_quads, WeightPairs& pairs) {
  for (size_t quad = 0; quad < num_quads; ++quad) {
    const __m512 weight = _mm512_load_ps(weights + quad * kQuadScores);
    const __m256i high = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(weight));
    const __m512 rounded = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
    const __m256i low =
        reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_sub_ps(weight, rounded)));
    _mm256_store_si256(reinterpret_cast<__m256i*>(pairs.high + quad * kQuadScores / 2), high);
    _mm256_store_si256(reinterpret_cast<__m256i*>(pairs.low + quad * kQuadScores / 2), low);
  }
}

// The channels [c, c + 64) of four heads.
SEMKV_BF16_INLINE void AddValues(const Tile<hwy::bfloat16_t>& tile, const WeightPairs& weights,
                                 const float* rescale, size_t head_dim, size_t c, float* acc,
                                 Prefetcher<hwy::bfloat16_t>& prefetcher) {
  constexpr size_t kVectors = 4;
  __m512 sum[kQuadHeads][kVectors];
  for (size_t h = 0; h < kQuadHeads; ++h) {
    const __m512 factor = _mm512_set1_ps(rescale[h * kQuadTokens]);
    for (size_t i = 0; i < kVectors; ++i) {
      sum[h][i] = _mm512_mul_ps(factor, _mm512_load_ps(acc + h * head_dim + c + 16 * i));
    }
  }
  for (size_t t = 0; t < tile.num_tokens; t += 2) {
    prefetcher.Touch(kValueStepLines);
    __m512i values[kVectors];
    for (size_t j = 0; j < 2; ++j) {
      const __m512i first = LoadRow(tile.value(t), c + 32 * j);
      // The weight of a token that is not there is 0, but 0 times infinity would not be.
      const __m512i second =
          t + 1 < tile.num_tokens ? LoadRow(tile.value(t + 1), c + 32 * j) : _mm512_setzero_si512();
      values[2 * j] = _mm512_unpacklo_epi16(first, second);
      values[2 * j + 1] = _mm512_unpackhi_epi16(first, second);
    }
    const size_t pair = t / kQuadTokens * (kQuadScores / 2) + t % kQuadTokens / 2;
    for (size_t h = 0; h < kQuadHeads; ++h) {
      for (const uint32_t* part : {weights.high, weights.low}) {
        const __m512i weight = _mm512_set1_epi32(static_cast<int32_t>(part[pair + 2 * h]));
        for (size_t i = 0; i < kVectors; ++i) sum[h][i] = AddDots(sum[h][i], weight, values[i]);
      }
    }
  }
  for (size_t h = 0; h < kQuadHeads; ++h) {
    for (size_t i = 0; i < kVectors; ++i) {
      _mm512_store_ps(acc + h * head_dim + c + 16 * i, sum[h][i]);
    }
  }
}

}  // namespace

bool UsesBf16Dot() {
  static const bool is_available =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bf16");
  static const bool is_faster = __builtin_cpu_is("amd");
  const Bf16Dot use = bf16_dot_use.load(std::memory_order_relaxed);
  return is_available &&
         (use == Bf16Dot::kWhereAvailable || (use == Bf16Dot::kWhereFaster && is_faster));
}

SEMKV_BF16 void ScoreTileBf16(const Tile<hwy::bfloat16_t>& tile, const uint16_t* q, size_t head_dim,
                              float factor, float* scores,
                              Prefetcher<hwy::bfloat16_t>& prefetcher) {
  if (head_dim == 128) return ScoreTile<128>(tile, q, head_dim, factor, scores, prefetcher);
  ScoreTile<0>(tile, q, head_dim, factor, scores, prefetcher);
}

SEMKV_BF16 void AddTileValuesBf16(const Tile<hwy::bfloat16_t>& tile, const float* weights,
                                  const float* rescale, size_t head_dim, float* acc,
                                  Prefetcher<hwy::bfloat16_t>& prefetcher) {
  WeightPairs pairs;
  SplitWeights(weights, tile.num_quads(), pairs);
  for (size_t c = 0; c < head_dim; c += kBf16DotChannels) {
    AddValues(tile, pairs, rescale, head_dim, c, acc, prefetcher);
  }
}

}  // namespace semkv

#else

namespace semkv {

bool UsesBf16Dot() { return false; }
void ScoreTileBf16(const Tile<hwy::bfloat16_t>&, const uint16_t*, size_t, float, float*,
                   Prefetcher<hwy::bfloat16_t>&) {}
void AddTileValuesBf16(const Tile<hwy::bfloat16_t>&, const float*, const float*, size_t, float*,
                       Prefetcher<hwy::bfloat16_t>&) {}

}  // namespace semkv

#endif
