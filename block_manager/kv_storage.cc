#include "block_manager/kv_storage.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace semkv {
namespace {

bool MultiplyInto(int64_t& product, int64_t factor) {
  return !__builtin_mul_overflow(product, factor, &product);
}

absl::Status CheckPositive(const char* name, int64_t value) {
  if (value > 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, " is ", value, ", must be positive"));
}

// Elements from one row to the next along a dimension, and how many rows it has.
struct Dimension {
  int64_t stride;
  int64_t extent;
};

// In ascending order of stride, a step along a dimension must leave everything inside it behind.
absl::Status CheckStrides(const char* name, std::array<Dimension, 3> dimensions,
                          const KvShape& shape) {
  std::sort(dimensions.begin(), dimensions.end(),
            [](const Dimension& a, const Dimension& b) { return a.stride < b.stride; });
  int64_t span = shape.head_dim;
  for (const Dimension& dimension : dimensions) {
    if (dimension.extent == 1) continue;
    if (dimension.stride < span) {
      return absl::InvalidArgumentError(absl::StrCat("a stride of the ", name, "s is ",
                                                     dimension.stride, " elements, rows inside it ",
                                                     "take ", span));
    }
    int64_t last = dimension.extent - 1;
    if (!MultiplyInto(last, dimension.stride) || __builtin_add_overflow(last, span, &span)) {
      return absl::InvalidArgumentError(
          absl::StrCat("the ", name, "s span more elements than fit 64 bits"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckView(const KvView& view, const KvShape& shape) {
  if (view.k == nullptr || view.v == nullptr) {
    return absl::InvalidArgumentError("the base of the keys or values is null");
  }
  if (view.page_tokens != shape.page_tokens || view.num_pages != shape.num_pages) {
    return absl::InvalidArgumentError(absl::StrCat("view of ", view.num_pages, " pages of ",
                                                   view.page_tokens, " tokens, pool of ",
                                                   shape.num_pages, " of ", shape.page_tokens));
  }
  if (view.dtype != shape.dtype) {
    return absl::InvalidArgumentError(absl::StrCat("view of dtype ", static_cast<int>(view.dtype),
                                                   ", pool of ", static_cast<int>(shape.dtype)));
  }
  absl::Status keys = CheckStrides(
      "key",
      {Dimension{view.k_page, shape.num_pages}, Dimension{view.k_head, shape.num_kv_heads},
       Dimension{view.k_token, shape.page_tokens}},
      shape);
  if (!keys.ok()) return keys;
  return CheckStrides(
      "value",
      {Dimension{view.v_page, shape.num_pages}, Dimension{view.v_head, shape.num_kv_heads},
       Dimension{view.v_token, shape.page_tokens}},
      shape);
}

// Rows that follow each other without a gap go in one memcpy; of owned memory, where a key is
// followed by its value, keys and values together.
void CopyLayerPage(const KvView& view, const KvShape& shape, int32_t src, int32_t dst,
                   int32_t num_tokens) {
  const int64_t bytes = DTypeBytes(shape.dtype);
  char* const k = static_cast<char*>(view.k);
  char* const v = static_cast<char*>(view.v);
  const bool is_interleaved = v == k + shape.head_dim * bytes && view.k_token == view.v_token &&
                              view.k_token == int64_t{2} * shape.head_dim &&
                              view.k_head == view.v_head && view.k_page == view.v_page;
  for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
    if (is_interleaved) {
      const int64_t at = head * view.k_head;
      std::memcpy(k + (dst * view.k_page + at) * bytes, k + (src * view.k_page + at) * bytes,
                  num_tokens * view.k_token * bytes);
      continue;
    }
    for (int32_t token = 0; token < num_tokens; ++token) {
      const int64_t k_at = head * view.k_head + token * view.k_token;
      const int64_t v_at = head * view.v_head + token * view.v_token;
      std::memcpy(k + (dst * view.k_page + k_at) * bytes, k + (src * view.k_page + k_at) * bytes,
                  shape.head_dim * bytes);
      std::memcpy(v + (dst * view.v_page + v_at) * bytes, v + (src * view.v_page + v_at) * bytes,
                  shape.head_dim * bytes);
    }
  }
}

}  // namespace

absl::Status CheckKvShape(const KvShape& shape) {
  const std::pair<const char*, int64_t> numbers[] = {
      {"num_pages", shape.num_pages},   {"page_tokens", shape.page_tokens},
      {"num_layers", shape.num_layers}, {"num_kv_heads", shape.num_kv_heads},
      {"head_dim", shape.head_dim},
  };
  for (const auto& [name, value] : numbers) {
    if (absl::Status status = CheckPositive(name, value); !status.ok()) return status;
  }
  if (shape.page_tokens > 1024 || !std::has_single_bit(static_cast<uint32_t>(shape.page_tokens))) {
    return absl::InvalidArgumentError(
        absl::StrCat("page_tokens is ", shape.page_tokens, ", must be a power of two up to 1024"));
  }
  if (shape.dtype != DType::kFloat32 && shape.dtype != DType::kFloat16 &&
      shape.dtype != DType::kBFloat16 && shape.dtype != DType::kFloat8E4M3) {
    return absl::InvalidArgumentError(
        absl::StrCat("dtype ", static_cast<int32_t>(shape.dtype), " is unknown"));
  }
  int64_t slots = shape.num_pages;
  if (!MultiplyInto(slots, shape.page_tokens) || slots > INT32_MAX) {
    return absl::InvalidArgumentError(absl::StrCat(shape.num_pages, " pages of ", shape.page_tokens,
                                                   " tokens are ", slots, " slots, at most ",
                                                   INT32_MAX));
  }
  int64_t layer_bytes = slots;
  if (!MultiplyInto(layer_bytes, 2 * DTypeBytes(shape.dtype)) ||
      !MultiplyInto(layer_bytes, shape.num_kv_heads) ||
      !MultiplyInto(layer_bytes, shape.head_dim)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a layer of ", slots, " slots, ", shape.num_kv_heads, " KV heads of ",
                     shape.head_dim, " has more bytes than fit 64 bits"));
  }
  return absl::OkStatus();
}

absl::Status CheckHostDType(const KvShape& shape) {
  if (shape.dtype != DType::kFloat8E4M3) return absl::OkStatus();
  return absl::InvalidArgumentError("a pool of float8 e4m3 on the host");
}

KvStorage::KvStorage(const KvShape& shape, KvAccess access)
    : shape_(shape), access_(access), views_(shape.num_layers) {}

void KvStorage::Unmap::operator()(void* memory) const { munmap(memory, bytes); }

absl::StatusOr<KvStorage> KvStorage::Allocate(const KvShape& shape) {
  if (absl::Status status = CheckKvShape(shape); !status.ok()) return status;
  if (absl::Status status = CheckHostDType(shape); !status.ok()) return status;
  KvStorage storage(shape, KvAccess::kHost);
  KvView view;
  view.k_token = view.v_token = 2 * static_cast<int64_t>(shape.head_dim);
  view.k_head = view.v_head = view.k_token * shape.page_tokens;
  view.k_page = view.v_page = view.k_head * shape.num_kv_heads;
  view.page_tokens = shape.page_tokens;
  view.num_pages = shape.num_pages;
  view.dtype = shape.dtype;
  const size_t bytes = static_cast<size_t>(view.k_page) * shape.num_pages * DTypeBytes(shape.dtype);
  storage.memory_.reserve(shape.num_layers);
  for (int32_t layer = 0; layer < shape.num_layers; ++layer) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
      return absl::ResourceExhaustedError(absl::StrCat("layer ", layer, " of ", shape.num_layers,
                                                       " needs ", bytes,
                                                       " bytes: ", std::strerror(errno)));
    }
    storage.memory_.emplace_back(memory, Unmap{bytes});
#ifdef MADV_HUGEPAGE
    // A wish: without huge pages the memory is as right, only slower to walk.
    (void)madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    view.k = memory;
    view.v = static_cast<char*>(memory) + shape.head_dim * DTypeBytes(shape.dtype);
    storage.views_[layer] = view;
  }
  storage.num_layers_set_ = shape.num_layers;
  return storage;
}

absl::StatusOr<KvStorage> KvStorage::Borrow(const KvShape& shape, KvAccess access) {
  if (absl::Status status = CheckKvShape(shape); !status.ok()) return status;
  if (access == KvAccess::kHost) {
    if (absl::Status status = CheckHostDType(shape); !status.ok()) return status;
  }
  return KvStorage(shape, access);
}

absl::Status KvStorage::SetView(int32_t layer, const KvView& view) {
  if (layer < 0 || layer >= shape_.num_layers) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer ", layer, " of a model of ", shape_.num_layers, " layers"));
  }
  if (views_[layer].k != nullptr) {
    return absl::AlreadyExistsError(absl::StrCat("layer ", layer, " has its memory"));
  }
  if (absl::Status status = CheckView(view, shape_); !status.ok()) return status;
  views_[layer] = view;
  ++num_layers_set_;
  return absl::OkStatus();
}

void KvStorage::CopyPage(int32_t src, int32_t dst, int32_t num_tokens) const {
  assert(is_complete() && access_ == KvAccess::kHost && num_tokens <= shape_.page_tokens);
  for (const KvView& view : views_) CopyLayerPage(view, shape_, src, dst, num_tokens);
}

}  // namespace semkv
