#include "block_manager/page_pool.h"

#include <cassert>
#include <cstddef>

#include "absl/strings/str_cat.h"

namespace semkv {

PagePool::PagePool(int32_t num_pages) : pages_(static_cast<size_t>(num_pages) + 1) {
  pages_[num_pages].prev = pages_[num_pages].next = num_pages;
  for (int32_t page = 0; page < num_pages; ++page) LinkAfter(page, pages_[num_pages].prev);
}

void PagePool::LinkAfter(int32_t page, int32_t prev) {
  const int32_t next = pages_[prev].next;
  pages_[page].prev = prev;
  pages_[page].next = next;
  pages_[prev].next = page;
  pages_[next].prev = page;
  ++num_free_;
}

void PagePool::Unlink(int32_t page) {
  Page& p = pages_[page];
  pages_[p.prev].next = p.next;
  pages_[p.next].prev = p.prev;
  p.prev = p.next = kNotInList;
  --num_free_;
}

void PagePool::TakeIntoUse(int32_t page) {
  if (is_free(page)) Unlink(page);
}

void PagePool::FreeIfUnused(int32_t page) {
  const Page& p = pages_[page];
  if (p.num_references > 0 || p.num_pins > 0 || is_free(page)) return;
  const int32_t sentinel = num_pages();
  if (p.is_cached) {
    LinkAfter(page, pages_[sentinel].prev);
  } else {
    if (p.holds_content) StartNewContent(page);
    LinkAfter(page, sentinel);
  }
}

void PagePool::StartNewContent(int32_t page) {
  Page& p = pages_[page];
  const uint64_t generation = p.tag.generation + 1;
  p.tag = PageTag();
  p.tag.generation = generation;
  p.is_cached = false;
  p.holds_content = false;
}

int32_t PagePool::Allocate() {
  assert(num_free_ > 0);
  const int32_t page = NextVictim();
  TakeIntoUse(page);
  StartNewContent(page);
  pages_[page].num_references = 1;
  pages_[page].holds_content = true;
  return page;
}

void PagePool::Ref(int32_t page) {
  TakeIntoUse(page);
  ++pages_[page].num_references;
}

void PagePool::Unref(int32_t page) {
  assert(pages_[page].num_references > 0);
  --pages_[page].num_references;
  FreeIfUnused(page);
}

absl::Status PagePool::Pin(absl::Span<const int32_t> pages) {
  if (absl::Status status = CheckRange(pages); !status.ok()) return status;
  for (int32_t page : pages) {
    TakeIntoUse(page);
    AddPin(page);
  }
  return absl::OkStatus();
}

absl::Status PagePool::Unpin(absl::Span<const int32_t> pages) {
  if (absl::Status status = CheckRange(pages); !status.ok()) return status;
  // Ids may repeat, so only counting down tells whether there are enough pins. Pages are freed
  // after that, when nothing can fail any more.
  for (size_t i = 0; i < pages.size(); ++i) {
    if (RemovePin(pages[i])) continue;
    for (size_t undone = 0; undone < i; ++undone) AddPin(pages[undone]);
    return absl::FailedPreconditionError(
        absl::StrCat("page ", pages[i], " has fewer pins than this call releases"));
  }
  for (int32_t page : pages) FreeIfUnused(page);
  return absl::OkStatus();
}

void PagePool::AddPin(int32_t page) {
  if (pages_[page].num_pins++ == 0) ++num_pinned_;
}

bool PagePool::RemovePin(int32_t page) {
  if (pages_[page].num_pins == 0) return false;
  if (--pages_[page].num_pins == 0) --num_pinned_;
  return true;
}

void PagePool::ClearCached(int32_t page) {
  if (!pages_[page].is_cached) return;
  pages_[page].is_cached = false;
  if (!is_free(page)) return;
  Unlink(page);
  FreeIfUnused(page);
}

void PagePool::Forget(int32_t page) {
  assert(pages_[page].num_references == 0);
  StartNewContent(page);
  if (!is_free(page)) return;
  Unlink(page);
  LinkAfter(page, num_pages());
}

absl::Status PagePool::CheckRange(absl::Span<const int32_t> pages) const {
  for (int32_t page : pages) {
    if (contains(page)) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("page ", page, " of a pool of ", num_pages(), " pages"));
  }
  return absl::OkStatus();
}

}  // namespace semkv
