#include "csrc/ops/retrieval/dots_vnni.h"

#include <algorithm>

namespace semkv {

void SplitQueryForVnni(const int16_t* query, int32_t head_dim, int16_t* out) {
  constexpr int kHalf = kVnniChannels / 2;
  for (int32_t c = 0; c < head_dim; c += kVnniChannels) {
    for (int copy = 0; copy < 4; ++copy) {
      for (int i = 0; i < kHalf; ++i) {
        out[4 * c + copy * kHalf + i] = query[c + 2 * i];
        out[4 * c + (4 + copy) * kHalf + i] = query[c + 2 * i + 1];
      }
    }
  }
}

void SplitQueryForVnniInt4(const int16_t* query, int32_t head_dim, int8_t* out) {
  for (int32_t c = 0; c < head_dim; c += kVnniChannels) {
    int8_t channels[kVnniChannels];
    for (int i = 0; i < kVnniChannels; ++i) channels[i] = static_cast<int8_t>(query[c + i]);
    for (int copy = 0; copy < 4; ++copy) {
      std::copy_n(channels, kVnniChannels, out + 4 * c + copy * kVnniChannels);
    }
  }
}

}  // namespace semkv

#if defined(__x86_64__)

#include <immintrin.h>

#include "csrc/ops/prefetch_level.h"
#include "csrc/ops/vnni.h"

namespace semkv {
namespace {

// Four lists share a register, 16 channels of each in its 128-bit blocks: of the sums, blocks then
// need not be added, and the port that shuffles stays free for products.
constexpr int kSplitElements = 32;  // int16 of a register

// Block by block: {sum of a's lanes, of b's, of c's, of e's}.
SEMKV_VNNI_INLINE __m512i SumWithinBlocks(__m512i a, __m512i b, __m512i c, __m512i e) {
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  const __m512i ce = _mm512_add_epi32(_mm512_unpacklo_epi32(c, e), _mm512_unpackhi_epi32(c, e));
  return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, ce), _mm512_unpackhi_epi64(ab, ce));
}

// The lanes of even int8 codes count 128 * (sum of the query's even channels) too much, code by
// code.
SEMKV_VNNI_INLINE __m512i SurplusOfHeads(const int16_t* queries, int32_t head_dim) {
  __m512i surplus[kVnniHeads];
  for (int h = 0; h < kVnniHeads; ++h) {
    surplus[h] = _mm512_setzero_si512();
    const int16_t* const query = queries + h * VnniQueryElements(head_dim);
    for (int64_t at = 0; at < VnniQueryElements(head_dim); at += 2 * kSplitElements) {
      surplus[h] =
          _mm512_dpwssd_epi32(surplus[h], _mm512_set1_epi16(128), _mm512_load_si512(query + at));
    }
  }
  return SumWithinBlocks(surplus[0], surplus[1], surplus[2], surplus[3]);
}

// Likewise int4 codes, all of them by 8.
SEMKV_VNNI_INLINE __m512i SurplusOfHeads(const int8_t* queries, int32_t head_dim) {
  __m512i surplus[kVnniHeads];
  for (int h = 0; h < kVnniHeads; ++h) {
    surplus[h] = _mm512_setzero_si512();
    const int8_t* const query = queries + h * VnniQueryElements(head_dim);
    for (int64_t at = 0; at < VnniQueryElements(head_dim); at += 4 * kVnniChannels) {
      surplus[h] =
          _mm512_dpbusd_epi32(surplus[h], _mm512_set1_epi8(8), _mm512_load_si512(query + at));
    }
  }
  return SumWithinBlocks(surplus[0], surplus[1], surplus[2], surplus[3]);
}

// 16 bytes of each of four lists.
SEMKV_VNNI_INLINE __m512i LoadCodes(const int8_t* const* lists, int32_t byte) {
  const auto load = [&](int l) SEMKV_VNNI {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(lists[l] + byte));
  };
  __m512i x = _mm512_castsi128_si512(load(0));
  x = _mm512_inserti32x4(x, load(1), 1);
  x = _mm512_inserti32x4(x, load(2), 2);
  return _mm512_inserti32x4(x, load(3), 3);
}

// sums: [head], lanes of a block to be added. Writes four lists of each head.
SEMKV_VNNI_INLINE void StoreSums(const __m512i (&sums)[kVnniHeads], __m512i surplus, float* dots,
                                 int64_t stride) {
  const __m512i by_list =
      _mm512_sub_epi32(SumWithinBlocks(sums[0], sums[1], sums[2], sums[3]), surplus);
  const __m512i transpose = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512 by_head = _mm512_cvtepi32_ps(_mm512_permutexvar_epi32(transpose, by_list));
  _mm_storeu_ps(dots, _mm512_castps512_ps128(by_head));
  _mm_storeu_ps(dots + stride, _mm512_extractf32x4_ps(by_head, 1));
  _mm_storeu_ps(dots + 2 * stride, _mm512_extractf32x4_ps(by_head, 2));
  _mm_storeu_ps(dots + 3 * stride, _mm512_extractf32x4_ps(by_head, 3));
}

SEMKV_VNNI_INLINE void DotBlock(const int8_t* const (&lists)[kVnniLists], const int16_t* queries,
                                int32_t head_dim, __m512i surplus, float* dots, int64_t stride) {
  const __m512i low_byte = _mm512_set1_epi16(0x00ff), low_sign = _mm512_set1_epi16(0x0080);
  __m512i even_sums[kVnniHeads], odd_sums[kVnniHeads];
  for (int h = 0; h < kVnniHeads; ++h) even_sums[h] = odd_sums[h] = _mm512_setzero_si512();
#pragma GCC unroll 8
  for (int32_t c = 0; c < head_dim; c += kVnniChannels) {
    const __m512i codes = LoadCodes(lists, c);
    // As int16: the odd codes, and the even codes plus 128.
    const __m512i odd = _mm512_srai_epi16(codes, 8);
    const __m512i even = _mm512_ternarylogic_epi32(codes, low_sign, low_byte, 0x28);  // (x ^ y) & z
#pragma GCC unroll 4
    for (int h = 0; h < kVnniHeads; ++h) {
      const int16_t* const query = queries + h * VnniQueryElements(head_dim) + 4 * c;
      even_sums[h] = _mm512_dpwssd_epi32(even_sums[h], even, _mm512_load_si512(query));
      odd_sums[h] =
          _mm512_dpwssd_epi32(odd_sums[h], odd, _mm512_load_si512(query + kSplitElements));
    }
  }
  for (int h = 0; h < kVnniHeads; ++h) even_sums[h] = _mm512_add_epi32(even_sums[h], odd_sums[h]);
  StoreSums(even_sums, surplus, dots, stride);
}

// The same of int4 lists, of which 16 bytes are a block of kInt4Block channels. Codes are taken as
// bytes, plus 8.
SEMKV_VNNI_INLINE void DotBlock(const int8_t* const (&lists)[kVnniLists], const int8_t* queries,
                                int32_t head_dim, __m512i surplus, float* dots, int64_t stride) {
  constexpr int32_t kBytes = 4 * kVnniChannels;  // of a query in a register
  const __m512i low_half = _mm512_set1_epi8(0x0f), low_sign = _mm512_set1_epi8(0x08);
  __m512i lower_sums[kVnniHeads], upper_sums[kVnniHeads];
  for (int h = 0; h < kVnniHeads; ++h) lower_sums[h] = upper_sums[h] = _mm512_setzero_si512();
#pragma GCC unroll 8
  for (int32_t c = 0; c < head_dim; c += 2 * kVnniChannels) {
    const __m512i codes = LoadCodes(lists, c / 2);
    const __m512i lower = _mm512_ternarylogic_epi32(codes, low_sign, low_half, 0x28);
    const __m512i upper =
        _mm512_ternarylogic_epi32(_mm512_srli_epi16(codes, 4), low_sign, low_half, 0x28);
#pragma GCC unroll 4
    for (int h = 0; h < kVnniHeads; ++h) {
      const int8_t* const query = queries + h * VnniQueryElements(head_dim) + 4 * c;
      lower_sums[h] = _mm512_dpbusd_epi32(lower_sums[h], lower, _mm512_load_si512(query));
      upper_sums[h] = _mm512_dpbusd_epi32(upper_sums[h], upper, _mm512_load_si512(query + kBytes));
    }
  }
  for (int h = 0; h < kVnniHeads; ++h) {
    lower_sums[h] = _mm512_add_epi32(lower_sums[h], upper_sums[h]);
  }
  StoreSums(lower_sums, surplus, dots, stride);
}

// How far ahead lists are asked for: 16 blocks of 128 channels into the second-level cache, where
// there is room for more, or 8 into the first.
constexpr int64_t kBytesAheadL2 = 8192, kBytesAheadL1 = 4096;

// Asks for what is read some blocks later, the lists' end and the beginning of `next` alike, and
// for what scoring reads besides, at the pace of the dots: all at once it would hold them up.
class LinesAhead {
 public:
  LinesAhead(const ListsView& view, int64_t row_bytes, const void* next)
      : lists_(static_cast<const char*>(view.centroids)),
        bytes_(view.nlist * row_bytes),
        next_(next != nullptr ? static_cast<const char*>(next) : lists_ + bytes_),
        scales_(view.scales),
        variances_(view.variances != nullptr ? view.variances : view.scales),
        offsets_(view.offsets),
        into_l2_(PrefetchesIntoL2()),
        distance_(into_l2_ ? kBytesAheadL2 : kBytesAheadL1) {}

  // When `bytes` of the lists are worked on, from `at` on.
  SEMKV_VNNI_INLINE void AskForLists(int64_t at, int64_t bytes) const {
    at += distance_;
    const char* const from = at < bytes_ ? lists_ + at : next_ + (at - bytes_);
    for (int64_t line = 0; line < bytes; line += 64) Ask(from + line);
  }

  // When list i is worked on. Its scores are formed when all dots are.
  SEMKV_VNNI_INLINE void AskForScoring(int32_t i) const {
    if (i % kFloatsOfLine != 0) return;
    Ask(scales_ + i);
    Ask(variances_ + i);
    Ask(offsets_ + i);
  }

 private:
  static constexpr int32_t kFloatsOfLine = 16;

  SEMKV_VNNI_INLINE void Ask(const void* line) const {
    if (into_l2_) {
      _mm_prefetch(static_cast<const char*>(line), _MM_HINT_T1);
    } else {
      _mm_prefetch(static_cast<const char*>(line), _MM_HINT_T0);
    }
  }

  const char* lists_;
  int64_t bytes_;
  const char* next_;
  const float* scales_;
  const float* variances_;
  const uint16_t* offsets_;
  bool into_l2_;
  int64_t distance_;
};

// Query: int16_t for int8 lists, int8_t for int4. kHeadDim: 0, or head_dim known to the compiler.
template <typename Query, int kHeadDim>
SEMKV_VNNI void DotLists(const ListsView& view, const void* next, const Query* queries,
                         int32_t head_dim, float* dots, int64_t stride) {
  if constexpr (kHeadDim != 0) head_dim = kHeadDim;
  const int32_t row = sizeof(Query) == 1 ? head_dim / 2 : head_dim;  // bytes
  const LinesAhead ahead(view, row, next);
  const __m512i surplus = SurplusOfHeads(queries, head_dim);
  const int8_t* block[kVnniLists];
  for (int32_t i = 0; i < view.nlist; i += kVnniLists) {
    const int8_t* const first = static_cast<const int8_t*>(view.centroids) + int64_t{i} * row;
    const int last = std::min(kVnniLists, view.nlist - i) - 1;
    if (last == kVnniLists - 1) {
      for (int l = 0; l < kVnniLists; ++l) block[l] = first + l * row;
    } else {  // the last list stands for those that are not there
      for (int l = 0; l < kVnniLists; ++l) block[l] = first + std::min(l, last) * row;
    }
    ahead.AskForLists(int64_t{i} * row, kVnniLists * row);
    ahead.AskForScoring(i);
    // Hides that the queries stay the same: GCC 12 would load them all before the loop, and spill.
    asm("" : "+r"(queries));
    DotBlock(block, queries, head_dim, surplus, dots + i, stride);
  }
}

template <typename Query>
void DotListsOf(const ListsView& view, const void* next, const Query* queries, int32_t head_dim,
                float* dots, int64_t stride) {
  if (head_dim == 128) {
    DotLists<Query, 128>(view, next, queries, head_dim, dots, stride);
  } else {
    DotLists<Query, 0>(view, next, queries, head_dim, dots, stride);
  }
}

}  // namespace

void DotsVnni(const ListsView& view, const void* next, const int16_t* queries, int32_t head_dim,
              float* dots, int64_t stride) {
  DotListsOf(view, next, queries, head_dim, dots, stride);
}

void DotsVnniInt4(const ListsView& view, const void* next, const int8_t* queries, int32_t head_dim,
                  float* dots, int64_t stride) {
  DotListsOf(view, next, queries, head_dim, dots, stride);
}

}  // namespace semkv

#else  // not x86-64

namespace semkv {

void DotsVnni(const ListsView&, const void*, const int16_t*, int32_t, float*, int64_t) {}
void DotsVnniInt4(const ListsView&, const void*, const int8_t*, int32_t, float*, int64_t) {}

}  // namespace semkv

#endif
