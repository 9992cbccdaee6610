// ListStore: arrays in a device's memory.

#include <algorithm>
#include <utility>

#include "csrc/api/list_store.h"
#include "csrc/status_macros.h"

namespace semkv {

ListStore::Arrays ListStore::LayOut(Workspace* memory, int32_t max_lists,
                                    int32_t max_members) const {
  const int64_t cells = shape_.num_cells, lists = cells * max_lists;
  Arrays a;
  // A range has one place more than there are lists, in all cells the same.
  a.offsets = memory->Take<uint16_t>((shape_.ranges ? 1 : cells) * (max_lists + 1));
  if (!shape_.ranges) a.members = memory->Take<uint16_t>(cells * max_members);
  a.centroids = memory->Take<uint8_t>(lists * centroid_bytes());
  if (HasScales(shape_.form)) a.scales = memory->Take<float>(lists);
  if (shape_.form != CentroidForm::kBounds) a.variances = memory->Take<float>(lists);
  a.centers = memory->Take<float>(cells * shape_.head_dim);
  if (shape_.value_means) a.value_means = memory->Take<uint16_t>(lists * shape_.head_dim);
  return a;
}

absl::Status ListStore::CopyColumns(void* to, const void* from, int64_t num_rows, int64_t columns,
                                    int64_t to_stride, int64_t from_stride, int64_t bytes) const {
  if (from == nullptr || columns == 0) return absl::OkStatus();
  return device_->Copy(to, from,
                       {columns * bytes, num_rows, to_stride * bytes, from_stride * bytes});
}

absl::Status ListStore::Relocate(int32_t max_lists, int32_t max_members) {
  Workspace measured;
  LayOut(&measured, max_lists, max_members);
  const size_t bytes = Workspace::TotalBytes(measured.used_bytes(), 1);
  SEMKV_ASSIGN_OR_RETURN(DeviceMemory memory, DeviceMemory::Allocate(device_, bytes));
  Workspace carved(memory.data(), bytes, /*num_threads=*/1, /*thread=*/0);
  const Arrays to = LayOut(&carved, max_lists, max_members);
  const Arrays& from = arrays_;
  const int64_t cells = shape_.num_cells, d = shape_.head_dim;
  const int64_t lists = cells > 0 ? nlist_[0] : 0;
  const auto copy_lists = [&](void* into, const void* out_of, int64_t list_bytes) {
    return CopyColumns(into, out_of, cells, lists, max_lists, max_lists_, list_bytes);
  };
  absl::Status status = copy_lists(to.centroids, from.centroids, centroid_bytes());
  status.Update(copy_lists(to.scales, from.scales, sizeof(float)));
  status.Update(copy_lists(to.variances, from.variances, sizeof(float)));
  status.Update(copy_lists(to.value_means, from.value_means, d * int64_t{sizeof(uint16_t)}));
  status.Update(CopyColumns(to.offsets, from.offsets, shape_.ranges ? 1 : cells,
                            lists > 0 ? lists + 1 : 0, max_lists + 1, max_lists_ + 1,
                            sizeof(uint16_t)));
  status.Update(CopyColumns(to.members, from.members, cells, num_members_, max_members,
                            max_members_, sizeof(uint16_t)));
  status.Update(from.centers != nullptr ? CopyColumns(to.centers, from.centers, 1, cells * d,
                                                      cells * d, cells * d, sizeof(float))
                                        : device_->Zero(to.centers, cells * d * sizeof(float)));
  SEMKV_RETURN_IF_ERROR(status);
  memory_ = std::make_shared<DeviceMemory>(std::move(memory));
  arrays_ = to;
  max_lists_ = max_lists;
  max_members_ = max_members;
  return absl::OkStatus();
}

absl::Status ListStore::Unshare() {
  if (memory_ == nullptr || memory_.use_count() == 1) return absl::OkStatus();
  return Relocate(max_lists_, max_members_);
}

void ListStore::Describe(int32_t first_cell, AppendListsParams* params) const {
  const int64_t lists = int64_t{first_cell} * max_lists_;
  params->head_dim = shape_.head_dim;
  params->form = shape_.form;
  params->centers = arrays_.centers + int64_t{first_cell} * shape_.head_dim;
  params->max_lists = max_lists_;
  params->first_list = nlist_[0];
  params->centroids = arrays_.centroids + lists * centroid_bytes();
  if (arrays_.scales != nullptr) params->scales = arrays_.scales + lists;
  if (arrays_.variances != nullptr) params->variances = arrays_.variances + lists;
  if (shape_.ranges) return;
  params->list_offsets = arrays_.offsets + int64_t{first_cell} * (max_lists_ + 1);
  params->list_members = arrays_.members + int64_t{first_cell} * max_members_;
  params->max_members = max_members_;
  params->first_member = num_members_;
}

void ListStore::DescribeValueMeans(int32_t first_cell, AppendListsParams* params) const {
  const int64_t lists = int64_t{first_cell} * max_lists_;
  params->form = CentroidForm::kBFloat16;
  params->centers = nullptr;
  params->centroids = arrays_.value_means + lists * shape_.head_dim;
  params->scales = nullptr;
  params->variances = nullptr;
  params->list_offsets = nullptr;
  params->list_members = nullptr;
}

void ListStore::Appended(int32_t nlist, int32_t num_members) {
  for (int32_t& n : nlist_) n += nlist;
  num_members_ += num_members;
}

}  // namespace semkv
