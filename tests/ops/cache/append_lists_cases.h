// The cases of append_lists, which every form runs, and what any result must be.

#ifndef SEMKV_TESTS_OPS_CACHE_APPEND_LISTS_CASES_H_
#define SEMKV_TESTS_OPS_CACHE_APPEND_LISTS_CASES_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "csrc/ops/cache/append_lists.h"
#include "csrc/ops/numeric/float_convert.h"
#include "tests/ops/cache/list_means_cases.h"
#include "tests/testing/random.h"

namespace semkv::testing {

inline constexpr int32_t kAppendHeadDims[] = {64, 80, 96, 128, 256};
inline constexpr CentroidForm kAppendForms[] = {CentroidForm::kInt8, CentroidForm::kInt4,
                                                CentroidForm::kBFloat16, CentroidForm::kFloat32,
                                                CentroidForm::kBounds};
inline constexpr uint8_t kByteGuard = 0xa5;
inline constexpr uint16_t kPlaceGuard = 0xa5a5;
// In rows that are in no list and between cells: finite, so that it is not left out where it is
// read by mistake.
inline constexpr float kKeyPoison = 30000.0f;
inline constexpr uint16_t kPlacePoison = 65535;  // in offsets and members that are not read

struct AppendCase {
  int32_t num_cells = 2;
  int32_t head_dim = 64;
  DType dtype = DType::kBFloat16;
  CentroidForm form = CentroidForm::kInt8;
  ListLayout layout = ListLayout::kMembers;
  std::vector<int32_t> sizes = {9, 70, 33};  // of the first cell's lists; a cell's are the one's
                                             // before, rotated by one
  bool same_offsets = false;                 // in all cells
  bool has_centers = true;
  bool not_finite = false;  // some of the members
  float deviation = 1.0f;   // of the keys
  float offset = 0.0f;      // of two channels of keys and centers
  int32_t first_place = 3;  // offsets[0]
  int32_t first_list = 2, first_member = 5, member_shift = 100;
};

// The arrays of a store.
struct AppendStore {
  std::vector<uint8_t> centroids;
  std::vector<float> scales, variances;
  std::vector<uint16_t> offsets, members;

  bool operator==(const AppendStore&) const = default;
};

inline int64_t CentroidBytes(const AppendListsParams& p) {
  return CentroidRowBytes(p.form, p.head_dim);
}

// Keys and lists of a case, and a store with room before and behind.
struct AppendInput {
  AppendInput(const AppendCase& c, std::mt19937_64& rng) {
    params.num_cells = c.num_cells;
    params.head_dim = c.head_dim;
    params.nlist = static_cast<int32_t>(c.sizes.size());
    params.dtype = c.dtype;
    params.form = c.form;
    params.max_lists = c.first_list + params.nlist + 1;
    params.first_list = c.first_list;
    num_members = std::accumulate(c.sizes.begin(), c.sizes.end(), 0);
    params.max_members = c.first_member + num_members + 2;
    params.first_member = c.first_member;
    params.member_shift = c.member_shift;
    first_place = c.first_place;
    AddPlaces(c, rng);
    AddKeys(c, rng);
    if (c.not_finite) {
      for (int32_t cell = 0; cell < c.num_cells; ++cell) SpoilKeys(cell);
    }
    centers = RandomNormal(rng, int64_t{c.num_cells} * c.head_dim);
    for (int32_t cell = 0; cell < c.num_cells; ++cell) {
      AddOffset(c, centers.data() + cell * c.head_dim);
    }
    if (c.has_centers) params.centers = centers.data();
    Reset();
  }
  AppendInput(const AppendInput&) = delete;
  AppendInput& operator=(const AppendInput&) = delete;

  // Guards in the store.
  void Reset() {
    const int64_t lists = int64_t{params.num_cells} * params.max_lists;
    store.centroids.assign(lists * CentroidBytes(params), kByteGuard);
    store.scales.assign(lists, kGuard);
    store.variances.assign(lists, kGuard);
    store.offsets.assign(lists + params.num_cells, kPlaceGuard);
    store.members.assign(int64_t{params.num_cells} * params.max_members, kPlaceGuard);
    params.centroids = store.centroids.data();
    params.scales = store.scales.data();
    params.variances = store.variances.data();
    params.list_offsets = store.offsets.data();
    params.list_members = store.members.data();
  }

  const uint16_t* Offsets(int64_t cell) const {
    return offsets.data() + cell * params.offsets_cell;
  }
  // The row of the cell's keys at a place.
  int32_t Row(int64_t cell, int32_t place) const {
    if (params.members == nullptr) return place;
    return members[cell * params.members_cell + place];
  }
  int64_t KeyAt(int64_t cell, int32_t row) const {
    return cell * params.key_cell + int64_t{row} * params.head_dim;
  }
  void Set(int64_t cell, int32_t place, int32_t d, float x) {
    StoreFromFloat(keys.data(), params.dtype, KeyAt(cell, Row(cell, place)) + d, x);
  }
  // The cell's rows as floats.
  std::vector<float> Rows(int64_t cell) const {
    std::vector<float> rows(int64_t{num_rows} * params.head_dim);
    for (size_t i = 0; i < rows.size(); ++i) {
      rows[i] = LoadAsFloat(keys.data(), params.dtype, KeyAt(cell, 0) + static_cast<int64_t>(i));
    }
    return rows;
  }

  AppendListsParams params;
  int32_t num_members = 0, num_rows = 0, first_place = 0;  // of a cell
  std::vector<uint8_t> keys;
  std::vector<uint16_t> offsets, members;
  std::vector<float> centers;
  AppendStore store;

 private:
  void AddPlaces(const AppendCase& c, std::mt19937_64& rng) {
    params.offsets_cell = c.same_offsets ? 0 : params.nlist + 1 + 3;
    offsets.assign(
        (params.offsets_cell == 0 ? params.nlist + 1 : 0) + params.offsets_cell * c.num_cells,
        kPlacePoison);
    num_rows = first_place + num_members + 2;
    params.members_cell = num_rows;
    members.assign(params.members_cell * c.num_cells, kPlacePoison);
    std::vector<uint16_t> rows(num_rows);
    std::iota(rows.begin(), rows.end(), uint16_t{0});
    for (int32_t cell = 0; cell < c.num_cells; ++cell) {
      uint16_t* const at = offsets.data() + cell * params.offsets_cell;
      at[0] = static_cast<uint16_t>(first_place);
      for (int32_t i = 0; i < params.nlist; ++i) {
        const int32_t from = c.same_offsets ? i : (i + cell) % params.nlist;
        at[i + 1] = static_cast<uint16_t>(at[i] + c.sizes[from]);
      }
      std::shuffle(rows.begin(), rows.end(), rng);
      std::copy_n(rows.begin(), num_members,
                  members.begin() + cell * params.members_cell + first_place);
    }
    params.offsets = offsets.data();
    if (c.layout == ListLayout::kMembers) params.members = members.data();
  }

  void AddKeys(const AppendCase& c, std::mt19937_64& rng) {
    params.key_cell = int64_t{num_rows} * c.head_dim + 8;
    std::vector<float> x(params.key_cell * c.num_cells, kKeyPoison);
    for (int32_t cell = 0; cell < c.num_cells; ++cell) {
      for (int32_t place = first_place; place < first_place + num_members; ++place) {
        std::vector<float> key = RandomNormal(rng, c.head_dim, c.deviation);
        AddOffset(c, key.data());
        std::copy(key.begin(), key.end(), x.begin() + KeyAt(cell, Row(cell, place)));
      }
    }
    keys = Encode(x, c.dtype);
    params.keys = keys.data();
  }

  static void AddOffset(const AppendCase& c, float* x) {
    x[3] += c.offset;
    x[c.head_dim - 7] -= c.offset;
  }

  // Not finite: first, last and in between in long lists, all of lists of 2, all but one of lists
  // of 3 and all but the last few of lists of 64.
  void SpoilKeys(int32_t cell) {
    const int32_t last_channel = params.head_dim - 1;
    for (int32_t i = 0; i < params.nlist; ++i) {
      const int32_t begin = Offsets(cell)[i], end = Offsets(cell)[i + 1];
      if (end - begin >= 30) {
        Set(cell, begin, 0, kNaN);
        Set(cell, begin + 11, 1, kInfinity);
        Set(cell, begin + 20, 1, -kInfinity);  // with the one above: inf - inf
        Set(cell, end - 1, last_channel, -kInfinity);
        for (int32_t at = begin; end - begin == 64 && at < begin + 50; ++at) {
          Set(cell, at, at % params.head_dim, kNaN);
        }
      } else if (end - begin == 2 || end - begin == 3) {
        Set(cell, begin, last_channel, kInfinity);
        Set(cell, end - 1, 2, kNaN);
      }
    }
  }
};

// The means of all lists of the store, [num_cells, max_lists, head_dim].
inline std::vector<float> ReferenceMeans(const AppendInput& input) {
  AppendListsParams p = input.params;
  std::vector<float> means(int64_t{p.num_cells} * p.max_lists * p.head_dim);
  p.form = CentroidForm::kFloat32;
  p.centroids = means.data();
  p.variances = nullptr;
  p.list_offsets = p.list_members = nullptr;
  AppendListsReference(p);
  return means;
}

inline float MeanTolerance(float mean) { return 1e-6f * std::abs(mean) + 1e-6f; }

// The number that list `place` of the store has at channel d, less the center where there is one.
inline float Centred(const AppendInput& input, const std::vector<float>& means, int64_t place,
                     int32_t d) {
  const AppendListsParams& p = input.params;
  const float mean = means[place * p.head_dim + d];
  if (p.centers == nullptr || p.form == CentroidForm::kFloat32) return mean;
  return mean - p.centers[place / p.max_lists * p.head_dim + d];
}

// Codes are next to what they encode, as near as the scale's and the mean's last digits tell.
inline void ExpectCodes(const AppendInput& input, const AppendStore& expected,
                        const std::vector<float>& means, int64_t place) {
  const bool is_int4 = input.params.form == CentroidForm::kInt4;
  const uint8_t* row = input.store.centroids.data() + place * CentroidBytes(input.params);
  const int32_t head_dim = input.params.head_dim;
  const float* mean = means.data() + place * head_dim;
  const float scale = expected.scales[place];
  float tolerance = 0.0f;
  for (int32_t d = 0; d < head_dim; ++d) tolerance = std::max(tolerance, MeanTolerance(mean[d]));
  ASSERT_NEAR(input.store.scales[place], scale,
              scale == 0.0f ? 0.0f : 1.25f * tolerance / GreatestCode(input.params.form));
  for (int32_t d = 0; d < head_dim; ++d) {
    const int32_t code = is_int4 ? Int4Code(row[Int4Byte(d)], d) : static_cast<int8_t>(row[d]);
    const float exact = scale > 0.0f ? Centred(input, means, place, d) / scale : 0.0f;
    const float near = scale > 0.0f ? 0.5001f + 3 * tolerance / scale : 0.0f;
    ASSERT_NEAR(code, exact, near) << "channel " << d;
  }
  if (!is_int4) return;
  for (int32_t d = head_dim; d < Int4Channels(head_dim); ++d) {
    ASSERT_EQ(Int4Code(row[Int4Byte(d)], d), 0) << "behind head_dim, channel " << d;
  }
}

inline void ExpectCentroid(const AppendInput& input, const AppendStore& expected,
                           const std::vector<float>& means, int64_t place) {
  const AppendListsParams& p = input.params;
  const uint8_t* stored = input.store.centroids.data() + place * CentroidBytes(p);
  const uint8_t* wanted = expected.centroids.data() + place * CentroidBytes(p);
  if (HasScales(p.form)) return ExpectCodes(input, expected, means, place);
  if (p.form == CentroidForm::kBounds) {
    for (int32_t d = 0; d < 2 * p.head_dim; ++d) {
      ASSERT_EQ(LoadAsFloat(stored, DType::kBFloat16, d), LoadAsFloat(wanted, DType::kBFloat16, d))
          << "bound " << d;
    }
    return;
  }
  const bool is_float = p.form == CentroidForm::kFloat32;
  for (int32_t d = 0; d < p.head_dim; ++d) {
    const float x = Centred(input, means, place, d);
    const float near = MeanTolerance(means[place * p.head_dim + d]);
    ASSERT_NEAR(LoadAsFloat(stored, is_float ? DType::kFloat32 : DType::kBFloat16, d), x,
                is_float ? near : near + std::abs(x) / 256)
        << "channel " << d;
  }
}

// The store is the expected one: places and guards exactly, vectors as far as float32 can tell.
inline void ExpectStore(const AppendInput& input, const AppendStore& expected) {
  const AppendListsParams& p = input.params;
  const AppendStore& store = input.store;
  const std::vector<float> means = ReferenceMeans(input);
  EXPECT_EQ(store.offsets, expected.offsets);
  EXPECT_EQ(store.members, expected.members);
  ASSERT_EQ(store.centroids.size(), expected.centroids.size());
  for (int64_t place = 0; place < int64_t{p.num_cells} * p.max_lists; ++place) {
    const int64_t list = place % p.max_lists;
    SCOPED_TRACE("cell " + std::to_string(place / p.max_lists) + ", list " + std::to_string(list));
    const float variance = expected.variances[place];
    const bool is_written = list >= p.first_list && list < p.first_list + p.nlist;
    if (is_written) {
      ExpectCentroid(input, expected, means, place);
      ASSERT_NEAR(store.variances[place], variance, 1e-5f * std::abs(variance));
    } else {
      const auto at = store.centroids.begin() + place * CentroidBytes(p);
      const auto is_guard = [](uint8_t byte) { return byte == kByteGuard; };
      EXPECT_TRUE(std::all_of(at, at + CentroidBytes(p), is_guard));
    }
    if (!is_written || !HasScales(p.form)) {
      EXPECT_EQ(store.scales[place], kGuard);
    }
    if (!is_written || p.form == CentroidForm::kBounds) {
      EXPECT_EQ(store.variances[place], kGuard);
    }
  }
}

// Every form, dtype, head_dim and layout, in a random order.
inline std::vector<AppendCase> AppendCases(std::mt19937_64& rng) {
  std::vector<AppendCase> cases;
  for (int32_t head_dim : kAppendHeadDims) {
    for (DType dtype : {DType::kFloat16, DType::kBFloat16}) {
      for (CentroidForm form : kAppendForms) {
        for (ListLayout layout : {ListLayout::kRanges, ListLayout::kMembers}) {
          AppendCase c;
          c.num_cells = 1 + static_cast<int32_t>(rng() % 5);
          c.head_dim = head_dim;
          c.dtype = dtype;
          c.form = form;
          c.layout = layout;
          c.sizes = {1, 0, 31, 32, 33, 2, 64, 100, 3, 0};
          c.same_offsets = rng() % 2 == 0;
          c.has_centers = rng() % 4 != 0;
          c.not_finite = rng() % 3 == 0;
          c.first_place = static_cast<int32_t>(rng() % 2 * 7);
          c.first_list = static_cast<int32_t>(rng() % 3);
          c.first_member = static_cast<int32_t>(rng() % 2 * 11);
          c.member_shift = static_cast<int32_t>(rng() % 2 * 1000);
          cases.push_back(c);
        }
      }
    }
  }
  std::shuffle(cases.begin(), cases.end(), rng);
  return cases;
}

inline AppendCase RandomAppendCase(std::mt19937_64& rng) {
  AppendCase c = AppendCases(rng)[0];
  c.sizes.resize(1 + rng() % 20);
  for (int32_t& size : c.sizes) size = static_cast<int32_t>(rng() % 120);
  return c;
}

// Keys of which two channels stand `offset` deviations off, as real ones have: neither mean nor
// variance (whose one-pass form would cancel) may lose its digits. float16 keeps the deviations.
inline AppendCase OffsetAppendCase(CentroidForm form, float offset) {
  AppendCase c;
  c.num_cells = 1;
  c.head_dim = 128;
  c.dtype = DType::kFloat16;
  c.form = form;
  c.sizes = {60, 4000, 1, 3};
  c.not_finite = true;
  c.offset = offset;
  return c;
}

// Means too short for a scale.
inline AppendCase TinyAppendCase() {
  AppendCase c;
  c.has_centers = false;
  c.deviation = 1e-32f;
  return c;
}

// The center of a segment: one list, the mean itself.
inline AppendCase CenterCase(int32_t num_tokens) {
  AppendCase c;
  c.num_cells = 1;
  c.head_dim = 128;
  c.form = CentroidForm::kFloat32;
  c.layout = ListLayout::kRanges;
  c.sizes = {num_tokens};
  c.not_finite = true;
  return c;
}

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_OPS_CACHE_APPEND_LISTS_CASES_H_
