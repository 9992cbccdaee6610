// mma and ldmatrix by their definitions in the PTX manual, element by element.

#include <cstring>

#include "csrc/ops/numeric/float_convert.h"
#include "tests/simt/device_calls.h"
#include "tests/simt/execution.h"

namespace semkv::simt {
namespace {

constexpr uint32_t kAllLanes = 0xffffffffu;

struct MmaOperand {
  uint32_t a[4], b[2];
};

float Half(uint32_t word, int i, bool bfloat16) {
  const uint16_t bits = static_cast<uint16_t>(word >> (16 * i));
  return bfloat16 ? FloatFromBFloat16(bits) : FloatFromFloat16(bits);
}

// Element (row, k) of A: which lane holds it, in which register and half.
float ElementOfA(const MmaOperand* lanes, int row, int k, bool bfloat16) {
  const int lane = row % 8 * 4 + k % 8 / 2;
  const int word = row / 8 + 2 * (k / 8);
  return Half(lanes[lane].a[word], k % 2, bfloat16);
}

float ElementOfB(const MmaOperand* lanes, int k, int column, bool bfloat16) {
  const int lane = column * 4 + k % 8 / 2;
  return Half(lanes[lane].b[k / 8], k % 2, bfloat16);
}

int32_t Byte(uint32_t word, int i) { return static_cast<int8_t>(word >> (8 * i)); }

int32_t Int8OfA(const MmaOperand* lanes, int row, int k) {
  const int lane = row % 8 * 4 + k % 16 / 4;
  return Byte(lanes[lane].a[row / 8 + 2 * (k / 16)], k % 4);
}

int32_t Int8OfB(const MmaOperand* lanes, int k, int column) {
  return Byte(lanes[column * 4 + k % 16 / 4].b[k / 16], k % 4);
}

// What every lane of the warp gave to its `name`.
void JoinMma(const char* name, const uint32_t* a, const uint32_t* b, Place place,
             MmaOperand (&lanes)[kWarpSize]) {
  MmaOperand mine;
  std::memcpy(mine.a, a, sizeof(mine.a));
  std::memcpy(mine.b, b, sizeof(mine.b));
  Running()->JoinWarpCall({name, kAllLanes, &mine, sizeof(mine)}, place);
  for (int lane = 0; lane < kWarpSize; ++lane) {
    std::memcpy(&lanes[lane], Running()->thread().operands->of_lane[lane].data(),
                sizeof(MmaOperand));
  }
}

}  // namespace

void Mma16832Int8(int32_t* d, const uint32_t* a, const uint32_t* b, Place place) {
  const InHarness harness;
  MmaOperand lanes[kWarpSize];
  JoinMma("mma.m16n8k32", a, b, place, lanes);
  const int self = Running()->thread().lane();
  for (int i = 0; i < 4; ++i) {
    const int row = self / 4 + i / 2 * 8;
    const int column = self % 4 * 2 + i % 2;
    for (int k = 0; k < 32; ++k) d[i] += Int8OfA(lanes, row, k) * Int8OfB(lanes, k, column);
  }
}

void Mma16816(float* d, const uint32_t* a, const uint32_t* b, bool bfloat16, Place place) {
  const InHarness harness;
  MmaOperand lanes[kWarpSize];
  JoinMma("mma.m16n8k16", a, b, place, lanes);
  const Thread& self = Running()->thread();
  for (int i = 0; i < 4; ++i) {
    const int row = self.lane() / 4 + i / 2 * 8;
    const int column = self.lane() % 4 * 2 + i % 2;
    double sum = d[i];
    for (int k = 0; k < 16; ++k) {
      sum += double{ElementOfA(lanes, row, k, bfloat16)} * ElementOfB(lanes, k, column, bfloat16);
    }
    d[i] = static_cast<float>(sum);
  }
}

void LoadMatrices(uint32_t* r, const void* row, bool transpose, Place place) {
  const InHarness harness;
  constexpr int64_t kRowBytes = 16;
  if (!Running()->memory().IsShared(row, kRowBytes)) {
    Running()->Fail("ldmatrix from an address outside shared memory");
  }
  if (reinterpret_cast<uintptr_t>(row) % kRowBytes != 0) {
    Running()->Fail("ldmatrix from an address that is not aligned");
  }
  if (kMemoryHooks) Running()->CheckAccess({row, kRowBytes, AccessKind::kRead, nullptr});
  uint16_t mine[8];
  std::memcpy(mine, row, sizeof(mine));
  Running()->JoinWarpCall({"ldmatrix", kAllLanes, mine, sizeof(mine)}, place);
  const Thread& self = Running()->thread();
  const int g = self.lane() / 4;
  const int t = self.lane() % 4;
  const auto element = [&](int matrix, int matrix_row, int column) {
    uint16_t bits;
    std::memcpy(&bits, self.operands->of_lane[8 * matrix + matrix_row].data() + 2 * column,
                sizeof(bits));
    return uint32_t{bits};
  };
  for (int j = 0; j < 4; ++j) {
    r[j] = transpose ? element(j, 2 * t, g) | element(j, 2 * t + 1, g) << 16
                     : element(j, g, 2 * t) | element(j, g, 2 * t + 1) << 16;
  }
}

}  // namespace semkv::simt
