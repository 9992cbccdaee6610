#include "csrc/ops/cache/append_lists.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "csrc/ops/numeric/float_convert.h"

namespace semkv {
namespace {

using Rows = std::vector<std::vector<float>>;

int32_t MemberAt(const AppendListsParams& p, int64_t cell, int32_t at) {
  return p.members != nullptr ? p.members[cell * p.members_cell + at] : at;
}

Rows FiniteKeys(const AppendListsParams& p, int64_t cell, int32_t begin, int32_t end) {
  Rows rows;
  for (int32_t at = begin; at < end; ++at) {
    const int64_t from = cell * p.key_cell + int64_t{MemberAt(p, cell, at)} * p.head_dim;
    std::vector<float> row(p.head_dim);
    for (int32_t d = 0; d < p.head_dim; ++d) row[d] = LoadAsFloat(p.keys, p.dtype, from + d);
    const auto is_finite = [](float x) { return std::isfinite(x); };
    if (std::all_of(row.begin(), row.end(), is_finite)) rows.push_back(row);
  }
  return rows;
}

// The numbers of all rows at one channel.
std::vector<float> Channel(const Rows& rows, int32_t d) {
  std::vector<float> x;
  for (const std::vector<float>& row : rows) x.push_back(row[d]);
  return x;
}

void WriteBounds(const AppendListsParams& p, int64_t place, const Rows& rows) {
  uint16_t* const bounds = static_cast<uint16_t*>(p.centroids) + place * 2 * p.head_dim;
  for (int32_t d = 0; d < p.head_dim; ++d) {
    std::vector<float> x = Channel(rows, d);
    if (x.empty()) x = {0.0f};
    bounds[d] = BFloat16Below(*std::min_element(x.begin(), x.end()));
    bounds[p.head_dim + d] = BFloat16Above(*std::max_element(x.begin(), x.end()));
  }
}

void WriteCentroid(const AppendListsParams& p, int64_t cell, int64_t place,
                   const std::vector<float>& mean) {
  std::vector<float> x = mean;
  float greatest = 0.0f;
  for (int32_t d = 0; d < p.head_dim; ++d) {
    if (p.centers != nullptr && p.form != CentroidForm::kFloat32) {
      x[d] -= p.centers[cell * p.head_dim + d];
    }
    greatest = std::max(greatest, std::abs(x[d]));
  }
  const float scale = greatest < 1e-30f ? 0.0f : greatest / GreatestCode(p.form);
  if (HasScales(p.form)) p.scales[place] = scale;
  if (p.form == CentroidForm::kInt4) {
    const int64_t bytes = CentroidRowBytes(p.form, p.head_dim);
    std::fill_n(static_cast<uint8_t*>(p.centroids) + place * bytes, bytes, uint8_t{0});
  }
  for (int32_t d = 0; d < p.head_dim; ++d) {
    const int64_t at = place * p.head_dim + d;
    const float code = scale > 0.0f ? std::nearbyint(x[d] / scale) : 0.0f;
    if (p.form == CentroidForm::kInt8) {
      static_cast<int8_t*>(p.centroids)[at] = static_cast<int8_t>(code);
    } else if (p.form == CentroidForm::kInt4) {
      const int64_t first = place * CentroidRowBytes(p.form, p.head_dim);
      const int32_t half = static_cast<int32_t>(code) & 15;
      static_cast<uint8_t*>(p.centroids)[first + Int4Byte(d)] |=
          static_cast<uint8_t>(d % kInt4Block < 16 ? half : half << 4);
    } else {
      const bool is_float = p.form == CentroidForm::kFloat32;
      StoreFromFloat(p.centroids, is_float ? DType::kFloat32 : DType::kBFloat16, at, x[d]);
    }
  }
}

void WriteMean(const AppendListsParams& p, int64_t cell, int64_t place, const Rows& rows) {
  const double count = std::max<double>(1.0, static_cast<double>(rows.size()));
  std::vector<float> means(p.head_dim);
  double squares = 0.0;
  for (int32_t d = 0; d < p.head_dim; ++d) {
    const std::vector<float> numbers = Channel(rows, d);
    double mean = 0.0;
    for (float x : numbers) mean += x / count;
    for (float x : numbers) squares += (x - mean) * (x - mean);
    means[d] = static_cast<float>(mean);
  }
  WriteCentroid(p, cell, place, means);
  if (p.variances != nullptr) p.variances[place] = static_cast<float>(squares / count);
}

void WritePlaces(const AppendListsParams& p, int64_t cell, const uint16_t* offsets) {
  const int32_t shift = p.first_member - offsets[0];
  if (p.list_offsets != nullptr) {
    uint16_t* const to = p.list_offsets + cell * (p.max_lists + 1) + p.first_list;
    for (int32_t i = 0; i <= p.nlist; ++i) to[i] = static_cast<uint16_t>(offsets[i] + shift);
  }
  if (p.list_members == nullptr) return;
  uint16_t* const to = p.list_members + cell * p.max_members;
  for (int32_t at = offsets[0]; at < offsets[p.nlist]; ++at) {
    to[at + shift] = static_cast<uint16_t>(MemberAt(p, cell, at) + p.member_shift);
  }
}

}  // namespace

void AppendListsReference(const AppendListsParams& p) {
  if (p.nlist == 0) return;
  for (int64_t cell = 0; cell < p.num_cells; ++cell) {
    const uint16_t* offsets = p.offsets + cell * p.offsets_cell;
    for (int32_t i = 0; i < p.nlist; ++i) {
      const int64_t place = cell * p.max_lists + p.first_list + i;
      const Rows rows = FiniteKeys(p, cell, offsets[i], offsets[i + 1]);
      if (p.form == CentroidForm::kBounds) {
        WriteBounds(p, place, rows);
      } else {
        WriteMean(p, cell, place, rows);
      }
    }
    WritePlaces(p, cell, offsets);
  }
}

}  // namespace semkv
