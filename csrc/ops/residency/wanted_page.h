// What select_lists asks of resolve: pages of inverted lists, and which of their tokens.

#ifndef SEMKV_OPS_RESIDENCY_WANTED_PAGE_H_
#define SEMKV_OPS_RESIDENCY_WANTED_PAGE_H_

#include <cstdint>

namespace semkv {

constexpr int32_t kMaxListPageTokens = 32;  // bits of WantedPage::tokens
constexpr int32_t kMaxWantedPages = 2048;   // of one (row, selection)
constexpr int32_t kWantedPageGroup = 4;     // their number is a multiple of it: 32 bytes

// A list page and which of its tokens are taken: bit i is token i. A list that is taken whole has
// every bit of its pages up to the list's end; a trimmed one, or one of two partitions of which
// other lists took tokens already, has fewer. No bits: the page is made resident, for later.
struct WantedPage {
  int32_t home_page = 0;
  uint32_t tokens = 0;
};

}  // namespace semkv

#endif  // SEMKV_OPS_RESIDENCY_WANTED_PAGE_H_
