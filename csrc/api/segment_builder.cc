#include "csrc/api/segment_builder.h"

#include <algorithm>
#include <cmath>

#include "csrc/ops/cache/list_means.h"
#include "csrc/ops/cache/write_kv.h"

namespace semkv {
namespace {

template <typename T>
void GrowTo(std::vector<T>* data, int64_t size) {
  if (static_cast<int64_t>(data->size()) < size) data->resize(size);
}

// Mean values of the lists, into thread.value_means. The keys' room is not free, so values are
// gathered behind them.
void MeanValues(const KeySource& source, int32_t cell, const CellLists& lists,
                IndexScratch::Thread& thread) {
  const int32_t num_slots = static_cast<int32_t>(source.scratch->slots.size());
  const int64_t d = source.head_dim;
  float* const values = thread.keys.data() + num_slots * d;
  GatherValues(source.layers[cell / source.num_kv_heads], cell % source.num_kv_heads,
               source.head_dim, source.scratch->slots.data(), num_slots, values);
  ListMeansParams params;
  params.keys = values;
  params.head_dim = source.head_dim;
  params.nlist = lists.nlist;
  params.offsets = lists.offsets;
  params.members = lists.members;
  params.means = thread.value_means.data();
  ListMeansHost(params);
}

void GatherCellKeys(const KeySource& source, int32_t cell, IndexScratch::Thread& thread) {
  const std::vector<int32_t>& slots = source.scratch->slots;
  GrowTo(&thread.keys, int64_t{2} * static_cast<int64_t>(slots.size()) * source.head_dim);
  GatherKeys(source.layers[cell / source.num_kv_heads], cell % source.num_kv_heads, source.head_dim,
             slots.data(), static_cast<int32_t>(slots.size()), thread.keys.data());
}

// The first error of the threads since the last call, or OK.
absl::Status TakeThreadStatus(IndexScratch* scratch) {
  absl::Status first;
  for (IndexScratch::Thread& thread : scratch->threads) {
    first.Update(thread.status);
    thread.status = absl::OkStatus();
  }
  return first;
}

}  // namespace

absl::Status ForEachCell(const KeySource& source, HalfOpen positions, HalfOpen cells,
                         absl::FunctionRef<absl::Status(int32_t, IndexScratch::Thread&)> build) {
  const int32_t page_tokens = source.layers[0].page_tokens;
  std::vector<int32_t>& slots = source.scratch->slots;
  slots.resize(positions.end - positions.begin);
  for (int32_t position = positions.begin; position < positions.end; ++position) {
    slots[position - positions.begin] =
        source.pages[position / page_tokens] * page_tokens + position % page_tokens;
  }
  source.pool->Run(cells.end - cells.begin, [&](int64_t i, int thread_index) {
    IndexScratch::Thread& thread = source.scratch->threads[thread_index];
    const int32_t cell = cells.begin + static_cast<int32_t>(i);
    GatherCellKeys(source, cell, thread);
    thread.status.Update(build(cell, thread));
  });
  return TakeThreadStatus(source.scratch);
}

void AppendLists(const KeySource& source, const IndexRecipe& recipe, int32_t cell,
                 const CellLists& lists, IndexScratch::Thread& thread, ListStore* store) {
  if (lists.nlist == 0) return;
  const int64_t d = source.head_dim;
  GrowTo(&thread.means, lists.nlist * d);
  GrowTo(&thread.variances, lists.nlist);
  ListMeansParams params;
  params.keys = thread.keys.data();
  params.head_dim = source.head_dim;
  params.nlist = lists.nlist;
  params.offsets = lists.offsets;
  params.members = lists.members;
  params.means = thread.means.data();
  params.variances = thread.variances.data();
  NewLists added;
  if (recipe.form == CentroidForm::kBounds) {
    GrowTo(&thread.bounds, int64_t{2} * lists.nlist * d);
    ListBounds(params, thread.bounds.data());
    added.bounds = thread.bounds.data();
  } else {
    ListMeansHost(params);
  }
  if (store->has_value_means()) {
    GrowTo(&thread.value_means, lists.nlist * d);
    MeanValues(source, cell, lists, thread);
    added.value_means = thread.value_means.data();
  }
  added.nlist = lists.nlist;
  added.offsets = lists.offsets;
  added.members = lists.members;
  added.member_shift = lists.member_shift;
  added.means = thread.means.data();
  added.variances = thread.variances.data();
  store->AppendCell(cell, added);
}

}  // namespace semkv
