// The specification of append_lists against list_means' host form and encoders, which are written
// for themselves, and against numbers worked out by hand.

#include "csrc/ops/cache/append_lists.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "csrc/ops/cache/list_means.h"
#include "tests/ops/cache/append_lists_cases.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using testing::AppendCase;
using testing::AppendInput;
using testing::AppendStore;
using testing::kGuard;

// The vectors of one cell, as csrc/api/list_store.cc makes them.
void AppendVectorsByHost(AppendInput& input, int64_t cell) {
  const AppendListsParams& p = input.params;
  const int64_t place = cell * p.max_lists + p.first_list;
  const std::vector<float> rows = input.Rows(cell);
  std::vector<float> means(int64_t{p.nlist} * p.head_dim), variances(p.nlist);
  ListMeansParams lists;
  lists.keys = rows.data();
  lists.head_dim = p.head_dim;
  lists.nlist = p.nlist;
  lists.offsets = input.Offsets(cell);
  lists.members = p.members != nullptr ? p.members + cell * p.members_cell : nullptr;
  lists.means = means.data();
  lists.variances = variances.data();
  const float* center = p.centers != nullptr ? p.centers + cell * p.head_dim : nullptr;
  void* const to = input.store.centroids.data() + place * testing::CentroidBytes(p);
  if (p.form == CentroidForm::kBounds) return ListBounds(lists, static_cast<uint16_t*>(to));
  ListMeansHost(lists);
  std::copy(variances.begin(), variances.end(), input.store.variances.begin() + place);
  if (p.form == CentroidForm::kInt8) {
    EncodeInt8(means.data(), center, p.nlist, p.head_dim, static_cast<int8_t*>(to),
               input.store.scales.data() + place);
  } else if (p.form == CentroidForm::kInt4) {
    EncodeInt4(means.data(), center, p.nlist, p.head_dim, static_cast<uint8_t*>(to),
               input.store.scales.data() + place);
  } else if (p.form == CentroidForm::kBFloat16) {
    EncodeBFloat16(means.data(), center, p.nlist, p.head_dim, static_cast<uint16_t*>(to));
  } else {
    std::copy(means.begin(), means.end(), static_cast<float*>(to));
  }
}

void AppendPlacesByHost(AppendInput& input, int64_t cell) {
  const AppendListsParams& p = input.params;
  const uint16_t* offsets = input.Offsets(cell);
  uint16_t* const list_offsets =
      input.store.offsets.data() + cell * (p.max_lists + 1) + p.first_list;
  uint16_t* list_member = input.store.members.data() + cell * p.max_members + p.first_member;
  list_offsets[0] = static_cast<uint16_t>(p.first_member);
  for (int32_t i = 0; i < p.nlist; ++i) {
    list_offsets[i + 1] = static_cast<uint16_t>(list_offsets[i] + offsets[i + 1] - offsets[i]);
    for (int32_t at = offsets[i]; at < offsets[i + 1]; ++at) {
      *list_member++ = static_cast<uint16_t>(input.Row(cell, at) + p.member_shift);
    }
  }
}

void ExpectHostEqualsReference(const AppendCase& c, std::mt19937_64& rng) {
  AppendInput input(c, rng);
  AppendListsReference(input.params);
  const AppendStore expected = input.store;
  testing::ExpectStore(input, expected);  // guards
  input.Reset();
  for (int64_t cell = 0; cell < c.num_cells; ++cell) {
    AppendVectorsByHost(input, cell);
    AppendPlacesByHost(input, cell);
  }
  testing::ExpectStore(input, expected);
}

TEST(AppendListsTest, TheReferenceEqualsListMeansAndItsEncoders) {
  const uint64_t seed = testing::TestSeed(41);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (const AppendCase& c : testing::AppendCases(rng)) ExpectHostEqualsReference(c, rng);
  AppendCase odd = testing::RandomAppendCase(rng);
  odd.head_dim = 19;
  odd.dtype = DType::kFloat32;
  ExpectHostEqualsReference(odd, rng);
}

TEST(AppendListsTest, RandomCases) {
  const uint64_t seed = testing::TestSeed(42);
  for (int round = 0; round < 20 * testing::SoakFactor(); ++round) {
    SEMKV_TRACE_SEED(seed + round);
    std::mt19937_64 rng(seed + round);
    ExpectHostEqualsReference(testing::RandomAppendCase(rng), rng);
  }
}

TEST(AppendListsTest, OffsetChannelsLongListsAndTinyKeys) {
  std::mt19937_64 rng(43);
  for (CentroidForm form : testing::kAppendForms) {
    for (float offset : {20.0f, -2000.0f}) {
      ExpectHostEqualsReference(testing::OffsetAppendCase(form, offset), rng);
    }
  }
  ExpectHostEqualsReference(testing::CenterCase(8192), rng);
  ExpectHostEqualsReference(testing::TinyAppendCase(), rng);
}

// Two lists of three channels, worked out by hand: keys 0 and 3, then 1; key 2 is not finite.
struct ByHand {
  explicit ByHand(CentroidForm form) {
    params.num_cells = 1;
    params.head_dim = 3;
    params.nlist = 2;
    params.form = form;
    params.keys = keys.data();
    params.offsets = offsets.data();
    params.members = members.data();
    params.centers = center.data();
    params.max_lists = 3;
    params.first_list = 1;
    params.scales = scales.data();
    params.variances = variances.data();
    params.list_offsets = list_offsets.data();
    params.list_members = list_members.data();
    params.max_members = 8;
    params.first_member = 2;
    params.member_shift = 10;
  }

  std::vector<float> keys = {1, 2, 3, 0.5f, 0, -127, testing::kInfinity, 0, 0, 3, -2, 5};
  std::vector<uint16_t> offsets = {1, 4, 5}, members = {99, 0, 3, 2, 1, 99};
  std::vector<float> center = {1, 1, 1};
  std::vector<float> scales = std::vector<float>(3, kGuard), variances = scales;
  std::vector<uint16_t> list_offsets = std::vector<uint16_t>(4, 77),
                        list_members = {7, 7, 7, 7, 7, 7, 7, 7};
  AppendListsParams params;
};

TEST(AppendListsTest, NumbersWorkedOutByHand) {
  ByHand lists(CentroidForm::kInt8);
  std::vector<int8_t> codes(9, 99);
  lists.params.centroids = codes.data();
  AppendListsReference(lists.params);
  // Means (2, 0, 4) and (0.5, 0, -127); less the center (1, -1, 3) and (-0.5, -1, -128).
  EXPECT_EQ(codes, std::vector<int8_t>({99, 99, 99, 42, -42, 127, 0, -1, -127}));
  EXPECT_EQ(lists.scales, std::vector<float>({kGuard, 3.0f / 127, 128.0f / 127}));
  EXPECT_EQ(lists.variances, std::vector<float>({kGuard, 1 + 4 + 1, 0}));
  EXPECT_EQ(lists.list_offsets, std::vector<uint16_t>({77, 2, 5, 6}));
  EXPECT_EQ(lists.list_members, std::vector<uint16_t>({7, 7, 10, 13, 12, 11, 7, 7}));

  ByHand means(CentroidForm::kFloat32);
  std::vector<float> centroids(9, kGuard);
  means.params.centroids = centroids.data();
  AppendListsReference(means.params);
  EXPECT_EQ(centroids, std::vector<float>({kGuard, kGuard, kGuard, 2, 0, 4, 0.5f, 0, -127}));
  EXPECT_EQ(means.scales, std::vector<float>(3, kGuard));

  ByHand bounds(CentroidForm::kBounds);
  bounds.keys[2] = 3.001f;  // no bfloat16
  std::vector<uint16_t> least_and_greatest(18, 99);
  bounds.params.centroids = least_and_greatest.data();
  AppendListsReference(bounds.params);
  std::vector<float> numbers;
  for (int32_t i = 6; i < 18; ++i) numbers.push_back(FloatFromBFloat16(least_and_greatest[i]));
  EXPECT_EQ(numbers, std::vector<float>({1, -2, 3, 3, 2, 5, 0.5f, 0, -127, 0.5f, 0, -127}));
  EXPECT_EQ(least_and_greatest[5], 99);
  EXPECT_EQ(bounds.variances, std::vector<float>(3, kGuard));
}

TEST(AppendListsTest, WhatTheCudaFormRefuses) {
  std::mt19937_64 rng(1);
  const AppendInput input(AppendCase(), rng);
  EXPECT_EQ(AppendListsCudaUnsupported(input.params), nullptr);
  const auto refuses = [&](const std::function<void(AppendListsParams&)>& change) {
    AppendListsParams params = input.params;
    change(params);
    return AppendListsCudaUnsupported(params) != nullptr;
  };
  EXPECT_TRUE(refuses([](AppendListsParams& p) { p.num_cells = 65536; }));
  EXPECT_TRUE(refuses([](AppendListsParams& p) { p.num_cells = -1; }));
  EXPECT_TRUE(refuses([](AppendListsParams& p) { p.nlist = -1; }));
  EXPECT_TRUE(refuses([](AppendListsParams& p) { p.head_dim = 72; }));
  EXPECT_TRUE(refuses([](AppendListsParams& p) { p.dtype = DType::kFloat32; }));
  EXPECT_TRUE(refuses([](AppendListsParams& p) { p.key_cell += 4; }));
  EXPECT_TRUE(
      refuses([](AppendListsParams& p) { p.keys = static_cast<const uint16_t*>(p.keys) + 4; }));
}

}  // namespace
}  // namespace semkv
