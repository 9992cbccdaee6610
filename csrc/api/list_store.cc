#include "csrc/api/list_store.h"

#include <algorithm>
#include <cassert>

#include "csrc/ops/cache/list_means.h"

namespace semkv {
namespace {

// Re-lays [cells, old_stride] as [cells, new_stride].
template <typename T>
void Restride(std::vector<T>* data, int64_t cells, int64_t old_stride, int64_t new_stride) {
  std::vector<T> wider(cells * new_stride);
  for (int64_t cell = 0; cell < cells; ++cell) {
    std::copy_n(data->begin() + cell * old_stride, old_stride, wider.begin() + cell * new_stride);
  }
  *data = std::move(wider);
}

}  // namespace

ListStore::ListStore(const ListStoreShape& shape, Device* device)
    : shape_(shape), nlist_(shape.num_cells, 0), device_(device) {
  if (shape.ranges) offsets_.push_back(0);
  if (device != nullptr) return;
  centers_.resize(int64_t{shape.num_cells} * shape.head_dim, 0.0f);
  if (!shape.ranges) offsets_.resize(shape.num_cells, 0);  // stride max_lists_ + 1, max_lists_ 0
}

int64_t ListStore::centroid_bytes() const { return CentroidRowBytes(shape_.form, shape_.head_dim); }

absl::Status ListStore::Reserve(int32_t max_lists, int32_t max_members) {
  if (device_ != nullptr) {
    if (max_lists <= max_lists_ && max_members <= max_members_) return absl::OkStatus();
    return Relocate(std::max(max_lists, max_lists_), std::max(max_members, max_members_));
  }
  const int64_t cells = shape_.num_cells;
  if (max_lists > max_lists_) {
    Restride(&centroids_, cells, max_lists_ * centroid_bytes(), max_lists * centroid_bytes());
    if (HasScales(shape_.form)) Restride(&scales_, cells, max_lists_, max_lists);
    if (shape_.form != CentroidForm::kBounds) Restride(&variances_, cells, max_lists_, max_lists);
    if (shape_.value_means) {
      const int64_t d = shape_.head_dim;
      Restride(&value_means_, cells, max_lists_ * d, max_lists * d);
    }
    if (shape_.ranges) {
      offsets_.reserve(max_lists + 1);
    } else {
      Restride(&offsets_, cells, max_lists_ + 1, max_lists + 1);
    }
    max_lists_ = max_lists;
  }
  if (!shape_.ranges && max_members > max_members_) {
    Restride(&members_, cells, max_members_, max_members);
    max_members_ = max_members;
  }
  return absl::OkStatus();
}

void ListStore::SetCenter(int32_t cell, const float* center) {
  std::copy_n(center, shape_.head_dim, &centers_[int64_t{cell} * shape_.head_dim]);
}

absl::Status ListStore::CopyCenters(const ListStore& from) {
  const int64_t bytes = int64_t{shape_.num_cells} * shape_.head_dim * sizeof(float);
  if (device_ != nullptr) {
    return device_->Copy(arrays_.centers, from.arrays_.centers, {bytes, 1, bytes, bytes});
  }
  centers_ = from.centers_;
  return absl::OkStatus();
}

absl::Status ListStore::AppendRanges(int32_t nlist, const uint16_t* offsets, int32_t shift) {
  assert(shape_.ranges && offsets_.back() == offsets[0] + shift);
  const size_t first = offsets_.size() - 1;
  for (int32_t i = 1; i <= nlist; ++i)
    offsets_.push_back(static_cast<uint16_t>(offsets[i] + shift));
  if (device_ == nullptr) return absl::OkStatus();
  const int64_t bytes = (nlist + 1) * int64_t{sizeof(uint16_t)};
  return device_->Upload(arrays_.offsets + first, &offsets_[first], {bytes, 1, bytes, bytes});
}

void ListStore::AppendPlaces(int32_t cell, const NewLists& lists) {
  const int32_t n = nlist_[cell];
  uint16_t* const offsets = &offsets_[int64_t{cell} * (max_lists_ + 1)];
  const int32_t first_member = offsets[n];
  const int32_t num_members = lists.offsets[lists.nlist] - lists.offsets[0];
  assert(first_member + num_members <= max_members_);
  for (int32_t i = 1; i <= lists.nlist; ++i) {
    offsets[n + i] = static_cast<uint16_t>(first_member + lists.offsets[i] - lists.offsets[0]);
  }
  uint16_t* const members = &members_[int64_t{cell} * max_members_ + first_member];
  for (int32_t i = 0; i < num_members; ++i) {
    const int32_t from = lists.offsets[0] + i;
    const int32_t member = lists.members != nullptr ? lists.members[from] : from;
    members[i] = static_cast<uint16_t>(member + lists.member_shift);
  }
}

void ListStore::AppendVectors(int32_t cell, const NewLists& lists) {
  const int64_t d = shape_.head_dim;
  const int64_t at = int64_t{cell} * max_lists_ + nlist_[cell];
  void* const to = &centroids_[at * centroid_bytes()];
  switch (shape_.form) {
    case CentroidForm::kInt8:
      EncodeInt8(lists.means, center(cell), lists.nlist, shape_.head_dim, static_cast<int8_t*>(to),
                 &scales_[at]);
      break;
    case CentroidForm::kInt4:
      EncodeInt4(lists.means, center(cell), lists.nlist, shape_.head_dim, static_cast<uint8_t*>(to),
                 &scales_[at]);
      break;
    case CentroidForm::kBFloat16:
      EncodeBFloat16(lists.means, center(cell), lists.nlist, shape_.head_dim,
                     static_cast<uint16_t*>(to));
      break;
    case CentroidForm::kFloat32:
      std::copy_n(lists.means, lists.nlist * d, static_cast<float*>(to));
      break;
    case CentroidForm::kBounds:
      std::copy_n(lists.bounds, 2 * d * lists.nlist, static_cast<uint16_t*>(to));
      break;
  }
  if (shape_.form != CentroidForm::kBounds) {
    std::copy_n(lists.variances, lists.nlist, &variances_[at]);
  }
  if (shape_.value_means && lists.value_means != nullptr) {
    EncodeBFloat16(lists.value_means, nullptr, lists.nlist, shape_.head_dim, &value_means_[at * d]);
  }
}

void ListStore::AppendCell(int32_t cell, const NewLists& lists) {
  assert(nlist_[cell] + lists.nlist <= max_lists_);
  if (lists.nlist == 0) return;
  if (!shape_.ranges) AppendPlaces(cell, lists);
  AppendVectors(cell, lists);
  nlist_[cell] += lists.nlist;
}

ListStore::Arrays ListStore::HostArrays() const {
  const auto data = [](const auto& v) {
    using T = typename std::decay_t<decltype(v)>::value_type;
    return v.empty() ? nullptr : const_cast<T*>(v.data());
  };
  return {data(offsets_),   data(members_), data(centroids_),  data(scales_),
          data(variances_), data(centers_), data(value_means_)};
}

ListsView ListStore::View(int32_t cell, int32_t first_position, int32_t partition,
                          int32_t first_list) const {
  ListsView view;
  const int64_t at = int64_t{cell} * max_lists_ + first_list;
  view.nlist = nlist_[cell] - first_list;
  view.partition = partition;
  view.first_position = first_position;
  view.form = shape_.form;
  if (view.nlist <= 0) {
    view.nlist = 0;
    return view;
  }
  const Arrays from = device_ != nullptr ? arrays_ : HostArrays();
  view.centroids = from.centroids + at * centroid_bytes();
  if (HasScales(shape_.form)) view.scales = from.scales + at;
  if (HasCenter(shape_.form)) {
    view.center = from.centers + int64_t{cell} * shape_.head_dim;
  }
  if (shape_.form != CentroidForm::kBounds) view.variances = from.variances + at;
  if (shape_.ranges) {
    view.offsets = from.offsets + first_list;
  } else {
    view.offsets = from.offsets + int64_t{cell} * (max_lists_ + 1) + first_list;
    view.members = from.members + int64_t{cell} * max_members_;
  }
  if (shape_.value_means) view.value_means = from.value_means + at * shape_.head_dim;
  return view;
}

int64_t ListStore::num_lists() const {
  int64_t total = 0;
  for (int32_t n : nlist_) total += n;
  return total;
}

int64_t ListStore::bytes() const {
  int64_t per_list = centroid_bytes();
  if (HasScales(shape_.form)) per_list += 4;
  if (shape_.form != CentroidForm::kBounds) per_list += 4;
  if (shape_.value_means) per_list += int64_t{2} * shape_.head_dim;
  int64_t total = shape_.ranges ? 2 * static_cast<int64_t>(offsets_.size()) : 0;
  for (int32_t cell = 0; cell < shape_.num_cells; ++cell) {
    const int64_t n = nlist_[cell];
    if (n == 0) continue;
    total += n * per_list + int64_t{4} * shape_.head_dim;
    if (!shape_.ranges) total += 2 * (n + 1 + num_members(cell));
  }
  return total;
}

int64_t ListStore::reserved_bytes() const {
  if (memory_ != nullptr) return static_cast<int64_t>(memory_->bytes());
  return static_cast<int64_t>(centroids_.size() + 4 * (scales_.size() + variances_.size()) +
                              4 * centers_.size() +
                              2 * (offsets_.size() + members_.size() + value_means_.size()));
}

}  // namespace semkv
