// Scoring and selecting lists for one row of Llama-3-8B's shape: clusters of 64 (the goals' lists)
// and the hybrid default, sentences of 25 beside clusters of 32; int8 centroids.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "benchmarks/cuda/cuda_case.h"
#include "csrc/ops/retrieval/score_lists_cuda.h"
#include "csrc/ops/retrieval/select_lists_cuda.h"

namespace semkv {
namespace {

constexpr int32_t kHeads = 32, kKvHeads = 8, kHeadDim = 128, kPageTokens = 16;
constexpr int32_t kSegmentTokens = 8192, kListPageTokens = 16;

// One partition of every segment: lists of `size` tokens, neighbours or spread over the segment.
struct Partition {
  int32_t number;
  int32_t size;
  bool is_range;
};

struct Shape {
  int32_t tokens = 0, budget = 0, segment_tokens = 0;
  std::vector<Partition> partitions;
  bool has_pages = false;  // lists lie in list pages, which are wanted

  int32_t num_segments() const { return tokens / segment_tokens; }
  int32_t num_views() const { return num_segments() * static_cast<int32_t>(partitions.size()); }
  int32_t SegmentLists(const Partition& p) const { return CeilDiv(segment_tokens, p.size); }
  int32_t num_lists() const {
    int32_t n = 0;
    for (const Partition& p : partitions) n += SegmentLists(p);
    return n * num_segments();
  }
};

// Offsets, and for spread lists members, of a segment; the same for all.
struct SegmentLists {
  std::vector<uint16_t> offsets, members;
};

SegmentLists MakeSegmentLists(const Shape& shape, const Partition& partition) {
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

// One layer's lists of one partition: an array of each kind for all heads and segments, which share
// nothing.
void AddViews(CudaArena& arena, const Shape& shape, const Partition& partition,
              std::vector<std::vector<ListsView>>& views_of_head) {
  const SegmentLists lists = MakeSegmentLists(shape, partition);
  const int32_t nlist = shape.SegmentLists(partition);
  const size_t num_views = static_cast<size_t>(kKvHeads) * shape.num_segments();
  const size_t num_lists = num_views * nlist;
  std::vector<uint16_t> offsets, members;
  for (size_t i = 0; i < num_views; ++i) {
    offsets.insert(offsets.end(), lists.offsets.begin(), lists.offsets.end());
    members.insert(members.end(), lists.members.begin(), lists.members.end());
  }
  ListsView all;
  all.nlist = nlist;
  all.partition = partition.number;
  all.form = CentroidForm::kInt8;
  // The bytes of bfloat16 numbers: as good as any for what is moved and computed.
  const int8_t* centroids = static_cast<int8_t*>(arena.Normal(num_lists * kHeadDim));
  all.scales = arena.Copy(std::vector<float>(num_lists, 0.01f));
  all.center = arena.Copy(std::vector<float>(num_views * kHeadDim, 0.1f));
  all.variances = arena.Copy(std::vector<float>(num_lists, 0.2f));
  all.offsets = arena.Copy(offsets);
  if (!partition.is_range) all.members = arena.Copy(members);
  if (shape.has_pages) {
    std::vector<int32_t> first_page(num_lists);
    for (size_t i = 0; i < num_lists; ++i) {
      first_page[i] = static_cast<int32_t>(i) * CeilDiv(partition.size, kListPageTokens);
    }
    all.first_page = arena.Copy(first_page);
  }
  for (size_t i = 0; i < num_views; ++i) {
    const size_t segment = i % shape.num_segments();
    ListsView view = all;
    view.first_position = static_cast<int32_t>(segment) * shape.segment_tokens;
    view.centroids = centroids + i * nlist * kHeadDim;
    view.scales += i * nlist;
    view.center += i * kHeadDim;
    view.variances += i * nlist;
    view.offsets += i * lists.offsets.size();
    if (view.first_page != nullptr) view.first_page += i * nlist;
    if (view.members != nullptr) view.members += i * lists.members.size();
    views_of_head[i / shape.num_segments()].push_back(view);
  }
}

std::vector<ListsView> MakeViews(CudaArena& arena, const Shape& shape) {
  std::vector<std::vector<ListsView>> views_of_head(kKvHeads);
  for (const Partition& partition : shape.partitions) {
    AddViews(arena, shape, partition, views_of_head);
  }
  std::vector<ListsView> views;
  for (const std::vector<ListsView>& of_head : views_of_head) {
    views.insert(views.end(), of_head.begin(), of_head.end());
  }
  return views;
}

struct Layer {
  const ListsView* views;
  float* keys;
};

struct Problem {
  ScoreListsParams score;
  SelectListsParams select;
  RetrievePlan plan;
  void* workspace;
  size_t workspace_bytes;
  std::vector<Layer> layers;
};

std::shared_ptr<Problem> MakeProblem(CudaArena& arena, int32_t num_layers, const Shape& shape) {
  auto problem = std::make_shared<Problem>();
  std::vector<int32_t> table(shape.tokens / kPageTokens), view_begin;
  std::iota(table.begin(), table.end(), 0);
  for (int32_t head = 0; head <= kKvHeads; ++head) view_begin.push_back(head * shape.num_views());
  RetrievalRow row;
  row.num_tokens = shape.tokens;
  row.budget = shape.budget;
  row.num_sinks = shape.budget / 128;  // 16 and 64 of 2,048
  row.num_recent = shape.budget / 32;
  row.block_table = arena.Copy(table);
  ScoreListsParams& score = problem->score;
  score.q = arena.Normal(kHeads * kHeadDim * sizeof(uint16_t));
  score.q_dtype = DType::kBFloat16;
  score.q_row = kHeads * kHeadDim;
  score.q_head = kHeadDim;
  score.num_rows = 1;
  score.num_heads = kHeads;
  score.num_selections = kKvHeads;
  score.head_dim = kHeadDim;
  score.scale = 0.088f;
  score.rows = arena.Copy(std::vector<RetrievalRow>{row});
  score.view_begin = arena.Copy(view_begin);
  score.keys_stride = shape.num_lists();
  SelectListsParams& select = problem->select;
  select.num_rows = 1;
  select.num_selections = kKvHeads;
  select.heads_per_selection = kHeads / kKvHeads;
  select.page_tokens = kPageTokens;
  select.rows = score.rows;
  select.view_begin = score.view_begin;
  select.slots = arena.Array<int32_t>(static_cast<size_t>(kKvHeads) * shape.budget);
  select.counts = arena.Array<int32_t>(kKvHeads);
  select.slots_stride = shape.budget;
  if (shape.has_pages) {
    select.wanted_stride = MaxWantedPages(shape.budget);
    select.wanted = arena.Array<WantedPage>(static_cast<size_t>(kKvHeads) * select.wanted_stride);
    select.wanted_counts = arena.Array<int32_t>(kKvHeads);
    select.list_page_tokens = kListPageTokens;
  }
  problem->plan = PlanRetrieve(1, kHeads, kKvHeads, kHeadDim, CentroidForm::kInt8, shape.tokens,
                               shape.num_lists(), shape.num_views(), shape.has_pages);
  problem->workspace_bytes = RetrieveCudaWorkspaceBytes(problem->plan);
  problem->workspace = arena.Bytes(problem->workspace_bytes);
  for (int32_t i = 0; i < num_layers; ++i) {
    problem->layers.push_back(
        {arena.Copy(MakeViews(arena, shape)),
         arena.Array<float>(static_cast<size_t>(kKvHeads) * shape.num_lists())});
  }
  return problem;
}

CudaLaunch PrepareScore(CudaArena& arena, int32_t num_layers, const Shape& shape) {
  const std::shared_ptr<Problem> problem = MakeProblem(arena, num_layers, shape);
  return [problem](int32_t layer, cudaStream_t stream) {
    ScoreListsParams score = problem->score;
    score.views = problem->layers[layer].views;
    score.keys = problem->layers[layer].keys;
    return ScoreListsCuda(score, problem->plan.score, problem->workspace, problem->workspace_bytes,
                          stream);
  };
}

CudaLaunch PrepareRetrieve(CudaArena& arena, int32_t num_layers, const Shape& shape) {
  const std::shared_ptr<Problem> problem = MakeProblem(arena, num_layers, shape);
  return [problem](int32_t layer, cudaStream_t stream) {
    ScoreListsParams score = problem->score;
    SelectListsParams select = problem->select;
    score.views = select.views = problem->layers[layer].views;
    return RetrieveCuda(score, select, problem->plan, problem->workspace, problem->workspace_bytes,
                        stream);
  };
}

// Of every list the centroid, scale, variance and offset.
int64_t ListBytes(const Shape& shape) {
  return int64_t{kKvHeads} * shape.num_lists() * (kHeadDim + 2 * 4 + 2);
}

}  // namespace

void AddRetrievalCases(int32_t shrink, std::vector<CudaCase>& cases) {
  const std::vector<Partition> clusters = {{1, 64, false}};
  const std::vector<Partition> hybrid = {{0, 25, true}, {1, 32, false}};
  for (int32_t full : {32768, 131072, 1048576}) {
    if (shrink > 1 && full > 131072) continue;  // nothing new, and slow
    const Shape clusters64 = {full / shrink, 2048 / shrink, kSegmentTokens / shrink, clusters};
    const Shape both = {full / shrink, 2048 / shrink, kSegmentTokens / shrink, hybrid};
    const std::string tokens = "/tokens:" + std::to_string(full);
    const auto add = [&](const std::string& name, const Shape& shape, int64_t floor, auto prepare) {
      cases.push_back({name + tokens, floor, CudaYardstick::kMemory,
                       [=](CudaArena& arena, int32_t n) { return prepare(arena, n, shape); }});
    };
    add("score_lists/clusters64", clusters64,
        ListBytes(clusters64) + int64_t{4} * kKvHeads * clusters64.num_lists(), PrepareScore);
    // Members read, slots written.
    const int64_t taken_bytes = int64_t{6} * kKvHeads * clusters64.budget;
    add("retrieve/clusters64", clusters64, ListBytes(clusters64) + taken_bytes, PrepareRetrieve);
    add("retrieve/hybrid", both, ListBytes(both) + taken_bytes, PrepareRetrieve);
    if (full > 131072) continue;  // two bitmaps of a row do not fit
    Shape pages = both;
    pages.has_pages = true;
    // Members read; for each page, all of them full, 4 bytes read and an entry written.
    const int64_t page_bytes = int64_t{8 + 4} * kKvHeads * both.budget / kListPageTokens;
    add("retrieve_pages/hybrid", pages,
        ListBytes(both) + int64_t{2} * kKvHeads * both.budget + page_bytes, PrepareRetrieve);
  }
}

}  // namespace semkv
