#include "csrc/api/device_step.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "csrc/api/attend_args.h"
#include "csrc/api/policy.h"
#include "csrc/ops/retrieval/estimate_rest_plan.h"
#include "csrc/status_macros.h"

namespace semkv {
namespace {

CopyShape Flat(int64_t bytes) { return {bytes, 1, bytes, bytes}; }

}  // namespace

DeviceStep::DeviceStep(Context* context, int32_t max_rows, int32_t max_budget)
    : context_(context), device_(context->device()), max_rows_(max_rows), max_budget_(max_budget) {}

absl::StatusOr<std::unique_ptr<DeviceStep>> DeviceStep::Create(Context* context, int32_t max_rows,
                                                               int32_t max_budget) {
  std::unique_ptr<DeviceStep> step(new DeviceStep(context, max_rows, max_budget));
  const semkv_options& o = context->options();
  // Two partitions of every segment, and the tail's.
  const int32_t segments = CeilDiv(o.max_sequence_tokens, kDefaultSegmentTokens) + 1;
  constexpr int32_t kLeastLists = 1024;
  SEMKV_RETURN_IF_ERROR(
      step->Allocate({o.num_kv_heads, kLeastLists, 2 * segments + 4, CentroidForm::kInt8, false}));
  return step;
}

uint64_t DeviceStep::graph_key() const {
  return uint64_t{num_allocations_} << 32 | static_cast<uint64_t>(num_rows_ - 1) << 16 |
         static_cast<uint64_t>(first_sparse_layer_);
}

DecodeAttentionPlan DeviceStep::PlanAttention(int32_t num_rows) const {
  const semkv_options& o = context_->options();
  DecodeAttentionBounds bounds;
  bounds.num_rows = num_rows;
  bounds.max_row_tokens = o.max_sequence_tokens;
  bounds.num_heads = o.num_heads;
  bounds.num_kv_heads = o.num_kv_heads;
  bounds.num_selections = bounds_.num_selections;
  bounds.head_dim = o.head_dim;
  bounds.kv_dtype = static_cast<DType>(o.kv_dtype);
  bounds.num_multiprocessors = device_->num_multiprocessors();
  return PlanDecodeAttention(bounds);
}

RetrievePlan DeviceStep::PlanRetrieval(int32_t num_rows) const {
  const semkv_options& o = context_->options();
  SelectLimits limits;
  limits.shared_bytes =
      std::min(limits.shared_bytes, device_->max_shared_bytes() - kSelectStaticSharedBytes);
  return PlanRetrieve(num_rows, o.num_heads, bounds_.num_selections, o.head_dim, bounds_.form,
                      o.max_sequence_tokens, bounds_.max_lists, bounds_.max_views, limits);
}

DeviceStep::Arrays DeviceStep::LayOut(Workspace* memory) const {
  const semkv_options& o = context_->options();
  const int64_t rows = max_rows_, selections = rows * bounds_.num_selections;
  Arrays a;
  for (int32_t n = 1; n <= max_rows_; ++n) {
    a.attention_bytes =
        std::max(a.attention_bytes, DecodeAttentionCudaWorkspaceBytes(PlanAttention(n)));
  }
  const RetrievePlan retrieve = PlanRetrieval(max_rows_);
  a.retrieval_bytes = RetrieveCudaWorkspaceBytes(retrieve);
  if (bounds_.estimates) {
    a.retrieval_bytes = std::max(a.retrieval_bytes, EstimateRestCudaWorkspaceBytes(retrieve.score));
  }
  // Adjacent, for one copy.
  a.rows = memory->Take<RetrievalRow>(rows);
  a.row_tokens = memory->Take<int32_t>((o.num_layers + 1) * rows);
  a.view_begin = memory->Take<int32_t>(selections + 1);
  a.block_tables = memory->Take<int32_t>(rows * context_->max_pages());
  a.views = memory->Take<ListsView>(o.num_layers * selections * bounds_.max_views);
  a.slots = memory->Take<int32_t>(selections * max_budget_);
  a.positions = memory->Take<int32_t>(selections * max_budget_);
  a.counts = memory->Take<int32_t>(selections);
  if (bounds_.estimates) {
    a.rest_out = memory->Take<float>(rows * o.num_heads * o.head_dim);
    a.rest_lse = memory->Take<float>(rows * o.num_heads);
  }
  a.attention = memory->Take<uint8_t>(static_cast<int64_t>(a.attention_bytes));
  a.retrieval = memory->Take<uint8_t>(static_cast<int64_t>(a.retrieval_bytes));
  return a;
}

absl::Status DeviceStep::Allocate(const Bounds& bounds) {
  const Bounds before = std::exchange(bounds_, bounds);
  Workspace measured;
  LayOut(&measured);
  const size_t bytes = Workspace::TotalBytes(measured.used_bytes(), 1);
  absl::StatusOr<DeviceMemory> memory = DeviceMemory::Allocate(device_, bytes);
  if (!memory.ok()) {
    bounds_ = before;
    return memory.status();
  }
  memory_ = *std::move(memory);
  Workspace carved(memory_.data(), bytes, /*num_threads=*/1, /*thread=*/0);
  arrays_ = LayOut(&carved);
  ++num_allocations_;
  num_rows_ = 0;
  known_.clear();
  std::vector<int32_t> view_begin(int64_t{max_rows_} * bounds_.num_selections + 1);
  for (size_t p = 0; p < view_begin.size(); ++p) {
    view_begin[p] = static_cast<int32_t>(p) * bounds_.max_views;
  }
  // Views of no lists until a row has some.
  const int64_t views = int64_t{context_->options().num_layers} * max_rows_ *
                        bounds_.num_selections * bounds_.max_views;
  SEMKV_RETURN_IF_ERROR(device_->Zero(arrays_.views, views * sizeof(ListsView)));
  SEMKV_RETURN_IF_ERROR(
      device_->Upload(arrays_.view_begin, view_begin.data(),
                      Flat(static_cast<int64_t>(view_begin.size() * sizeof(int32_t)))));
  known_.resize(max_rows_);
  return absl::OkStatus();
}

absl::StatusOr<DeviceStep::Bounds> DeviceStep::BoundsOf(absl::Span<const Row> rows) const {
  const int32_t head_dim = context_->options().head_dim;
  Bounds bounds = bounds_;
  const Row* other = nullptr;
  for (const Row& row : rows) {
    if (row.state->policy.kind == SEMKV_POLICY_DENSE) continue;
    if (other != nullptr && row.num_selections != other->num_selections) {
      return absl::UnimplementedError(absl::StrCat(
          "sequence ", row.sequence, " has ", row.num_selections, " selections, sequence ",
          other->sequence, " has ", other->num_selections, ": on a device they must be equal"));
    }
    other = &row;
    bounds.num_selections = row.num_selections;
    bounds.estimates |= row.state->policy.estimate_rest != 0;
    const SequenceIndex& index = row.state->index;
    const CentroidForm form = index.recipe().form;
    if (CentroidRowBytes(form, head_dim) > CentroidRowBytes(bounds.form, head_dim)) {
      bounds.form = form;
    }
    if (index.max_lists() > bounds.max_lists) {
      bounds.max_lists = index.max_lists() + index.max_lists() / 2;
    }
    if (index.max_views() > bounds.max_views) {
      bounds.max_views = index.max_views() + index.max_views() / 2;
    }
  }
  return bounds;
}

absl::Status DeviceStep::UploadPages(int32_t r, absl::Span<const int32_t> pages) {
  std::vector<int32_t>& known = known_[r].pages;
  const auto differing = std::mismatch(pages.begin(), pages.end(), known.begin(), known.end());
  const int64_t same = differing.first - pages.begin();
  if (same == static_cast<int64_t>(pages.size())) return absl::OkStatus();
  const int64_t bytes = (static_cast<int64_t>(pages.size()) - same) * sizeof(int32_t);
  SEMKV_RETURN_IF_ERROR(
      device_->Upload(arrays_.block_tables + int64_t{r} * context_->max_pages() + same,
                      pages.data() + same, Flat(bytes)));
  known.resize(same);
  known.insert(known.end(), pages.begin() + same, pages.end());
  return absl::OkStatus();
}

absl::Status DeviceStep::UploadViews(int32_t r, const Row& row) {
  Known& known = known_[r];
  const semkv_sequence sequence = row.is_sparse && UsesLists(row.state->policy) ? row.sequence : 0;
  const uint64_t version = sequence != 0 ? row.state->index_version : 0;
  if (known.sequence == sequence && known.index_version == version) return absl::OkStatus();
  const semkv_options& o = context_->options();
  const int64_t row_views = int64_t{bounds_.num_selections} * bounds_.max_views;
  view_scratch_.assign(o.num_layers * row_views, ListsView());
  for (int32_t layer = 0; layer < o.num_layers && sequence != 0; ++layer) {
    for (int32_t s = 0; s < bounds_.num_selections; ++s) {
      const auto kv_head =
          static_cast<int32_t>(int64_t{s} * o.num_kv_heads / bounds_.num_selections);
      row.state->index.Views(
          layer * o.num_kv_heads + kv_head,
          view_scratch_.data() + layer * row_views + int64_t{s} * bounds_.max_views);
    }
  }
  const int64_t bytes = row_views * static_cast<int64_t>(sizeof(ListsView));
  SEMKV_RETURN_IF_ERROR(device_->Upload(arrays_.views + r * row_views, view_scratch_.data(),
                                        {bytes, o.num_layers, max_rows_ * bytes, bytes}));
  known.sequence = sequence;
  known.index_version = version;
  return absl::OkStatus();
}

absl::Status DeviceStep::UploadRows(absl::Span<const Row> rows) {
  const int32_t num_layers = context_->options().num_layers;
  const int64_t tokens_at =
      reinterpret_cast<uintptr_t>(arrays_.row_tokens) - reinterpret_cast<uintptr_t>(arrays_.rows);
  const int64_t bytes = tokens_at + int64_t{num_layers + 1} * max_rows_ * sizeof(int32_t);
  row_scratch_.resize(bytes);
  RetrievalRow* const retrieval = reinterpret_cast<RetrievalRow*>(row_scratch_.data());
  int32_t* const row_tokens = reinterpret_cast<int32_t*>(row_scratch_.data() + tokens_at);
  for (int32_t r = 0; r < static_cast<int32_t>(rows.size()); ++r) {
    const int32_t num_tokens = rows[r].state->num_tokens;
    retrieval[r] = rows[r].is_sparse ? rows[r].retrieval : RetrievalRow();
    retrieval[r].block_table = arrays_.block_tables + int64_t{r} * context_->max_pages();
    for (int32_t layer = 0; layer <= num_layers; ++layer) {
      const bool sparse = layer < num_layers && rows[r].is_sparse && layer >= rows[r].dense_layers;
      row_tokens[int64_t{layer} * max_rows_ + r] = sparse ? -1 : num_tokens;
    }
  }
  return device_->Upload(arrays_.rows, row_scratch_.data(), Flat(bytes));
}

absl::Status DeviceStep::Begin(absl::Span<const Row> rows) {
  SEMKV_ASSIGN_OR_RETURN(const Bounds bounds, BoundsOf(rows));
  // Nothing is known of memory that could not be filled.
  if (known_.empty() || bounds != bounds_) SEMKV_RETURN_IF_ERROR(Allocate(bounds));
  const int32_t num_rows = static_cast<int32_t>(rows.size());
  if (num_rows != num_rows_) {
    num_rows_ = 0;
    attention_plan_ = PlanAttention(num_rows);
    retrieve_plan_ = PlanRetrieval(num_rows);
    // Counters of another number of rows lie elsewhere.
    SEMKV_RETURN_IF_ERROR(device_->Zero(arrays_.attention, DecodeCounterBytes(attention_plan_)));
  }
  first_sparse_layer_ = context_->options().num_layers;
  for (int32_t r = 0; r < num_rows; ++r) {
    if (rows[r].state->policy.kind != SEMKV_POLICY_DENSE) {
      first_sparse_layer_ = std::min(first_sparse_layer_, rows[r].dense_layers);
    }
    SEMKV_RETURN_IF_ERROR(UploadPages(r, rows[r].pages));
    SEMKV_RETURN_IF_ERROR(UploadViews(r, rows[r]));
  }
  SEMKV_RETURN_IF_ERROR(UploadRows(rows));
  num_rows_ = num_rows;
  return absl::OkStatus();
}

absl::Status DeviceStep::Select(int32_t layer, const semkv_attend_args& args) {
  if (layer < first_sparse_layer_) return absl::OkStatus();
  const semkv_options& o = context_->options();
  const Strides strides = QueryStrides(args, o);
  ScoreListsParams score = DescribeCall<ScoreListsParams>(args, o);
  score.q = args.q;
  score.q_row = strides.token;
  score.q_head = strides.head;
  score.num_rows = num_rows_;
  score.num_selections = bounds_.num_selections;
  score.rows = arrays_.rows;
  score.views =
      arrays_.views + int64_t{layer} * max_rows_ * bounds_.num_selections * bounds_.max_views;
  score.view_begin = arrays_.view_begin;
  SelectListsParams select;
  select.num_rows = num_rows_;
  select.num_selections = bounds_.num_selections;
  select.heads_per_selection = o.num_heads / bounds_.num_selections;
  select.page_tokens = o.page_tokens;
  select.rows = score.rows;
  select.views = score.views;
  select.view_begin = score.view_begin;
  select.slots = arrays_.slots;
  select.positions = arrays_.positions;
  select.counts = arrays_.counts;
  select.slots_stride = max_budget_;
  SEMKV_RETURN_IF_ERROR(device_->Retrieve(score, select, retrieve_plan_, arrays_.retrieval,
                                          arrays_.retrieval_bytes, args.stream));
  if (!bounds_.estimates) return absl::OkStatus();
  EstimateRestParams estimate;
  estimate.score = score;
  estimate.positions = arrays_.positions;
  estimate.counts = arrays_.counts;
  estimate.positions_stride = max_budget_;
  estimate.rest_out = arrays_.rest_out;
  estimate.rest_lse = arrays_.rest_lse;
  return device_->EstimateRest(estimate, retrieve_plan_.score, arrays_.retrieval,
                               arrays_.retrieval_bytes, args.stream);
}

DecodeAttentionParams DeviceStep::AttentionParams(int32_t layer,
                                                  const semkv_attend_args& args) const {
  const semkv_options& o = context_->options();
  const Strides q = QueryStrides(args, o), out = OutStrides(args, o);
  const bool dense = (args.flags & SEMKV_ATTEND_DENSE) != 0;
  DecodeAttentionParams params = DescribeCall<DecodeAttentionParams>(args, o);
  params.q = args.q;
  params.out = args.out;
  params.lse = args.lse;
  params.q_row = q.token;
  params.q_head = q.head;
  params.out_row = out.token;
  params.out_head = out.head;
  params.num_rows = num_rows_;
  params.num_kv_heads = o.num_kv_heads;
  params.logit_cap = args.logit_cap;
  params.position = context_->layers()[layer];
  params.block_table = arrays_.block_tables;
  params.block_table_stride = context_->max_pages();
  params.row_tokens = arrays_.row_tokens + int64_t{dense ? o.num_layers : layer} * max_rows_;
  params.num_selections = bounds_.num_selections;
  params.position_slots.slots = arrays_.slots;
  params.position_slots.counts = arrays_.counts;
  params.position_slots.row_stride = int64_t{bounds_.num_selections} * max_budget_;
  params.position_slots.selection_stride = max_budget_;
  params.rest_out = arrays_.rest_out;
  params.rest_lse = arrays_.rest_lse;
  return params;
}

absl::Status DeviceStep::Attend(int32_t layer, const semkv_attend_args& args) {
  const DecodeAttentionParams params = AttentionParams(layer, args);
  if (const char* reason = DecodeAttentionCudaUnsupported(params); reason != nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("layer ", layer, ": ", reason));
  }
  return device_->DecodeAttention(params, attention_plan_, arrays_.attention,
                                  arrays_.attention_bytes, args.stream);
}

absl::StatusOr<absl::Span<const int32_t>> DeviceStep::Result(int32_t row, int32_t selection) {
  const int64_t at = int64_t{row} * bounds_.num_selections + selection;
  int32_t count = 0;
  SEMKV_RETURN_IF_ERROR(device_->Download(&count, arrays_.counts + at, Flat(sizeof(count))));
  SEMKV_RETURN_IF_ERROR(device_->Wait());
  result_.resize(count);
  if (count == 0) return absl::MakeConstSpan(result_);
  SEMKV_RETURN_IF_ERROR(device_->Download(result_.data(), arrays_.positions + at * max_budget_,
                                          Flat(count * int64_t{sizeof(int32_t)})));
  SEMKV_RETURN_IF_ERROR(device_->Wait());
  return absl::MakeConstSpan(result_);
}

}  // namespace semkv
