// Lists of one cell from its keys, on the host: what sealing a segment and folding the tail have in
// common.

#ifndef SEMKV_API_SEGMENT_BUILDER_H_
#define SEMKV_API_SEGMENT_BUILDER_H_

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "csrc/api/list_store.h"
#include "csrc/api/sequence_index.h"

namespace semkv {

// [begin, end).
struct HalfOpen {
  int32_t begin = 0, end = 0;
};

// Calls build(cell, thread) for every cell of `cells`, on all threads, with the keys of `positions`
// of the source's sequence in thread.keys, [positions, head_dim], and their slots in
// source.scratch->slots. Returns the first error.
absl::Status ForEachCell(const KeySource& source, HalfOpen positions, HalfOpen cells,
                         absl::FunctionRef<absl::Status(int32_t, IndexScratch::Thread&)> build);

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

}  // namespace semkv

#endif  // SEMKV_API_SEGMENT_BUILDER_H_
