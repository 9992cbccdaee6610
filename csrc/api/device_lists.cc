#include "csrc/api/device_lists.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "csrc/ops/cache/append_lists.h"
#include "csrc/ops/cache/stage_keys.h"
#include "csrc/ops/clustering/kmeans.h"
#include "csrc/ops/clustering/kmeans_plan.h"
#include "csrc/status_macros.h"

namespace semkv {
namespace {

// As many layers at once as fit these bytes, and a launch; at least one.
constexpr int64_t kStagedBytes = int64_t{256} << 20;
constexpr int32_t kMaxCells = 65535;

// Of keys as they are staged and lists are built of them.
DType StagedDType(DType pool) { return pool == DType::kFloat8E4M3 ? DType::kBFloat16 : pool; }

bool NeedsValues(const DeviceLists& lists) {
  const ListStore* const clusters = lists.clusters.store;
  return (clusters != nullptr && clusters->has_value_means()) ||
         std::any_of(lists.ranges.begin(), lists.ranges.end(),
                     [](const auto& ranges) { return ranges.store->has_value_means(); });
}

int32_t LayersAtOnce(const KeySource& source, int32_t num_tokens, bool needs_values) {
  const int64_t layer_bytes = int64_t{num_tokens} * source.num_kv_heads * source.head_dim *
                              DTypeBytes(StagedDType(source.layers[0].dtype)) *
                              (needs_values ? 2 : 1);
  const int64_t most = std::min<int64_t>(source.layers.size(), kMaxCells / source.num_kv_heads);
  return static_cast<int32_t>(std::clamp<int64_t>(kStagedBytes / layer_bytes, 1, most));
}

class DeviceListBuilder {
 public:
  DeviceListBuilder(const KeySource& source, const DeviceLists& lists);
  absl::Status Build();

 private:
  struct Arrays {
    KvView* layers;
    KvView* value_layers;  // whose k are values; null: not needed, as are
    uint16_t* values;      // as `keys`
    int32_t* pages;
    uint16_t* whole;                 // one range of all tokens
    std::vector<uint16_t*> offsets;  // of each of lists_.ranges
    uint16_t* keys;                  // [cells_at_once_, num_tokens_, head_dim]
    int32_t* num_nonfinite;          // [num_cells]; null: not asked for, as is
    uint16_t* nonfinite;             // [num_cells, num_tokens_]
    KMeansProblem* problems;         // [num_windows, cells_at_once_]; null: no clusters, as are
    uint64_t* draws;                 // [num_lists_]
    uint16_t *labels, *members;      // [cells_at_once_, tokens of a window]
    uint16_t* cluster_offsets;       // [cells_at_once_, num_lists_ + num_lone_ + 3]
    float *centroids, *objectives;
    int32_t* iterations_done;
    uint8_t* kmeans;  // its workspace
  };

  Arrays LayOut(Workspace* memory) const;
  absl::Status CountClusters();
  absl::Status UploadInputs();
  absl::Status UploadProblems();
  // The steps for the layers [first, first + num_layers).
  absl::Status Stage(int32_t first, int32_t num_layers);
  StageKeysParams DescribeStage(int32_t num_layers) const;
  absl::Status SetCenters(int32_t first, int32_t num_layers);
  absl::Status AppendRanges(int32_t first, int32_t num_layers);
  absl::Status AppendWindow(int32_t first, int32_t num_layers, int32_t window);
  KMeansParams DescribeKMeans(int32_t num_cells, int32_t window) const;
  AppendListsParams DescribeAppend(int32_t num_cells) const;
  // Appends lists of rows from `first_row` on, `lists` and `members` after what the store has.
  absl::Status Append(const ListStore& store, int32_t first_cell, int32_t first_row, int32_t lists,
                      int32_t members, AppendListsParams params);
  absl::Status ReadExcluded();

  template <typename T>
  absl::Status Upload(T* to, const T* from, int64_t count) {
    const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    return device_->Upload(to, from, {bytes, 1, bytes, bytes});
  }

  const KeySource& source_;
  const DeviceLists& lists_;
  Device* const device_;
  const DType dtype_;  // of staged keys
  const bool needs_values_;
  const int32_t num_tokens_, first_page_, num_pages_;
  const int32_t layers_at_once_, cells_at_once_;
  int32_t num_lists_ = 0, num_lone_ = 0;  // clusters of a window
  KMeansPlan plan_;                       // for cells_at_once_ problems
  DeviceMemory memory_;
  Arrays arrays_ = {};
};

DeviceListBuilder::DeviceListBuilder(const KeySource& source, const DeviceLists& lists)
    : source_(source),
      lists_(lists),
      device_(source.device),
      dtype_(StagedDType(source.layers[0].dtype)),
      needs_values_(NeedsValues(lists)),
      num_tokens_(lists.end - lists.first),
      first_page_(lists.first / source.layers[0].page_tokens),
      num_pages_(CeilDiv(lists.end, source.layers[0].page_tokens) - first_page_),
      layers_at_once_(LayersAtOnce(source, num_tokens_, needs_values_)),
      cells_at_once_(layers_at_once_ * source.num_kv_heads) {}

absl::Status DeviceListBuilder::CountClusters() {
  const DeviceLists::Clusters& c = lists_.clusters;
  if (c.store == nullptr) return absl::OkStatus();
  const int32_t clusters = NumClusters(*c.options, c.num_tokens);
  num_lone_ = static_cast<int32_t>(c.options->lone_share * static_cast<float>(clusters));
  num_lists_ = clusters - num_lone_;
  if (const char* reason = KMeansCudaUnsupported(cells_at_once_, source_.head_dim, c.num_tokens,
                                                 num_lists_, c.options->iterations, num_lone_);
      reason != nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("k-means of ", c.num_tokens, " tokens, ",
                                                   clusters, " clusters, on a device: ", reason));
  }
  plan_ = PlanKMeans(cells_at_once_, source_.head_dim, c.num_tokens, num_lists_,
                     c.options->iterations, num_lone_);
  return absl::OkStatus();
}

DeviceListBuilder::Arrays DeviceListBuilder::LayOut(Workspace* memory) const {
  const int64_t d = source_.head_dim, cells = cells_at_once_;
  Arrays a = {};
  a.layers = memory->Take<KvView>(static_cast<int64_t>(source_.layers.size()));
  a.pages = memory->Take<int32_t>(num_pages_);
  a.whole = memory->Take<uint16_t>(2);
  for (const DeviceLists::Ranges& ranges : lists_.ranges) {
    a.offsets.push_back(memory->Take<uint16_t>(static_cast<int64_t>(ranges.offsets.size())));
  }
  a.keys = memory->Take<uint16_t>(cells * num_tokens_ * d);
  if (needs_values_) {
    a.value_layers = memory->Take<KvView>(static_cast<int64_t>(source_.layers.size()));
    a.values = memory->Take<uint16_t>(cells * num_tokens_ * d);
  }
  if (lists_.excluded != nullptr) {
    a.num_nonfinite = memory->Take<int32_t>(source_.num_cells());
    a.nonfinite = memory->Take<uint16_t>(int64_t{source_.num_cells()} * num_tokens_);
  }
  const DeviceLists::Clusters& c = lists_.clusters;
  if (c.store == nullptr) return a;
  a.problems = memory->Take<KMeansProblem>(c.num_windows * cells);
  a.draws = memory->Take<uint64_t>(num_lists_);
  a.labels = memory->Take<uint16_t>(cells * c.num_tokens);
  a.members = memory->Take<uint16_t>(cells * c.num_tokens);
  a.cluster_offsets = memory->Take<uint16_t>(cells * (num_lists_ + num_lone_ + 3));
  a.centroids = memory->Take<float>(cells * num_lists_ * d);
  a.objectives = memory->Take<float>(cells);
  a.iterations_done = memory->Take<int32_t>(cells);
  const auto bytes = static_cast<int64_t>(KMeansCudaWorkspaceBytes(plan_));
  a.kmeans = memory->Take<uint8_t>(bytes + kKMeansWorkspaceAlignment);
  const auto at = reinterpret_cast<uintptr_t>(a.kmeans);
  a.kmeans += CeilDiv<uintptr_t>(at, kKMeansWorkspaceAlignment) * kKMeansWorkspaceAlignment - at;
  return a;
}

absl::Status DeviceListBuilder::UploadInputs() {
  SEMKV_RETURN_IF_ERROR(
      Upload(arrays_.layers, source_.layers.data(), static_cast<int64_t>(source_.layers.size())));
  if (needs_values_) {
    std::vector<KvView> values(source_.layers.begin(), source_.layers.end());
    for (KvView& layer : values) {
      layer.k = layer.v;
      layer.k_page = layer.v_page;
      layer.k_head = layer.v_head;
      layer.k_token = layer.v_token;
      layer.k_scale = layer.v_scale;
    }
    SEMKV_RETURN_IF_ERROR(
        Upload(arrays_.value_layers, values.data(), static_cast<int64_t>(values.size())));
  }
  SEMKV_RETURN_IF_ERROR(Upload(arrays_.pages, source_.pages + first_page_, num_pages_));
  const uint16_t whole[] = {0, static_cast<uint16_t>(num_tokens_)};
  SEMKV_RETURN_IF_ERROR(Upload(arrays_.whole, whole, 2));
  for (size_t i = 0; i < lists_.ranges.size(); ++i) {
    const absl::Span<const uint16_t> offsets = lists_.ranges[i].offsets;
    SEMKV_RETURN_IF_ERROR(
        Upload(arrays_.offsets[i], offsets.data(), static_cast<int64_t>(offsets.size())));
  }
  if (lists_.excluded != nullptr) {
    SEMKV_RETURN_IF_ERROR(
        device_->Zero(arrays_.num_nonfinite, source_.num_cells() * sizeof(int32_t)));
  }
  return UploadProblems();
}

absl::Status DeviceListBuilder::UploadProblems() {
  const DeviceLists::Clusters& c = lists_.clusters;
  if (c.store == nullptr) return absl::OkStatus();
  const int64_t d = source_.head_dim;
  std::vector<KMeansProblem> problems;
  for (int32_t window = 0; window < c.num_windows; ++window) {
    const int64_t row = c.first_row + int64_t{window} * c.num_tokens;
    for (int64_t cell = 0; cell < cells_at_once_; ++cell) {
      KMeansProblem problem;
      problem.points = arrays_.keys + (cell * num_tokens_ + row) * d;
      problem.point_stride = d;
      problem.num_points = c.num_tokens;
      problem.num_lists = num_lists_;
      problem.num_lone = num_lone_;
      problems.push_back(problem);
    }
  }
  SEMKV_RETURN_IF_ERROR(
      Upload(arrays_.problems, problems.data(), static_cast<int64_t>(problems.size())));
  // The partitioner's draws, in its order.
  std::mt19937_64 rng(c.options->seed);
  std::vector<uint64_t> draws(num_lists_);
  for (uint64_t& draw : draws) draw = rng();
  return Upload(arrays_.draws, draws.data(), num_lists_);
}

StageKeysParams DeviceListBuilder::DescribeStage(int32_t num_layers) const {
  StageKeysParams params;
  params.num_layers = num_layers;
  params.num_kv_heads = source_.num_kv_heads;
  params.head_dim = source_.head_dim;
  params.pool_dtype = source_.layers[0].dtype;
  params.dtype = dtype_;
  params.page_tokens = source_.layers[0].page_tokens;
  params.pages = arrays_.pages;
  params.first = lists_.first - first_page_ * params.page_tokens;
  params.num_tokens = num_tokens_;
  return params;
}

absl::Status DeviceListBuilder::Stage(int32_t first, int32_t num_layers) {
  const int64_t first_cell = int64_t{first} * source_.num_kv_heads;
  StageKeysParams params = DescribeStage(num_layers);
  if (needs_values_) {
    params.layers = arrays_.value_layers + first;
    params.keys = arrays_.values;
    SEMKV_RETURN_IF_ERROR(device_->StageKeys(params));
  }
  params.layers = arrays_.layers + first;
  params.keys = arrays_.keys;
  if (arrays_.num_nonfinite != nullptr) {
    params.num_nonfinite = arrays_.num_nonfinite + first_cell;
    params.nonfinite = arrays_.nonfinite + first_cell * num_tokens_;
  }
  return device_->StageKeys(params);
}

AppendListsParams DeviceListBuilder::DescribeAppend(int32_t num_cells) const {
  AppendListsParams params;
  params.num_cells = num_cells;
  params.head_dim = source_.head_dim;
  params.dtype = dtype_;
  params.keys = arrays_.keys;
  params.key_cell = int64_t{num_tokens_} * source_.head_dim;
  return params;
}

absl::Status DeviceListBuilder::SetCenters(int32_t first, int32_t num_layers) {
  std::vector<ListStore*> stores;
  for (const DeviceLists::Ranges& ranges : lists_.ranges) stores.push_back(ranges.store);
  if (lists_.clusters.store != nullptr) stores.push_back(lists_.clusters.store);
  const int64_t at = int64_t{first} * source_.num_kv_heads * source_.head_dim;
  AppendListsParams params = DescribeAppend(num_layers * source_.num_kv_heads);
  params.form = CentroidForm::kFloat32;
  params.nlist = params.max_lists = 1;
  params.offsets = arrays_.whole;
  params.centroids = stores[0]->device_centers() + at;
  SEMKV_RETURN_IF_ERROR(device_->AppendLists(params));
  const int64_t bytes = int64_t{params.num_cells} * source_.head_dim * sizeof(float);
  for (size_t i = 1; i < stores.size(); ++i) {
    SEMKV_RETURN_IF_ERROR(device_->Copy(stores[i]->device_centers() + at, params.centroids,
                                        {bytes, 1, bytes, bytes}));
  }
  return absl::OkStatus();
}

absl::Status DeviceListBuilder::Append(const ListStore& store, int32_t first_cell,
                                       int32_t first_row, int32_t lists, int32_t members,
                                       AppendListsParams params) {
  const int64_t at = int64_t{first_row} * source_.head_dim;
  store.Describe(first_cell, &params);
  params.keys = arrays_.keys + at;
  params.first_list += lists;
  params.first_member += members;
  SEMKV_RETURN_IF_ERROR(device_->AppendLists(params));
  if (!store.has_value_means()) return absl::OkStatus();
  store.DescribeValueMeans(first_cell, &params);
  params.keys = arrays_.values + at;
  return device_->AppendLists(params);
}

absl::Status DeviceListBuilder::AppendRanges(int32_t first, int32_t num_layers) {
  for (size_t i = 0; i < lists_.ranges.size(); ++i) {
    AppendListsParams params = DescribeAppend(num_layers * source_.num_kv_heads);
    params.nlist = static_cast<int32_t>(lists_.ranges[i].offsets.size()) - 1;
    params.offsets = arrays_.offsets[i];
    SEMKV_RETURN_IF_ERROR(
        Append(*lists_.ranges[i].store, first * source_.num_kv_heads, 0, 0, 0, params));
  }
  return absl::OkStatus();
}

KMeansParams DeviceListBuilder::DescribeKMeans(int32_t num_cells, int32_t window) const {
  const ClusterOptions& options = *lists_.clusters.options;
  KMeansParams params;
  params.num_problems = num_cells;
  params.head_dim = source_.head_dim;
  params.dtype = dtype_;
  params.metric =
      options.metric == ClusterMetric::kCosine ? KMeansMetric::kCosine : KMeansMetric::kCenteredL2;
  params.iterations = options.iterations;
  params.max_points = lists_.clusters.num_tokens;
  params.max_lists = num_lists_;
  params.max_lone = num_lone_;
  params.problems = arrays_.problems + int64_t{window} * cells_at_once_;
  if (options.init == KMeansInit::kStratified) params.draws = arrays_.draws;
  params.labels = arrays_.labels;
  params.offsets = arrays_.cluster_offsets;
  params.members = arrays_.members;
  params.centroids = arrays_.centroids;
  params.objectives = arrays_.objectives;
  params.iterations_done = arrays_.iterations_done;
  return params;
}

absl::Status DeviceListBuilder::AppendWindow(int32_t first, int32_t num_layers, int32_t window) {
  const DeviceLists::Clusters& c = lists_.clusters;
  const int32_t num_cells = num_layers * source_.num_kv_heads;
  KMeansPlan plan = plan_;
  plan.num_problems = num_cells;
  SEMKV_RETURN_IF_ERROR(device_->KMeans(DescribeKMeans(num_cells, window), plan, arrays_.kmeans,
                                        KMeansCudaWorkspaceBytes(plan)));
  const int32_t row = c.first_row + window * c.num_tokens;
  AppendListsParams params = DescribeAppend(num_cells);
  params.nlist = num_lists_ + num_lone_ + 2;
  params.offsets = arrays_.cluster_offsets;
  params.offsets_cell = params.nlist + 1;
  params.members = arrays_.members;
  params.members_cell = c.num_tokens;
  params.member_shift = c.shift + row;
  return Append(*c.store, first * source_.num_kv_heads, row, window * params.nlist,
                window * c.num_tokens, params);
}

absl::Status DeviceListBuilder::ReadExcluded() {
  const int32_t num_cells = source_.num_cells();
  std::vector<int32_t> counts(num_cells);
  const int64_t bytes = num_cells * int64_t{sizeof(int32_t)};
  SEMKV_RETURN_IF_ERROR(
      device_->Download(counts.data(), arrays_.num_nonfinite, {bytes, 1, bytes, bytes}));
  SEMKV_RETURN_IF_ERROR(device_->Wait());
  std::vector<int32_t> begin(1, 0);
  for (int32_t count : counts) begin.push_back(begin.back() + count);
  if (begin.back() == 0) return absl::OkStatus();
  ExcludedOnDevice& out = *lists_.excluded;
  SEMKV_ASSIGN_OR_RETURN(DeviceMemory tokens,
                         DeviceMemory::Allocate(device_, begin.back() * int64_t{sizeof(uint16_t)}));
  for (int32_t cell = 0; cell < num_cells; ++cell) {
    if (counts[cell] == 0) continue;
    const int64_t cell_bytes = counts[cell] * int64_t{sizeof(uint16_t)};
    SEMKV_RETURN_IF_ERROR(device_->Copy(static_cast<uint16_t*>(tokens.data()) + begin[cell],
                                        arrays_.nonfinite + int64_t{cell} * num_tokens_,
                                        {cell_bytes, 1, cell_bytes, cell_bytes}));
  }
  out.begin = std::move(begin);
  out.tokens = std::make_shared<const DeviceMemory>(std::move(tokens));
  return absl::OkStatus();
}

absl::Status DeviceListBuilder::Build() {
  SEMKV_RETURN_IF_ERROR(CountClusters());
  Workspace measured;
  LayOut(&measured);
  const size_t bytes = Workspace::TotalBytes(measured.used_bytes(), 1);
  SEMKV_ASSIGN_OR_RETURN(memory_, DeviceMemory::Allocate(device_, bytes));
  Workspace carved(memory_.data(), bytes, /*num_threads=*/1, /*thread=*/0);
  arrays_ = LayOut(&carved);
  SEMKV_RETURN_IF_ERROR(UploadInputs());
  const int32_t num_layers = static_cast<int32_t>(source_.layers.size());
  for (int32_t first = 0; first < num_layers; first += layers_at_once_) {
    const int32_t count = std::min(layers_at_once_, num_layers - first);
    SEMKV_RETURN_IF_ERROR(Stage(first, count));
    if (lists_.is_centered) SEMKV_RETURN_IF_ERROR(SetCenters(first, count));
    SEMKV_RETURN_IF_ERROR(AppendRanges(first, count));
    for (int32_t window = 0; window < lists_.clusters.num_windows; ++window) {
      SEMKV_RETURN_IF_ERROR(AppendWindow(first, count, window));
    }
  }
  for (const DeviceLists::Ranges& ranges : lists_.ranges) {
    ranges.store->Appended(static_cast<int32_t>(ranges.offsets.size()) - 1, 0);
  }
  if (const DeviceLists::Clusters& c = lists_.clusters; c.store != nullptr) {
    c.store->Appended(c.num_windows * (num_lists_ + num_lone_ + 2), c.num_windows * c.num_tokens);
  }
  return lists_.excluded != nullptr ? ReadExcluded() : absl::OkStatus();
}

}  // namespace

absl::Status BuildListsOnDevice(const KeySource& source, const DeviceLists& lists) {
  return DeviceListBuilder(source, lists).Build();
}

}  // namespace semkv
