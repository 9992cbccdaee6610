#include "integration/reference/generate.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "integration/reference/semkv_status.h"
#include "integration/reference/status_macros.h"

namespace semkv::reference {

namespace {

// One request on its way.
struct Row {
  size_t request;
  semkv_sequence sequence;
  size_t question_fed = 0;  // tokens of the question in the sequence
  int32_t next_id = 0;      // what the next step feeds
  int32_t length = 0;       // tokens in the sequence
  Sampler sampler;
};

absl::Status Validate(const Engine& engine, absl::Span<const GenerateRequest> requests,
                      const GenerateOptions& options) {
  const size_t max_batch = static_cast<size_t>(engine.options().max_batch);
  if (requests.empty() || requests.size() > max_batch) {
    return absl::InvalidArgumentError(
        absl::StrCat(requests.size(), " requests, not 1 to max_batch ", max_batch));
  }
  for (size_t i = 0; i < requests.size(); ++i) {
    if (requests[i].ids.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("request ", i, " has 0 tokens, needed is 1"));
    }
  }
  if (options.max_new_tokens < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_new_tokens is ", options.max_new_tokens, ", not >= 1"));
  }
  for (const std::string& stop : options.stop) {
    if (stop.empty()) return absl::InvalidArgumentError("a stop string has 0 bytes, needed is 1");
  }
  return options.sampler.Validate();
}

// Cuts `text` before the first stop string that a token of `new_bytes` bytes has completed.
bool CutAtStop(const std::vector<std::string>& stops, size_t new_bytes, std::string& text) {
  size_t cut = std::string::npos;
  for (const std::string& stop : stops) {
    const size_t old = text.size() - new_bytes;
    const size_t from = old - std::min(old, stop.size() - 1);
    cut = std::min(cut, text.find(stop, from));
  }
  if (cut == std::string::npos) return false;
  text.resize(cut);
  return true;
}

// Why `generation`, whose last token is `id`, is complete; nothing if it goes on.
std::optional<StopReason> Stop(const Engine& engine, const GenerateOptions& options, const Row& row,
                               int32_t id, Generation& generation) {
  const std::vector<int32_t>& eos = engine.config().eos_token_ids;
  if (options.stop_at_eos && std::find(eos.begin(), eos.end(), id) != eos.end()) {
    return StopReason::kEndOfText;
  }
  if (CutAtStop(options.stop, engine.tokenizer().TokenBytes(id).size(), generation.text)) {
    return StopReason::kStopString;
  }
  if (generation.ids.size() >= static_cast<size_t>(options.max_new_tokens)) {
    return StopReason::kMaxNewTokens;
  }
  if (row.length >= engine.options().max_sequence_tokens) return StopReason::kSequenceFull;
  return std::nullopt;
}

// Takes `logits` after a step: chooses what the row feeds next. Returns whether it is complete.
absl::StatusOr<bool> Advance(const Engine& engine, const GenerateOptions& options,
                             const GenerateRequest& request, absl::Span<const float> logits,
                             Row& row, Generation& generation) {
  ++row.length;
  if (row.question_fed < request.ids.size() && ++row.question_fed < request.ids.size()) {
    row.next_id = request.ids[row.question_fed];
    return false;
  }
  row.next_id = row.sampler.Sample(logits);
  generation.ids.push_back(row.next_id);
  absl::StrAppend(&generation.text, engine.tokenizer().TokenBytes(row.next_id));
  if (options.on_token) {
    SEMKV_RETURN_IF_ERROR(options.on_token(row.request, row.next_id, logits));
  }
  const std::optional<StopReason> reason = Stop(engine, options, row, row.next_id, generation);
  if (reason.has_value()) generation.reason = *reason;
  return reason.has_value();
}

}  // namespace

absl::StatusOr<GenerateResult> Generate(Engine& engine, absl::Span<const GenerateRequest> requests,
                                        const GenerateOptions& options) {
  SEMKV_RETURN_IF_ERROR(Validate(engine, requests, options));
  const size_t vocab_size = static_cast<size_t>(engine.config().vocab_size);
  std::vector<Row> rows;
  for (size_t i = 0; i < requests.size(); ++i) {
    SamplerOptions sampler = options.sampler;
    sampler.seed += i;
    Row row = {i, requests[i].sequence, 0, requests[i].ids[0], 0, Sampler(sampler, vocab_size)};
    SEMKV_RETURN_IF_ERROR(
        SemkvStatus(semkv_sequence_length(engine.context(), row.sequence, &row.length)));
    rows.push_back(std::move(row));
  }
  GenerateResult result;
  result.generations.resize(requests.size());
  std::vector<semkv_sequence> sequences;
  std::vector<int32_t> ids;
  std::vector<float> logits(rows.size() * vocab_size);
  while (!rows.empty()) {
    sequences.clear();
    ids.clear();
    for (const Row& row : rows) {
      sequences.push_back(row.sequence);
      ids.push_back(row.next_id);
    }
    const absl::Span<float> step_logits = absl::MakeSpan(logits).first(rows.size() * vocab_size);
    SEMKV_RETURN_IF_ERROR(engine.Step(sequences, ids, step_logits, options.step));
    ++result.num_steps;
    result.times.total_ns += engine.last_step_times().total_ns;
    result.times.select_ns += engine.last_step_times().select_ns;
    result.times.attend_ns += engine.last_step_times().attend_ns;

    std::vector<Row> running;
    for (size_t r = 0; r < rows.size(); ++r) {
      SEMKV_ASSIGN_OR_RETURN(const bool complete,
                             Advance(engine, options, requests[rows[r].request],
                                     step_logits.subspan(r * vocab_size, vocab_size), rows[r],
                                     result.generations[rows[r].request]));
      if (!complete) running.push_back(std::move(rows[r]));
    }
    rows = std::move(running);
  }
  return result;
}

}  // namespace semkv::reference
