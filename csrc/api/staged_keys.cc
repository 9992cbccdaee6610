#include "csrc/api/staged_keys.h"

#include <algorithm>
#include <utility>

#include "csrc/status_macros.h"

namespace semkv {
namespace {

// How the rows of a page lie, in bytes: [outer_count, inner_count] rows, whichever of heads and
// tokens is the outer one.
struct PageRows {
  int64_t row_bytes;
  int64_t inner_count, inner_pitch;
  int64_t outer_count, outer_pitch;
  int64_t page_pitch;

  bool outer_joins() const { return outer_pitch == inner_count * inner_pitch; }
  bool pages_join() const { return outer_joins() && page_pitch == outer_count * outer_pitch; }
};

// Pages that follow each other in the pool, from pages[begin] on.
int32_t EndOfRun(absl::Span<const int32_t> pages, int32_t begin) {
  int32_t end = begin + 1;
  while (end < static_cast<int32_t>(pages.size()) && pages[end] == pages[end - 1] + 1) ++end;
  return end;
}

// One copy for all rows at one distance from each other.
absl::Status ReadRun(Device* device, const PageRows& rows, const uint8_t* from, int32_t num_pages,
                     uint8_t* to) {
  const int64_t page_rows = rows.inner_count * rows.outer_count;
  if (rows.pages_join()) {
    return device->Download(
        to, from, {rows.row_bytes, num_pages * page_rows, rows.row_bytes, rows.inner_pitch});
  }
  for (int32_t page = 0; page < num_pages; ++page) {
    const int64_t outer = rows.outer_joins() ? 1 : rows.outer_count;
    const int64_t count = page_rows / outer;
    for (int64_t i = 0; i < outer; ++i) {
      SEMKV_RETURN_IF_ERROR(
          device->Download(to + (page * page_rows + i * count) * rows.row_bytes,
                           from + page * rows.page_pitch + i * rows.outer_pitch,
                           {rows.row_bytes, count, rows.row_bytes, rows.inner_pitch}));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status StagedKeys::Read(Device* device, absl::Span<const KvView> layers, int32_t first,
                              int32_t end, int32_t num_kv_heads, int32_t head_dim,
                              absl::Span<const int32_t> pages) {
  const KvView& like = layers[first];
  const int64_t bytes = DTypeBytes(like.dtype);
  const bool tokens_inside = like.k_token <= like.k_head;
  view_ = like;
  view_.k = view_.v = nullptr;
  view_.num_pages = static_cast<int32_t>(pages.size());
  view_.k_token = tokens_inside ? head_dim : int64_t{num_kv_heads} * head_dim;
  view_.k_head = tokens_inside ? int64_t{like.page_tokens} * head_dim : head_dim;
  view_.k_page = int64_t{num_kv_heads} * like.page_tokens * head_dim;
  layer_bytes_ = view_.k_page * bytes * view_.num_pages;
  first_layer_ = first;
  keys_.resize(layer_bytes_ * (end - first));
  for (int32_t layer = first; layer < end; ++layer) {
    const KvView& from = layers[layer];
    PageRows rows = {head_dim * bytes, from.page_tokens,    from.k_token * bytes,
                     num_kv_heads,     from.k_head * bytes, from.k_page * bytes};
    if (!tokens_inside) {
      std::swap(rows.inner_count, rows.outer_count);
      std::swap(rows.inner_pitch, rows.outer_pitch);
    }
    uint8_t* const to = keys_.data() + (layer - first) * layer_bytes_;
    for (int32_t i = 0; i < view_.num_pages;) {
      const int32_t run_end = EndOfRun(pages, i);
      SEMKV_RETURN_IF_ERROR(
          ReadRun(device, rows, static_cast<const uint8_t*>(from.k) + pages[i] * rows.page_pitch,
                  run_end - i, to + i * view_.k_page * bytes));
      i = run_end;
    }
  }
  return device->Wait();
}

KvView StagedKeys::View(int32_t layer) const {
  KvView view = view_;
  view.k = const_cast<uint8_t*>(keys_.data()) + (layer - first_layer_) * layer_bytes_;
  return view;
}

}  // namespace semkv
