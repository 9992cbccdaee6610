// Context: sequences and pages, counters and what can be told of them.

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "csrc/api/context.h"
#include "csrc/api/kv_scales.h"
#include "csrc/api/policy.h"
#include "csrc/status_macros.h"

namespace semkv {

absl::StatusOr<std::unique_ptr<BlockManager>> Context::MakeBlockManager() {
  KvShape shape;
  shape.num_pages = options_.num_pages;
  shape.page_tokens = options_.page_tokens;
  shape.num_layers = options_.num_layers;
  shape.num_kv_heads = options_.num_kv_heads;
  shape.head_dim = options_.head_dim;
  shape.dtype = static_cast<DType>(options_.kv_dtype);
  BlockManagerOptions limits;
  limits.max_sequences = options_.max_sequences;
  limits.max_sequence_tokens = options_.max_sequence_tokens;
  limits.engine_pages = options_.engine_pages != 0;
  limits.enable_prefix_sharing = options_.prefix_sharing != 0 && !limits.engine_pages;
  const KvAccess access = device_ != nullptr ? KvAccess::kDevice : KvAccess::kHost;
  const bool owns_host_memory = options_.borrow_storage == 0 && device_ == nullptr;
  absl::StatusOr<KvStorage> storage =
      owns_host_memory ? KvStorage::Allocate(shape) : KvStorage::Borrow(shape, access);
  SEMKV_RETURN_IF_ERROR(storage.status());
  if (device_ != nullptr && options_.borrow_storage == 0) {
    SEMKV_RETURN_IF_ERROR(AllocateOnDevice(&*storage));
  }
  return BlockManager::Create(limits, *std::move(storage));
}

absl::Status Context::AllocateOnDevice(KvStorage* storage) {
  const KvShape& shape = storage->shape();
  KvView view;
  view.page_tokens = shape.page_tokens;
  view.num_pages = shape.num_pages;
  view.dtype = shape.dtype;
  view.k_scale = ScaleOrOne(options_.k_scale);
  view.v_scale = ScaleOrOne(options_.v_scale);
  // A key is followed by its value, as in KvStorage's own memory.
  view.k_token = view.v_token = int64_t{2} * shape.head_dim;
  view.k_head = view.v_head = shape.page_tokens * view.k_token;
  view.k_page = view.v_page = shape.num_kv_heads * view.k_head;
  const int64_t bytes = DTypeBytes(shape.dtype);
  const int64_t layer_bytes = shape.num_pages * view.k_page * bytes;
  if (kv_memory_.data() == nullptr) {
    SEMKV_ASSIGN_OR_RETURN(kv_memory_,
                           DeviceMemory::Allocate(device_.get(), shape.num_layers * layer_bytes));
  }
  for (int32_t layer = 0; layer < shape.num_layers; ++layer) {
    view.k = static_cast<char*>(kv_memory_.data()) + layer * layer_bytes;
    view.v = static_cast<char*>(view.k) + shape.head_dim * bytes;
    SEMKV_RETURN_IF_ERROR(storage->SetView(layer, view));
  }
  return absl::OkStatus();
}

absl::Status Context::CopyOnDevice(const PageCopy& copy) {
  const int64_t bytes = DTypeBytes(static_cast<DType>(options_.kv_dtype));
  const auto copy_head = [&](void* base, int64_t page, int64_t token, int64_t at) {
    char* const head = static_cast<char*>(base) + at * bytes;
    return device_->Copy(
        head + copy.dst * page * bytes, head + copy.src * page * bytes,
        {options_.head_dim * bytes, copy.num_tokens, token * bytes, token * bytes});
  };
  for (const KvView& view : layers_) {
    for (int32_t head = 0; head < options_.num_kv_heads; ++head) {
      SEMKV_RETURN_IF_ERROR(copy_head(view.k, view.k_page, view.k_token, head * view.k_head));
      SEMKV_RETURN_IF_ERROR(copy_head(view.v, view.v_page, view.v_token, head * view.v_head));
    }
  }
  return absl::OkStatus();
}

absl::Status Context::SetStream(void* stream) {
  if (device_ == nullptr) return absl::OkStatus();
  return device_->SetStream(stream);
}

absl::Status Context::Reset() {
  SEMKV_ASSIGN_OR_RETURN(std::unique_ptr<BlockManager> pages, MakeBlockManager());
  for (int32_t layer = 0; layer < options_.num_layers; ++layer) {
    if (options_.borrow_storage == 0) {
      SEMKV_ASSIGN_OR_RETURN(layers_[layer], pages->View(layer));
    } else if (layers_[layer].k != nullptr) {
      SEMKV_RETURN_IF_ERROR(pages->SetView(layer, layers_[layer]));
    }
  }
  sequences_.clear();
  pages_ = std::move(pages);
  return absl::OkStatus();
}

// Kernels read rows 16 bytes at a time.
absl::Status Context::CheckAligned(const KvView& view) const {
  constexpr int64_t kAlignment = 16;
  const int64_t bytes = DTypeBytes(static_cast<DType>(options_.kv_dtype));
  const auto address = [](const void* p) {
    return static_cast<int64_t>(reinterpret_cast<uintptr_t>(p) % kAlignment);
  };
  for (const auto& [name, value] :
       {std::pair{"k", address(view.k)}, std::pair{"v", address(view.v)},
        std::pair{"k_page", view.k_page * bytes}, std::pair{"k_head", view.k_head * bytes},
        std::pair{"k_token", view.k_token * bytes}, std::pair{"v_page", view.v_page * bytes},
        std::pair{"v_head", view.v_head * bytes}, std::pair{"v_token", view.v_token * bytes}}) {
    if (value % kAlignment == 0) continue;
    return absl::InvalidArgumentError(absl::StrCat("view.", name, " is ", value % kAlignment,
                                                   " bytes past a multiple of ", kAlignment,
                                                   ", which a device's pool needs"));
  }
  return absl::OkStatus();
}

absl::Status Context::RegisterKv(int32_t layer, const KvView& view) {
  if (options_.borrow_storage == 0) {
    return absl::FailedPreconditionError(
        "the context owns its storage; set options.borrow_storage to lend it the engine's");
  }
  if (layer < 0 || layer >= options_.num_layers) {
    return absl::OutOfRangeError(
        absl::StrCat("layer ", layer, " is not in [0, ", options_.num_layers, ")"));
  }
  KvView full = view;
  full.page_tokens = options_.page_tokens;
  full.num_pages = options_.num_pages;
  full.dtype = static_cast<DType>(options_.kv_dtype);
  if (device_ != nullptr) SEMKV_RETURN_IF_ERROR(CheckAligned(view));
  SEMKV_RETURN_IF_ERROR(CheckScale("view.k_scale", view.k_scale, options_.kv_dtype));
  SEMKV_RETURN_IF_ERROR(CheckScale("view.v_scale", view.v_scale, options_.kv_dtype));
  full.k_scale = ScaleOrOne(view.k_scale);
  full.v_scale = ScaleOrOne(view.v_scale);
  SEMKV_RETURN_IF_ERROR(pages_->SetView(layer, full));
  layers_[layer] = full;
  return absl::OkStatus();
}

absl::StatusOr<semkv_sequence> Context::CreateSequence(uint64_t salt) {
  SEMKV_RETURN_IF_ERROR(CheckStorage());
  SEMKV_ASSIGN_OR_RETURN(const semkv_sequence sequence, pages_->CreateSequence(salt));
  auto state = std::make_unique<IndexedSequence>(boundaries_.get(), options_);
  state->closes.reserve(options_.max_sequence_tokens);
  sequences_.emplace(sequence, std::move(state));
  // Without a vocabulary there are no sentences to cut; clusters need only keys.
  const int32_t kind = boundaries_ != nullptr ? SEMKV_POLICY_HYBRID : SEMKV_POLICY_CLUSTER;
  SEMKV_RETURN_IF_ERROR(SetPolicy(sequence, DefaultPolicy(kind)));
  return sequence;
}

absl::StatusOr<int32_t> Context::SharePrefix(semkv_sequence sequence,
                                             absl::Span<const int32_t> ids) {
  SEMKV_ASSIGN_OR_RETURN(IndexedSequence * state, FindSequence(sequence));
  SEMKV_ASSIGN_OR_RETURN(const int32_t shared, pages_->SharePrefix(sequence, ids));
  if (boundaries_ != nullptr) state->scanner.Feed(ids.subspan(0, shared), &state->closes);
  state->num_tokens += shared;
  return shared;
}

absl::Status Context::Append(semkv_sequence sequence, int32_t num_tokens, const int32_t* ids,
                             int32_t* slots) {
  SEMKV_ASSIGN_OR_RETURN(IndexedSequence * state, FindSequence(sequence));
  if (num_tokens > options_.max_sequence_tokens) {
    return absl::OutOfRangeError(absl::StrCat("append of ", num_tokens,
                                              " tokens, max_sequence_tokens is ",
                                              options_.max_sequence_tokens));
  }
  slots_scratch_.resize(num_tokens);
  const absl::Span<const int32_t> span =
      ids != nullptr ? absl::MakeConstSpan(ids, num_tokens) : absl::Span<const int32_t>();
  SEMKV_ASSIGN_OR_RETURN(const PageCopy copy,
                         pages_->Append(sequence, span, absl::MakeSpan(slots_scratch_)));
  if (device_ != nullptr && copy.num_tokens > 0) SEMKV_RETURN_IF_ERROR(CopyOnDevice(copy));
  if (slots != nullptr) std::copy(slots_scratch_.begin(), slots_scratch_.end(), slots);
  AddTokens(num_tokens, ids, state);
  return absl::OkStatus();
}

absl::Status Context::AppendPages(semkv_sequence sequence, int32_t num_tokens, const int32_t* ids,
                                  absl::Span<const int32_t> pages) {
  SEMKV_ASSIGN_OR_RETURN(IndexedSequence * state, FindSequence(sequence));
  SEMKV_RETURN_IF_ERROR(pages_->AppendPages(sequence, num_tokens, pages));
  AddTokens(num_tokens, ids, state);
  return absl::OkStatus();
}

absl::Status Context::ForgetPages(absl::Span<const int32_t> pages) {
  if (options_.engine_pages == 0) {
    return absl::FailedPreconditionError(
        "semkv_pages_forget without options.engine_pages: the context knows its pages' content");
  }
  return pages_->ForgetPages(pages);
}

void Context::AddTokens(int32_t num_tokens, const int32_t* ids, IndexedSequence* state) const {
  if (boundaries_ != nullptr && ids != nullptr) {
    state->scanner.Feed(absl::MakeConstSpan(ids, num_tokens), &state->closes);
  } else if (boundaries_ != nullptr) {
    // Unknown tokens close nothing; only the cap cuts them.
    constexpr int32_t kUnknown = -1;
    for (int32_t i = 0; i < num_tokens; ++i) {
      state->scanner.Feed(absl::MakeConstSpan(&kUnknown, 1), &state->closes);
    }
  }
  state->num_tokens += num_tokens;
}

absl::StatusOr<int32_t> Context::ShareLists(semkv_sequence sequence, semkv_sequence from) {
  SEMKV_ASSIGN_OR_RETURN(IndexedSequence * state, FindSequence(sequence));
  SEMKV_ASSIGN_OR_RETURN(const IndexedSequence* donor, FindSequence(from));
  if (state->index.has_lists()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "sequence ", sequence, " has ", state->index.num_segments(), " segments, must have none"));
  }
  if (!UsesLists(state->policy) || KeepsTokens(state->policy) ||
      !SameLists(state->policy, donor->policy)) {
    return 0;
  }
  const absl::Span<const int32_t> pages = SequencePages(sequence), others = SequencePages(from);
  const auto differing = std::mismatch(pages.begin(), pages.end(), others.begin(), others.end());
  const auto num_common = static_cast<int32_t>(differing.first - pages.begin());
  const int32_t end =
      std::min({num_common * options_.page_tokens, state->num_tokens, donor->num_tokens});
  state->index_version = ++last_index_version_;
  return state->index.AdoptSegments(donor->index, end);
}

absl::StatusOr<semkv_sequence> Context::Fork(semkv_sequence sequence) {
  SEMKV_ASSIGN_OR_RETURN(IndexedSequence * parent, FindSequence(sequence));
  SEMKV_RETURN_IF_ERROR(MarkWritten(sequence, parent));
  SEMKV_ASSIGN_OR_RETURN(const semkv_sequence fork, pages_->Fork(sequence));
  auto state = std::make_unique<IndexedSequence>(*parent);
  state->closes.reserve(options_.max_sequence_tokens);
  sequences_.emplace(fork, std::move(state));
  return fork;
}

absl::Status Context::Release(semkv_sequence sequence) {
  SEMKV_RETURN_IF_ERROR(FindSequence(sequence).status());
  SEMKV_RETURN_IF_ERROR(pages_->Release(sequence));
  sequences_.erase(sequence);
  return absl::OkStatus();
}

absl::Span<const int32_t> Context::SequencePages(semkv_sequence sequence) const {
  const absl::StatusOr<SequenceView> view = pages_->GetSequence(sequence);
  if (!view.ok()) return {};
  return absl::MakeConstSpan(view->pages, view->num_pages);
}

absl::Status Context::MarkWritten(semkv_sequence sequence, IndexedSequence* state) {
  SEMKV_RETURN_IF_ERROR(pages_->MarkWritten(sequence, state->num_tokens));
  if (boundaries_ == nullptr) return absl::OkStatus();
  const absl::Span<const int32_t> pages = SequencePages(sequence);
  const int32_t page_tokens = options_.page_tokens;
  const int32_t num_known = static_cast<int32_t>(state->closes.size());
  for (; (state->num_tagged_pages + 1) * page_tokens <= num_known; ++state->num_tagged_pages) {
    const int32_t page = pages[state->num_tagged_pages];
    const auto first = state->closes.begin() + int64_t{state->num_tagged_pages} * page_tokens;
    const auto end = first + page_tokens;
    const int32_t closed =
        static_cast<int32_t>(std::count_if(first, end, [](uint8_t c) { return c != 0; }));
    SEMKV_ASSIGN_OR_RETURN(PageState found, pages_->GetPage(page));
    found.tag.first_sentence = state->num_tagged_closes;
    found.tag.num_sentences = closed + (*(end - 1) != 0 ? 0 : 1);
    SEMKV_RETURN_IF_ERROR(pages_->SetTag(page, found.tag));
    state->num_tagged_closes += closed;
  }
  return absl::OkStatus();
}

absl::Status Context::NoteSparse(semkv_sequence sequence, IndexedSequence* state) {
  if (state->sparse) return absl::OkStatus();
  SEMKV_RETURN_IF_ERROR(pages_->SetProvenance(sequence, Provenance::kSparse));
  const int32_t page = SequencePages(sequence).back();
  SEMKV_ASSIGN_OR_RETURN(PageState found, pages_->GetPage(page));
  found.tag.provenance = Worse(found.tag.provenance, Provenance::kSparse);
  SEMKV_RETURN_IF_ERROR(pages_->SetTag(page, found.tag));
  state->sparse = true;
  return absl::OkStatus();
}

absl::StatusOr<semkv_page_tag> Context::GetPageTag(int32_t page) const {
  if (page < 0 || page >= options_.num_pages) {
    return absl::OutOfRangeError(
        absl::StrCat("page ", page, " is not in [0, ", options_.num_pages, ")"));
  }
  SEMKV_ASSIGN_OR_RETURN(const PageState state, pages_->GetPage(page));
  semkv_page_tag tag = {};
  tag.struct_size = sizeof(tag);
  tag.first_sentence = state.tag.first_sentence;
  tag.num_sentences = state.tag.num_sentences;
  tag.cluster = state.tag.cluster;
  tag.first_position = state.tag.first_position;
  tag.fill = state.tag.fill;
  tag.provenance = static_cast<int32_t>(state.tag.provenance);
  tag.generation = state.tag.generation;
  return tag;
}

absl::StatusOr<semkv_sequence_info> Context::SequenceInfo(semkv_sequence sequence) const {
  SEMKV_ASSIGN_OR_RETURN(const IndexedSequence* state, FindSequence(sequence));
  semkv_sequence_info info = {};
  info.struct_size = sizeof(info);
  info.num_tokens = state->num_tokens;
  info.num_indexed = std::min(state->num_tokens, state->index.reachable_end());
  info.num_segments = state->index.num_segments();
  info.num_lists = state->index.num_lists();
  info.index_bytes = state->index.bytes();
  info.index_reserved_bytes = state->index.reserved_bytes();
  if (state->kept != nullptr) {
    info.num_lists += state->kept->num_lists();
    info.index_bytes += state->kept->bytes();
    info.index_reserved_bytes += state->kept->reserved_bytes();
    info.num_hidden = state->kept->num_tokens() - state->kept->num_kept();
  }
  info.kv_bytes = int64_t{2} * state->num_tokens * options_.num_layers * options_.num_kv_heads *
                  options_.head_dim * DTypeBytes(static_cast<DType>(options_.kv_dtype));
  return info;
}

semkv_stats Context::Stats() const {
  semkv_stats stats = counters_;
  stats.struct_size = sizeof(stats);
  const BlockManagerStats pages = pages_->Stats();
  stats.pages_free = pages.num_free_pages;
  stats.pages_used = pages.num_pages - pages.num_free_pages;
  stats.pages_cached = pages.num_cached_pages;
  stats.pages_copied = pages.num_copies;
  stats.prefix_hit_tokens = pages.num_prefix_hits * options_.page_tokens;
  return stats;
}

std::string Context::Explain() const {
  const semkv_stats stats = Stats();
  std::string text = absl::StrCat(
      "semkv ", SEMKV_VERSION_STRING, ", ", device_ != nullptr ? device_->name() : "host backend",
      ", ", options_.num_threads, " threads\n", "model: ", options_.num_layers, " layers, ",
      options_.num_heads, " heads, ", options_.num_kv_heads, " KV heads, head_dim ",
      options_.head_dim, "\n", "pool: ", options_.num_pages, " pages of ", options_.page_tokens,
      " tokens, ", stats.pages_free, " free, ", options_.borrow_storage != 0 ? "borrowed" : "owned",
      options_.engine_pages != 0 ? ", pages chosen by the engine" : "", "\n",
      "vocabulary: ", boundaries_ != nullptr ? "set" : "not set, no sentences", "\n", "rows:");
  for (int32_t reason = 0; reason < SEMKV_NUM_ROW_REASONS; ++reason) {
    absl::StrAppend(&text, " ", RowReasonName(reason), " ", stats.layer_rows[reason]);
  }
  std::vector<semkv_sequence> ids;
  for (const auto& [id, state] : sequences_) ids.push_back(id);
  std::sort(ids.begin(), ids.end());
  for (const semkv_sequence id : ids) {
    const IndexedSequence& state = *sequences_.at(id);
    absl::StrAppend(&text, "\nsequence ", id, ": ", state.num_tokens, " tokens, policy ",
                    PolicyName(state.policy.kind), ", budget ", state.policy.budget, ", ",
                    state.index.num_segments(), " segments, ", state.index.num_lists(),
                    " lists in ", state.index.bytes(), " bytes");
    if (state.kept == nullptr) continue;
    absl::StrAppend(&text, "; keeps ", state.kept->num_kept(), " of ", state.kept->num_tokens(),
                    " prompt tokens per query head, ", state.kept->num_lists(), " lists in ",
                    state.kept->bytes(), " bytes");
  }
  return absl::StrCat(text, "\n");
}

}  // namespace semkv
