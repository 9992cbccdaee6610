// A PrefixTable finds the page that holds given tokens after a given prefix. It keeps the token ids
// of every page of a pool, so that a hit is compared and not only hashed.
//
// Keys are a chain: the key of a page is made from the key of the page before it and its own ids,
// and the chain starts from the sequence's salt. Two pages are equal if salt, position, both hashes
// and every id are equal; so sequences with different salts never share, whatever the hashes do. At
// most one of several equal pages is in the table.
//
// Thread safety: thread-compatible (callers lock). No call allocates.
//
// Source: vLLM's automatic prefix caching; that a hit still compares the ids is nano-vllm's.

#ifndef SEMKV_BLOCK_MANAGER_PREFIX_TABLE_H_
#define SEMKV_BLOCK_MANAGER_PREFIX_TABLE_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace semkv {

struct PrefixKey {
  uint64_t salt = 0;
  uint64_t parent = 0;     // hash of the page before; of the salt alone at index 0
  uint64_t hash = 0;       // hash of parent and ids
  int32_t page_index = 0;  // place in the sequence's block table
};

// The hash that starts the chain of sequences with this salt.
uint64_t PrefixRoot(uint64_t salt);

// The hash of a full page with these `ids` after a page with hash `parent`. Pages of one length are
// told apart, not a short page from the same one with zeros behind it.
uint64_t PrefixHash(uint64_t parent, absl::Span<const int32_t> ids);

class PrefixTable {
 public:
  // Empty; room for every page. REQUIRES: num_pages > 0, page_tokens > 0.
  PrefixTable(int32_t num_pages, int32_t page_tokens);
  PrefixTable(const PrefixTable&) = delete;
  PrefixTable& operator=(const PrefixTable&) = delete;

  // Number of pages in the table.
  int32_t size() const { return size_; }

  // The token ids of `page`, [page_tokens]; written by the caller while the page is not in the
  // table.
  absl::Span<int32_t> ids(int32_t page) {
    return {ids_.data() + static_cast<int64_t>(page) * page_tokens_,
            static_cast<size_t>(page_tokens_)};
  }
  absl::Span<const int32_t> ids(int32_t page) const {
    return {ids_.data() + static_cast<int64_t>(page) * page_tokens_,
            static_cast<size_t>(page_tokens_)};
  }

  // The page with this key and these ids, or -1.
  int32_t Find(const PrefixKey& key, absl::Span<const int32_t> ids) const;

  // Adds `page`, whose ids are in place; false, and nothing is done, if an equal page is there.
  // REQUIRES: `page` is not in the table.
  bool Insert(int32_t page, const PrefixKey& key);

  // REQUIRES: `page` is in the table.
  void Remove(int32_t page);

 private:
  size_t Bucket(uint64_t hash) const { return hash & (heads_.size() - 1); }

  const int32_t page_tokens_;
  int32_t size_ = 0;
  std::vector<int32_t> ids_;     // [num_pages, page_tokens]
  std::vector<PrefixKey> keys_;  // [num_pages]; valid for pages in the table
  std::vector<int32_t> heads_;  // [power of two >= num_pages]; first page of each bucket, -1: empty
  std::vector<int32_t> next_;   // [num_pages]; next page of the same bucket, -1: last
};

}  // namespace semkv

#endif  // SEMKV_BLOCK_MANAGER_PREFIX_TABLE_H_
