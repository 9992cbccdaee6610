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
  bool is_scattered;  // most rows do not follow each other

  const T* key(size_t i) const { return rows[2 * i]; }
  const T* value(size_t i) const { return rows[2 * i + 1]; }
  size_t num_quads() const { return CeilDiv(num_tokens, kQuadTokens); }
};

// How many of `lines` are due at step `i` of `n`.
constexpr size_t Share(size_t lines, size_t i, size_t n) {
  return lines * (i + 1) / n - lines * i / n;
}

// Touches the rows of the next tile, K and V of a token after each other.
//
// At a pace, a few lines at a time: fills that come steadily never wait for a free fill buffer, and
// lines in address order keep the hardware's prefetcher running. With each row, the first line of a
// row of the tile after that is brought into L2: the page walk and the start of a new DRAM page are
// then over when the row's own turn comes.
//
// Or all at once: where rows lie apart and are brought into L2 that takes 0.75 of the time, where
// they follow each other 1.3 of it (docs/kernels/decode_attention.md).
template <typename T>
class Prefetcher {
 public:
  Prefetcher(const Tile<T>& next, const Tile<T>& far, size_t head_dim)
      : next_(next.rows),
        far_(far.rows),
        row_bytes_(head_dim * sizeof(T)),
        into_l2_(PrefetchesIntoL2()),
        at_once_(into_l2_ && next.is_scattered),
        row_(at_once_ ? 2 * kTileTokens : 0) {
    if (!at_once_) StartRow();
  }

  [[gnu::always_inline]] inline void Touch(size_t lines) {
    if (row_ == 2 * kTileTokens) return;  // at once, or a later quad of heads reads the same rows
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

  // A tile that is touched at once. Between the scores and the values of a tile it costs least.
  // (Inline: GCC 12 drops calls of functions that do nothing but prefetch.)
  [[gnu::always_inline]] inline void TouchIfAtOnce() const {
    if (!at_once_) return;
    for (size_t row = 0; row < 2 * kTileTokens; ++row) {
      const char* const first = reinterpret_cast<const char*>(next_[row]);
      for (size_t i = 0; i < row_bytes_; i += kLineBytes) __builtin_prefetch(first + i, 0, 2);
    }
  }

  // All that has not been touched.
  [[gnu::always_inline]] inline void TouchAll() {
    TouchIfAtOnce();
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
  bool at_once_;
  size_t row_;
  // Numbers, since the last step of a row may end beyond it.
  uintptr_t at_;
  uintptr_t end_;
};

}  // namespace semkv

#endif  // SEMKV_OPS_ATTENTION_DECODE_ATTENTION_TILE_H_
