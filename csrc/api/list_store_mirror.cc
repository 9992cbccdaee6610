// ListStore: its copy on a device.

#include <algorithm>

#include "csrc/api/list_store.h"
#include "csrc/status_macros.h"

namespace semkv {

ListStore::Arrays ListStore::LayOutCopy(Workspace* memory) const {
  const int64_t cells = shape_.num_cells, lists = cells * max_lists_;
  Arrays a;
  // A range has one place more than there are lists, in all cells the same.
  a.offsets = memory->Take<uint16_t>((shape_.ranges ? 1 : cells) * (max_lists_ + 1));
  if (!shape_.ranges) a.members = memory->Take<uint16_t>(cells * max_members_);
  a.centroids = memory->Take<uint8_t>(lists * centroid_bytes());
  if (shape_.form == CentroidForm::kInt8) a.scales = memory->Take<float>(lists);
  if (shape_.form != CentroidForm::kBounds) a.variances = memory->Take<float>(lists);
  a.centers = memory->Take<float>(cells * shape_.head_dim);
  if (shape_.value_means) a.value_means = memory->Take<uint16_t>(lists * shape_.head_dim);
  return a;
}

absl::Status ListStore::AllocateCopy(Device* device) {
  Workspace measured;
  LayOutCopy(&measured);
  const size_t bytes = Workspace::TotalBytes(measured.used_bytes(), 1);
  copy_ = DeviceCopy();
  SEMKV_ASSIGN_OR_RETURN(copy_.memory, DeviceMemory::Allocate(device, bytes));
  Workspace carved(copy_.memory.data(), bytes, /*num_threads=*/1, /*thread=*/0);
  copy_.arrays = LayOutCopy(&carved);
  copy_.max_lists = max_lists_;
  copy_.max_members = max_members_;
  // Centers are set before the first list and stay.
  const auto center_bytes = static_cast<int64_t>(centers_.size() * sizeof(float));
  return device->Upload(const_cast<float*>(copy_.arrays.centers), centers_.data(),
                        {center_bytes, 1, center_bytes, center_bytes});
}

absl::Status ListStore::CopyColumns(Device* device, const void* to, const void* from,
                                    int64_t stride, int64_t bytes, int32_t first,
                                    int32_t end) const {
  if (to == nullptr || first >= end) return absl::OkStatus();
  const int64_t pitch = stride * bytes, skip = first * bytes;
  return device->Upload(static_cast<uint8_t*>(const_cast<void*>(to)) + skip,
                        static_cast<const uint8_t*>(from) + skip,
                        {(end - first) * bytes, shape_.num_cells, pitch, pitch});
}

absl::Status ListStore::Mirror(Device* device) {
  if (empty() || max_lists_ == 0) return absl::OkStatus();
  if (copy_.memory.data() == nullptr || copy_.max_lists != max_lists_ ||
      copy_.max_members != max_members_) {
    SEMKV_RETURN_IF_ERROR(AllocateCopy(device));
  }
  int32_t least_lists = max_lists_, most_lists = 0, least_members = max_members_, most_members = 0;
  for (int32_t cell = 0; cell < shape_.num_cells; ++cell) {
    least_lists = std::min(least_lists, nlist_[cell]);
    most_lists = std::max(most_lists, nlist_[cell]);
    if (shape_.ranges) continue;
    least_members = std::min(least_members, num_members(cell));
    most_members = std::max(most_members, num_members(cell));
  }
  const Arrays from = HostArrays();
  const Arrays& to = copy_.arrays;
  const int32_t first = copy_.num_lists;
  const auto copy = [&](const void* into, const void* out_of, int64_t bytes) {
    return CopyColumns(device, into, out_of, max_lists_, bytes, first, most_lists);
  };
  absl::Status status = copy(to.centroids, from.centroids, centroid_bytes());
  status.Update(copy(to.scales, from.scales, 4));
  status.Update(copy(to.variances, from.variances, 4));
  status.Update(copy(to.value_means, from.value_means, int64_t{2} * shape_.head_dim));
  if (shape_.ranges) {
    const int32_t known = copy_.num_offsets, all = static_cast<int32_t>(offsets_.size());
    const int64_t bytes = int64_t{2} * (all - known);
    status.Update(device->Upload(const_cast<uint16_t*>(to.offsets) + known, offsets_.data() + known,
                                 {bytes, 1, bytes, bytes}));
    copy_.num_offsets = all;
  } else {
    status.Update(
        CopyColumns(device, to.offsets, from.offsets, max_lists_ + 1, 2, first, most_lists + 1));
    status.Update(CopyColumns(device, to.members, from.members, max_members_, 2, copy_.num_members,
                              most_members));
  }
  if (!status.ok()) {
    copy_ = DeviceCopy();
    return status;
  }
  copy_.num_lists = least_lists;
  if (!shape_.ranges) copy_.num_members = least_members;
  return absl::OkStatus();
}

}  // namespace semkv
