// Lists of a sequence's tokens, built on the device that has their keys: what segment_builder.h
// does on the host.

#ifndef SEMKV_API_DEVICE_LISTS_H_
#define SEMKV_API_DEVICE_LISTS_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "csrc/api/list_store.h"
#include "csrc/api/sequence_index.h"
#include "faiss_index/partitioner.h"

namespace semkv {

// What is built of the tokens [first, end) in every cell. The stores have room, and share their
// memory with no other.
struct DeviceLists {
  // Ranges, whose places the store has; offsets count from `first`.
  struct Ranges {
    ListStore* store = nullptr;
    absl::Span<const uint16_t> offsets;
  };
  // Clusters of each of num_windows times `num_tokens` tokens, from first + first_row on. A window
  // appends as many lists as it has clusters and two: of its zero keys, and of those that are not
  // finite; lists may be empty.
  struct Clusters {
    ListStore* store = nullptr;  // null: none
    const ClusterOptions* options = nullptr;
    int32_t first_row = 0;
    int32_t num_tokens = 0;
    int32_t num_windows = 0;
    int32_t shift = 0;  // members count from first - shift
  };

  int32_t first = 0, end = 0;
  std::vector<Ranges> ranges;
  Clusters clusters;
  // The mean of the finite keys becomes the stores' center. Else they have one.
  bool is_centered = false;
  ExcludedOnDevice* excluded = nullptr;  // out; null: not asked for
};

// Enqueues it on the device's stream. Waits for that only if `excluded` is asked for.
//
// Errors: RESOURCE_EXHAUSTED; INVALID_ARGUMENT for more clusters than k-means takes; INTERNAL. The
// stores are then unspecified.
absl::Status BuildListsOnDevice(const KeySource& source, const DeviceLists& lists);

}  // namespace semkv

#endif  // SEMKV_API_DEVICE_LISTS_H_
