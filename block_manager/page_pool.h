// A PagePool counts who uses each physical page of a pool and decides which one is taken next. It
// knows neither sequences nor memory: BlockManager (block_manager.h) composes it with both.
//
// The free list is the eviction order. A page is on it exactly while it has no reference and no
// pin. A *cached* page (its content can still be found through the prefix table) joins at the tail
// with its content intact, and Ref or Pin pulls it back out; a page without findable content joins
// at the head, since taking it loses nothing. Allocate takes the head: pages without content first,
// then the least recently freed cached page.
//
// The generation of a page rises when it is allocated, when its content is given up (the last
// reference and pin of a page that is not cached go, or a free page stops being cached), and by
// Forget. Nothing else changes it: the pages that an engine manages itself are never allocated
// here, so that their tags outlive their pins.
//
// Thread safety: thread-compatible (callers lock).
//
// Source: Kwon et al., "Efficient Memory Management for Large Language Model Serving with
// PagedAttention", SOSP 2023, section 4; the one list for both freeing and eviction is vLLM's.

#ifndef SEMKV_BLOCK_MANAGER_PAGE_POOL_H_
#define SEMKV_BLOCK_MANAGER_PAGE_POOL_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "block_manager/page_tag.h"

namespace semkv {

class PagePool {
 public:
  // All pages free, without content, to be taken in the order of their ids. REQUIRES: num_pages >
  // 0.
  explicit PagePool(int32_t num_pages);
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  int32_t num_pages() const { return static_cast<int32_t>(pages_.size()) - 1; }
  int32_t num_free() const { return num_free_; }
  int32_t num_pinned() const { return num_pinned_; }  // pages with at least one pin

  bool contains(int32_t page) const { return page >= 0 && page < num_pages(); }
  int32_t num_references(int32_t page) const { return pages_[page].num_references; }
  int32_t num_pins(int32_t page) const { return pages_[page].num_pins; }
  bool is_free(int32_t page) const { return pages_[page].next != kNotInList; }
  bool is_cached(int32_t page) const { return pages_[page].is_cached; }
  // Allocate gave the page out and that content has not been given up: false for the pages that an
  // engine manages itself.
  bool holds_content(int32_t page) const { return pages_[page].holds_content; }
  const PageTag& tag(int32_t page) const { return pages_[page].tag; }

  // The caller keeps the generation as it is.
  PageTag& mutable_tag(int32_t page) { return pages_[page].tag; }

  // The page that Allocate takes next. REQUIRES: num_free() > 0.
  int32_t NextVictim() const { return pages_[num_pages()].next; }

  // Takes NextVictim(): one reference, an empty tag, the next generation, not cached.
  // REQUIRES: num_free() > 0.
  int32_t Allocate();

  // One more, one less sequence holds `page`. Unref REQUIRES: num_references(page) > 0.
  void Ref(int32_t page);
  void Unref(int32_t page);

  // A pinned page is not taken by Allocate, whatever its references. Ids may repeat; every entry is
  // one pin. All or nothing.
  //
  // Errors: INVALID_ARGUMENT if an id is out of range; FAILED_PRECONDITION (Unpin) if a page has
  // fewer pins than entries.
  absl::Status Pin(absl::Span<const int32_t> pages);
  absl::Status Unpin(absl::Span<const int32_t> pages);

  // `page`'s content can be found from now on. REQUIRES: the page is not free.
  void SetCached(int32_t page) { pages_[page].is_cached = true; }

  // `page`'s content can no longer be found. A free page moves to the head of the list.
  void ClearCached(int32_t page);

  // `page` holds new content, or none: an empty tag, the next generation, not cached.
  // REQUIRES: num_references(page) == 0.
  void Forget(int32_t page);

  absl::Status CheckRange(absl::Span<const int32_t> pages) const;

 private:
  static constexpr int32_t kNotInList = -1;

  struct Page {
    int32_t prev = kNotInList;  // both kNotInList, or both set: the free list is circular
    int32_t next = kNotInList;
    int32_t num_references = 0;
    int32_t num_pins = 0;
    bool is_cached = false;
    bool holds_content = false;
    PageTag tag;
  };

  void LinkAfter(int32_t page, int32_t prev);
  void Unlink(int32_t page);
  // These two are the only places that move a page between the free list and use.
  void TakeIntoUse(int32_t page);
  void FreeIfUnused(int32_t page);
  void StartNewContent(int32_t page);
  // Counts alone; RemovePin returns false if there is none.
  void AddPin(int32_t page);
  bool RemovePin(int32_t page);

  std::vector<Page> pages_;  // [num_pages + 1]; the last is the list's sentinel
  int32_t num_free_ = 0;
  int32_t num_pinned_ = 0;
};

}  // namespace semkv

#endif  // SEMKV_BLOCK_MANAGER_PAGE_POOL_H_
