// A tile of decode attention: where the rows of some tokens are, and the pace at which those of the
// next tile are brought nearer while it is worked on.

#ifndef SEMKV_OPS_ATTENTION_DECODE_ATTENTION_TILE_H_
#define SEMKV_OPS_ATTENTION_DECODE_ATTENTION_TILE_H_

#include <cstddef>
#include <cstdint>

#include "csrc/ops/prefetch_level.h"
#include "semkv/types.h"

namespace semkv {

constexpr size_t kTileTokens = 16;
constexpr size_t kLineBytes = 64;
// Query heads and tokens are handled four at a time, whatever the vector width.
constexpr size_t kQuadHeads = 4;
constexpr size_t kQuadTokens = 4;
constexpr size_t kQuadScores = kQuadHeads * kQuadTokens;

// The rows of some tokens, key and value after each other. Those beyond num_tokens repeat the last
// token, so that whole quads may be scored.
template <typename T>
struct Tile {
  const T* rows[2 * kTileTokens];
  size_t num_tokens;

  const T* key(size_t i) const { return rows[2 * i]; }
  const T* value(size_t i) const { return rows[2 * i + 1]; }
  size_t num_quads() const { return CeilDiv(num_tokens, kQuadTokens); }
};

// How many of `lines` are due at step `i` of `n`.
constexpr size_t Share(size_t lines, size_t i, size_t n) {
  return lines * (i + 1) / n - lines * i / n;
}

// Touches the rows of the next tile, K and V of a token after each other, a few lines at a time:
// fills that come at a steady pace never wait for a free fill buffer, and lines in address order
// keep the hardware's prefetcher running. With each row, the first line of a row of the tile after
// that is brought into L2: the page walk and the start of a new DRAM page are then over when the
// row's own turn comes.
template <typename T>
class Prefetcher {
 public:
  Prefetcher(const Tile<T>& next, const Tile<T>& far, size_t head_dim)
      : next_(next.rows),
        far_(far.rows),
        row_bytes_(head_dim * sizeof(T)),
        into_l2_(PrefetchesIntoL2()) {
    StartRow();
  }

  [[gnu::always_inline]] inline void Touch(size_t lines) {
    if (row_ == 2 * kTileTokens) return;  // a later quad of heads reads the same rows
    if (into_l2_) {
      for (size_t i = 0; i < lines; ++i) {
        __builtin_prefetch(reinterpret_cast<const void*>(at_ + i * kLineBytes), 0, 2);
      }
    } else {
      for (size_t i = 0; i < lines; ++i) {
        __builtin_prefetch(reinterpret_cast<const void*>(at_ + i * kLineBytes));
      }
    }
    at_ += lines * kLineBytes;
    if (at_ >= end_ && ++row_ < 2 * kTileTokens) StartRow();
  }

  void TouchAll() {
    while (row_ < 2 * kTileTokens) Touch(1);
  }

 private:
  [[gnu::always_inline]] inline void StartRow() {
    __builtin_prefetch(far_[row_], 0, 2);
    at_ = reinterpret_cast<uintptr_t>(next_[row_]);
    end_ = at_ + row_bytes_;
  }

  const T* const* next_;
  const T* const* far_;
  size_t row_bytes_;
  bool into_l2_;
  size_t row_ = 0;
  // Numbers, since the last step of a row may end beyond it.
  uintptr_t at_;
  uintptr_t end_;
};

}  // namespace semkv

#endif  // SEMKV_OPS_ATTENTION_DECODE_ATTENTION_TILE_H_
