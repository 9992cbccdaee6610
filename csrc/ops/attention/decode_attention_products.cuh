// The products of decode attention on the GPU: a warp's 16 tokens with up to 16 query heads, from
// rows in shared memory to scores, and from weights to sums over values.
//
// Rows of 16 bits are multiplied as they are stored, in q's dtype. Rows of float8 e4m3 are bytes in
// shared memory too and become 16-bit numbers in registers, where the places that they come out at
// are not those that mma wants; so channels are permuted, q's likewise (e4m3 below).

#ifndef SEMKV_OPS_ATTENTION_DECODE_ATTENTION_PRODUCTS_CUH_
#define SEMKV_OPS_ATTENTION_DECODE_ATTENTION_PRODUCTS_CUH_

#include <cstdint>

#include "csrc/ops/attention/decode_attention_plan.h"
#include "csrc/ops/attention/result_channels.cuh"
#include "csrc/ops/cuda/mma.cuh"
#include "csrc/ops/cuda/vector_access.cuh"
#include "semkv/types.h"

namespace semkv::cuda {

constexpr int32_t kDecodeWarps = 4;
constexpr int32_t kDecodeWarpTokens = kDecodeTileTokens / kDecodeWarps;
constexpr int32_t kDecodeStages = 2;
constexpr int32_t kPerCopy = 8;  // 16-bit words of 16 bytes
static_assert(kDecodeWarpTokens == 16 && kDecodeMaxGroupHeads == 16, "sides of mma.m16n8k16");

// Dynamic shared memory, in 16-bit words: [stage][warp][K, V][16 tokens][row], then 16 queries.
// Rows lie an odd number of 16-byte units apart, by a unit of padding where it takes one: 8 rows of
// ldmatrix are in different banks whatever head_dim is. Beside e4m3, queries are read 8 bytes a
// lane, 4 rows at once, and lie 2 or 6 units apart modulo 8. When the loop is over the warps' sums
// take the place of all that.
template <DType kKv, int32_t kHeadDim>
struct DecodeLayout {
  static constexpr bool kIsE4M3 = kKv == DType::kFloat8E4M3;
  static constexpr int32_t kRowCopies = static_cast<int32_t>(kHeadDim * DTypeBytes(kKv) / 16);
  static constexpr int32_t kRow = (kRowCopies | 1) * kPerCopy;
  static constexpr int32_t kQueryCopies = kHeadDim / kPerCopy;
  static constexpr int32_t kQueryPadding = !kIsE4M3 ? 1 : kQueryCopies % 4 == 0 ? 2 : 0;
  static constexpr int32_t kQueryRow = (kQueryCopies + kQueryPadding) * kPerCopy;
  static constexpr int32_t kValues = kDecodeWarpTokens * kRow;  // behind the keys
  static constexpr int32_t kWarpTile = 2 * kValues;
  static constexpr int32_t kStage = kDecodeWarps * kWarpTile;
  static constexpr int32_t kQueries = kDecodeStages * kStage;
  static constexpr int32_t kSumsRow = kHeadDim + kPartChannels;  // floats
  static constexpr int32_t kSumsBytes = kDecodeWarps * kDecodeMaxGroupHeads * kSumsRow * 4;
  static constexpr int32_t kBytes = 2 * (kQueries + kDecodeMaxGroupHeads * kQueryRow);
  // Of a multiprocessor; 0: ptxas chooses. Left to itself it takes 128 registers here, for a fourth
  // CTA, and spills.
  static constexpr int32_t kMinCtas = kIsE4M3 && kHeadDim == 128 ? 3 : 0;
  static_assert(kSumsBytes <= kBytes);
  static_assert(kRow / kPerCopy % 2 == 1);
  static_assert(!kIsE4M3 || kQueryRow / kPerCopy % 4 == 2);
};

// Per lane: what the warp has added up for heads g and g + 8 (mma.cuh), the sums over values as
// fragments of D, 8 channels each: of 8 neighbours, or of e4m3 (2i) the even and (2i + 1) the odd
// ones of 16. The queries' fragments would be half as many registers again; they are read from
// shared memory for each tile.
template <int32_t kHeadDim>
struct DecodeSums {
  float out[kHeadDim / 8][4] = {};
  float max[2] = {LowestScore(), LowestScore()};
  float sum[2] = {};  // of the lane's tokens
};

// Per warp: where lane's row of four 8x8 matrices of a 16-row tile begins. kNo: those of rows 0-7,
// the same 8 words further, rows 8-15; kYes: rows 0-7, rows 8-15, both 8 words further.
enum class RowsFirst { kNo, kYes };
template <RowsFirst kRowsFirst>
__device__ inline int32_t MatrixRow(int32_t lane, int32_t row_words) {
  const int32_t low = lane / 8 % 2, high = lane / 16;
  const int32_t half = kRowsFirst == RowsFirst::kYes ? low : high;
  const int32_t words = kRowsFirst == RowsFirst::kYes ? high : low;
  return (half * 8 + lane % 8) * row_words + words * 8;
}

// ------------------------------ 16 bits

// Per warp: adds the products of queries and keys to fragments of D for tokens 0-7 and 8-15.
template <DType kDType, int32_t kHeadDim>
__device__ inline void MultiplyKeys(int32_t lane, const uint16_t* queries, const uint16_t* keys,
                                    float (&scores)[2][4]) {
  using Layout = DecodeLayout<kDType, kHeadDim>;
  const uint16_t* q_row = queries + MatrixRow<RowsFirst::kYes>(lane, Layout::kQueryRow);
  const uint16_t* k_row = keys + MatrixRow<RowsFirst::kNo>(lane, Layout::kRow);
  for (int32_t step = 0; step < kHeadDim / 16; ++step) {
    uint32_t q[4], k[4];
    LoadMatrixX4<Transpose::kNo>(q, q_row + 16 * step);
    LoadMatrixX4<Transpose::kNo>(k, k_row + 16 * step);
    const uint32_t low[2] = {k[0], k[1]}, high[2] = {k[2], k[3]};
    MmaM16N8K16<kDType>(scores[0], q, low);
    MmaM16N8K16<kDType>(scores[1], q, high);
  }
}

// Per warp: adds the values of 16 tokens by their weights, fragments of D as scores are.
template <DType kDType, int32_t kHeadDim>
__device__ inline void AddValues(int32_t lane, const float (&weights)[2][4], const uint16_t* tile,
                                 DecodeSums<kHeadDim>& sums) {
  const uint32_t w[4] = {PackPair<kDType>(weights[0][0], weights[0][1]),
                         PackPair<kDType>(weights[0][2], weights[0][3]),
                         PackPair<kDType>(weights[1][0], weights[1][1]),
                         PackPair<kDType>(weights[1][2], weights[1][3])};
  using Layout = DecodeLayout<kDType, kHeadDim>;
  const uint16_t* row = tile + Layout::kValues + MatrixRow<RowsFirst::kYes>(lane, Layout::kRow);
  for (int32_t step = 0; step < kHeadDim / 16; ++step) {
    uint32_t v[4];
    LoadMatrixX4<Transpose::kYes>(v, row + 16 * step);
    const uint32_t low[2] = {v[0], v[1]}, high[2] = {v[2], v[3]};
    MmaM16N8K16<kDType>(sums.out[2 * step], w, low);
    MmaM16N8K16<kDType>(sums.out[2 * step + 1], w, high);
  }
}

// ------------------------------ float8 e4m3
//
// A step is 16 channels, one 8x8 matrix of 16-bit words. Keys: lane (g, t) gets the 4 bytes of
// channels 4t..4t+3 of token g. As B they are rows 2t, 2t+1 and 2t+8, 2t+9 of a product that has
// its 16 channels in that order; q, read in the same order, makes the sum the same. Values:
// transposed, the lane gets channels 2g, 2g+1 of tokens 2t, 2t+1, so the low bytes are B's column g
// of the even channels and the high bytes that of the odd ones.

// Per warp: the queries' fragment of a step.
template <int32_t kQueryRow>
__device__ inline void LoadPermutedQueries(int32_t lane, int32_t step, const uint16_t* queries,
                                           uint32_t (&q)[4]) {
  const uint16_t* row = queries + lane / 4 * kQueryRow + 16 * step + lane % 4 * 4;
  const Vec8 low = Load8(row), high = Load8(row + 8 * kQueryRow);
  q[0] = low.words[0], q[2] = low.words[1];
  q[1] = high.words[0], q[3] = high.words[1];
}

// MultiplyKeys of stored numbers, without their scale.
template <DType kDType, int32_t kHeadDim>
__device__ inline void MultiplyE4M3Keys(int32_t lane, const uint16_t* queries, const uint16_t* keys,
                                        float (&scores)[2][4]) {
  using Layout = DecodeLayout<DType::kFloat8E4M3, kHeadDim>;
  constexpr int32_t kSteps = kHeadDim / 16;
  const uint16_t* k_row = keys + MatrixRow<RowsFirst::kNo>(lane, Layout::kRow);
  for (int32_t step = 0; step < kSteps; step += 2) {
    // The second step's matrices are the first's again where there is none.
    const int32_t second = step + 1 < kSteps ? 0 : lane / 8 % 2 * 8;
    uint32_t k[4];
    LoadMatrixX4<Transpose::kNo>(k, k_row + 8 * step - second);
    for (int32_t i = 0; i < 2 && step + i < kSteps; ++i) {
      uint32_t q[4], low[2], high[2];
      LoadPermutedQueries<Layout::kQueryRow>(lane, step + i, queries, q);
      UnpackE4M3<kDType>(k[i], low[0], low[1]);
      UnpackE4M3<kDType>(k[2 + i], high[0], high[1]);
      MmaM16N8K16<kDType>(scores[0], q, low);
      MmaM16N8K16<kDType>(scores[1], q, high);
    }
  }
}

// AddValues of stored numbers, without their scale. Weights are at most 1 and so float16 whatever q
// is: it has three bits more than bfloat16, and e4m3 becomes it by one instruction a pair.
template <int32_t kHeadDim>
__device__ inline void AddE4M3Values(int32_t lane, const float (&weights)[2][4],
                                     const uint16_t* tile, DecodeSums<kHeadDim>& sums) {
  constexpr DType kHalf = DType::kFloat16;
  constexpr int32_t kSteps = kHeadDim / 16;
  const uint32_t w[4] = {
      PackPair<kHalf>(weights[0][0], weights[0][1]), PackPair<kHalf>(weights[0][2], weights[0][3]),
      PackPair<kHalf>(weights[1][0], weights[1][1]), PackPair<kHalf>(weights[1][2], weights[1][3])};
  using Layout = DecodeLayout<DType::kFloat8E4M3, kHeadDim>;
  const uint16_t* row = tile + Layout::kValues + MatrixRow<RowsFirst::kYes>(lane, Layout::kRow);
  for (int32_t step = 0; step < kSteps; step += 2) {
    const int32_t second = step + 1 < kSteps ? 0 : lane / 16 * 8;
    uint32_t v[4];
    LoadMatrixX4<Transpose::kYes>(v, row + 8 * step - second);
    for (int32_t i = 0; i < 2 && step + i < kSteps; ++i) {
      uint32_t even[2], odd[2];
      UnpackE4M3<kHalf>(SwapMiddleBytes(v[2 * i]), even[0], odd[0]);
      UnpackE4M3<kHalf>(SwapMiddleBytes(v[2 * i + 1]), even[1], odd[1]);
      MmaM16N8K16<kHalf>(sums.out[2 * (step + i)], w, even);
      MmaM16N8K16<kHalf>(sums.out[2 * (step + i) + 1], w, odd);
    }
  }
}

}  // namespace semkv::cuda

#endif  // SEMKV_OPS_ATTENTION_DECODE_ATTENTION_PRODUCTS_CUH_
