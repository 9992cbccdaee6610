// Lists of one cell from its keys: what sealing a segment and folding the tail have in common.

#ifndef SEMKV_API_SEGMENT_BUILDER_H_
#define SEMKV_API_SEGMENT_BUILDER_H_

#include <cstdint>

#include "absl/status/status.h"
#include "csrc/api/list_store.h"
#include "csrc/api/sequence_index.h"

namespace semkv {

// Slots of positions [first, end) of the source's sequence, into source.scratch->slots.
void FillSlots(const KeySource& source, int32_t first, int32_t end);

// Keys of the slots in source.scratch->slots for `cell`, into thread.keys, [num_slots, head_dim].
void GatherCellKeys(const KeySource& source, int32_t cell, IndexScratch::Thread& thread);

// Appends `nlist` lists of thread.keys to `store`: means, variances (or bounds), and mean values if
// the recipe keeps them. offsets and members count tokens from the first gathered slot;
// `member_shift` is that slot's position relative to the store's first token.
struct CellLists {
  int32_t nlist = 0;
  const uint16_t* offsets = nullptr;
  const uint16_t* members = nullptr;  // null: ranges
  int32_t member_shift = 0;
};
void AppendLists(const KeySource& source, const IndexRecipe& recipe, int32_t cell,
                 const CellLists& lists, IndexScratch::Thread& thread, ListStore* store);

// The first error of the threads since the last call, or OK.
absl::Status TakeThreadStatus(IndexScratch* scratch);

}  // namespace semkv

#endif  // SEMKV_API_SEGMENT_BUILDER_H_
