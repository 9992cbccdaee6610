#include "csrc/ops/residency/resolve.h"

#include <algorithm>
#include <cstdint>
#include <set>
#include <vector>

namespace semkv {
namespace {

int32_t NumWanted(const ResolveParams& p, int64_t selection) {
  return std::clamp(p.wanted_counts[selection], 0, p.shape.max_wanted);
}

// Calls f(page) for all pages that are wanted, in their order.
template <typename F>
void ForEachWanted(const ResolveParams& p, int64_t selection, const F& f) {
  for (int32_t i = 0; i < NumWanted(p, selection); ++i) {
    const WantedPage& page = p.wanted[selection * p.shape.max_wanted + i];
    if (page.home_page >= 0 && page.home_page < p.shape.num_home_pages) f(page);
  }
}

// Hot pages that may be evicted, in the order in which the clock comes to them.
std::vector<int32_t> Victims(const ResolveParams& p) {
  std::vector<int32_t> victims;
  for (int32_t i = 0; i < p.shape.num_hot_pages; ++i) {
    const int32_t hot = (*p.residency.hand + i) % p.shape.num_hot_pages;
    if (p.residency.stamps[hot] < *p.step - p.shape.keep_steps) victims.push_back(hot);
  }
  return victims;
}

// Wanted pages that are not resident, each once.
std::vector<int32_t> Missing(const ResolveParams& p, int64_t num_selections) {
  std::vector<int32_t> missing;
  std::set<int32_t> seen;
  for (int64_t s = 0; s < num_selections; ++s) {
    ForEachWanted(p, s, [&](const WantedPage& page) {
      if (p.residency.hot_of_home[page.home_page] != kNotResident) return;
      if (seen.insert(page.home_page).second) missing.push_back(page.home_page);
    });
  }
  return missing;
}

void WriteSlots(const ResolveParams& p, int64_t selection) {
  int32_t* slots = p.slots + selection * p.shape.max_slots;
  int32_t count = 0;
  ForEachWanted(p, selection, [&](const WantedPage& page) {
    const int32_t hot = p.residency.hot_of_home[page.home_page];
    if (hot == kNotResident) return;
    for (int32_t token = 0; token < p.shape.page_tokens; ++token) {
      if ((page.tokens >> token & 1) == 0 || count == p.shape.max_slots) continue;
      slots[count++] = hot * p.shape.page_tokens + token;
    }
  });
  p.slot_counts[selection] = count;
}

}  // namespace

void ResolveReference(const ResolveParams& p) {
  const Residency& residency = p.residency;
  const int64_t num_selections = int64_t{p.shape.num_rows} * p.shape.num_selections;
  for (int64_t s = 0; s < num_selections; ++s) {
    ForEachWanted(p, s, [&](const WantedPage& page) {
      const int32_t hot = residency.hot_of_home[page.home_page];
      if (hot != kNotResident) residency.stamps[hot] = std::max(residency.stamps[hot], *p.step);
    });
  }
  const std::vector<int32_t> missing = Missing(p, num_selections);
  const std::vector<int32_t> victims = Victims(p);
  const size_t num_misses = std::min(missing.size(), victims.size());
  for (size_t i = 0; i < num_misses; ++i) {
    int32_t& home = residency.home_of_hot[victims[i]];
    if (home != kNotResident) residency.hot_of_home[home] = kNotResident;
    home = missing[i];
    residency.hot_of_home[home] = victims[i];
    residency.stamps[victims[i]] = *p.step;
    p.misses[i] = {home, victims[i]};
    *residency.hand = victims[i] / kClockGroup * kClockGroup;
  }
  *p.num_misses = static_cast<int32_t>(num_misses);
  *p.num_unplaced += static_cast<int32_t>(missing.size() - num_misses);
  for (int64_t s = 0; s < num_selections; ++s) WriteSlots(p, s);
}

}  // namespace semkv
