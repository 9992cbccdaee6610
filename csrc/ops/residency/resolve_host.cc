#include "csrc/ops/residency/resolve.h"

#include <algorithm>
#include <cstdint>

#include "csrc/ops/parallel/thread_pool.h"

namespace semkv {
namespace {

int64_t NumSelections(const ResolveShape& shape) {
  return int64_t{shape.num_rows} * shape.num_selections;
}

template <typename F>
void ForEachWanted(const ResolveParams& p, int64_t selection, const F& f) {
  const WantedPage* wanted = p.wanted + selection * p.shape.max_wanted;
  const int32_t count = std::min(p.wanted_counts[selection], p.shape.max_wanted);
  for (int32_t i = 0; i < count; ++i) {
    const int32_t page = wanted[i].home_page;
    if (page >= 0 && page < p.shape.num_home_pages) f(page, wanted[i].tokens);
  }
}

// The hand of the clock, which goes round once at most.
class Clock {
 public:
  explicit Clock(const ResolveParams& p)
      : stamps_(p.residency.stamps),
        oldest_kept_(*p.step - p.shape.keep_steps),
        num_pages_(p.shape.num_hot_pages),
        left_(p.shape.num_hot_pages),
        at_(*p.residency.hand) {}

  // The next victim; kNotResident when there is none.
  int32_t Next() {
    while (left_ > 0) {
      const int32_t page = at_;
      at_ = at_ + 1 == num_pages_ ? 0 : at_ + 1;
      --left_;
      if (stamps_[page] < oldest_kept_) return page;
    }
    return kNotResident;
  }

 private:
  const int32_t* stamps_;
  int32_t oldest_kept_, num_pages_, left_, at_;
};

constexpr int32_t kUnplaced = -2;  // in hot_of_home while claiming: no victim, and counted

void Mark(const ResolveParams& p) {
  for (int64_t s = 0; s < NumSelections(p.shape); ++s) {
    ForEachWanted(p, s, [&](int32_t page, uint32_t) {
      const int32_t hot = p.residency.hot_of_home[page];
      if (hot >= 0) p.residency.stamps[hot] = std::max(p.residency.stamps[hot], *p.step);
    });
  }
}

void Evict(const Residency& residency, int32_t hot) {
  const int32_t home = residency.home_of_hot[hot];
  if (home != kNotResident) residency.hot_of_home[home] = kNotResident;
}

// Returns how many pages are left without a place.
int32_t Claim(const ResolveParams& p) {
  const Residency& residency = p.residency;
  Clock clock(p);
  int32_t num_misses = 0, num_unplaced = 0;
  for (int64_t s = 0; s < NumSelections(p.shape); ++s) {
    ForEachWanted(p, s, [&](int32_t page, uint32_t) {
      if (residency.hot_of_home[page] != kNotResident) return;
      const int32_t hot = clock.Next();
      if (hot == kNotResident) {
        residency.hot_of_home[page] = kUnplaced;
        ++num_unplaced;
        return;
      }
      Evict(residency, hot);
      residency.hot_of_home[page] = hot;
      residency.home_of_hot[hot] = page;
      residency.stamps[hot] = *p.step;
      p.misses[num_misses++] = {page, hot};
    });
  }
  *p.num_misses = num_misses;
  if (num_misses > 0) {
    *residency.hand = p.misses[num_misses - 1].hot_page / kClockGroup * kClockGroup;
  }
  return num_unplaced;
}

void ForgetUnplaced(const ResolveParams& p) {
  for (int64_t s = 0; s < NumSelections(p.shape); ++s) {
    ForEachWanted(p, s, [&](int32_t page, uint32_t) {
      int32_t& hot = p.residency.hot_of_home[page];
      if (hot == kUnplaced) hot = kNotResident;
    });
  }
}

void WriteSlots(const ResolveParams& p, int64_t selection) {
  const ResolveShape& shape = p.shape;
  const uint32_t page_mask = ~uint32_t{0} >> (32 - shape.page_tokens);
  int32_t* slots = p.slots + selection * shape.max_slots;
  int32_t count = 0;
  ForEachWanted(p, selection, [&](int32_t page, uint32_t tokens) {
    const int32_t hot = p.residency.hot_of_home[page];
    if (hot == kNotResident) return;
    for (uint32_t left = tokens & page_mask; left != 0 && count < shape.max_slots;
         left &= left - 1) {
      slots[count++] = hot * shape.page_tokens + __builtin_ctz(left);
    }
  });
  p.slot_counts[selection] = count;
}

}  // namespace

void ResolveHost(const ResolveParams& params, ThreadPool& pool) {
  Mark(params);
  const int32_t num_unplaced = Claim(params);
  if (num_unplaced > 0) ForgetUnplaced(params);
  *params.num_unplaced += num_unplaced;
  pool.Run(NumSelections(params.shape),
           [&](int64_t selection, int) { WriteSlots(params, selection); });
}

}  // namespace semkv
