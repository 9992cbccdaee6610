#include "csrc/api/context.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "csrc/api/kv_scales.h"
#include "csrc/api/policy.h"
#include "csrc/ops/attention/decode_attention.h"
#include "csrc/ops/cache/write_kv.h"
#include "csrc/ops/retrieval/select_lists_plan.h"
#include "csrc/status_macros.h"

namespace semkv {
namespace {

constexpr size_t kMaxEvents = 1024;
constexpr int32_t kMaxThreads = 1024;

class Stopwatch {
 public:
  explicit Stopwatch(uint64_t* total_ns) : total_ns_(total_ns) {}
  ~Stopwatch() {
    const auto elapsed = std::chrono::steady_clock::now() - start_;
    *total_ns_ += std::chrono::duration_cast<std::chrono::nanoseconds>(elapsed).count();
  }

 private:
  uint64_t* const total_ns_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

absl::Status CheckRange(const char* field, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("options.", field, " is ", value, ", must be in [", least, ", ", most, "]"));
}

absl::Status ValidateOptions(const semkv_options& o, bool is_device) {
  SEMKV_RETURN_IF_ERROR(CheckRange("num_layers", o.num_layers, 1, 1024));
  SEMKV_RETURN_IF_ERROR(CheckRange("num_heads", o.num_heads, 1, 1024));
  SEMKV_RETURN_IF_ERROR(CheckRange("num_kv_heads", o.num_kv_heads, 1, o.num_heads));
  SEMKV_RETURN_IF_ERROR(CheckRange("kv_dtype", o.kv_dtype, 0, SEMKV_DTYPE_F8_E4M3));
  SEMKV_RETURN_IF_ERROR(CheckScale("options.k_scale", o.k_scale, o.kv_dtype));
  SEMKV_RETURN_IF_ERROR(CheckScale("options.v_scale", o.v_scale, o.kv_dtype));
  SEMKV_RETURN_IF_ERROR(CheckRange("page_tokens", o.page_tokens, 1, 1024));
  SEMKV_RETURN_IF_ERROR(CheckRange("num_pages", o.num_pages, 1, INT32_MAX / o.page_tokens));
  SEMKV_RETURN_IF_ERROR(CheckRange("max_sequences", o.max_sequences, 1, 1 << 20));
  SEMKV_RETURN_IF_ERROR(CheckRange("max_sequence_tokens", o.max_sequence_tokens, 1,
                                   int64_t{o.num_pages} * o.page_tokens));
  SEMKV_RETURN_IF_ERROR(CheckRange("num_threads", o.num_threads, 0, kMaxThreads));
  SEMKV_RETURN_IF_ERROR(CheckRange("query_window", o.query_window, 0, 1024));
  if (o.num_heads % o.num_kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("options.num_heads is ", o.num_heads,
                     ", must be a multiple of num_kv_heads = ", o.num_kv_heads));
  }
  if ((o.page_tokens & (o.page_tokens - 1)) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("options.page_tokens is ", o.page_tokens, ", must be a power of two"));
  }
  DecodeAttentionParams params;
  params.num_heads = o.num_heads;
  params.num_kv_heads = o.num_kv_heads;
  params.num_selections = o.num_kv_heads;
  params.head_dim = o.head_dim;
  params.position.page_tokens = o.page_tokens;
  params.position.dtype = static_cast<DType>(o.kv_dtype);
  // CheckDeviceOptions has the dtypes of a device.
  const char* reason =
      is_device ? DecodeShapeUnsupported(params) : DecodeAttentionUnsupported(params);
  if (reason != nullptr) {
    return absl::UnimplementedError(absl::StrCat("options: ", reason, " (kv_dtype ", o.kv_dtype,
                                                 ", head_dim ", o.head_dim, ", page_tokens ",
                                                 o.page_tokens, ")"));
  }
  return absl::OkStatus();
}

absl::Status CheckDevicePolicy(const semkv_policy& policy) {
  const std::pair<const char*, bool> fields[] = {{"mean_query", policy.mean_query != 0},
                                                 {"keep_factor", policy.keep_factor != 0.0f}};
  for (const auto& [field, is_set] : fields) {
    if (!is_set) continue;
    return absl::UnimplementedError(
        absl::StrCat("policy.", field, " of ", PolicyName(policy.kind), " must be 0 on a device"));
  }
  return absl::OkStatus();
}

// What the kernels do not serve yet.
absl::Status CheckDeviceOptions(const semkv_options& o) {
  const auto refuse = [](const char* field, int64_t value, const char* what) {
    return absl::UnimplementedError(
        absl::StrCat("options.", field, " is ", value, ", on a device ", what));
  };
  if (o.kv_dtype == SEMKV_DTYPE_F32) {
    return refuse("kv_dtype", o.kv_dtype,
                  "it must be SEMKV_DTYPE_F16, SEMKV_DTYPE_BF16 or SEMKV_DTYPE_F8_E4M3");
  }
  if (o.query_window != 0) return refuse("query_window", o.query_window, "it must be 0");
  if (o.max_sequence_tokens > kSelectMaxRowTokens) {
    return refuse("max_sequence_tokens", o.max_sequence_tokens, "it is at most 1048576");
  }
  if (o.num_heads / o.num_kv_heads > kScoreMaxHeads) {
    return refuse("num_heads", o.num_heads, "a KV head has at most 64 of them");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Context>> Context::Create(const semkv_options& options,
                                                         std::unique_ptr<Device> device) {
  SEMKV_RETURN_IF_ERROR(ValidateOptions(options, device != nullptr));
  if (device != nullptr) SEMKV_RETURN_IF_ERROR(CheckDeviceOptions(options));
  std::unique_ptr<Context> context(new Context(options));
  context->device_ = std::move(device);
  semkv_options& o = context->options_;
  if (o.num_threads == 0) {
    o.num_threads = std::clamp<int32_t>(std::thread::hardware_concurrency(), 1, kMaxThreads);
  }
  SEMKV_ASSIGN_OR_RETURN(context->pages_, context->MakeBlockManager());
  context->layers_.resize(o.num_layers);
  for (int32_t layer = 0; layer < o.num_layers && o.borrow_storage == 0; ++layer) {
    SEMKV_ASSIGN_OR_RETURN(context->layers_[layer], context->pages_->View(layer));
  }
  context->pool_ = std::make_unique<ThreadPool>(o.num_threads);
  // On a device, lists are built there.
  const int32_t num_building = context->device_ != nullptr ? 0 : o.num_threads;
  context->index_scratch_ = std::make_unique<IndexScratch>(o.head_dim, num_building);
  context->closes_scratch_.reserve(o.max_sequence_tokens);
  context->slots_scratch_.reserve(o.max_sequence_tokens);
  context->events_.resize(kMaxEvents);
  return context;
}

absl::StatusOr<IndexedSequence*> Context::FindSequence(semkv_sequence sequence) {
  const auto found = sequences_.find(sequence);
  if (found == sequences_.end()) {
    return absl::NotFoundError(absl::StrCat("no sequence ", sequence));
  }
  return found->second.get();
}

absl::StatusOr<const IndexedSequence*> Context::FindSequence(semkv_sequence sequence) const {
  return const_cast<Context*>(this)->FindSequence(sequence);
}

absl::Status Context::CheckStorage() const {
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    if (layers_[layer].k == nullptr) {
      return absl::FailedPreconditionError(
          absl::StrCat("layer ", layer, " of ", layers_.size(),
                       " has no storage: call semkv_register_kv for every layer"));
    }
  }
  return absl::OkStatus();
}

absl::Status Context::SetVocabulary(absl::Span<const absl::string_view> vocabulary) {
  if (!sequences_.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("semkv_vocabulary_set with ", sequences_.size(), " sequences, must be 0"));
  }
  SEMKV_ASSIGN_OR_RETURN(boundaries_, BoundaryTable::Create(vocabulary));
  return absl::OkStatus();
}

absl::Status Context::CheckPolicy(const semkv_policy& policy) const {
  if (UsesSentences(policy) && boundaries_ == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(
        "policy ", PolicyName(policy.kind), " cuts sentences: call semkv_vocabulary_set first"));
  }
  if (device_ != nullptr) SEMKV_RETURN_IF_ERROR(CheckDevicePolicy(policy));
  const double kept = std::floor(double{policy.keep_factor} * policy.budget);
  if (KeepsTokens(policy) &&
      (options_.query_window < RecentTokens(policy) || options_.query_window > kept)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "policy ", PolicyName(policy.kind), " keeps ", kept, " tokens by the context's last ",
        "options.query_window = ", options_.query_window, " queries, must be in [recent = ",
        RecentTokens(policy), ", ", kept, "]; keep_factor 0 keeps all and needs none"));
  }
  return absl::OkStatus();
}

void Context::StartOpenSentence(IndexedSequence* state) const {
  const semkv_policy& policy = state->policy;
  if (policy.mean_query == 0 && policy.warm_up == 0) return;
  const int64_t row_floats =
      policy.mean_query != 0 ? int64_t{options_.num_heads} * options_.head_dim : 0;
  state->open_sentence.Start(options_.num_layers, row_floats, state->num_tokens);
}

absl::Status Context::SetPolicy(semkv_sequence sequence, const semkv_policy& policy) {
  SEMKV_RETURN_IF_ERROR(ValidatePolicy(policy));
  SEMKV_ASSIGN_OR_RETURN(IndexedSequence * state, FindSequence(sequence));
  SEMKV_RETURN_IF_ERROR(CheckPolicy(policy));
  if (!SameLists(policy, state->policy)) {
    SEMKV_ASSIGN_OR_RETURN(IndexRecipe recipe, MakeIndexRecipe(policy));
    state->index = SequenceIndex(std::move(recipe));
    state->index_version = ++last_index_version_;
    state->kept = nullptr;
  }
  state->policy = policy;
  StartOpenSentence(state);
  return absl::OkStatus();
}

KeySource Context::MakeKeySource(semkv_sequence sequence) {
  KeySource source;
  source.layers = layers_;
  source.pages = SequencePages(sequence).data();
  source.num_kv_heads = options_.num_kv_heads;
  source.head_dim = options_.head_dim;
  source.pool = pool_.get();
  source.scratch = index_scratch_.get();
  source.device = device_.get();
  return source;
}

absl::Status Context::FinishLists(absl::Status built, bool changed, IndexedSequence* state) {
  if (device_ == nullptr || !changed) return built;
  if (!built.ok()) state->index = SequenceIndex(state->index.recipe());
  state->index_version = ++last_index_version_;
  return built;
}

void Context::ResolveCloses(const IndexedSequence& state, std::vector<uint8_t>* closes) const {
  closes->assign(state.closes.begin(), state.closes.end());
  closes->resize(state.num_tokens, 0);
  if (!closes->empty() && boundaries_ != nullptr &&
      static_cast<int32_t>(state.closes.size()) < state.num_tokens) {
    closes->back() = state.scanner.PendingCloses();
  }
}

absl::Status Context::Index(semkv_sequence sequence) {
  SEMKV_ASSIGN_OR_RETURN(IndexedSequence * state, FindSequence(sequence));
  SEMKV_RETURN_IF_ERROR(CheckStorage());
  if (!UsesLists(state->policy)) return MarkWritten(sequence, state);
  const Stopwatch stopwatch(&counters_.index_ns);
  ResolveCloses(*state, &closes_scratch_);
  const KeySource source = MakeKeySource(sequence);
  if (KeepsTokens(state->policy) && state->kept == nullptr) {
    SEMKV_ASSIGN_OR_RETURN(
        state->kept,
        KeptPrompt::Build(source, state->index.recipe(), state->policy, state->queries,
                          options_.num_heads, state->num_tokens, closes_scratch_.data()));
  }
  SequenceIndex::Progress progress;
  const int32_t before = state->index.num_segments();
  const absl::Status built =
      state->index.Index(source, state->num_tokens, closes_scratch_.data(), &progress);
  SEMKV_RETURN_IF_ERROR(FinishLists(built, progress.changed, state));
  StartOpenSentence(state);
  AddIndexEvents(sequence, *state, progress, before);
  return MarkWritten(sequence, state);
}

absl::Status Context::Observe(semkv_sequence sequence) {
  SEMKV_ASSIGN_OR_RETURN(IndexedSequence * state, FindSequence(sequence));
  SEMKV_RETURN_IF_ERROR(CheckStorage());
  const Stopwatch stopwatch(&counters_.index_ns);
  if (UsesLists(state->policy)) {
    const bool cuts = UsesSentences(state->policy);
    const int32_t num_closes =
        cuts ? static_cast<int32_t>(state->closes.size()) : state->num_tokens;
    SequenceIndex::Progress progress;
    const int32_t before = state->index.num_segments();
    const absl::Status built =
        state->index.Observe(MakeKeySource(sequence), state->num_tokens,
                             cuts ? state->closes.data() : nullptr, num_closes, &progress);
    SEMKV_RETURN_IF_ERROR(FinishLists(built, progress.changed, state));
    AddIndexEvents(sequence, *state, progress, before);
  }
  return MarkWritten(sequence, state);
}

void Context::AddEvent(int32_t kind, int64_t a, int64_t b, int64_t c) {
  if (num_events_ == kMaxEvents) {
    first_event_ = (first_event_ + 1) % kMaxEvents;
    --num_events_;
    ++events_dropped_;
  }
  events_[(first_event_ + num_events_) % kMaxEvents] = semkv_event{kind, 0, a, b, c};
  ++num_events_;
}

void Context::AddIndexEvents(semkv_sequence sequence, const IndexedSequence& state,
                             const SequenceIndex::Progress& progress, int32_t num_before) {
  for (int32_t i = num_before; i < state.index.num_segments(); ++i) {
    const Segment& segment = *state.index.segment(i);
    AddEvent(progress.repartitions > 0 ? SEMKV_EVENT_REPARTITIONED : SEMKV_EVENT_SEGMENT_SEALED,
             sequence, segment.first, segment.num_tokens);
  }
  if (progress.sentences > 0) {
    AddEvent(SEMKV_EVENT_SENTENCES_CLOSED, sequence, progress.first_token, progress.sentences);
  }
  if (progress.windows > 0) {
    AddEvent(SEMKV_EVENT_WINDOWS_CLUSTERED, sequence, progress.first_token, progress.windows);
  }
}

int32_t Context::DrainEvents(absl::Span<semkv_event> events) {
  int32_t n = 0;
  if (events_dropped_ > 0 && !events.empty()) {
    events[n++] = semkv_event{SEMKV_EVENT_DROPPED, 0, events_dropped_, 0, 0};
    events_dropped_ = 0;
  }
  while (n < static_cast<int32_t>(events.size()) && num_events_ > 0) {
    events[n++] = events_[first_event_];
    first_event_ = (first_event_ + 1) % kMaxEvents;
    --num_events_;
  }
  return n;
}

absl::Status Context::WriteKv(int32_t layer, const semkv_write_args& args) {
  if (layer < 0 || layer >= options_.num_layers) {
    return absl::OutOfRangeError(
        absl::StrCat("layer ", layer, " is not in [0, ", options_.num_layers, ")"));
  }
  if (layers_[layer].k == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("layer ", layer, " has no storage: call semkv_register_kv"));
  }
  if (args.num_tokens < 0 || args.dtype < 0 || args.dtype > SEMKV_DTYPE_BF16) {
    return absl::InvalidArgumentError(absl::StrCat("num_tokens ", args.num_tokens,
                                                   " must not be negative and dtype ", args.dtype,
                                                   " must be in [0, 2]"));
  }
  if (args.num_tokens == 0) return absl::OkStatus();
  if (args.k == nullptr || args.v == nullptr || args.slots == nullptr) {
    return absl::InvalidArgumentError("k, v or slots is null");
  }
  const int32_t num_slots = options_.num_pages * options_.page_tokens;
  for (int32_t i = 0; i < args.num_tokens && device_ == nullptr; ++i) {
    if (args.slots[i] >= num_slots) {
      return absl::OutOfRangeError(
          absl::StrCat("slot ", args.slots[i], " of token ", i, ", the pool has ", num_slots));
    }
  }
  const int64_t token = int64_t{options_.num_kv_heads} * options_.head_dim;
  WriteKvParams params;
  params.k = args.k;
  params.v = args.v;
  params.dtype = static_cast<DType>(args.dtype);
  params.k_token = args.k_token == 0 && args.k_head == 0 ? token : args.k_token;
  params.k_head = args.k_token == 0 && args.k_head == 0 ? options_.head_dim : args.k_head;
  params.v_token = args.v_token == 0 && args.v_head == 0 ? token : args.v_token;
  params.v_head = args.v_token == 0 && args.v_head == 0 ? options_.head_dim : args.v_head;
  params.num_tokens = args.num_tokens;
  params.num_kv_heads = options_.num_kv_heads;
  params.head_dim = options_.head_dim;
  params.slots = args.slots;
  params.view = layers_[layer];
  if (device_ != nullptr) return device_->WriteKv(params, args.stream);
  WriteKvHost(params, *pool_);
  return absl::OkStatus();
}

}  // namespace semkv
