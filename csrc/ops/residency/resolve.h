// Finds the list pages that a step wants in the hot pool of one layer, makes room for those that
// are not there, and writes the slots that attention reads.
//
//   mark   every wanted page that is resident gets the step's number as its stamp.
//   claim  every wanted page that is not, once however many want it, in the order of `wanted`,
//          gets the next victim of a clock: from the hand on, the next hot page whose last use is
//          more than keep_steps steps ago. What was there is resident no more.
//   slots  of each (row, selection), hot page * page_tokens + offset of every token taken, in the
//          order of `wanted` and of offsets.
//
// The miss list is what GatherPages copies; attention waits for it on the same stream. A page that
// no victim could be found for stays out: its tokens get no slot, and it is counted. With a pool of
// needed_hot_pages that never happens: between them, this step and the keep_steps before it cannot
// want more. Wanted pages that are not in [0, num_home_pages) are passed over.
//
// Nothing depends on the order in which threads run: all forms leave the same bits.
//
// Source: the clock of Corbato, "A Paging Experiment with the Multics System", 1968, with stamps
// for the use bit; HiSparse (SGLang) for residency, victims and miss list on the device without the
// host. The order of victims, which needs no atomic hand, is ours.

#ifndef SEMKV_OPS_RESIDENCY_RESOLVE_H_
#define SEMKV_OPS_RESIDENCY_RESOLVE_H_

#include <climits>
#include <cstdint>

#include "csrc/ops/residency/gather_pages.h"
#include "csrc/ops/residency/wanted_page.h"

namespace semkv {

class ThreadPool;

constexpr int32_t kNotResident = -1;
constexpr int32_t kNeverUsed = INT32_MIN;  // stamp of a hot page that holds nothing
constexpr int32_t kClockGroup = 4;         // hot pages; the hand is at the first of such a group

// Upper bounds, known before any step.
struct ResolveShape {
  int32_t num_rows = 0;
  int32_t num_selections = 0;  // per row: KV heads, or query heads
  int32_t max_wanted = 0;      // pages of one (row, selection); a multiple of 4, at most 2,048
  int32_t max_slots = 0;       // tokens of one (row, selection); what is beyond gets no slot
  int32_t page_tokens = 0;     // a power of two, at most 32
  int32_t keep_steps = 0;      // R: pages of this step and of the R before it are no victims
  int32_t num_home_pages = 0;
  int32_t num_hot_pages = 0;  // a multiple of 4
};

// Which home pages one layer's hot pool holds. hot_of_home and home_of_hot are inverse to each
// other: all kNotResident at first.
struct Residency {
  int32_t* hot_of_home = nullptr;  // [num_home_pages]
  int32_t* home_of_hot = nullptr;  // [num_hot_pages], 16-byte aligned
  int32_t* stamps = nullptr;       // [num_hot_pages], 16-byte aligned; kNeverUsed at first
  int32_t* hand = nullptr;         // [1]; a multiple of kClockGroup, 0 at first
};

struct ResolveParams {
  ResolveShape shape;
  const WantedPage* wanted = nullptr;  // [num_rows, num_selections, max_wanted], 16-byte aligned
  const int32_t* wanted_counts = nullptr;  // [num_rows, num_selections]; limited to max_wanted
  const int32_t* step = nullptr;  // [1]; at least 0, larger than any before with this residency
  Residency residency;
  PagePair* misses = nullptr;       // out: [min(num_hot_pages, wanted pages)]
  int32_t* num_misses = nullptr;    // out: [1]
  int32_t* num_unplaced = nullptr;  // in and out: [1]; pages without a victim are added
  int32_t* slots = nullptr;         // out: [num_rows, num_selections, max_slots]
  int32_t* slot_counts = nullptr;   // out: [num_rows, num_selections]; nothing is written beyond
};

// The hot pages with which every wanted page finds a place, whatever a step wants: keep_steps + 1
// times the pages that a step may want, or all home pages if there are fewer, in whole groups.
int64_t NeededHotPages(const ResolveShape& shape);

// Null when every form takes `shape`, else the reason, naming the value. A pool below
// NeededHotPages is refused here.
const char* ResolveUnsupported(const ResolveShape& shape);

// Mark and claim on the caller's thread, slots on those of `pool`. Allocates nothing.
void ResolveHost(const ResolveParams& params, ThreadPool& pool);

// With std::set and sorted victims: the specification.
void ResolveReference(const ResolveParams& params);

}  // namespace semkv

#endif  // SEMKV_OPS_RESIDENCY_RESOLVE_H_
