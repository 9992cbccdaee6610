#include "csrc/api/segment_builder.h"

#include <algorithm>
#include <cmath>

#include "csrc/ops/cache/list_means.h"
#include "csrc/ops/cache/write_kv.h"
#include "csrc/status_macros.h"

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

// How many layers are loaded at a time.
int32_t LayersAtOnce(const KeySource& source, int32_t num_tokens) {
  const int32_t num_layers = static_cast<int32_t>(source.layers.size());
  if (source.device == nullptr) return num_layers;
  const int64_t layer_bytes = int64_t{num_tokens} * source.num_kv_heads * source.head_dim *
                              DTypeBytes(source.layers[0].dtype);
  return static_cast<int32_t>(std::clamp<int64_t>(kStagedKeysBytes / layer_bytes, 1, num_layers));
}

// Makes keys of the layers [first_layer, end_layer) ready for GatherCellKeys.
absl::Status LoadKeys(const KeySource& source, int32_t first_layer, int32_t end_layer,
                      int32_t first, int32_t end) {
  const int32_t page_tokens = source.layers[0].page_tokens;
  const int32_t first_page = first / page_tokens;
  if (source.device != nullptr) {
    const absl::Span<const int32_t> pages(source.pages + first_page,
                                          CeilDiv(end, page_tokens) - first_page);
    SEMKV_RETURN_IF_ERROR(source.scratch->staged.Read(source.device, source.layers, first_layer,
                                                      end_layer, source.num_kv_heads,
                                                      source.head_dim, pages));
  }
  std::vector<int32_t>& slots = source.scratch->slots;
  slots.resize(end - first);
  for (int32_t position = first; position < end; ++position) {
    const int32_t i = position / page_tokens;
    const int32_t page = source.device != nullptr ? i - first_page : source.pages[i];
    slots[position - first] = page * page_tokens + position % page_tokens;
  }
  return absl::OkStatus();
}

void GatherCellKeys(const KeySource& source, int32_t cell, IndexScratch::Thread& thread) {
  const std::vector<int32_t>& slots = source.scratch->slots;
  const int32_t layer = cell / source.num_kv_heads;
  GrowTo(&thread.keys, int64_t{2} * static_cast<int64_t>(slots.size()) * source.head_dim);
  const KvView view =
      source.device != nullptr ? source.scratch->staged.View(layer) : source.layers[layer];
  GatherKeys(view, cell % source.num_kv_heads, source.head_dim, slots.data(),
             static_cast<int32_t>(slots.size()), thread.keys.data());
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

absl::Status ForEachCell(const KeySource& source, int32_t first, int32_t end,
                         absl::FunctionRef<absl::Status(int32_t, IndexScratch::Thread&)> build) {
  const int32_t at_once = LayersAtOnce(source, end - first);
  const int32_t num_layers = static_cast<int32_t>(source.layers.size());
  for (int32_t layer = 0; layer < num_layers; layer += at_once) {
    const int32_t end_layer = std::min(layer + at_once, num_layers);
    SEMKV_RETURN_IF_ERROR(LoadKeys(source, layer, end_layer, first, end));
    const int32_t first_cell = layer * source.num_kv_heads;
    source.pool->Run(int64_t{end_layer - layer} * source.num_kv_heads,
                     [&](int64_t i, int thread_index) {
                       IndexScratch::Thread& thread = source.scratch->threads[thread_index];
                       const int32_t cell = first_cell + static_cast<int32_t>(i);
                       GatherCellKeys(source, cell, thread);
                       thread.status.Update(build(cell, thread));
                     });
    SEMKV_RETURN_IF_ERROR(TakeThreadStatus(source.scratch));
  }
  return absl::OkStatus();
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
  if (recipe.value_means) {
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
