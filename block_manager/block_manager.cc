#include "block_manager/block_manager.h"

#include <algorithm>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"

namespace semkv {
namespace {

absl::Status UnknownSequence(SequenceId id) {
  return absl::NotFoundError(absl::StrCat("sequence ", id, " is unknown"));
}

absl::Status TooManySequences(const SequenceTable& sequences) {
  return absl::ResourceExhaustedError(absl::StrCat("need 1 sequence, ", sequences.num_sequences(),
                                                   " of ", sequences.max_sequences(), " in use"));
}

bool IsKnown(Provenance provenance) {
  return provenance >= Provenance::kExact && provenance <= Provenance::kFuzzy;
}

// No sequence can hold more pages than there are, whatever its limit.
int32_t MaxPages(const BlockManagerOptions& options, const KvShape& shape) {
  const int64_t pages = CeilDiv<int64_t>(options.max_sequence_tokens, shape.page_tokens);
  return static_cast<int32_t>(std::min<int64_t>(pages, shape.num_pages));
}

}  // namespace

absl::StatusOr<std::unique_ptr<BlockManager>> BlockManager::Create(
    const BlockManagerOptions& options, KvStorage storage) {
  if (options.max_sequences <= 0 || options.max_sequence_tokens <= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_sequences is ", options.max_sequences, ", max_sequence_tokens ",
                     options.max_sequence_tokens, "; both must be positive"));
  }
  if (options.engine_pages && options.enable_prefix_sharing) {
    return absl::InvalidArgumentError(
        "enable_prefix_sharing with engine_pages: an engine that chooses pages shares them itself");
  }
  const KvShape shape = storage.shape();
  // The containers report missing memory by an exception, which must not leave this room.
  try {
    return std::unique_ptr<BlockManager>(new BlockManager(options, std::move(storage)));
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "no memory for the tables of ", shape.num_pages, " pages and ", options.max_sequences,
        " sequences of ", options.max_sequence_tokens, " tokens"));
  }
}

BlockManager::BlockManager(const BlockManagerOptions& options, KvStorage storage)
    : options_(options),
      shape_(storage.shape()),
      storage_(std::move(storage)),
      pool_(shape_.num_pages),
      sequences_(options.max_sequences, MaxPages(options, shape_)),
      prefixes_(options.enable_prefix_sharing
                    ? std::make_unique<PrefixTable>(shape_.num_pages, shape_.page_tokens)
                    : nullptr) {}

absl::Status BlockManager::SetView(int32_t layer, const KvView& view) {
  MutexLock lock(&mutex_);
  return storage_.SetView(layer, view);
}

absl::StatusOr<KvView> BlockManager::View(int32_t layer) const {
  MutexLock lock(&mutex_);
  if (layer < 0 || layer >= shape_.num_layers) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer ", layer, " of a model of ", shape_.num_layers, " layers"));
  }
  if (storage_.view(layer).k == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat("layer ", layer, " has no memory yet"));
  }
  return storage_.view(layer);
}

absl::StatusOr<SequenceId> BlockManager::CreateSequence(uint64_t salt) {
  MutexLock lock(&mutex_);
  if (!storage_.is_complete()) {
    return absl::FailedPreconditionError(
        absl::StrCat(storage_.num_layers_set(), " of ", shape_.num_layers, " layers have memory"));
  }
  SequenceState* state = sequences_.Create();
  if (state == nullptr) return TooManySequences(sequences_);
  state->salt = salt;
  state->chain = PrefixRoot(salt);
  state->num_downgrades = num_downgrades_;
  return state->id;
}

absl::StatusOr<int32_t> BlockManager::SharePrefix(SequenceId sequence,
                                                  absl::Span<const int32_t> ids) {
  MutexLock lock(&mutex_);
  SequenceState* state = sequences_.Find(sequence);
  if (state == nullptr) return UnknownSequence(sequence);
  if (state->num_tokens > 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("sequence ", sequence, " has ", state->num_tokens, " tokens, must be empty"));
  }
  if (ids.size() > static_cast<size_t>(options_.max_sequence_tokens)) {
    return absl::OutOfRangeError(absl::StrCat("a prompt of ", ids.size(), " tokens, at most ",
                                              options_.max_sequence_tokens));
  }
  if (prefixes_ == nullptr || ids.empty()) return 0;
  const int32_t most = static_cast<int32_t>(ids.size() - 1) / shape_.page_tokens;
  int32_t& index = state->num_chained;
  for (; index < most; ++index) {
    const auto page_ids =
        ids.subspan(static_cast<size_t>(index) * shape_.page_tokens, shape_.page_tokens);
    const PrefixKey key{.salt = state->salt,
                        .parent = state->chain,
                        .hash = PrefixHash(state->chain, page_ids),
                        .page_index = index};
    const int32_t page = prefixes_->Find(key, page_ids);
    if (page < 0) break;
    pool_.Ref(page);
    state->pages[index] = page;
    state->chain = key.hash;
  }
  counters_.num_prefix_hits += index;
  counters_.num_prefix_misses += most - index;
  // A cached page is EXACT, so nothing earlier needs another look.
  state->num_downgrades = num_downgrades_;
  state->num_tokens = index * shape_.page_tokens;
  state->num_written = state->num_known_ids = state->num_tokens;
  return state->num_tokens;
}

bool BlockManager::SharesLastPage(const SequenceState& state) const {
  if (state.num_tokens % shape_.page_tokens == 0) return false;
  return pool_.num_references(state.pages[state.num_tokens / shape_.page_tokens]) > 1;
}

absl::Status BlockManager::CheckAppend(const SequenceState& state, size_t num_ids,
                                       size_t num_tokens, bool needs_copy) {
  if (num_ids != 0 && num_ids != num_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat(num_ids, " ids for ", num_tokens, " tokens; give all or none"));
  }
  if (num_tokens > static_cast<size_t>(options_.max_sequence_tokens - state.num_tokens)) {
    return absl::OutOfRangeError(absl::StrCat("sequence of ", state.num_tokens, " tokens and ",
                                              num_tokens, " more, at most ",
                                              options_.max_sequence_tokens));
  }
  const int64_t tokens = state.num_tokens + static_cast<int64_t>(num_tokens);
  const int64_t need = CeilDiv<int64_t>(tokens, shape_.page_tokens) -
                       CeilDiv<int64_t>(state.num_tokens, shape_.page_tokens) + needs_copy;
  if (need <= pool_.num_free()) return absl::OkStatus();
  ++counters_.num_refusals;
  return absl::ResourceExhaustedError(absl::StrCat("need ", need, " pages, ", pool_.num_free(),
                                                   " free, ", pool_.num_pinned(), " pinned"));
}

absl::StatusOr<PageCopy> BlockManager::Append(SequenceId sequence, absl::Span<const int32_t> ids,
                                              absl::Span<int32_t> slots) {
  PageCopy copy;
  {
    MutexLock lock(&mutex_);
    SequenceState* state = sequences_.Find(sequence);
    if (state == nullptr) return UnknownSequence(sequence);
    if (options_.engine_pages) {
      return absl::FailedPreconditionError("an engine chooses the pages; append with them");
    }
    const bool needs_copy = !slots.empty() && SharesLastPage(*state);
    const absl::Status status = CheckAppend(*state, ids.size(), slots.size(), needs_copy);
    if (!status.ok()) return status;
    if (needs_copy) copy = ReplaceLastPage(*state);
    Extend(*state, ids, slots);
  }
  if (copy.src < 0) return copy;
  // Without the lock: nobody else knows dst yet, and nobody writes src while we hold a reference.
  if (storage_.access() == KvAccess::kHost) storage_.CopyPage(copy.src, copy.dst, copy.num_tokens);
  MutexLock lock(&mutex_);
  pool_.Unref(copy.src);
  return copy;
}

int32_t BlockManager::TakePage() {
  const int32_t page = pool_.NextVictim();
  if (pool_.is_cached(page)) {
    prefixes_->Remove(page);
    ++counters_.num_evictions;
  }
  return pool_.Allocate();
}

PageCopy BlockManager::ReplaceLastPage(SequenceState& state) {
  int32_t& last = state.pages[state.num_tokens / shape_.page_tokens];
  const PageCopy copy{
      .src = last, .dst = TakePage(), .num_tokens = state.num_tokens % shape_.page_tokens};
  const uint64_t generation = pool_.tag(copy.dst).generation;
  pool_.mutable_tag(copy.dst) = pool_.tag(copy.src);
  pool_.mutable_tag(copy.dst).generation = generation;
  if (prefixes_ != nullptr) {
    const absl::Span<const int32_t> ids = prefixes_->ids(copy.src);
    std::copy_n(ids.begin(), copy.num_tokens, prefixes_->ids(copy.dst).begin());
  }
  last = copy.dst;
  ++counters_.num_copies;
  return copy;
}

void BlockManager::Extend(SequenceState& state, absl::Span<const int32_t> ids,
                          absl::Span<int32_t> slots) {
  const int32_t page_tokens = shape_.page_tokens;
  const bool keeps_ids =
      prefixes_ != nullptr && !ids.empty() && state.num_known_ids == state.num_tokens;
  for (size_t done = 0; done < slots.size();) {
    const int32_t offset = state.num_tokens % page_tokens;
    int32_t& page = state.pages[state.num_tokens / page_tokens];
    if (offset == 0) {
      page = TakePage();
      pool_.mutable_tag(page).first_position = state.num_tokens;
    }
    const size_t count = std::min<size_t>(page_tokens - offset, slots.size() - done);
    for (size_t i = 0; i < count; ++i) {
      slots[done + i] = page * page_tokens + offset + static_cast<int32_t>(i);
    }
    if (keeps_ids) std::copy_n(ids.begin() + done, count, prefixes_->ids(page).begin() + offset);
    PageTag& tag = pool_.mutable_tag(page);
    tag.fill = offset + static_cast<int32_t>(count);
    tag.provenance = Worse(tag.provenance, state.provenance);
    state.num_tokens += static_cast<int32_t>(count);
    done += count;
  }
  if (keeps_ids) state.num_known_ids = state.num_tokens;
}

absl::Status BlockManager::AppendPages(SequenceId sequence, int32_t num_tokens,
                                       absl::Span<const int32_t> pages) {
  if (!options_.engine_pages) {
    return absl::FailedPreconditionError("pages are chosen here, not by an engine");
  }
  MutexLock lock(&mutex_);
  SequenceState* state = sequences_.Find(sequence);
  if (state == nullptr) return UnknownSequence(sequence);
  const int32_t page_tokens = shape_.page_tokens;
  // Pages may repeat, so the pool's size does not bound a block table.
  const int64_t most = std::min<int64_t>(options_.max_sequence_tokens,
                                         int64_t{sequences_.max_pages()} * page_tokens);
  if (num_tokens < 0 || num_tokens > most - state->num_tokens) {
    return absl::OutOfRangeError(absl::StrCat("sequence of ", state->num_tokens, " tokens and ",
                                              num_tokens, " more, at most ", most));
  }
  const int32_t old_pages = CeilDiv(state->num_tokens, page_tokens);
  const int32_t num_pages = CeilDiv(state->num_tokens + num_tokens, page_tokens);
  if (pages.size() != static_cast<size_t>(num_pages - old_pages)) {
    return absl::InvalidArgumentError(absl::StrCat(pages.size(), " pages for ", num_tokens,
                                                   " tokens after ", state->num_tokens, ", need ",
                                                   num_pages - old_pages));
  }
  if (absl::Status status = pool_.CheckRange(pages); !status.ok()) return status;
  for (int32_t page : pages) pool_.Ref(page);
  std::copy(pages.begin(), pages.end(), state->pages + old_pages);
  state->num_tokens += num_tokens;
  for (int32_t i = (state->num_tokens - num_tokens) / page_tokens; i < num_pages; ++i) {
    PageTag& tag = pool_.mutable_tag(state->pages[i]);
    state->provenance = Worse(state->provenance, tag.provenance);
    tag.provenance = state->provenance;
    tag.first_position = i * page_tokens;
    tag.fill = std::max(tag.fill, std::min(page_tokens, state->num_tokens - i * page_tokens));
  }
  return absl::OkStatus();
}

absl::Status BlockManager::MarkWritten(SequenceId sequence, int32_t num_tokens) {
  MutexLock lock(&mutex_);
  SequenceState* state = sequences_.Find(sequence);
  if (state == nullptr) return UnknownSequence(sequence);
  if (num_tokens < 0 || num_tokens > state->num_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat(num_tokens, " tokens written of ", state->num_tokens));
  }
  state->num_written = std::max(state->num_written, num_tokens);
  Publish(*state);
  return absl::OkStatus();
}

bool BlockManager::IsChainIntact(SequenceState& state) const {
  if (state.is_chain_broken || state.num_downgrades == num_downgrades_) {
    return !state.is_chain_broken;
  }
  state.num_downgrades = num_downgrades_;
  for (int32_t i = 0; i < state.num_chained; ++i) {
    if (pool_.tag(state.pages[i]).provenance != Provenance::kExact) state.is_chain_broken = true;
  }
  return !state.is_chain_broken;
}

void BlockManager::Publish(SequenceState& state) {
  if (prefixes_ == nullptr) return;
  const int32_t end = std::min(state.num_written, state.num_known_ids) / shape_.page_tokens;
  if (state.num_chained >= end || !IsChainIntact(state)) return;
  for (; state.num_chained < end; ++state.num_chained) {
    const int32_t page = state.pages[state.num_chained];
    if (pool_.tag(page).provenance != Provenance::kExact) {
      state.is_chain_broken = true;
      return;
    }
    const PrefixKey key{.salt = state.salt,
                        .parent = state.chain,
                        .hash = PrefixHash(state.chain, prefixes_->ids(page)),
                        .page_index = state.num_chained};
    // An equal page that is there already stays; block tables only grow at their end, so ours is
    // not exchanged for it (vLLM's choice as well).
    if (prefixes_->Insert(page, key)) pool_.SetCached(page);
    state.chain = key.hash;
  }
}

void BlockManager::Unpublish(int32_t page) {
  if (!pool_.is_cached(page)) return;
  prefixes_->Remove(page);
  pool_.ClearCached(page);
}

absl::Status BlockManager::SetProvenance(SequenceId sequence, Provenance provenance) {
  if (!IsKnown(provenance)) {
    return absl::InvalidArgumentError(
        absl::StrCat("provenance ", static_cast<int32_t>(provenance), " is unknown"));
  }
  MutexLock lock(&mutex_);
  SequenceState* state = sequences_.Find(sequence);
  if (state == nullptr) return UnknownSequence(sequence);
  state->provenance = Worse(state->provenance, provenance);
  return absl::OkStatus();
}

absl::StatusOr<SequenceId> BlockManager::Fork(SequenceId parent) {
  MutexLock lock(&mutex_);
  const SequenceState* from = sequences_.Find(parent);
  if (from == nullptr) return UnknownSequence(parent);
  if (from->num_written < from->num_tokens) {
    return absl::FailedPreconditionError(absl::StrCat("sequence ", parent, " has ",
                                                      from->num_tokens, " tokens, only ",
                                                      from->num_written, " are written"));
  }
  SequenceState* child = sequences_.Create();
  if (child == nullptr) return TooManySequences(sequences_);
  const SequenceState fresh = *child;
  *child = *from;
  child->id = fresh.id;
  child->pages = fresh.pages;
  const int32_t num_pages = CeilDiv<int64_t>(from->num_tokens, shape_.page_tokens);
  for (int32_t i = 0; i < num_pages; ++i) {
    child->pages[i] = from->pages[i];
    pool_.Ref(from->pages[i]);
  }
  return child->id;
}

absl::Status BlockManager::Release(SequenceId sequence) {
  MutexLock lock(&mutex_);
  SequenceState* state = sequences_.Find(sequence);
  if (state == nullptr) return UnknownSequence(sequence);
  // Backwards: a prefix is worth more than what follows it, so it joins the free list last.
  const int32_t num_pages = CeilDiv<int64_t>(state->num_tokens, shape_.page_tokens);
  for (int32_t i = num_pages - 1; i >= 0; --i) pool_.Unref(state->pages[i]);
  sequences_.Remove(state);
  return absl::OkStatus();
}

absl::StatusOr<SequenceView> BlockManager::GetSequence(SequenceId sequence) const {
  MutexLock lock(&mutex_);
  const SequenceState* state = sequences_.Find(sequence);
  if (state == nullptr) return UnknownSequence(sequence);
  SequenceView view;
  view.pages = state->pages;
  view.num_pages = CeilDiv<int64_t>(state->num_tokens, shape_.page_tokens);
  view.num_tokens = state->num_tokens;
  view.num_written = state->num_written;
  view.provenance = state->provenance;
  return view;
}

absl::StatusOr<int32_t> BlockManager::BlockTable(SequenceId sequence,
                                                 absl::Span<int32_t> table) const {
  MutexLock lock(&mutex_);
  const SequenceState* state = sequences_.Find(sequence);
  if (state == nullptr) return UnknownSequence(sequence);
  const int32_t num_pages = CeilDiv<int64_t>(state->num_tokens, shape_.page_tokens);
  if (table.size() < static_cast<size_t>(num_pages)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a block table of ", num_pages, " entries, room for ", table.size()));
  }
  std::copy_n(state->pages, num_pages, table.begin());
  return num_pages;
}

absl::Status BlockManager::Pin(absl::Span<const int32_t> pages) {
  MutexLock lock(&mutex_);
  return pool_.Pin(pages);
}

absl::Status BlockManager::Unpin(absl::Span<const int32_t> pages) {
  MutexLock lock(&mutex_);
  return pool_.Unpin(pages);
}

absl::StatusOr<PageState> BlockManager::GetPage(int32_t page) const {
  MutexLock lock(&mutex_);
  if (absl::Status status = pool_.CheckRange({&page, 1}); !status.ok()) return status;
  PageState state;
  state.tag = pool_.tag(page);
  state.num_references = pool_.num_references(page);
  state.num_pins = pool_.num_pins(page);
  state.is_free = pool_.is_free(page);
  state.is_cached = pool_.is_cached(page);
  return state;
}

absl::Status BlockManager::SetTag(int32_t page, const PageTag& tag) {
  if (tag.fill < 0 || tag.fill > shape_.page_tokens || tag.num_sentences < 0 ||
      tag.first_sentence < -1 || tag.first_position < -1 || tag.cluster != -1 ||
      !IsKnown(tag.provenance)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tag of page ", page, " is out of range: fill ", tag.fill, " of ", shape_.page_tokens, ", ",
        tag.num_sentences, " sentences from ", tag.first_sentence, ", cluster ", tag.cluster,
        ", provenance ", static_cast<int32_t>(tag.provenance)));
  }
  MutexLock lock(&mutex_);
  if (absl::Status status = pool_.CheckRange({&page, 1}); !status.ok()) return status;
  PageTag& current = pool_.mutable_tag(page);
  if (tag.generation != current.generation) {
    return absl::FailedPreconditionError(absl::StrCat(
        "page ", page, " is of generation ", current.generation, ", the tag of ", tag.generation));
  }
  current.first_sentence = tag.first_sentence;
  current.num_sentences = tag.num_sentences;
  if (!pool_.holds_content(page)) {
    current.first_position = tag.first_position;
    current.fill = tag.fill;
  }
  if (Worse(current.provenance, tag.provenance) == current.provenance) return absl::OkStatus();
  if (current.provenance == Provenance::kExact) ++num_downgrades_;
  current.provenance = tag.provenance;
  Unpublish(page);
  return absl::OkStatus();
}

absl::Status BlockManager::ForgetPages(absl::Span<const int32_t> pages) {
  MutexLock lock(&mutex_);
  if (absl::Status status = pool_.CheckRange(pages); !status.ok()) return status;
  for (int32_t page : pages) {
    if (pool_.num_references(page) == 0) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        "page ", page, " is in ", pool_.num_references(page), " entries of block tables"));
  }
  for (int32_t page : pages) {
    if (pool_.is_cached(page)) prefixes_->Remove(page);
    pool_.Forget(page);
  }
  return absl::OkStatus();
}

BlockManagerStats BlockManager::Stats() const {
  MutexLock lock(&mutex_);
  BlockManagerStats stats = counters_;
  stats.num_pages = pool_.num_pages();
  stats.num_free_pages = pool_.num_free();
  stats.num_pinned_pages = pool_.num_pinned();
  stats.num_cached_pages = prefixes_ == nullptr ? 0 : prefixes_->size();
  stats.num_sequences = sequences_.num_sequences();
  return stats;
}

}  // namespace semkv
