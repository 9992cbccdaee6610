// Keys that are in device memory, brought to the host for building inverted lists there: whole
// pages of some layers at a time.
//
// Thread safety: thread-compatible.

#ifndef SEMKV_API_STAGED_KEYS_H_
#define SEMKV_API_STAGED_KEYS_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "csrc/api/device.h"
#include "semkv/types.h"

namespace semkv {

// As many layers at once as fit these bytes; at least one.
constexpr int64_t kStagedKeysBytes = int64_t{64} << 20;

class StagedKeys {
 public:
  // Copies keys of `pages` in the layers [first, end) to the host, and waits for them.
  absl::Status Read(Device* device, absl::Span<const KvView> layers, int32_t first, int32_t end,
                    int32_t num_kv_heads, int32_t head_dim, absl::Span<const int32_t> pages);

  // Keys of a layer that was read last: page i is pages[i]. There are no values.
  KvView View(int32_t layer) const;

 private:
  std::vector<uint8_t> keys_;  // [layers, pages, rows of a page in the order of their places]
  KvView view_;                // of any layer; k is null
  int32_t first_layer_ = 0;
  int64_t layer_bytes_ = 0;
};

}  // namespace semkv

#endif  // SEMKV_API_STAGED_KEYS_H_
