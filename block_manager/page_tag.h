// What is known of the tokens in one position page, beside their keys and values.

#ifndef SEMKV_BLOCK_MANAGER_PAGE_TAG_H_
#define SEMKV_BLOCK_MANAGER_PAGE_TAG_H_

#include <cstdint>

namespace semkv {

// How a token's keys and values came to be, best first: of two, the larger one describes both.
enum class Provenance : int32_t {
  kExact = 0,          // dense attention over exact tokens: the only one offered to other sequences
  kSparse = 1,         // computed while some layer attended sparsely
  kReusedSameIds = 2,  // taken from another prompt's equal token ids
  kFuzzy = 3,          // taken from another prompt's similar tokens
};

constexpr Provenance Worse(Provenance a, Provenance b) { return a < b ? b : a; }

struct PageTag {
  // Counts the contents this physical page has had. A stored (page, generation) is stale as soon as
  // the page's generation differs.
  uint64_t generation = 0;
  int32_t first_sentence = -1;  // id of the first sentence that touches the page; -1: none known
  int32_t num_sentences = 0;    // sentences that touch the page
  int32_t cluster = -1;         // always -1 for position pages: a cluster's tokens are scattered
  int32_t first_position = -1;  // position of the first token in its sequence; -1: empty page
  int32_t fill = 0;             // tokens, in [0, page_tokens]
  Provenance provenance = Provenance::kExact;  // the worst of the page's tokens
};

}  // namespace semkv

#endif  // SEMKV_BLOCK_MANAGER_PAGE_TAG_H_
