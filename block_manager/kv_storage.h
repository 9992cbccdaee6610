// Where the keys and values of a pool's pages are: one KvView (semkv/types.h) per layer, over
// memory that is owned, or borrowed from an engine.
//
// Owned memory is one allocation per layer, on a memory page's boundary (so 64-byte aligned), with
// huge pages where the system has them, zero until written. Its layout is
// [num_pages, num_kv_heads, page_tokens, 2, head_dim]: the key of a token, then its value, so that
// one read fetches both. k_token = v_token = 2 * head_dim, and v = k + head_dim.
//
// Thread safety: const after the last SetView; until then thread-compatible.

#ifndef SEMKV_BLOCK_MANAGER_KV_STORAGE_H_
#define SEMKV_BLOCK_MANAGER_KV_STORAGE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "semkv/types.h"

namespace semkv {

struct KvShape {
  int32_t num_pages = 0;     // per layer; a page id names the page in every layer
  int32_t page_tokens = 16;  // a power of two in [1, 1024]
  int32_t num_layers = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  DType dtype = DType::kFloat32;
};

// Errors: INVALID_ARGUMENT if a number is not positive, page_tokens is not a power of two in
// [1, 1024], the dtype is unknown, num_pages * page_tokens does not fit a slot (int32), or a
// layer's bytes do not fit int64.
absl::Status CheckKvShape(const KvShape& shape);

enum class KvAccess {
  kHost,    // this process can read and write the memory: CopyPage copies
  kDevice,  // it cannot: whoever owns the device copies
};

class KvStorage {
 public:
  // Memory of its own for every layer, freed with the storage.
  //
  // Errors: as CheckKvShape; RESOURCE_EXHAUSTED if the system has not enough memory.
  static absl::StatusOr<KvStorage> Allocate(const KvShape& shape);

  // No memory yet: SetView gives it, layer by layer.
  //
  // Errors: as CheckKvShape.
  static absl::StatusOr<KvStorage> Borrow(const KvShape& shape, KvAccess access);

  KvStorage(KvStorage&&) = default;
  KvStorage& operator=(KvStorage&&) = default;

  const KvShape& shape() const { return shape_; }
  KvAccess access() const { return access_; }
  int32_t num_layers_set() const { return num_layers_set_; }
  bool is_complete() const { return num_layers_set_ == shape_.num_layers; }

  // Lends `view` to layer `layer`. The memory stays the caller's and must outlive the storage.
  //
  // Errors: INVALID_ARGUMENT if `layer` is out of range, a base is null, the view's page_tokens,
  // num_pages or dtype differ from the shape, or its strides let two rows of keys (or of values)
  // overlap; ALREADY_EXISTS if the layer has its view, as every layer of owned memory has.
  absl::Status SetView(int32_t layer, const KvView& view);

  // REQUIRES: `layer` in [0, num_layers) has its view.
  const KvView& view(int32_t layer) const { return views_[layer]; }

  // The first `num_tokens` tokens of page `src` into page `dst`, keys and values, every layer.
  // REQUIRES: is_complete(), access() is kHost, num_tokens <= page_tokens, src != dst.
  void CopyPage(int32_t src, int32_t dst, int32_t num_tokens) const;

 private:
  struct Unmap {
    size_t bytes = 0;
    void operator()(void* memory) const;
  };

  KvStorage(const KvShape& shape, KvAccess access);

  KvShape shape_;
  KvAccess access_;
  int32_t num_layers_set_ = 0;
  std::vector<KvView> views_;                         // [num_layers]; k is null until set
  std::vector<std::unique_ptr<void, Unmap>> memory_;  // [num_layers] if owned, else empty
};

}  // namespace semkv

#endif  // SEMKV_BLOCK_MANAGER_KV_STORAGE_H_
