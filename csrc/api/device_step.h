// The part of a step plan that is in device memory: what the kernels of a step read (rows, block
// tables, views of the lists of every layer), what they leave for each other, and their launches.
//
// Everything is allocated for upper bounds, and launches depend on bounds alone: Begin copies the
// step's own numbers, so that launches which were captured in a graph serve later steps too, as
// long as graph_key stays the same. Bounds that a step exceeds grow with slack, which makes new
// memory.
//
// Thread safety: thread-compatible.

#ifndef SEMKV_API_DEVICE_STEP_H_
#define SEMKV_API_DEVICE_STEP_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "csrc/api/context.h"
#include "csrc/api/device.h"
#include "csrc/ops/attention/decode_attention_plan.h"
#include "csrc/ops/retrieval/inverted_lists.h"
#include "csrc/ops/retrieval/select_lists_plan.h"
#include "csrc/ops/retrieval/workspace.h"
#include "semkv/semkv.h"

namespace semkv {

class DeviceStep {
 public:
  struct Row {
    semkv_sequence sequence = 0;
    const IndexedSequence* state = nullptr;
    bool is_sparse = false;    // from dense_layers on
    int32_t dense_layers = 0;  // whatever its length
    int32_t num_selections = 0;
    RetrievalRow retrieval;  // block_table is not read
    absl::Span<const int32_t> pages;
  };

  // Memory for steps of up to `max_rows` rows that attend to up to `max_budget` tokens each.
  // Errors: RESOURCE_EXHAUSTED.
  static absl::StatusOr<std::unique_ptr<DeviceStep>> Create(Context* context, int32_t max_rows,
                                                            int32_t max_budget);

  size_t bytes() const { return memory_.bytes(); }
  uint64_t graph_key() const;

  // Enqueues the copies of a step on the context's stream.
  // Errors: UNIMPLEMENTED if rows that may be sparse differ in num_selections; RESOURCE_EXHAUSTED
  // if more memory is needed and cannot be had. No step has begun then.
  absl::Status Begin(absl::Span<const Row> rows);

  // Enqueue a layer of the step on args.stream.
  // Errors: INVALID_ARGUMENT for what DecodeAttentionCudaUnsupported says.
  absl::Status Select(int32_t layer, const semkv_attend_args& args);
  absl::Status Attend(int32_t layer, const semkv_attend_args& args);

  // Positions that the last Select on the context's stream took; waits for them. Valid until the
  // next call.
  absl::StatusOr<absl::Span<const int32_t>> Result(int32_t row, int32_t selection);

 private:
  // Upper bounds, of a row and selection.
  struct Bounds {
    int32_t num_selections = 0;
    int32_t max_lists = 0, max_views = 0;
    CentroidForm form = CentroidForm::kInt8;
    bool estimates = false;  // estimate_rest of any row

    bool operator==(const Bounds&) const = default;
  };
  // Where things are in memory_.
  struct Arrays {
    RetrievalRow* rows = nullptr;     // [max_rows]
    int32_t* row_tokens = nullptr;    // [num_layers + 1, max_rows], the last for attention that is
                                      // asked to be dense
    int32_t* view_begin = nullptr;    // [max_rows * num_selections + 1]
    int32_t* block_tables = nullptr;  // [max_rows, max_pages]
    ListsView* views = nullptr;       // [num_layers, max_rows, num_selections, max_views]
    int32_t* slots = nullptr;         // [max_rows, num_selections, max_budget]
    int32_t* positions = nullptr;     // likewise
    int32_t* counts = nullptr;        // [max_rows, num_selections]
    float* rest_out = nullptr;        // [max_rows, num_heads, head_dim]; null: no estimates, as is
    float* rest_lse = nullptr;        // [max_rows, num_heads]
    void* attention = nullptr;        // workspaces
    void* retrieval = nullptr;        // of Retrieve and then of EstimateRest
    size_t attention_bytes = 0, retrieval_bytes = 0;
  };
  // What the device has of a row.
  struct Known {
    semkv_sequence sequence = 0;  // whose lists, 0: none
    uint64_t index_version = 0;
    std::vector<int32_t> pages;
  };

  DeviceStep(Context* context, int32_t max_rows, int32_t max_budget);
  DecodeAttentionPlan PlanAttention(int32_t num_rows) const;
  RetrievePlan PlanRetrieval(int32_t num_rows) const;
  Arrays LayOut(Workspace* memory) const;
  absl::Status Allocate(const Bounds& bounds);
  // The bounds that hold these rows too; slack where they grow.
  absl::StatusOr<Bounds> BoundsOf(absl::Span<const Row> rows) const;
  absl::Status UploadRows(absl::Span<const Row> rows);
  absl::Status UploadPages(int32_t r, absl::Span<const int32_t> pages);
  absl::Status UploadViews(int32_t r, const Row& row);
  DecodeAttentionParams AttentionParams(int32_t layer, const semkv_attend_args& args) const;

  Context* const context_;
  Device* const device_;
  const int32_t max_rows_;
  const int32_t max_budget_;
  Bounds bounds_;
  DeviceMemory memory_;
  Arrays arrays_;
  uint32_t num_allocations_ = 0;
  std::vector<Known> known_;          // [max_rows]; empty while memory_ holds nothing yet
  std::vector<uint8_t> row_scratch_;  // RetrievalRow and row_tokens as they are uploaded
  std::vector<ListsView> view_scratch_;
  std::vector<int32_t> result_;

  // This step.
  int32_t num_rows_ = 0;
  int32_t first_sparse_layer_ = 0;  // of any row, at any length
  DecodeAttentionPlan attention_plan_;
  RetrievePlan retrieve_plan_;
};

}  // namespace semkv

#endif  // SEMKV_API_DEVICE_STEP_H_
