#include "csrc/ops/numeric/float_convert.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>

namespace semkv {
namespace {

TEST(FloatConvertTest, EveryFloat16AndBFloat16SurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const uint16_t x = static_cast<uint16_t>(bits);
    const float half = FloatFromFloat16(x);
    if (std::isnan(half)) {
      EXPECT_TRUE(std::isnan(FloatFromFloat16(Float16FromFloat(half))));
    } else {
      EXPECT_EQ(Float16FromFloat(half), x);
    }
    const float brain = FloatFromBFloat16(x);
    if (std::isnan(brain)) {
      EXPECT_TRUE(std::isnan(FloatFromBFloat16(BFloat16FromFloat(brain))));
    } else {
      EXPECT_EQ(BFloat16FromFloat(brain), x);
    }
  }
}

// Between two neighbours the nearer wins, and the even one at the midpoint: checked against the
// neighbours themselves, in double.
TEST(FloatConvertTest, RoundsToNearestEven) {
  for (uint32_t bits = 0; bits < 0x7bffu; ++bits) {
    const uint16_t low = static_cast<uint16_t>(bits), high = static_cast<uint16_t>(bits + 1);
    const double a = FloatFromFloat16(low), b = FloatFromFloat16(high), middle = (a + b) / 2;
    const float at = static_cast<float>(middle);
    EXPECT_EQ(Float16FromFloat(at), low % 2 == 0 ? low : high) << bits;
    EXPECT_EQ(Float16FromFloat(std::nextafter(at, 1e9f)), high) << bits;
    EXPECT_EQ(Float16FromFloat(std::nextafter(at, -1.0f)), low) << bits;
    EXPECT_EQ(Float16FromFloat(-at), Float16FromFloat(at) | 0x8000u) << bits;
  }
  EXPECT_EQ(Float16FromFloat(65519.996f), 0x7bffu);
  EXPECT_EQ(Float16FromFloat(65520.0f), 0x7c00u);
  EXPECT_EQ(BFloat16FromFloat(FloatFromBits(0x3f808000u)), 0x3f80u);
  EXPECT_EQ(BFloat16FromFloat(FloatFromBits(0x3f818000u)), 0x3f82u);
  EXPECT_EQ(BFloat16FromFloat(FloatFromBits(0x3f808001u)), 0x3f81u);
}

// Of numbers between two neighbours, and of bfloat16 numbers themselves.
TEST(FloatConvertTest, TheNearestBFloat16OnEitherSide) {
  for (uint32_t bits = 0; bits < 0x7f80u; ++bits) {
    const uint16_t low = static_cast<uint16_t>(bits), high = static_cast<uint16_t>(bits + 1);
    const float x = FloatFromBFloat16(low);
    EXPECT_EQ(BFloat16Below(x), low);
    EXPECT_EQ(BFloat16Above(x), low);
    EXPECT_EQ(FloatFromBFloat16(BFloat16Below(-x)), -x);
    EXPECT_EQ(FloatFromBFloat16(BFloat16Above(-x)), -x);
    for (uint32_t more : {1u, 0xffffu}) {
      const float between = FloatFromBits(FloatBits(x) + more);
      EXPECT_EQ(BFloat16Below(between), low) << bits;
      EXPECT_EQ(BFloat16Above(between), high) << bits;
      EXPECT_EQ(BFloat16Below(-between), high | 0x8000u) << bits;
      EXPECT_EQ(BFloat16Above(-between), low | 0x8000u) << bits;
    }
  }
}

}  // namespace
}  // namespace semkv
