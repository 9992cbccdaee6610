// What selects and scores lists, in memory of the GPU.

#ifndef SEMKV_TESTS_CUDA_DEVICE_SELECT_INPUT_H_
#define SEMKV_TESTS_CUDA_DEVICE_SELECT_INPUT_H_

#include <cstdint>
#include <deque>
#include <vector>

#include "csrc/ops/retrieval/score_lists.h"
#include "csrc/ops/retrieval/select_lists.h"
#include "tests/cuda/device_copy.h"
#include "tests/ops/retrieval/select_cases.h"

namespace semkv::testing {

// The device's copy of everything that params point to. Keys and outputs hold what the host's do.
class DeviceSelectInput {
 public:
  explicit DeviceSelectInput(const SelectListsParams& host) : select_(host) {
    const int64_t tasks = int64_t{host.num_rows} * host.num_selections;
    std::vector<RetrievalRow> rows(host.rows, host.rows + host.num_rows);
    for (RetrievalRow& row : rows) {
      row.block_table = Copy(row.block_table, CeilDiv(row.num_tokens, host.page_tokens));
    }
    views_.assign(host.views, host.views + host.view_begin[tasks]);
    for (ListsView& view : views_) {
      view.members = Copy(view.members, view.offsets[view.nlist]);
      view.offsets = Copy(view.offsets, view.nlist + 1);
      view.excluded = Copy(view.excluded, view.num_excluded);
      view.first_page = Copy(view.first_page, view.nlist);
    }
    if (host.always != nullptr) {
      std::vector<AlwaysTaken> always(host.always, host.always + tasks);
      for (AlwaysTaken& taken : always) taken.positions = Copy(taken.positions, taken.count);
      select_.always = Copy(always.data(), tasks);
    }
    select_.rows = Copy(rows.data(), host.num_rows);
    select_.views = Copy(views_.data(), static_cast<int64_t>(views_.size()));
    select_.view_begin = Copy(host.view_begin, tasks + 1);
    select_.keys = Copy(host.keys, tasks * host.keys_stride);
    select_.slots = Copy(host.slots, tasks * host.slots_stride);
    slots_ = &copies_.back();
    select_.positions = Copy(host.positions, tasks * host.slots_stride);
    positions_ = &copies_.back();
    select_.counts = Copy(host.counts, tasks);
    counts_ = &copies_.back();
    if (host.wanted == nullptr) return;
    select_.wanted = Copy(host.wanted, tasks * host.wanted_stride);
    wanted_ = &copies_.back();
    select_.wanted_counts = Copy(host.wanted_counts, tasks);
    wanted_counts_ = &copies_.back();
  }
  DeviceSelectInput(const DeviceSelectInput&) = delete;
  DeviceSelectInput& operator=(const DeviceSelectInput&) = delete;

  const SelectListsParams& select() const { return select_; }

  // The scores' side of the same rows and views; keys are written where select() reads them.
  ScoreListsParams Score(const ScoreListsParams& host, const std::vector<uint8_t>& q) {
    for (size_t v = 0; v < views_.size(); ++v) {
      const ListsView& from = host.views[v];
      ListsView& view = views_[v];
      view.centroids = Copy(static_cast<const uint8_t*>(from.centroids),
                            view.nlist * CentroidRowBytes(view.form, host.head_dim));
      view.scales = Copy(from.scales, view.nlist);
      view.center = Copy(from.center, host.head_dim);
      view.variances = Copy(from.variances, view.nlist);
      view.value_means = Copy(from.value_means, int64_t{view.nlist} * host.head_dim);
    }
    select_.views = Copy(views_.data(), static_cast<int64_t>(views_.size()));
    ScoreListsParams score = host;
    score.q = Copy(q.data(), static_cast<int64_t>(q.size()));
    score.rows = select_.rows;
    score.views = select_.views;
    score.view_begin = select_.view_begin;
    score.keys = const_cast<float*>(select_.keys);
    return score;
  }

  // The host's pages where none are wanted.
  Selected Read(const std::vector<WantedPage>& wanted,
                const std::vector<int32_t>& wanted_counts) const {
    Selected read = {slots_->Read<int32_t>(), positions_->Read<int32_t>(), counts_->Read<int32_t>(),
                     wanted, wanted_counts};
    if (wanted_ == nullptr) return read;
    read.wanted = wanted_->Read<WantedPage>();
    read.wanted_counts = wanted_counts_->Read<int32_t>();
    return read;
  }

 private:
  template <typename T>
  T* Copy(const T* host, int64_t n) {
    if (host == nullptr) return nullptr;
    return static_cast<T*>(copies_.emplace_back(host, n * sizeof(T)).data());
  }

  SelectListsParams select_;
  std::vector<ListsView> views_;  // of device pointers
  std::deque<DeviceCopy> copies_;
  const DeviceCopy* slots_ = nullptr;
  const DeviceCopy* positions_ = nullptr;
  const DeviceCopy* counts_ = nullptr;
  const DeviceCopy* wanted_ = nullptr;
  const DeviceCopy* wanted_counts_ = nullptr;
};

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_CUDA_DEVICE_SELECT_INPUT_H_
