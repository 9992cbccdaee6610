// Inverted lists of one partition over one range of tokens, for every cell. A *cell* is one (layer,
// KV head): cell = layer * num_kv_heads + head. Lists are appended cell by cell and never change;
// the operations read them through ListsView.
//
// A sentence or a page is the same range of tokens in every cell, so its place is stored once; a
// cluster has members of its own in every cell.
//
// A store may have a copy on a device, which Mirror brings up to date. Copying a store does not
// copy that; the new one has none.
//
// Thread safety: thread-compatible; different cells may be appended to from different threads after
// Reserve.

#ifndef SEMKV_API_LIST_STORE_H_
#define SEMKV_API_LIST_STORE_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "csrc/api/device.h"
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

// Where the arrays that a view points to are.
enum class ListMemory { kHost, kDevice };

class ListStore {
 public:
  ListStore() = default;
  explicit ListStore(const ListStoreShape& shape);

  // Makes room for `max_lists` lists and `max_members` members per cell. Keeps what is there.
  void Reserve(int32_t max_lists, int32_t max_members);

  // The vector that cell's encoded centroids are relative to, [head_dim]. Set before AppendCell.
  void SetCenter(int32_t cell, const float* center);
  const float* center(int32_t cell) const { return &centers_[int64_t{cell} * shape_.head_dim]; }

  // Appends the places of new ranges, [nlist + 1] offsets plus `shift`, which begin where the last
  // range ended. Once, before the cells' vectors are appended.
  void AppendRanges(int32_t nlist, const uint16_t* offsets, int32_t shift);
  // Appends lists (places of clusters, vectors of everything) to one cell; Reserve made room.
  void AppendCell(int32_t cell, const NewLists& lists);

  // Lists [first_list, nlist) of a cell. Of kDevice, Mirror has been called since lists were added.
  ListsView View(int32_t cell, int32_t first_position, int32_t partition, int32_t first_list = 0,
                 ListMemory memory = ListMemory::kHost) const;

  // Enqueues copies of what was appended since the last call; of everything if there was more room
  // to be made. Errors: those of `device`; the store then has no copy.
  absl::Status Mirror(Device* device);

  bool empty() const { return shape_.num_cells == 0; }
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
    const uint16_t* offsets = nullptr;
    const uint16_t* members = nullptr;
    const uint8_t* centroids = nullptr;
    const float* scales = nullptr;
    const float* variances = nullptr;
    const float* centers = nullptr;
    const uint16_t* value_means = nullptr;
  };
  // The copy on a device.
  struct DeviceCopy {
    DeviceCopy() = default;
    DeviceCopy(const DeviceCopy&) {}
    DeviceCopy& operator=(const DeviceCopy&) { return *this = DeviceCopy(); }
    DeviceCopy(DeviceCopy&&) = default;
    DeviceCopy& operator=(DeviceCopy&&) = default;

    DeviceMemory memory;
    Arrays arrays;
    int32_t max_lists = 0, max_members = 0;  // its strides
    int32_t num_offsets = 0;                 // of ranges
    int32_t num_lists = 0, num_members = 0;  // that every cell has had copied
  };

  int64_t centroid_bytes() const;
  Arrays HostArrays() const;
  int32_t num_members(int32_t cell) const {
    return offsets_[int64_t{cell} * (max_lists_ + 1) + nlist_[cell]];
  }
  Arrays LayOutCopy(Workspace* memory) const;
  absl::Status AllocateCopy(Device* device);
  // The columns [first, end) of an array of `cells` rows of `stride` elements of `bytes` each.
  absl::Status CopyColumns(Device* device, const void* to, const void* from, int64_t stride,
                           int64_t bytes, int32_t first, int32_t end) const;
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
  DeviceCopy copy_;
};

}  // namespace semkv

#endif  // SEMKV_API_LIST_STORE_H_
