// What a BlockManager should do, in plain containers: which page every call takes, frees, copies,
// offers and adopts. It is slow and obvious.

#ifndef SEMKV_TESTS_BLOCK_MANAGER_MODEL_H_
#define SEMKV_TESTS_BLOCK_MANAGER_MODEL_H_

#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
#include <utility>
#include <vector>

#include "block_manager/page_tag.h"

namespace semkv::testing {

struct ModelSequence {
  int64_t id = 0;  // the manager's
  uint64_t salt = 0;
  std::vector<int32_t> pages;
  std::vector<int32_t> ids;     // one per token; of the first num_known they were told
  std::vector<int32_t> values;  // what the test wrote for each token
  int32_t num_known = 0, num_written = 0, num_looked_at = 0;
  Provenance provenance = Provenance::kExact;
};

struct ModelPage {
  int32_t references = 0, pins = 0;
  uint64_t generation = 0;
  bool is_held = false;  // has the content of a sequence, living or not
  Provenance provenance = Provenance::kExact;
};

class Model {
 public:
  using Content = std::pair<uint64_t, std::vector<int32_t>>;  // salt, every id from the first

  Model(int32_t num_pages, int32_t page_tokens) : pages(num_pages), page_tokens(page_tokens) {
    for (int32_t page = 0; page < num_pages; ++page) free.push_back(page);
  }

  bool IsFree(int32_t page) const { return std::count(free.begin(), free.end(), page) > 0; }
  bool IsCached(int32_t page) const {
    return std::any_of(cached.begin(), cached.end(),
                       [&](const auto& entry) { return entry.second == page; });
  }

  // False if too few pages are free. `copy` is the source of the copied page, or -1.
  bool Append(ModelSequence& s, const std::vector<int32_t>& ids, bool told, int32_t* copy) {
    const int32_t old = static_cast<int32_t>(s.ids.size());
    const int32_t total = old + static_cast<int32_t>(ids.size());
    const bool copies =
        !ids.empty() && old % page_tokens != 0 && pages[s.pages.back()].references > 1;
    const size_t more = (total + page_tokens - 1) / page_tokens - s.pages.size();
    if (more + copies > free.size()) return false;
    *copy = copies ? s.pages.back() : -1;
    if (copies) {
      const int32_t dst = Take();
      pages[dst].provenance = pages[*copy].provenance;
      s.pages.back() = dst;
    }
    if (told && s.num_known == old) s.num_known = total;
    for (int32_t id : ids) {
      if (s.ids.size() % page_tokens == 0) s.pages.push_back(Take());
      Provenance& provenance = pages[s.pages.back()].provenance;
      provenance = Worse(provenance, s.provenance);
      s.ids.push_back(id);
    }
    if (copies) Drop(*copy);
    return true;
  }

  void MarkWritten(ModelSequence& s) {
    s.num_written = static_cast<int32_t>(s.ids.size());
    for (; s.num_looked_at < std::min(s.num_written, s.num_known) / page_tokens;
         ++s.num_looked_at) {
      for (int32_t i = 0; i <= s.num_looked_at; ++i) {
        if (pages[s.pages[i]].provenance != Provenance::kExact) return;
      }
      cached.try_emplace(Prefix(s.salt, s.ids, s.num_looked_at + 1), s.pages[s.num_looked_at]);
    }
  }

  int32_t SharePrefix(ModelSequence& s, const std::vector<int32_t>& ids) {
    for (size_t i = 0; (i + 1) * page_tokens < ids.size(); ++i) {
      const auto hit = cached.find(Prefix(s.salt, ids, i + 1));
      if (hit == cached.end()) break;
      std::erase(free, hit->second);
      ++pages[hit->second].references;
      s.pages.push_back(hit->second);
    }
    s.num_looked_at = static_cast<int32_t>(s.pages.size());
    s.num_known = s.num_written = s.num_looked_at * page_tokens;
    s.ids.assign(ids.begin(), ids.begin() + s.num_known);
    return s.num_known;
  }

  ModelSequence Fork(const ModelSequence& parent) {
    for (int32_t page : parent.pages) ++pages[page].references;
    return parent;
  }

  void Release(const ModelSequence& s) {
    for (auto page = s.pages.rbegin(); page != s.pages.rend(); ++page) Drop(*page);
  }

  void Pin(int32_t page) {
    ++pages[page].pins;
    std::erase(free, page);
  }
  void Unpin(int32_t page) {
    --pages[page].pins;
    FreeIfUnused(page);
  }

  void Degrade(int32_t page, Provenance provenance) {
    if (Worse(pages[page].provenance, provenance) == pages[page].provenance) return;
    pages[page].provenance = provenance;
    if (!IsCached(page)) return;
    std::erase_if(cached, [&](const auto& entry) { return entry.second == page; });
    if (!IsFree(page)) return;
    std::erase(free, page);
    FreeIfUnused(page);
  }

  std::vector<ModelPage> pages;
  std::deque<int32_t> free;
  std::map<Content, int32_t> cached;
  const int32_t page_tokens;

 private:
  Content Prefix(uint64_t salt, const std::vector<int32_t>& ids, size_t num_pages) const {
    return {salt, {ids.begin(), ids.begin() + num_pages * page_tokens}};
  }

  int32_t Take() {
    const int32_t page = free.front();
    free.pop_front();
    std::erase_if(cached, [&](const auto& entry) { return entry.second == page; });
    pages[page] = {.references = 1, .generation = pages[page].generation + 1, .is_held = true};
    return page;
  }

  void Drop(int32_t page) {
    --pages[page].references;
    FreeIfUnused(page);
  }

  void FreeIfUnused(int32_t page) {
    ModelPage& p = pages[page];
    if (p.references > 0 || p.pins > 0) return;
    if (IsCached(page)) {
      free.push_back(page);
      return;
    }
    if (p.is_held) p = {.generation = p.generation + 1};
    free.push_front(page);
  }
};

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_BLOCK_MANAGER_MODEL_H_
