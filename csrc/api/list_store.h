// Inverted lists of one partition over one range of tokens, for every cell. A *cell* is one (layer,
// KV head): cell = layer * num_kv_heads + head. Lists are appended cell by cell and never change;
// the operations read them through ListsView.
//
// A sentence or a page is the same range of tokens in every cell, so its place is stored once; a
// cluster has members of its own in every cell.
//
// A store of a device has its arrays in that device's memory, and equally many lists in every cell:
// device_lists.h appends to them there. A copy of it shares the memory until Unshare.
//
// Thread safety: thread-compatible; different cells may be appended to from different threads after
// Reserve.

#ifndef SEMKV_API_LIST_STORE_H_
#define SEMKV_API_LIST_STORE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "csrc/api/device.h"
#include "csrc/ops/cache/append_lists.h"
#include "csrc/ops/retrieval/inverted_lists.h"
#include "csrc/ops/retrieval/workspace.h"

namespace semkv {

struct ListStoreShape {
  int32_t num_cells = 0;
  int32_t head_dim = 0;
  CentroidForm form = CentroidForm::kInt8;
  bool ranges = false;       // lists are the same ranges of tokens in every cell
  bool value_means = false;  // keep mean values for estimate_rest
};

// What AppendCell encodes: lists of one cell, in CSR form relative to the range's first token.
struct NewLists {
  int32_t nlist = 0;
  const uint16_t* offsets = nullptr;   // [nlist + 1], from offsets[0]
  const uint16_t* members = nullptr;   // [offsets[nlist]]; null for ranges
  int32_t member_shift = 0;            // added to every member
  const float* means = nullptr;        // [nlist, head_dim]; not read for kBounds
  const float* variances = nullptr;    // [nlist]
  const uint16_t* bounds = nullptr;    // [nlist, 2, head_dim], kBounds only
  const float* value_means = nullptr;  // [nlist, head_dim]; null: not kept
};

class ListStore {
 public:
  ListStore() = default;
  // device null: the host's.
  explicit ListStore(const ListStoreShape& shape, Device* device = nullptr);

  // Makes room for `max_lists` lists and `max_members` members per cell. Keeps what is there.
  // Errors, here and below: those of the device. Nothing has changed then, but for AppendRanges,
  // after which the store is of no use.
  absl::Status Reserve(int32_t max_lists, int32_t max_members);
  // From here on no other store has this one's memory. Before anything is appended.
  absl::Status Unshare();

  // The vectors that encoded centroids are relative to, [num_cells, head_dim], at first 0. Set
  // before the first list.
  void SetCenter(int32_t cell, const float* center);
  const float* center(int32_t cell) const { return &centers_[int64_t{cell} * shape_.head_dim]; }
  absl::Status CopyCenters(const ListStore& from);

  // Appends the places of new ranges, [nlist + 1] offsets plus `shift`, which begin where the last
  // range ended. Once, before the cells' vectors are appended; Reserve made room.
  absl::Status AppendRanges(int32_t nlist, const uint16_t* offsets, int32_t shift);
  // Appends lists (places of clusters, vectors of everything) to one cell; Reserve made room.
  void AppendCell(int32_t cell, const NewLists& lists);

  // Of a device: where the next lists of the cells from `first_cell` on are written, which are in
  // the store once Appended is told of them, with as many lists and members in every cell.
  void Describe(int32_t first_cell, AppendListsParams* params) const;
  // After Describe, of a store that keeps them: the same lists' mean values instead, of which
  // params' keys are then the values.
  void DescribeValueMeans(int32_t first_cell, AppendListsParams* params) const;
  void Appended(int32_t nlist, int32_t num_members);
  // Of a device: [num_cells, head_dim].
  float* device_centers() const { return arrays_.centers; }

  // Lists [first_list, nlist) of a cell.
  ListsView View(int32_t cell, int32_t first_position, int32_t partition,
                 int32_t first_list = 0) const;

  bool empty() const { return shape_.num_cells == 0; }
  bool has_value_means() const { return shape_.value_means; }
  int32_t nlist(int32_t cell) const { return nlist_[cell]; }
  int32_t max_lists() const { return max_lists_; }
  // The place of range list i, relative to the first token: [offset, offset of the next).
  const std::vector<uint16_t>& range_offsets() const { return offsets_; }
  int64_t num_lists() const;
  // Bytes of vectors, scales, variances, places and members, and of the room kept for more.
  int64_t bytes() const;
  int64_t reserved_bytes() const;

 private:
  // Where each array begins.
  struct Arrays {
    uint16_t* offsets = nullptr;
    uint16_t* members = nullptr;
    uint8_t* centroids = nullptr;
    float* scales = nullptr;
    float* variances = nullptr;
    float* centers = nullptr;
    uint16_t* value_means = nullptr;
  };

  int64_t centroid_bytes() const;
  Arrays HostArrays() const;
  int32_t num_members(int32_t cell) const {
    if (device_ != nullptr) return num_members_;
    return offsets_[int64_t{cell} * (max_lists_ + 1) + nlist_[cell]];
  }
  Arrays LayOut(Workspace* memory, int32_t max_lists, int32_t max_members) const;
  // Moves a device's arrays to new memory.
  absl::Status Relocate(int32_t max_lists, int32_t max_members);
  // The first `columns` of an array of [num_rows, stride] elements of `bytes` each, to memory of
  // another stride.
  absl::Status CopyColumns(void* to, const void* from, int64_t num_rows, int64_t columns,
                           int64_t to_stride, int64_t from_stride, int64_t bytes) const;
  void AppendPlaces(int32_t cell, const NewLists& lists);
  void AppendVectors(int32_t cell, const NewLists& lists);

  ListStoreShape shape_;
  int32_t max_lists_ = 0;
  int32_t max_members_ = 0;
  std::vector<int32_t> nlist_;         // [num_cells]
  std::vector<uint16_t> offsets_;      // ranges: grows; else [num_cells, max_lists + 1]
  std::vector<uint16_t> members_;      // [num_cells, max_members]; empty for ranges
  std::vector<uint8_t> centroids_;     // [num_cells, max_lists, centroid_bytes]
  std::vector<float> scales_;          // [num_cells, max_lists], kInt8
  std::vector<float> variances_;       // [num_cells, max_lists]; not for kBounds
  std::vector<float> centers_;         // [num_cells, head_dim]
  std::vector<uint16_t> value_means_;  // [num_cells, max_lists, head_dim]

  // Of a device: nlist_, and of ranges offsets_, are known on the host too.
  Device* device_ = nullptr;
  std::shared_ptr<DeviceMemory> memory_;
  Arrays arrays_;
  int32_t num_members_ = 0;  // in every cell
};

}  // namespace semkv

#endif  // SEMKV_API_LIST_STORE_H_
