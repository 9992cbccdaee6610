// One step of a batch: which rows are attended densely and why, what the sparse ones select, and
// their attention. Step() is host work on lengths, once per step; Select and Attend run per layer
// and allocate nothing. On a device the same plans are carried out by a DeviceStep.
//
// Thread safety: thread-compatible; callers hold the context's mutex.

#ifndef SEMKV_API_STEP_PLAN_H_
#define SEMKV_API_STEP_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "csrc/api/context.h"
#include "csrc/api/device_step.h"
#include "csrc/ops/attention/decode_attention.h"
#include "csrc/ops/attention/prefill_attention.h"
#include "csrc/ops/retrieval/estimate_rest.h"
#include "csrc/ops/retrieval/select_lists.h"
#include "semkv/semkv.h"

namespace semkv {

class StepPlan {
 public:
  static absl::StatusOr<std::unique_ptr<StepPlan>> Create(Context* context, int32_t max_rows,
                                                          int32_t max_budget);
  ~StepPlan();

  size_t workspace_bytes() const {
    return on_device_ != nullptr ? on_device_->bytes() : workspace_bytes_;
  }
  absl::Status Bind(void* workspace, size_t bytes);

  absl::Status Step(absl::Span<const semkv_sequence> sequences, const int32_t* num_queries);
  absl::StatusOr<uint64_t> GraphKey() const;
  absl::StatusOr<int32_t> RowReason(int32_t layer, int32_t row) const;
  absl::Status Select(int32_t layer, const semkv_attend_args& args);
  absl::Status Attend(int32_t layer, const semkv_attend_args& args);
  absl::StatusOr<absl::Span<const int32_t>> SelectResult(int32_t row, int32_t selection);

  Context* context() const { return context_; }

 private:
  struct Row {
    semkv_sequence sequence = 0;
    IndexedSequence* state = nullptr;
    int32_t num_tokens = 0;
    int32_t num_queries = 0;
    int32_t first_query = 0;  // row of q
    int32_t reason = SEMKV_ROW_DENSE_POLICY;
    int32_t dense_layers = 0;
    int32_t num_selections = 0;
    int64_t first_selection = 0;  // of the row, in counts_; selections of a run are compact
  };
  // Rows [first, end) with one query each, adjacent in q, of equal num_selections; or rows with
  // several queries each.
  struct Run {
    int32_t first = 0, end = 0;
    int32_t num_selections = 0;
    bool single_query = false;
  };

  StepPlan(Context* context, int32_t max_rows, int32_t max_budget);
  size_t WorkspaceBytes() const;
  absl::Status PlanRow(int32_t r, semkv_sequence sequence, int32_t num_queries);
  void FillRetrievalRow(int32_t r);
  // A row whose prompt is kept in part: fixed start range, warm-up steps.
  void FillKeptRow(int32_t r);
  // The planned rows, to the device.
  absl::Status BeginOnDevice();
  void MakeRuns();
  // Room for the views and scratch of this step's sequences. Grows with slack, so that steps
  // allocate only when lists have outgrown it.
  void ReserveRetrieval();
  bool IsSparse(int32_t layer, int32_t r) const {
    return rows_[r].reason == SEMKV_ROW_SPARSE && layer >= rows_[r].dense_layers;
  }
  absl::Status CheckArgs(int32_t layer, const semkv_attend_args& args) const;
  ScoreListsParams ScoreParams(const Run& run, const semkv_attend_args& args) const;
  // Into the sequences' observation windows.
  void RecordQueries(int32_t layer, const semkv_attend_args& args);
  // q of the run's rows: the caller's, or the running means where a policy asks for them.
  void UseMeanQueries(const Run& run, int32_t layer, const semkv_attend_args& args,
                      ScoreListsParams* score);
  int32_t FillViews(const Run& run, int32_t layer);
  void SelectRun(const Run& run, int32_t layer, const semkv_attend_args& args);
  void EstimateRest(const Run& run, const ScoreListsParams& score);
  void CountSelection(const Run& run, int32_t layer, int32_t num_views);
  template <typename Params>
  Params DescribeAttention(const Run& run, int32_t layer, const semkv_attend_args& args) const;
  void AttendDecode(const Run& run, int32_t layer, const semkv_attend_args& args);
  void AttendPrefill(const Run& run, int32_t layer, const semkv_attend_args& args);

  Context* const context_;
  const int32_t max_rows_;
  const int32_t max_budget_;
  const int32_t max_selections_;
  int32_t max_lists_ = 0;  // retrieval_scratch_ have room for this many per (row, selection)

  // This step.
  int32_t num_rows_ = 0;
  int32_t num_query_tokens_ = 0;
  std::vector<Row> rows_;
  std::vector<Run> runs_;
  std::vector<RetrievalRow> retrieval_rows_;
  std::vector<int32_t> block_tables_;  // [max_rows, max_pages]
  std::vector<int32_t> row_tokens_;    // scratch of Attend: [max_rows]
  std::vector<int32_t> query_start_;   // scratch of Attend: [max_rows + 1]

  // The last selection.
  int32_t selected_layer_ = -1;
  std::vector<ListsView> views_;
  std::vector<int32_t> view_begin_;
  std::vector<AlwaysTaken> always_;  // [max_rows * max_selections]
  std::vector<int32_t> slots_;       // [max_rows * max_selections, max_budget]
  std::vector<int32_t> positions_;   // same
  std::vector<int32_t> counts_;      // [max_rows * max_selections]
  std::vector<uint8_t> retrieval_scratch_;
  std::vector<float>
      mean_queries_;  // [max_rows, num_heads, head_dim]; empty until a policy needs it
  std::vector<float> rest_out_, rest_lse_;  // empty until a policy estimates
  bool estimates_ = false;

  std::unique_ptr<DeviceStep> on_device_;  // null: the host
  std::vector<DeviceStep::Row> device_rows_;

  size_t workspace_bytes_ = 0;
  std::unique_ptr<uint8_t[]> own_workspace_;
  uint8_t* workspace_ = nullptr;  // 64-byte aligned
};

}  // namespace semkv

#endif  // SEMKV_API_STEP_PLAN_H_
