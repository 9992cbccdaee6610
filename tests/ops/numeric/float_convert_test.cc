#include "csrc/ops/numeric/float_convert.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>

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

// ------------------------------ float8 e4m3

// What a code means, by the format's definition.
double E4M3ByDefinition(uint32_t code) {
  const int exponent = static_cast<int>(code >> 3 & 15), mantissa = static_cast<int>(code & 7);
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return code >= 128 ? -magnitude : magnitude;
}

TEST(FloatConvertE4M3Test, EveryCodeIsWhatTheFormatSaysAndSurvivesTheRoundTrip) {
  for (uint32_t code = 0; code < 256; ++code) {
    const uint8_t bits = static_cast<uint8_t>(code);
    const float x = FloatFromE4M3(bits);
    if (code % 128 == 127) {
      EXPECT_TRUE(std::isnan(x));
      EXPECT_EQ(E4M3FromFloat(x), 0x7f);
      continue;
    }
    EXPECT_EQ(x, E4M3ByDefinition(code));
    EXPECT_EQ(std::signbit(x), code >= 128);
    EXPECT_EQ(E4M3FromFloat(x), bits);
    // Decode attention relies on it.
    EXPECT_EQ(FloatFromFloat16(Float16FromFloat(x)), x);
    EXPECT_EQ(FloatFromBFloat16(BFloat16FromFloat(x)), x);
  }
}

TEST(FloatConvertE4M3Test, RoundsToNearestEvenBetweenAllNeighbours) {
  for (uint32_t code = 0; code < 0x7e; ++code) {
    const uint8_t low = static_cast<uint8_t>(code), high = static_cast<uint8_t>(code + 1);
    const float middle =
        static_cast<float>((E4M3ByDefinition(low) + E4M3ByDefinition(high)) / 2);  // exact
    EXPECT_EQ(E4M3FromFloat(middle), low % 2 == 0 ? low : high) << code;
    EXPECT_EQ(E4M3FromFloat(std::nextafter(middle, 1e9f)), high) << code;
    EXPECT_EQ(E4M3FromFloat(std::nextafter(middle, -1.0f)), low) << code;
    EXPECT_EQ(E4M3FromFloat(-middle), E4M3FromFloat(middle) | 0x80) << code;
  }
}

TEST(FloatConvertE4M3Test, SaturatesAndKeepsNan) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (float x : {448.0f, 449.0f, 463.0f, 464.0f, 465.0f, 480.0f, 512.0f, 1e30f, infinity}) {
    EXPECT_EQ(E4M3FromFloat(x), 0x7e) << x;
    EXPECT_EQ(E4M3FromFloat(-x), 0xfe) << x;
  }
  for (uint32_t bits : {0x7f800001u, 0x7fc00000u, 0x7fffffffu, 0xff800001u, 0xffffffffu}) {
    EXPECT_EQ(E4M3FromFloat(FloatFromBits(bits)), 0x7f);
  }
}

TEST(FloatConvertE4M3Test, SmallNumbersAndTheSignOfZero) {
  EXPECT_EQ(E4M3FromFloat(0.0f), 0x00);
  EXPECT_EQ(E4M3FromFloat(-0.0f), 0x80);
  EXPECT_EQ(E4M3FromFloat(1e-45f), 0x00);
  EXPECT_EQ(E4M3FromFloat(-1e-45f), 0x80);
  EXPECT_EQ(E4M3FromFloat(0x1p-10f), 0x00);  // half of the least, to even
  EXPECT_EQ(E4M3FromFloat(std::nextafter(0x1p-10f, 1.0f)), 0x01);
}

// Against the nearest of all codes in double, over numbers of every exponent.
TEST(FloatConvertE4M3Test, RandomNumbersGoToTheNearestCode) {
  std::mt19937_64 rng(5);
  for (int round = 0; round < 20000; ++round) {
    const uint32_t exponent = 110 + rng() % 30;  // 2^-17 to 2^12
    const float x = FloatFromBits(static_cast<uint32_t>(rng() % (1u << 23)) | exponent << 23);
    const double distance = std::abs(FloatFromE4M3(E4M3FromFloat(x)) - double{x});
    for (uint32_t code = 0; code < 0x7f; ++code) {
      ASSERT_LE(distance, std::abs(E4M3ByDefinition(code) - x)) << x << " code " << code;
    }
  }
}

// Loads and stores of arrays know the dtype.
TEST(FloatConvertE4M3Test, ArraysOfIt) {
  uint8_t data[3] = {0x11, 0x22, 0x33};
  StoreFromFloat(data, DType::kFloat8E4M3, 1, -1.5f);
  EXPECT_EQ(data[0], 0x11);
  EXPECT_EQ(data[1], 0xbc);
  EXPECT_EQ(data[2], 0x33);
  EXPECT_EQ(LoadAsFloat(data, DType::kFloat8E4M3, 1), -1.5f);
  EXPECT_EQ(DTypeBytes(DType::kFloat8E4M3), 1);
}

}  // namespace
}  // namespace semkv
