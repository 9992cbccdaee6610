#include "csrc/api/sequence_index.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "csrc/api/device_lists.h"
#include "csrc/api/segment_builder.h"
#include "csrc/status_macros.h"

namespace semkv {
namespace {

// Room in the tail grows by this many tokens, always at least a window ahead, so that steps between
// windows allocate nothing.
constexpr int32_t kTailGrowth = 1024;

ListStoreShape StoreShape(const KeySource& source, const IndexRecipe& recipe, bool ranges) {
  ListStoreShape shape;
  shape.num_cells = source.num_cells();
  shape.head_dim = source.head_dim;
  shape.form = recipe.form;
  shape.ranges = ranges;
  shape.value_means = recipe.value_means && (ranges || recipe.clusters);
  return shape;
}

// The partitioner keeps a place for keys that are not finite, and where there is none for zero keys
// too joins those with others; k-means on a device has a list for either.
int32_t NumListsBesideClusters(const Device* device) { return device != nullptr ? 2 : 1; }

bool RowIsFinite(const float* row, int32_t head_dim) {
  float sum = 0.0f;  // finite summands of opposite sign cannot cancel an infinity: 0 * inf is NaN
  for (int32_t c = 0; c < head_dim; ++c) sum += row[c] * 0.0f;
  return sum == 0.0f;
}

// Mean of the finite keys; the others are listed in `excluded`.
void CellCenter(const float* keys, int32_t num_tokens, int32_t head_dim,
                std::vector<uint16_t>* excluded, std::vector<float>* center) {
  center->assign(head_dim, 0.0f);
  int32_t num_finite = 0;
  for (int32_t t = 0; t < num_tokens; ++t) {
    const float* const row = keys + int64_t{t} * head_dim;
    if (!RowIsFinite(row, head_dim)) {
      excluded->push_back(static_cast<uint16_t>(t));
      continue;
    }
    ++num_finite;
    for (int32_t c = 0; c < head_dim; ++c) (*center)[c] += row[c];
  }
  const float share = num_finite > 0 ? 1.0f / static_cast<float>(num_finite) : 0.0f;
  for (float& x : *center) x *= share;
}

// The tokens of a cell that are never selected.
void SetExcluded(const Segment& segment, int32_t cell, ListsView* view) {
  const std::vector<int32_t>& begin = segment.excluded_on_device.begin;
  if (!begin.empty()) {
    view->excluded =
        static_cast<const uint16_t*>(segment.excluded_on_device.tokens->data()) + begin[cell];
    view->num_excluded = begin[cell + 1] - begin[cell];
  } else if (!segment.excluded.empty()) {
    view->excluded = segment.excluded[cell].data();
    view->num_excluded = static_cast<int32_t>(segment.excluded[cell].size());
  }
}

}  // namespace

IndexScratch::IndexScratch(int32_t head_dim, int num_threads) : threads(num_threads) {
  // Twice a segment: keys, and values when mean values are kept; grows for larger segments
  // (segment_builder.cc).
  for (Thread& thread : threads) thread.keys.resize(int64_t{2} * kDefaultSegmentTokens * head_dim);
  for (Thread& thread : threads) {
    thread.means.resize(int64_t{64} * head_dim);
    thread.value_means.resize(int64_t{64} * head_dim);
    thread.variances.resize(64);
    thread.bounds.resize(int64_t{128} * head_dim);
  }
  slots.reserve(kDefaultSegmentTokens);
  page_offsets.reserve(kDefaultSegmentTokens + 1);
  sentence_offsets.reserve(kDefaultSegmentTokens + 1);
}

absl::Status SequenceIndex::BuildCell(const KeySource& source, int32_t cell,
                                      IndexScratch::Thread& thread, Segment* segment) const {
  std::vector<float> center;
  CellCenter(thread.keys.data(), segment->num_tokens, source.head_dim, &segment->excluded[cell],
             &center);
  if (!segment->ranges.empty()) {
    segment->ranges.SetCenter(cell, center.data());
    const std::vector<uint16_t>& offsets = segment->ranges.range_offsets();
    const CellLists lists{static_cast<int32_t>(offsets.size()) - 1, offsets.data(), nullptr, 0};
    AppendLists(source, recipe_, cell, lists, thread, &segment->ranges);
  }
  if (segment->clusters.empty()) return absl::OkStatus();
  segment->clusters.SetCenter(cell, center.data());
  PartitionInput input;
  input.num_tokens = segment->num_tokens;
  input.head_dim = source.head_dim;
  input.keys = thread.keys.data();
  SEMKV_RETURN_IF_ERROR(ClustersOf(*segment).partitioner->Partition(input, &thread.lists));
  const CellLists lists{thread.lists.nlist(), thread.lists.offsets.data(),
                        thread.lists.members.data(), 0};
  AppendLists(source, recipe_, cell, lists, thread, &segment->clusters);
  return absl::OkStatus();
}

absl::Status SequenceIndex::BuildCells(const KeySource& source, int32_t begin, int32_t end,
                                       Segment* segment) const {
  return ForEachCell(source, {segment->first, segment->first + segment->num_tokens}, {begin, end},
                     [&](int32_t cell, IndexScratch::Thread& thread) {
                       return BuildCell(source, cell, thread, segment);
                     });
}

absl::StatusOr<Segment> SequenceIndex::BeginSegment(const KeySource& source, int32_t first,
                                                    int32_t end, const uint8_t* closes) const {
  Segment segment;
  segment.first = first;
  segment.num_tokens = end - first;
  if (recipe_.range_partitioner != nullptr) {
    PartitionInput input;
    input.num_tokens = segment.num_tokens;
    input.head_dim = source.head_dim;
    input.closes = closes != nullptr ? closes + first : nullptr;
    Lists ranges;
    SEMKV_RETURN_IF_ERROR(recipe_.range_partitioner->Partition(input, &ranges));
    segment.ranges = ListStore(StoreShape(source, recipe_, /*ranges=*/true), source.device);
    SEMKV_RETURN_IF_ERROR(segment.ranges.Reserve(ranges.nlist(), 0));
    SEMKV_RETURN_IF_ERROR(segment.ranges.AppendRanges(ranges.nlist(), ranges.offsets.data(), 0));
  }
  if (recipe_.clusters) {
    segment.clusters = ListStore(StoreShape(source, recipe_, /*ranges=*/false), source.device);
    const int32_t num_clusters = NumClusters(ClustersOf(segment).options, segment.num_tokens);
    SEMKV_RETURN_IF_ERROR(segment.clusters.Reserve(
        num_clusters + NumListsBesideClusters(source.device), segment.num_tokens));
  }
  if (source.device == nullptr) segment.excluded.resize(source.num_cells());
  return segment;
}

int32_t SequenceIndex::first_unsealed() const {
  return segments_.empty() ? std::max(recipe_.num_sinks, prompt_end_)
                           : segments_.back()->first + segments_.back()->num_tokens;
}

absl::StatusOr<std::vector<Segment>> SequenceIndex::BeginSegments(const KeySource& source,
                                                                  int32_t end,
                                                                  const uint8_t* closes) const {
  int32_t first = first_unsealed();
  std::vector<Segment> begun;
  while (first < end) {
    // Borders fall on multiples of the segment size, so that equal prefixes have equal segments.
    const int32_t border = (first / recipe_.segment_tokens + 1) * recipe_.segment_tokens;
    const int32_t segment_end = std::min(border, end);
    SEMKV_ASSIGN_OR_RETURN(Segment segment, BeginSegment(source, first, segment_end, closes));
    begun.push_back(std::move(segment));
    first = segment_end;
  }
  return begun;
}

absl::Status SequenceIndex::BuildOnDevice(const KeySource& source, Segment* segment) const {
  DeviceLists lists;
  lists.first = segment->first;
  lists.end = segment->first + segment->num_tokens;
  lists.is_centered = true;
  lists.excluded = &segment->excluded_on_device;
  if (!segment->ranges.empty()) {
    lists.ranges.push_back({&segment->ranges, segment->ranges.range_offsets()});
  }
  if (!segment->clusters.empty()) {
    lists.clusters = {
        &segment->clusters, &ClustersOf(*segment).options, 0, segment->num_tokens, 1, 0};
  }
  return BuildListsOnDevice(source, lists);
}

void SequenceIndex::AddSegments(std::vector<Segment> segments, Progress* progress) {
  for (Segment& segment : segments) {
    segments_.push_back(std::make_shared<const Segment>(std::move(segment)));
    ++progress->segments;
  }
}

absl::Status SequenceIndex::Seal(const KeySource& source, int32_t end, const uint8_t* closes,
                                 Progress* progress) {
  SEMKV_ASSIGN_OR_RETURN(std::vector<Segment> segments, BeginSegments(source, end, closes));
  for (Segment& segment : segments) {
    SEMKV_RETURN_IF_ERROR(source.device != nullptr
                              ? BuildOnDevice(source, &segment)
                              : BuildCells(source, 0, source.num_cells(), &segment));
  }
  AddSegments(std::move(segments), progress);
  return absl::OkStatus();
}

int32_t SequenceIndex::AdoptSegments(const SequenceIndex& other, int32_t end) {
  int32_t adopted = 0;
  for (const std::shared_ptr<const Segment>& segment : other.segments_) {
    const int32_t segment_end = segment->first + segment->num_tokens;
    if (segment_end % recipe_.segment_tokens != 0 || segment_end > end) break;
    segments_.push_back(segment);
    adopted = segment_end;
  }
  return adopted;
}

absl::Status SequenceIndex::Index(const KeySource& source, int32_t length, const uint8_t* closes,
                                  Progress* progress) {
  *progress = Progress();
  progress->first_token = first_unsealed();
  if (recipe_.keeps_tokens && prompt_end_ == 0) {
    progress->first_token = prompt_end_ = length;
  }
  progress->changed = true;
  SEMKV_RETURN_IF_ERROR(Seal(source, length, closes, progress));
  return ResetTail(source, std::max(length, recipe_.num_sinks));
}

absl::Status SequenceIndex::ResetTail(const KeySource& source, int32_t start) {
  tail_ = Tail();
  tail_.start = tail_.page_end = tail_.sentence_end = tail_.sentence_scanned = tail_.window_end =
      start;
  Device* const device = source.device;
  tail_.pages = ListStore(StoreShape(source, recipe_, /*ranges=*/true), device);
  if (recipe_.sentences) tail_.sentences = ListStore(StoreShape(source, recipe_, true), device);
  if (recipe_.clusters) tail_.clusters = ListStore(StoreShape(source, recipe_, false), device);
  tail_.lists_of_window = NumClusters(recipe_.window_clusters.options, kWindowTokens) +
                          NumListsBesideClusters(source.device);
  SEMKV_RETURN_IF_ERROR(ReserveTail());
  if (segments_.empty()) return absl::OkStatus();
  // int8 vectors are stored relative to a center; the last segment's is near the tail's own.
  const Segment& last = *segments_.back();
  const ListStore& from = last.ranges.empty() ? last.clusters : last.ranges;
  for (ListStore* store : {&tail_.pages, &tail_.sentences, &tail_.clusters}) {
    if (!store->empty() && !from.empty()) SEMKV_RETURN_IF_ERROR(store->CopyCenters(from));
  }
  return absl::OkStatus();
}

absl::Status SequenceIndex::ReserveTail() {
  const int32_t most = end_of_tail() - tail_.start + kProvisionalTokens;
  const int32_t tokens = std::min(tail_.reserved + kTailGrowth, most);
  SEMKV_RETURN_IF_ERROR(tail_.pages.Reserve(CeilDiv(tokens, kProvisionalTokens), 0));
  if (recipe_.sentences) {
    SEMKV_RETURN_IF_ERROR(tail_.sentences.Reserve(tokens / recipe_.min_sentence_tokens + 1, 0));
  }
  if (recipe_.clusters) {
    const int32_t windows = CeilDiv(tokens, kWindowTokens);
    SEMKV_RETURN_IF_ERROR(tail_.clusters.Reserve(windows * tail_.lists_of_window, tokens));
  }
  tail_.reserved = tokens;
  return absl::OkStatus();
}

absl::Status SequenceIndex::Observe(const KeySource& source, int32_t length, const uint8_t* closes,
                                    int32_t num_closes, Progress* progress) {
  *progress = Progress();
  if (!indexed()) return SealFull(source, std::min(length, num_closes), closes, progress);
  progress->first_token = tail_.start;
  while (true) {
    const int32_t full = full_tail(), end = end_of_tail();
    SEMKV_RETURN_IF_ERROR(Fold(source, std::min(length, end), closes, num_closes, progress));
    if (length < full || num_closes < full) return absl::OkStatus();
    SEMKV_RETURN_IF_ERROR(Repartition(source, std::min(length, end), closes, progress));
    if (length < end) return absl::OkStatus();
  }
}

absl::Status SequenceIndex::SealFull(const KeySource& source, int32_t length, const uint8_t* closes,
                                     Progress* progress) {
  if (recipe_.keeps_tokens) return absl::OkStatus();  // which only Index knows
  const int32_t border = length / recipe_.segment_tokens * recipe_.segment_tokens;
  progress->first_token = first_unsealed();
  if (border <= progress->first_token) return absl::OkStatus();
  progress->changed = true;
  return Seal(source, border, closes, progress);
}

absl::Status SequenceIndex::Repartition(const KeySource& source, int32_t length,
                                        const uint8_t* closes, Progress* progress) {
  const int32_t full = full_tail(), end = end_of_tail();
  if (source.device != nullptr) {  // which does not wait for it
    if (length < end) return absl::OkStatus();
    SEMKV_RETURN_IF_ERROR(Seal(source, full, closes, progress));
  } else {
    if (tail_.next.empty()) {
      SEMKV_ASSIGN_OR_RETURN(tail_.next, BeginSegments(source, full, closes));
      tail_.next_cells = 0;
    }
    const int64_t all = source.num_cells() * static_cast<int64_t>(tail_.next.size());
    const int64_t due = length < end ? all * (length - full) / (end - full) : all;
    if (absl::Status built = BuildNext(source, due); !built.ok()) {
      tail_.next.clear();  // a cell may have some of its lists
      return built;
    }
    if (length < end) return absl::OkStatus();
    AddSegments(std::move(tail_.next), progress);
  }
  progress->changed = true;
  ++progress->repartitions;
  return ResetTail(source, full);
}

absl::Status SequenceIndex::BuildNext(const KeySource& source, int64_t cells) {
  const int32_t num_cells = source.num_cells();
  const int64_t all = num_cells * static_cast<int64_t>(tail_.next.size());
  // Fewer than there are threads wait for company.
  if (cells < all) cells -= (cells - tail_.next_cells) % source.pool->num_threads();
  while (tail_.next_cells < cells) {
    const int64_t segment = tail_.next_cells / num_cells, first = segment * num_cells;
    const int64_t end = std::min(first + num_cells, cells);
    SEMKV_RETURN_IF_ERROR(BuildCells(source, static_cast<int32_t>(tail_.next_cells - first),
                                     static_cast<int32_t>(end - first), &tail_.next[segment]));
    tail_.next_cells = end;
  }
  return absl::OkStatus();
}

absl::Status SequenceIndex::Fold(const KeySource& source, int32_t end, const uint8_t* closes,
                                 int32_t num_closes, Progress* progress) {
  const int32_t start = tail_.start;
  while (end - start + kWindowTokens > tail_.reserved &&
         tail_.reserved < end_of_tail() - start + kProvisionalTokens) {
    progress->changed = true;  // a device's lists move
    SEMKV_RETURN_IF_ERROR(ReserveTail());
  }
  std::vector<uint16_t>& pages = source.scratch->page_offsets;
  std::vector<uint16_t>& sentences = source.scratch->sentence_offsets;
  pages.assign(1, static_cast<uint16_t>(tail_.page_end - start));
  while (recipe_.provisional && start + pages.back() + kProvisionalTokens <= end) {
    pages.push_back(static_cast<uint16_t>(pages.back() + kProvisionalTokens));
  }
  sentences.assign(1, static_cast<uint16_t>(tail_.sentence_end - start));
  const int32_t cap = recipe_.max_open_tokens > 0
                          ? std::min(recipe_.max_open_tokens, recipe_.max_sentence_tokens)
                          : recipe_.max_sentence_tokens;
  for (; recipe_.sentences && tail_.sentence_scanned < std::min(end, num_closes);
       ++tail_.sentence_scanned) {
    const int32_t tokens = tail_.sentence_scanned + 1 - (start + sentences.back());
    const bool closed =
        closes[tail_.sentence_scanned] != 0 && tokens >= recipe_.min_sentence_tokens;
    if (closed || tokens == cap) {
      sentences.push_back(static_cast<uint16_t>(tail_.sentence_scanned + 1 - start));
    }
  }
  const int32_t num_windows = recipe_.clusters ? (end - tail_.window_end) / kWindowTokens : 0;
  if (pages.size() == 1 && sentences.size() == 1 && num_windows == 0) return absl::OkStatus();
  progress->changed = true;

  int32_t first = end;
  if (pages.size() > 1) first = std::min(first, tail_.page_end);
  if (sentences.size() > 1) first = std::min(first, tail_.sentence_end);
  if (num_windows > 0) first = std::min(first, tail_.window_end);
  // Offsets count from the first gathered token; the stores count from the tail's start.
  for (uint16_t& offset : pages) offset = static_cast<uint16_t>(offset + start - first);
  for (uint16_t& offset : sentences) offset = static_cast<uint16_t>(offset + start - first);
  for (const auto& [store, offsets] :
       {std::pair{&tail_.pages, &pages}, std::pair{&tail_.sentences, &sentences}}) {
    if (offsets->size() == 1) continue;
    SEMKV_RETURN_IF_ERROR(store->Unshare());
    SEMKV_RETURN_IF_ERROR(store->AppendRanges(static_cast<int32_t>(offsets->size()) - 1,
                                              offsets->data(), first - start));
  }
  SEMKV_RETURN_IF_ERROR(source.device != nullptr
                            ? FoldOnDevice(source, first, end, num_windows)
                            : ForEachCell(source, {first, end}, {0, source.num_cells()},
                                          [&](int32_t cell, IndexScratch::Thread& thread) {
                                            return FoldCell(source, first, num_windows, cell,
                                                            thread);
                                          }));
  if (pages.size() > 1) tail_.page_end = first + pages.back();
  if (sentences.size() > 1) tail_.sentence_end = first + sentences.back();
  tail_.window_end += num_windows * kWindowTokens;
  progress->sentences += static_cast<int32_t>(sentences.size()) - 1;
  progress->windows += num_windows;
  return absl::OkStatus();
}

absl::Status SequenceIndex::FoldCell(const KeySource& source, int32_t first, int32_t num_windows,
                                     int32_t cell, IndexScratch::Thread& thread) {
  const std::vector<uint16_t>& pages = source.scratch->page_offsets;
  const std::vector<uint16_t>& sentences = source.scratch->sentence_offsets;
  const CellLists page_lists{static_cast<int32_t>(pages.size()) - 1, pages.data(), nullptr, 0};
  AppendLists(source, recipe_, cell, page_lists, thread, &tail_.pages);
  const CellLists sentence_lists{static_cast<int32_t>(sentences.size()) - 1, sentences.data(),
                                 nullptr, 0};
  AppendLists(source, recipe_, cell, sentence_lists, thread, &tail_.sentences);
  for (int32_t window = 0; window < num_windows; ++window) {
    const int32_t window_first = tail_.window_end + window * kWindowTokens - first;
    PartitionInput input;
    input.num_tokens = kWindowTokens;
    input.head_dim = source.head_dim;
    input.keys = thread.keys.data() + int64_t{window_first} * source.head_dim;
    SEMKV_RETURN_IF_ERROR(recipe_.window_clusters.partitioner->Partition(input, &thread.lists));
    for (uint16_t& member : thread.lists.members) {
      member = static_cast<uint16_t>(member + window_first);
    }
    const CellLists lists{thread.lists.nlist(), thread.lists.offsets.data(),
                          thread.lists.members.data(), first - tail_.start};
    AppendLists(source, recipe_, cell, lists, thread, &tail_.clusters);
  }
  return absl::OkStatus();
}

absl::Status SequenceIndex::FoldOnDevice(const KeySource& source, int32_t first, int32_t end,
                                         int32_t num_windows) {
  DeviceLists lists;
  lists.first = first;
  lists.end = end;
  const IndexScratch& scratch = *source.scratch;
  if (scratch.page_offsets.size() > 1) lists.ranges.push_back({&tail_.pages, scratch.page_offsets});
  if (scratch.sentence_offsets.size() > 1) {
    lists.ranges.push_back({&tail_.sentences, scratch.sentence_offsets});
  }
  if (num_windows > 0) {
    SEMKV_RETURN_IF_ERROR(tail_.clusters.Unshare());
    lists.clusters = {&tail_.clusters,
                      &recipe_.window_clusters.options,
                      tail_.window_end - first,
                      kWindowTokens,
                      num_windows,
                      first - tail_.start};
  }
  return BuildListsOnDevice(source, lists);
}

int32_t SequenceIndex::Views(int32_t cell, ListsView* views) const {
  int32_t n = 0;
  const auto add = [&](const ListStore& store, int32_t first_position, int32_t partition,
                       int32_t first_list) {
    if (store.empty()) return;
    ListsView view = store.View(cell, first_position, partition, first_list);
    if (partition != recipe_.estimated_partition()) view.value_means = nullptr;
    if (view.nlist > 0) views[n++] = view;
  };
  for (const std::shared_ptr<const Segment>& segment : segments_) {
    const int32_t before = n;
    add(segment->ranges, segment->first, 0, 0);
    add(segment->clusters, segment->first, 1, 0);
    // One view tells, the one whose lists are estimated.
    if (n > before) SetExcluded(*segment, cell, &views[n - 1]);
  }
  // What a partition of the tail has not reached yet stands in provisional lists, in each
  // partition.
  if (recipe_.sentences || recipe_.pages) {
    add(tail_.sentences, tail_.start, 0, 0);
    const int32_t first = recipe_.sentences ? (tail_.sentence_end - tail_.start) : 0;
    add(tail_.pages, tail_.start, 0, first / kProvisionalTokens);
  }
  if (recipe_.clusters) {
    add(tail_.clusters, tail_.start, 1, 0);
    const int32_t first = tail_.window_end - tail_.start;
    if (recipe_.provisional) add(tail_.pages, tail_.start, 1, first / kProvisionalTokens);
  }
  return n;
}

int32_t SequenceIndex::reachable_end() const {
  if (!indexed()) return segments_.empty() ? 0 : first_unsealed();
  if (recipe_.provisional) return tail_.page_end;
  return recipe_.clusters ? tail_.window_end : tail_.sentence_end;
}

int64_t SequenceIndex::Sum(int64_t (ListStore::*quantity)() const) const {
  int64_t total =
      (tail_.pages.*quantity)() + (tail_.sentences.*quantity)() + (tail_.clusters.*quantity)();
  for (const std::shared_ptr<const Segment>& segment : segments_) {
    total += (segment->ranges.*quantity)() + (segment->clusters.*quantity)();
  }
  return total;
}

int64_t SequenceIndex::num_lists() const { return Sum(&ListStore::num_lists); }
int64_t SequenceIndex::bytes() const { return Sum(&ListStore::bytes); }

int64_t SequenceIndex::reserved_bytes() const {
  int64_t total = Sum(&ListStore::reserved_bytes);
  for (const Segment& segment : tail_.next) {
    total += segment.ranges.reserved_bytes() + segment.clusters.reserved_bytes();
  }
  return total;
}

int32_t SequenceIndex::max_lists() const {
  int32_t total = tail_.sentences.max_lists() + tail_.clusters.max_lists();
  total += 2 * tail_.pages.max_lists();  // provisional lists of either partition
  for (const std::shared_ptr<const Segment>& segment : segments_) {
    total += segment->ranges.max_lists() + segment->clusters.max_lists();
  }
  return total;
}

}  // namespace semkv
