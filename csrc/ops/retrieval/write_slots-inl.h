// Writes the tokens of a bitmap as positions and slots, for one Highway target: included by
// select_lists_host.cc once per target.

#include <algorithm>
#include <bit>
#include <cstdint>

#include "csrc/ops/retrieval/retrieval_tasks.h"

#if defined(SEMKV_OPS_RETRIEVAL_WRITE_SLOTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SEMKV_OPS_RETRIEVAL_WRITE_SLOTS_INL_H_
#undef SEMKV_OPS_RETRIEVAL_WRITE_SLOTS_INL_H_
#else
#define SEMKV_OPS_RETRIEVAL_WRITE_SLOTS_INL_H_
#endif

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace semkv {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// A row's tokens and where they lie. A bitmap of 64-bit words, read here by halves.
struct TakenTokens {
  uint32_t half(int32_t w) const { return static_cast<uint32_t>(words[w / 2] >> w % 2 * 32); }

  const uint64_t* words;
  int32_t num_halves;
  int32_t num_tokens;
  const int32_t* block_table;
  int32_t page_tokens;  // a power of two
  int32_t* filled;      // scratch: [ScratchStride(num_halves)]
};

class SlotWriter {
 public:
  SlotWriter(const TakenTokens& tokens, int32_t* slots, int32_t* positions)
      : t_(tokens),
        shift_(std::countr_zero(static_cast<uint32_t>(tokens.page_tokens))),
        slots_(slots),
        positions_(positions) {}

  // In ascending order; returns how many. Writes nothing past them.
  int32_t Write() {
    const int32_t num_filled = FindFilledWords();
    const bool is_in_one_page = t_.page_tokens >= static_cast<int32_t>(hn::Lanes(DInt()));
    for (int32_t i = 0; i < num_filled; ++i) {
      if (buffered_ > kBuffer - kWordRoom) Flush(is_in_one_page);
      if (is_in_one_page) {
        ExpandWord<true>(t_.filled[i]);
      } else {
        ExpandWord<false>(t_.filled[i]);
      }
    }
    Flush(is_in_one_page);
    return count_;
  }

 private:
  using DInt = hn::ScalableTag<int32_t>;
  static constexpr int32_t kBuffer = 512;
  static constexpr int32_t kWordRoom = 32 + kScratchPadding;  // of tokens, and a vector's tail

  // A branch on each word would be mispredicted at every other filled one.
  int32_t FindFilledWords() const {
    int32_t count = 0, w = 0;
#if HWY_TARGET != HWY_SCALAR  // whose load would break the rules of aliasing
    const DInt d;
    const int32_t lanes = hn::Lanes(d);
    const auto from_0 = hn::Iota(d, 0);
    for (; w + lanes <= t_.num_halves; w += lanes) {
      const auto words = hn::LoadU(d, reinterpret_cast<const int32_t*>(t_.words) + w);
      const auto is_filled = hn::Ne(words, hn::Zero(d));
      hn::StoreU(hn::Compress(hn::Add(from_0, hn::Set(d, w)), is_filled), d, t_.filled + count);
      count += static_cast<int32_t>(hn::CountTrue(d, is_filled));
    }
#endif
    for (; w < t_.num_halves; ++w) {
      if (t_.half(w) != 0) t_.filled[count++] = w;
    }
    return count;
  }

  // kInOnePage: the tokens of a vector lie in one page, so one look at the block table serves all;
  // else Flush looks up each.
  template <bool kInOnePage>
  HWY_INLINE void ExpandWord(int32_t w) {
#if HWY_TARGET == HWY_SCALAR
    for (uint32_t bits = t_.half(w); bits != 0; bits &= bits - 1) {
      const int32_t position = w * 32 + std::countr_zero(bits);
      position_buffer_[buffered_] = position;
      if (kInOnePage) slot_buffer_[buffered_] = Slot(position);
      ++buffered_;
    }
#else
    // A loop over bits would mispredict its end once per word; this has no branch.
    const DInt d;
    const int32_t lanes = hn::Lanes(d);
    const auto from_0 = hn::Iota(d, 0);
    const uint32_t word = t_.half(w);
    const uint8_t* const bytes = reinterpret_cast<const uint8_t*>(t_.words) + 4 * w;
    for (int32_t first = 0; first < 32; first += lanes) {
      const int32_t position = w * 32 + first;
      const uint8_t* const bits = bytes + first / 8;
      const auto positions = hn::Add(from_0, hn::Set(d, position));
      hn::StoreU(hn::CompressBits(positions, bits), d, position_buffer_ + buffered_);
      if constexpr (kInOnePage) {
        // The row may end before the word does.
        const auto slots =
            hn::Add(from_0, hn::Set(d, Slot(std::min(position, t_.num_tokens - 1) & -lanes)));
        hn::StoreU(hn::CompressBits(slots, bits), d, slot_buffer_ + buffered_);
      }
      buffered_ += std::popcount(word >> first & static_cast<uint32_t>((uint64_t{1} << lanes) - 1));
    }
#endif
  }

  int32_t Slot(int32_t position) const {
    return t_.block_table[position >> shift_] << shift_ | (position & (t_.page_tokens - 1));
  }

  void Flush(bool has_slots) {
    if (!has_slots) {
      for (int32_t i = 0; i < buffered_; ++i) slot_buffer_[i] = Slot(position_buffer_[i]);
    }
    std::copy_n(slot_buffer_, buffered_, slots_ + count_);
    if (positions_ != nullptr) std::copy_n(position_buffer_, buffered_, positions_ + count_);
    count_ += buffered_;
    buffered_ = 0;
  }

  const TakenTokens t_;
  const int32_t shift_;
  int32_t* const slots_;
  int32_t* const positions_;
  int32_t position_buffer_[kBuffer], slot_buffer_[kBuffer];
  int32_t buffered_ = 0;
  int32_t count_ = 0;
};

}  // namespace HWY_NAMESPACE
}  // namespace semkv
HWY_AFTER_NAMESPACE();

#endif  // SEMKV_OPS_RETRIEVAL_WRITE_SLOTS_INL_H_
