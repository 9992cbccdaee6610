// The wrappers of csrc/ops/cuda against their definitions.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "tests/simt/device_ops_kernels.cuh"
#include "tests/simt/launch.h"
#include "tests/testing/random.h"

namespace semkv::simt {
namespace {

LaunchShape OneWarp() {
  LaunchShape shape;
  shape.threads = 32;
  return shape;
}

template <typename T>
Buffer Of(const std::string& name, std::vector<T>& data, Access access) {
  return {name, data.data(), static_cast<int64_t>(data.size() * sizeof(T)), access};
}

TEST(WarpReduceTest, EveryLaneGetsTheSumAndTheMaximum) {
  std::vector<float> x(32), sums(32), maxima(32);
  for (int i = 0; i < 32; ++i) x[i] = static_cast<float>((i * 7) % 32 - 40);
  LaunchOptions options = {{Of("x", x, Access::kRead), Of("sums", sums, Access::kReadWrite),
                            Of("maxima", maxima, Access::kReadWrite)}};
  const auto run = [&] {
    return Launch(OneWarp(), options, [&] { Reduce(x.data(), sums.data(), maxima.data()); });
  };
  EXPECT_EQ(run().Errors(), "");
  EXPECT_EQ(sums, std::vector<float>(32, 31 * 16 - 40 * 32));
  EXPECT_EQ(maxima, std::vector<float>(32, -9.0f));
  x[17] = std::nanf("");
  EXPECT_EQ(run().Errors(), "");
  for (int i = 0; i < 32; ++i) {
    EXPECT_TRUE(std::isnan(sums[i]));
    EXPECT_EQ(maxima[i], -9.0f);
  }
}

template <int32_t kWarps>
void ExpectScan() {
  constexpr int32_t kThreads = kWarps * kWarpSize;
  std::mt19937_64 rng(kWarps);
  std::vector<int32_t> x(2 * kThreads), below(x.size()), totals(x.size());
  std::vector<uint64_t> y(x.size()), minima(x.size());
  for (int32_t& value : x) value = static_cast<int32_t>(rng() % 2001) - 1000;
  for (uint64_t& value : y) value = rng();
  const LaunchOptions options = {
      {Of("x", x, Access::kRead), Of("y", y, Access::kRead), Of("below", below, Access::kReadWrite),
       Of("totals", totals, Access::kReadWrite), Of("minima", minima, Access::kReadWrite)}};
  LaunchShape shape;
  shape.threads = kThreads;
  const LaunchReport report = Launch(shape, options, [&] {
    ScanBlock<kWarps>(x.data(), y.data(), below.data(), totals.data(), minima.data());
  });
  EXPECT_EQ(report.Errors(), "");
  for (int32_t round = 0; round < 2; ++round) {
    const int32_t first = round * kThreads;
    int32_t sum = 0;
    for (int32_t i = first; i < first + kThreads; sum += x[i++]) EXPECT_EQ(below[i], sum) << i;
    const uint64_t least = *std::min_element(y.begin() + first, y.begin() + first + kThreads);
    for (int32_t i = first; i < first + kThreads; ++i) {
      EXPECT_EQ(totals[i], sum);
      EXPECT_EQ(minima[i], least);
    }
  }
}

TEST(LastCtaTest, TheLastCtaOfEveryScheduleSeesWhatAllHaveLeft) {
  std::vector<int32_t> x(7 * 64), left(7 * 64, -1), sum(1);
  std::vector<uint32_t> counter(1);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<int32_t>(i);
  LaunchShape shape;
  shape.grid_x = 7;
  shape.threads = 64;
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    sum[0] = -1;
    LaunchOptions options = {{Of("x", x, Access::kRead), Of("left", left, Access::kReadWrite),
                              Of("counter", counter, Access::kReadWrite),
                              Of("sum", sum, Access::kReadWrite)}};
    options.seed = seed;
    const LaunchReport report =
        Launch(shape, options, [&] { SumCtas(x.data(), left.data(), counter.data(), sum.data()); });
    EXPECT_EQ(report.Errors(), "");
    EXPECT_EQ(sum[0], 7 * 64 * (7 * 64 - 1));
    EXPECT_EQ(counter[0], 0u);
  }
}

TEST(BitsTest, CountsLowestBitOppositeOrderAndLeast) {
  std::vector<uint32_t> x(32), reversed(32);
  std::vector<int32_t> counts(32), lowest(32), least = {100};
  for (int i = 0; i < 32; ++i) x[i] = 0xffffffffu << i;
  const LaunchOptions options = {
      {Of("x", x, Access::kRead), Of("counts", counts, Access::kReadWrite),
       Of("lowest", lowest, Access::kReadWrite), Of("reversed", reversed, Access::kReadWrite),
       Of("least", least, Access::kReadWrite)}};
  const LaunchReport report = Launch(OneWarp(), options, [&] {
    CountBits(x.data(), counts.data(), lowest.data(), reversed.data(), least.data());
  });
  EXPECT_EQ(report.Errors(), "");
  for (int i = 0; i < 32; ++i) {
    EXPECT_EQ(counts[i], 32 - i);
    EXPECT_EQ(lowest[i], i + 1);
    EXPECT_EQ(reversed[i], 0xffffffffu >> i);
  }
  EXPECT_EQ(least[0], 1);
}

TEST(BlockScanTest, EveryThreadGetsTheSumBelowTheTotalAndTheMinimum) {
  ExpectScan<1>();
  ExpectScan<5>();
  ExpectScan<32>();
}

template <DType kDType>
void ExpectProduct() {
  std::mt19937_64 rng(5);
  std::vector<uint16_t> a(16 * 16), b(16 * 8);
  for (auto* matrix : {&a, &b}) {
    const std::vector<uint8_t> bytes =
        testing::Encode(testing::RandomNormal(rng, matrix->size()), kDType);
    std::memcpy(matrix->data(), bytes.data(), bytes.size());
  }
  std::vector<float> c = testing::RandomNormal(rng, 16 * 8), d(16 * 8);
  const LaunchOptions options = {{Of("a", a, Access::kRead), Of("b", b, Access::kRead),
                                  Of("c", c, Access::kRead), Of("d", d, Access::kReadWrite)}};
  const LaunchReport report =
      Launch(OneWarp(), options, [&] { Product<kDType>(a.data(), b.data(), c.data(), d.data()); });
  EXPECT_EQ(report.Errors(), "");
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      double sum = c[i * 8 + j];
      for (int k = 0; k < 16; ++k) {
        sum += double{LoadAsFloat(a.data(), kDType, i * 16 + k)} *
               LoadAsFloat(b.data(), kDType, k * 8 + j);
      }
      EXPECT_NEAR(d[i * 8 + j], sum, 1e-6 * (1 + std::abs(sum))) << i << ", " << j;
    }
  }
}

TEST(MmaTest, EqualsThePlainProductWithThePtxFragments) {
  ExpectProduct<DType::kFloat16>();
  ExpectProduct<DType::kBFloat16>();
}

TEST(MmaTest, OfInt8EqualsThePlainProduct) {
  std::mt19937_64 rng(6);
  std::vector<int8_t> a(16 * 32), b(32 * 8);
  for (auto* matrix : {&a, &b}) {
    for (int8_t& x : *matrix) x = static_cast<int8_t>(rng());
  }
  std::vector<int32_t> d(16 * 8), expected(16 * 8);
  for (int i = 0; i < 16 * 8; ++i) d[i] = expected[i] = 1000 * i - 70000;
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      for (int k = 0; k < 32; ++k) expected[i * 8 + j] += a[i * 32 + k] * b[k * 8 + j];
    }
  }
  const LaunchOptions options = {
      {Of("a", a, Access::kRead), Of("b", b, Access::kRead), Of("d", d, Access::kReadWrite)}};
  EXPECT_EQ(Launch(OneWarp(), options, [&] { ProductInt8(a.data(), b.data(), d.data()); }).Errors(),
            "");
  EXPECT_EQ(d, expected);
}

TEST(LoadMatrixTest, LanesGetTheirPairsOfEveryMatrix) {
  std::vector<uint32_t> plain(128), transposed(128);
  LaunchOptions options = {
      {Of("plain", plain, Access::kReadWrite), Of("transposed", transposed, Access::kReadWrite)}};
  EXPECT_EQ(
      Launch(OneWarp(), options, [&] { LoadFragments<Transpose::kNo>(plain.data(), 0); }).Errors(),
      "");
  EXPECT_EQ(
      Launch(OneWarp(), options, [&] { LoadFragments<Transpose::kYes>(transposed.data(), 0); })
          .Errors(),
      "");
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int j = 0; j < 4; ++j) {
      const auto at = [&](int row, int column) {
        return static_cast<uint32_t>(j * 64 + row * 8 + column);
      };
      EXPECT_EQ(plain[lane * 4 + j], at(g, 2 * t) | at(g, 2 * t + 1) << 16);
      EXPECT_EQ(transposed[lane * 4 + j], at(2 * t, g) | at(2 * t + 1, g) << 16);
    }
  }
  const std::string errors =
      Launch(OneWarp(), options, [&] { LoadFragments<Transpose::kNo>(plain.data(), 1); }).Errors();
  EXPECT_NE(errors.find("outside shared memory"), std::string::npos) << errors;
}

TEST(CopyAsyncTest, ACopyOfNothingGivesZerosAndReadsNothing) {
  std::vector<float> from(32 * 4), to(32 * 4, -1.0f);
  for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<float>(i + 1);
  const LaunchOptions options = {
      {Of("from", from, Access::kRead), Of("to", to, Access::kReadWrite)}};
  const LaunchReport report =
      Launch(OneWarp(), options, [&] { StageOrZero(from.data(), to.data()); });
  EXPECT_EQ(report.Errors(), "");
  if (kMemoryHooks) {
    EXPECT_EQ(report.traffic.at("from").read_bytes, 16 * 16);
  }
  for (size_t i = 0; i < to.size(); ++i) EXPECT_EQ(to[i], i / 4 % 2 == 0 ? from[i] : 0.0f) << i;
}

TEST(PackPairTest, RoundsToNearestEvenWithTheFirstNumberInTheLowHalf) {
  EXPECT_EQ(PackPair<DType::kFloat16>(1.0f, -2.0f), 0xc0003c00u);
  EXPECT_EQ(PackPair<DType::kBFloat16>(1.0f, -2.0f), 0xc0003f80u);
  EXPECT_EQ(PackPair<DType::kBFloat16>(1.0f + 0x1p-8f, 1.0f + 0x3p-8f), 0x3f823f80u);
}

}  // namespace
}  // namespace semkv::simt
