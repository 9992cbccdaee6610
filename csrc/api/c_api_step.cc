// semkv.h: plans and the decode step.

#include "csrc/api/c_api.h"
#include "csrc/api/policy.h"
#include "csrc/status_macros.h"

using semkv::c_api::CopyIn;
using semkv::c_api::GuardContext;
using semkv::c_api::GuardPlan;

extern "C" {

const char* semkv_row_reason_name(int32_t reason) { return semkv::RowReasonName(reason); }

int semkv_plan_create(semkv_context* context, int32_t max_rows, int32_t max_budget,
                      semkv_plan** plan) {
  return GuardContext(context, [&](semkv::Context& c) -> absl::Status {
    if (plan == nullptr) return absl::InvalidArgumentError("plan is null");
    SEMKV_ASSIGN_OR_RETURN(std::unique_ptr<semkv::StepPlan> rep,
                           semkv::StepPlan::Create(&c, max_rows, max_budget));
    *plan = new semkv_plan{std::move(rep)};
    return absl::OkStatus();
  });
}

void semkv_plan_destroy(semkv_plan* plan) { delete plan; }

int semkv_plan_workspace(semkv_plan* plan, size_t* bytes) {
  return GuardPlan(plan, [&](semkv::StepPlan& p) -> absl::Status {
    if (bytes == nullptr) return absl::InvalidArgumentError("bytes is null");
    *bytes = p.workspace_bytes();
    return absl::OkStatus();
  });
}

int semkv_plan_bind(semkv_plan* plan, void* workspace, size_t bytes) {
  return GuardPlan(plan, [&](semkv::StepPlan& p) { return p.Bind(workspace, bytes); });
}

int semkv_plan_step(semkv_plan* plan, int32_t num_rows, const semkv_sequence* sequences,
                    const int32_t* num_queries) {
  return GuardPlan(plan, [&](semkv::StepPlan& p) -> absl::Status {
    if (num_rows < 1 || sequences == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("sequences is null or num_rows ", num_rows, " is below 1"));
    }
    return p.Step(absl::MakeConstSpan(sequences, num_rows), num_queries);
  });
}

int semkv_plan_graph_key(semkv_plan* plan, uint64_t* key) {
  return GuardPlan(plan, [&](semkv::StepPlan& p) -> absl::Status {
    if (key == nullptr) return absl::InvalidArgumentError("key is null");
    SEMKV_ASSIGN_OR_RETURN(*key, p.GraphKey());
    return absl::OkStatus();
  });
}

int semkv_plan_row(semkv_plan* plan, int32_t layer, int32_t row, int32_t* reason) {
  return GuardPlan(plan, [&](semkv::StepPlan& p) -> absl::Status {
    if (reason == nullptr) return absl::InvalidArgumentError("reason is null");
    SEMKV_ASSIGN_OR_RETURN(*reason, p.RowReason(layer, row));
    return absl::OkStatus();
  });
}

int semkv_select(semkv_plan* plan, int32_t layer, const semkv_attend_args* args) {
  return GuardPlan(plan, [&](semkv::StepPlan& p) -> absl::Status {
    semkv_attend_args copy = {};
    SEMKV_RETURN_IF_ERROR(CopyIn(args, "args", &copy));
    return p.Select(layer, copy);
  });
}

int semkv_attend(semkv_plan* plan, int32_t layer, const semkv_attend_args* args) {
  return GuardPlan(plan, [&](semkv::StepPlan& p) -> absl::Status {
    semkv_attend_args copy = {};
    SEMKV_RETURN_IF_ERROR(CopyIn(args, "args", &copy));
    return p.Attend(layer, copy);
  });
}

int semkv_run_layer(semkv_plan* plan, int32_t layer, const semkv_write_args* write,
                    const semkv_attend_args* attend) {
  return GuardPlan(plan, [&](semkv::StepPlan& p) -> absl::Status {
    semkv_attend_args args = {};
    SEMKV_RETURN_IF_ERROR(CopyIn(attend, "attend", &args));
    if (write != nullptr) {
      semkv_write_args rows = {};
      SEMKV_RETURN_IF_ERROR(CopyIn(write, "write", &rows));
      SEMKV_RETURN_IF_ERROR(p.context()->WriteKv(layer, rows));
    }
    SEMKV_RETURN_IF_ERROR(p.Select(layer, args));
    return p.Attend(layer, args);
  });
}

int semkv_select_result(semkv_plan* plan, int32_t row, int32_t selection, const int32_t** positions,
                        int32_t* count) {
  return GuardPlan(plan, [&](semkv::StepPlan& p) -> absl::Status {
    if (positions == nullptr || count == nullptr) {
      return absl::InvalidArgumentError("positions or count is null");
    }
    SEMKV_ASSIGN_OR_RETURN(const absl::Span<const int32_t> taken, p.SelectResult(row, selection));
    *positions = taken.data();
    *count = static_cast<int32_t>(taken.size());
    return absl::OkStatus();
  });
}

}  // extern "C"
