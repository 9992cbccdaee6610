#include "integration/reference/command/decoding.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "integration/reference/generate.h"
#include "integration/reference/semkv_status.h"
#include "integration/reference/status_macros.h"

namespace semkv::command {
namespace {

using reference::SemkvStatus;

absl::Status CheckFinite(absl::Span<const float> logits) {
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isfinite(logits[i])) continue;
    return absl::InternalError(absl::StrCat("the model gives logit ", logits[i], " for token ", i));
  }
  return absl::OkStatus();
}

// The rows of a teacher-forced batch and where each stands.
class ForcedBatch {
 public:
  ForcedBatch(reference::Engine* engine, absl::Span<const ForcedRow> rows)
      : engine_(engine), rows_(rows), results_(rows.size()) {
    for (const ForcedRow& row : rows) longest_ = std::max(longest_, Size(row.question));
    for (const ForcedRow& row : rows) {
      num_steps_ = std::max(num_steps_, longest_ + Size(row.answer) - 1);
    }
    for (size_t r = 0; r < rows.size(); ++r) {
      results_[r].logits.resize(rows[r].answer.size() * VocabSize());
    }
  }

  int32_t num_steps() const { return num_steps_; }
  std::vector<ForcedResult>& results() { return results_; }

  absl::Status Step(int32_t step, const ForcedOptions& options) {
    Gather(step);
    logits_.resize(active_.size() * VocabSize());
    reference::StepOptions step_options;
    step_options.measure_mass = options.measure_mass && step >= longest_ - 1;
    if (step_options.measure_mass || options.observer) {
      step_options.observer = [&](const reference::LayerObservation& layer) -> absl::Status {
        SEMKV_RETURN_IF_ERROR(KeepMass(layer));
        return options.observer ? options.observer(layer) : absl::OkStatus();
      };
    }
    SEMKV_RETURN_IF_ERROR(engine_->Step(sequences_, ids_, absl::MakeSpan(logits_), step_options));
    return KeepLogits(step);
  }

 private:
  static int32_t Size(absl::Span<const int32_t> ids) { return static_cast<int32_t>(ids.size()); }
  size_t VocabSize() const { return engine_->config().vocab_size; }

  // The place in question + answer of the token that row `r` feeds at `step`; may be out of range.
  int32_t Place(size_t r, int32_t step) const {
    return step - (longest_ - Size(rows_[r].question));
  }

  // Which rows take part in `step`, and with which tokens.
  void Gather(int32_t step) {
    active_.clear();
    sequences_.clear();
    ids_.clear();
    for (size_t r = 0; r < rows_.size(); ++r) {
      const int32_t place = Place(r, step);
      const int32_t answer_place = place - Size(rows_[r].question);
      if (place < 0 || answer_place >= Size(rows_[r].answer) - 1) continue;
      active_.push_back(r);
      sequences_.push_back(rows_[r].sequence);
      ids_.push_back(answer_place < 0 ? rows_[r].question[place] : rows_[r].answer[answer_place]);
    }
  }

  absl::Status KeepMass(const reference::LayerObservation& layer) {
    if (layer.dense_lse == nullptr) return absl::OkStatus();
    const int32_t num_heads = engine_->config().num_heads;
    for (int32_t i = 0; i < layer.num_rows; ++i) {
      int32_t reason = 0;
      SEMKV_RETURN_IF_ERROR(SemkvStatus(semkv_plan_row(layer.plan, layer.layer, i, &reason)));
      if (reason != SEMKV_ROW_SPARSE) continue;
      for (int32_t h = i * num_heads; h < (i + 1) * num_heads; ++h) {
        results_[active_[i]].captured_mass.push_back(
            CapturedMass(layer.lse[h], layer.dense_lse[h]));
      }
    }
    return absl::OkStatus();
  }

  absl::Status KeepLogits(int32_t step) {
    for (size_t i = 0; i < active_.size(); ++i) {
      const size_t r = active_[i];
      int32_t length = 0;
      SEMKV_RETURN_IF_ERROR(
          SemkvStatus(semkv_sequence_length(engine_->context(), sequences_[i], &length)));
      results_[r].num_steps += 1;
      results_[r].context_tokens += length;
      const int32_t predicted = Place(r, step) - Size(rows_[r].question) + 1;
      if (predicted < 0) continue;
      const absl::Span<const float> logits =
          absl::MakeConstSpan(logits_).subspan(i * VocabSize(), VocabSize());
      SEMKV_RETURN_IF_ERROR(CheckFinite(logits));
      std::copy(logits.begin(), logits.end(), results_[r].logits.begin() + predicted * VocabSize());
    }
    return absl::OkStatus();
  }

  reference::Engine* engine_;
  absl::Span<const ForcedRow> rows_;
  std::vector<ForcedResult> results_;
  int32_t longest_ = 0;    // question tokens
  int32_t num_steps_ = 0;  // of the longest row
  // Of the step under way:
  std::vector<size_t> active_;  // rows
  std::vector<semkv_sequence> sequences_;
  std::vector<int32_t> ids_;
  std::vector<float> logits_;
};

}  // namespace

absl::StatusOr<OwnedSequence> CreateDenseSequence(semkv_context* context) {
  semkv_sequence id = 0;
  SEMKV_RETURN_IF_ERROR(SemkvStatus(semkv_sequence_create(context, 0, &id)));
  OwnedSequence sequence(context, id);
  semkv_policy policy;
  SEMKV_RETURN_IF_ERROR(SemkvStatus(semkv_policy_init(&policy, SEMKV_POLICY_DENSE)));
  SEMKV_RETURN_IF_ERROR(SemkvStatus(semkv_sequence_set_policy(context, id, &policy)));
  return sequence;
}

absl::StatusOr<OwnedSequence> ForkSequence(semkv_context* context, semkv_sequence parent) {
  semkv_sequence id = 0;
  SEMKV_RETURN_IF_ERROR(SemkvStatus(semkv_sequence_fork(context, parent, &id)));
  return OwnedSequence(context, id);
}

absl::StatusOr<OwnedSequence> ForkUnderPolicy(semkv_context* context, semkv_sequence parent,
                                              const semkv_policy& policy, double* index_ms) {
  SEMKV_ASSIGN_OR_RETURN(OwnedSequence sequence, ForkSequence(context, parent));
  const auto start = std::chrono::steady_clock::now();
  SEMKV_RETURN_IF_ERROR(PutUnderPolicy(context, sequence.id(), policy));
  const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - start;
  if (index_ms != nullptr) *index_ms = time.count();
  return sequence;
}

absl::Status PutUnderPolicy(semkv_context* context, semkv_sequence sequence,
                            const semkv_policy& policy) {
  SEMKV_RETURN_IF_ERROR(SemkvStatus(semkv_sequence_set_policy(context, sequence, &policy)));
  return SemkvStatus(semkv_index(context, sequence));
}

absl::StatusOr<semkv_stats> ReadStats(semkv_context* context) {
  semkv_stats stats{};
  stats.struct_size = sizeof(stats);
  SEMKV_RETURN_IF_ERROR(SemkvStatus(semkv_stats_get(context, &stats)));
  return stats;
}

KvGeometry GeometryOf(const reference::ModelConfig& config, int32_t kv_dtype) {
  return {config.num_layers, config.num_kv_heads, config.head_dim, kv_dtype};
}

absl::StatusOr<DecodedAnswer> DecodeAnswer(reference::Engine* engine, semkv_sequence sequence,
                                           absl::Span<const int32_t> question,
                                           const DecodeOptions& options) {
  int32_t document_tokens = 0;
  SEMKV_RETURN_IF_ERROR(
      SemkvStatus(semkv_sequence_length(engine->context(), sequence, &document_tokens)));
  DecodedAnswer answer;
  reference::GenerateOptions generate;
  generate.max_new_tokens = options.max_new_tokens;
  for (char c : options.stop) generate.stop.emplace_back(1, c);
  generate.sampler = options.sampler;
  generate.on_token = [&answer](size_t, int32_t, absl::Span<const float> logits) {
    answer.logits.insert(answer.logits.end(), logits.begin(), logits.end());
    return CheckFinite(logits);
  };
  const reference::GenerateRequest request = {sequence, {question.begin(), question.end()}};
  SEMKV_ASSIGN_OR_RETURN(const reference::GenerateResult result,
                         reference::Generate(*engine, {request}, generate));
  answer.ids = result.generations[0].ids;
  answer.num_steps = result.num_steps;
  answer.context_tokens =
      result.num_steps * document_tokens + result.num_steps * (result.num_steps + 1) / 2;
  answer.total_ns = result.times.total_ns;
  answer.select_ns = result.times.select_ns;
  return answer;
}

absl::StatusOr<std::vector<ForcedResult>> FeedForced(reference::Engine* engine,
                                                     absl::Span<const ForcedRow> rows,
                                                     const ForcedOptions& options) {
  ForcedBatch batch(engine, rows);
  for (int32_t step = 0; step < batch.num_steps(); ++step) {
    SEMKV_RETURN_IF_ERROR(batch.Step(step, options));
  }
  return std::move(batch.results());
}

}  // namespace semkv::command
