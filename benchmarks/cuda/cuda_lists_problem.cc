#include "benchmarks/cuda/cuda_lists_problem.h"

#include <algorithm>
#include <numeric>
#include <random>

namespace semkv {
namespace {

constexpr int32_t kSegmentTokens = 8192;

// Offsets, and for spread lists members, of a segment; the same for all.
struct SegmentLists {
  std::vector<uint16_t> offsets, members;
};

SegmentLists MakeSegmentLists(const ListsShape& shape, const Partition& partition) {
  SegmentLists lists;
  for (int32_t begin = 0; begin < shape.segment_tokens; begin += partition.size) {
    lists.offsets.push_back(static_cast<uint16_t>(begin));
  }
  lists.offsets.push_back(static_cast<uint16_t>(shape.segment_tokens));
  if (partition.is_range) return lists;
  std::mt19937 rng(4);
  lists.members.resize(shape.segment_tokens);
  std::iota(lists.members.begin(), lists.members.end(), uint16_t{0});
  std::shuffle(lists.members.begin(), lists.members.end(), rng);
  for (size_t i = 0; i + 1 < lists.offsets.size(); ++i) {
    std::sort(lists.members.begin() + lists.offsets[i],
              lists.members.begin() + lists.offsets[i + 1]);
  }
  return lists;
}

// One layer's lists of one partition: an array of each kind for all (row, head)s and segments,
// which share nothing.
// `next_page`: the first home page that no list has; moves on.
void AddViews(CudaArena& arena, const ListsShape& shape, const Partition& partition,
              int32_t& next_page, std::vector<std::vector<ListsView>>& views_of_cell) {
  const SegmentLists lists = MakeSegmentLists(shape, partition);
  const int32_t nlist = shape.num_segment_lists(partition);
  const size_t num_segments = static_cast<size_t>(shape.num_segments());
  const size_t num_views = views_of_cell.size() * num_segments;
  const size_t num_lists = num_views * nlist;
  std::vector<uint16_t> offsets, members;
  for (size_t i = 0; i < num_views; ++i) {
    offsets.insert(offsets.end(), lists.offsets.begin(), lists.offsets.end());
    members.insert(members.end(), lists.members.begin(), lists.members.end());
  }
  ListsView all;
  all.nlist = nlist;
  all.partition = partition.number;
  all.form = kCentroidForm;
  // The bytes of bfloat16 numbers: as good as any for what is moved and computed.
  const int8_t* centroids = static_cast<int8_t*>(arena.Normal(num_lists * kCentroidBytes));
  all.scales = arena.Copy(std::vector<float>(num_lists, 0.01f));
  all.center = arena.Copy(std::vector<float>(num_views * kHeadDim, 0.1f));
  all.variances = arena.Copy(std::vector<float>(num_lists, 0.2f));
  all.offsets = arena.Copy(offsets);
  if (shape.estimates && partition.number == kEstimatedPartition) {
    all.value_means = static_cast<uint16_t*>(arena.Normal(num_lists * kHeadDim * kElementBytes));
  }
  if (!partition.is_range) all.members = arena.Copy(members);
  if (shape.has_pages) {
    std::vector<int32_t> first_page(num_lists);
    for (int32_t& page : first_page) {
      page = next_page;
      next_page += CeilDiv(partition.size, kListPageTokens);
    }
    all.first_page = arena.Copy(first_page);
  }
  for (size_t i = 0; i < num_views; ++i) {
    const size_t segment = i % num_segments;
    ListsView view = all;
    view.first_position = static_cast<int32_t>(segment) * shape.segment_tokens;
    view.centroids = centroids + i * nlist * kCentroidBytes;
    view.scales += i * nlist;
    view.center += i * kHeadDim;
    view.variances += i * nlist;
    view.offsets += i * lists.offsets.size();
    if (view.value_means != nullptr) view.value_means += i * nlist * kHeadDim;
    if (view.first_page != nullptr) view.first_page += i * nlist;
    if (view.members != nullptr) view.members += i * lists.members.size();
    views_of_cell[i / num_segments].push_back(view);
  }
}

std::vector<ListsView> MakeListsViews(CudaArena& arena, const ListsShape& shape) {
  std::vector<std::vector<ListsView>> views_of_cell(static_cast<size_t>(shape.num_rows) * kKvHeads);
  int32_t next_page = 0;
  for (const Partition& partition : shape.partitions) {
    AddViews(arena, shape, partition, next_page, views_of_cell);
  }
  std::vector<ListsView> views;
  for (const std::vector<ListsView>& of_cell : views_of_cell) {
    views.insert(views.end(), of_cell.begin(), of_cell.end());
  }
  return views;
}

std::vector<RetrievalRow> MakeRows(CudaArena& arena, const ListsShape& shape) {
  const int32_t row_pages = shape.tokens / kPageTokens;
  std::vector<int32_t> pages(static_cast<size_t>(shape.num_rows) * row_pages);
  std::iota(pages.begin(), pages.end(), 0);
  const int32_t* table = arena.Copy(pages);
  RetrievalRow row;
  row.num_tokens = shape.tokens;
  row.budget = shape.budget;
  row.num_sinks = shape.budget / 128;  // 16 and 64 of 2,048
  row.num_recent = shape.budget / 32;
  std::vector<RetrievalRow> rows(shape.num_rows, row);
  for (int32_t r = 0; r < shape.num_rows; ++r) {
    rows[r].block_table = table + static_cast<int64_t>(r) * row_pages;
  }
  return rows;
}

void MakeSelect(CudaArena& arena, const ListsShape& shape, const ScoreListsParams& score,
                SelectListsParams* params) {
  SelectListsParams& select = *params;
  const int32_t num_cells = shape.num_rows * kKvHeads;
  select.num_rows = shape.num_rows;
  select.num_selections = kKvHeads;
  select.heads_per_selection = kHeads / kKvHeads;
  select.page_tokens = kPageTokens;
  select.rows = score.rows;
  select.view_begin = score.view_begin;
  select.slots = arena.Array<int32_t>(static_cast<size_t>(num_cells) * shape.budget);
  select.counts = arena.Array<int32_t>(num_cells);
  select.slots_stride = shape.budget;
  if (!shape.has_pages) return;
  select.wanted_stride = MaxWantedPages(shape.budget);
  select.wanted = arena.Array<WantedPage>(static_cast<size_t>(num_cells) * select.wanted_stride);
  select.wanted_counts = arena.Array<int32_t>(num_cells);
  select.list_page_tokens = kListPageTokens;
}

void MakeEstimate(CudaArena& arena, const ListsShape& shape, RetrieveProblem* problem) {
  const size_t selections = static_cast<size_t>(shape.num_rows) * kKvHeads;
  problem->select.positions = arena.Array<int32_t>(selections * shape.budget);
  EstimateRestParams& estimate = problem->estimate;
  estimate.score = problem->score;
  estimate.positions = problem->select.positions;
  estimate.counts = problem->select.counts;
  estimate.positions_stride = shape.budget;
  estimate.rest_out = arena.Array<float>(static_cast<size_t>(shape.num_rows) * kHeads * kHeadDim);
  estimate.rest_lse = arena.Array<float>(static_cast<size_t>(shape.num_rows) * kHeads);
}

}  // namespace

std::vector<Partition> Clusters64() { return {{1, 64, false}}; }
std::vector<Partition> Hybrid() { return {{0, 25, true}, {1, 16, false}}; }

int32_t ListsShape::num_lists() const {
  int32_t n = 0;
  for (const Partition& p : partitions) n += num_segment_lists(p);
  return n * num_segments();
}

int64_t ListsShape::list_bytes() const {
  return int64_t{num_rows} * kKvHeads * num_lists() * (kCentroidBytes + 2 * 4 + 2);
}

int64_t ListsShape::estimate_bytes() const {
  int64_t segment_bytes = 0;
  for (const Partition& p : partitions) {
    if (p.number != kEstimatedPartition) continue;
    segment_bytes += num_segment_lists(p) * (kCentroidBytes + 4 + 2 + kHeadDim * kElementBytes);
    if (!p.is_range) segment_bytes += int64_t{2} * segment_tokens;
  }
  return num_rows * kKvHeads * num_segments() * segment_bytes;
}

ListsShape MakeListsShape(int32_t num_rows, int32_t tokens, int32_t budget, int32_t shrink,
                          const std::vector<Partition>& partitions) {
  return {num_rows, tokens / shrink, budget / shrink, kSegmentTokens / shrink, partitions};
}

cudaError_t RetrieveProblem::EnqueueScore(int32_t layer, cudaStream_t stream) const {
  ScoreListsParams s = score;
  s.views = layers[layer].views;
  s.keys = layers[layer].keys;
  return ScoreListsCuda(s, plan.score, workspace, workspace_bytes, stream);
}

cudaError_t RetrieveProblem::EnqueueRetrieve(int32_t layer, cudaStream_t stream) const {
  ScoreListsParams s = score;
  SelectListsParams t = select;
  s.views = t.views = layers[layer].views;
  return RetrieveCuda(s, t, plan, workspace, workspace_bytes, stream);
}

cudaError_t RetrieveProblem::EnqueueEstimate(int32_t layer, cudaStream_t stream) const {
  EstimateRestParams e = estimate;
  e.score.views = layers[layer].views;
  return EstimateRestCuda(e, plan.score, workspace, workspace_bytes, stream);
}

RetrieveProblem MakeRetrieve(CudaArena& arena, int32_t num_layers, const ListsShape& shape) {
  RetrieveProblem problem;
  const int32_t num_cells = shape.num_rows * kKvHeads;
  std::vector<int32_t> view_begin;
  for (int32_t cell = 0; cell <= num_cells; ++cell) view_begin.push_back(cell * shape.num_views());
  ScoreListsParams& score = problem.score;
  score.q = arena.Normal(static_cast<size_t>(shape.num_rows) * kHeads * kHeadDim * kElementBytes);
  score.q_dtype = DType::kBFloat16;
  score.q_row = kHeads * kHeadDim;
  score.q_head = kHeadDim;
  score.num_rows = shape.num_rows;
  score.num_heads = kHeads;
  score.num_selections = kKvHeads;
  score.head_dim = kHeadDim;
  score.scale = 0.088f;
  score.rows = arena.Copy(MakeRows(arena, shape));
  score.view_begin = arena.Copy(view_begin);
  score.keys_stride = shape.num_lists();
  MakeSelect(arena, shape, score, &problem.select);
  problem.plan =
      PlanRetrieve(shape.num_rows, kHeads, kKvHeads, kHeadDim, kCentroidForm, shape.tokens,
                   shape.num_lists(), shape.num_views(), {shape.has_pages});
  problem.workspace_bytes = RetrieveCudaWorkspaceBytes(problem.plan);
  if (shape.estimates) {
    problem.workspace_bytes =
        std::max(problem.workspace_bytes, EstimateRestCudaWorkspaceBytes(problem.plan.score));
    MakeEstimate(arena, shape, &problem);
  }
  problem.workspace = arena.Bytes(problem.workspace_bytes);
  for (int32_t i = 0; i < num_layers; ++i) {
    problem.layers.push_back(
        {arena.Copy(MakeListsViews(arena, shape)),
         arena.Array<float>(static_cast<size_t>(num_cells) * shape.num_lists())});
  }
  return problem;
}

}  // namespace semkv
