// A BlockManager gives every sequence the pages that hold its keys and values: it allocates them as
// tokens arrive, lets sequences share them (a fork shares everything, equal prompts their full
// pages), and copies a shared page before it is written (copy-on-write).
//
// It orders copies but never reads a key or a value, and it does not know what a list or a centroid
// is: what a query needs is asked of csrc/ops/retrieval, over the block tables given out here.
//
// A *position page* holds `page_tokens` consecutive tokens of one sequence, every KV head, in every
// layer; a *slot* is the place of one token, slot = page * page_tokens + offset (semkv/types.h). A
// page that is free may still be *cached*: its content is intact and a prefix hit takes it back,
// until the page is needed for something else, least recently freed first (page_pool.h).
//
// An engine that chooses pages itself (options.engine_pages) says with AppendPages which pages a
// sequence's tokens are in, and with ForgetPages when a page gets new content. Then nothing is
// allocated, copied or shared here.
//
// Thread safety: every method may be called from any thread; one mutex guards all of it, and is not
// held while bytes are copied. Calls on one sequence must not overlap.
//
// Allocations: Create reserves everything. Later calls allocate only the text of an error.
//
// Source: Kwon et al., "Efficient Memory Management for Large Language Model Serving with
// PagedAttention", SOSP 2023, section 4. Ours are the salts, the provenance, and that forks may
// outlive their parents.

#ifndef SEMKV_BLOCK_MANAGER_BLOCK_MANAGER_H_
#define SEMKV_BLOCK_MANAGER_BLOCK_MANAGER_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "block_manager/kv_storage.h"
#include "block_manager/mutex.h"
#include "block_manager/page_pool.h"
#include "block_manager/page_tag.h"
#include "block_manager/prefix_table.h"
#include "block_manager/sequence_table.h"
#include "semkv/types.h"

namespace semkv {

struct BlockManagerOptions {
  int32_t max_sequences = 0;        // at a time; required
  int32_t max_sequence_tokens = 0;  // per sequence; required
  bool enable_prefix_sharing = true;
  bool engine_pages = false;  // an engine chooses the pages; it shares prefixes itself
};

// A page whose first tokens must be, or have been, copied; both -1: no copy was needed.
struct PageCopy {
  int32_t src = -1;
  int32_t dst = -1;
  int32_t num_tokens = 0;
};

struct SequenceView {
  // [num_pages], the block table: physical pages in the order of positions. Owned by the manager;
  // the pointer stays the same until the sequence is released, the entries until the next Append.
  const int32_t* pages = nullptr;
  int32_t num_pages = 0;
  int32_t num_tokens = 0;
  int32_t num_written = 0;                     // tokens whose keys and values are in place
  Provenance provenance = Provenance::kExact;  // of tokens appended from now on
};

struct PageState {
  PageTag tag;
  int32_t num_references = 0;  // entries in block tables
  int32_t num_pins = 0;
  bool is_free = false;    // may be allocated: no reference and no pin
  bool is_cached = false;  // a prefix hit can find it
};

struct BlockManagerStats {
  // Now.
  int32_t num_pages = 0;
  int32_t num_free_pages = 0;    // cached ones included
  int32_t num_pinned_pages = 0;  // with at least one pin
  int32_t num_cached_pages = 0;  // in use or free
  int32_t num_sequences = 0;
  // Since creation, never decreasing.
  int64_t num_prefix_hits = 0;    // pages that SharePrefix adopted
  int64_t num_prefix_misses = 0;  // full pages that it looked for and did not find
  int64_t num_evictions = 0;      // cached pages given to something else
  int64_t num_copies = 0;         // pages copied before a write
  int64_t num_refusals = 0;       // Appends refused for want of pages
};

class BlockManager {
 public:
  // Takes over `storage` and reserves all bookkeeping memory: about 100 + 4 * page_tokens bytes per
  // page, and a block table of 4 bytes per page for each sequence at its limit.
  //
  // Errors: INVALID_ARGUMENT if a limit is not positive; RESOURCE_EXHAUSTED if the system has not
  // enough memory.
  static absl::StatusOr<std::unique_ptr<BlockManager>> Create(const BlockManagerOptions& options,
                                                              KvStorage storage);

  BlockManager(const BlockManager&) = delete;
  BlockManager& operator=(const BlockManager&) = delete;

  const KvShape& shape() const { return shape_; }
  const BlockManagerOptions& options() const { return options_; }

  // --- Memory ---

  // Lends an engine's memory to a layer: KvStorage::SetView, with its errors. Sequences can be
  // created once every layer has its view.
  absl::Status SetView(int32_t layer, const KvView& view);

  // Where layer `layer` keeps its keys and values.
  //
  // Errors: INVALID_ARGUMENT if `layer` is out of range; FAILED_PRECONDITION if it has no view yet.
  absl::StatusOr<KvView> View(int32_t layer) const;

  // --- Sequences ---

  // A new, empty sequence. Only sequences with equal salts share pages: derive the salt from a
  // secret and the tenant.
  //
  // Errors: RESOURCE_EXHAUSTED if max_sequences exist (release one, then retry);
  // FAILED_PRECONDITION if a layer has no view yet.
  absl::StatusOr<SequenceId> CreateSequence(uint64_t salt);

  // Adopts the cached pages that hold the longest prefix of the prompt `ids`, and returns how many
  // tokens they have: a multiple of page_tokens, less than ids.size(), so that at least one token
  // is left to compute; 0 if sharing is off. The adopted tokens count as appended and written;
  // the caller appends the rest. O(ids).
  //
  // Errors: NOT_FOUND if `sequence` is unknown; FAILED_PRECONDITION if it is not empty;
  // OUT_OF_RANGE if the prompt is longer than max_sequence_tokens.
  absl::StatusOr<int32_t> SharePrefix(SequenceId sequence, absl::Span<const int32_t> ids);

  // Makes room for `slots.size()` more tokens and writes their slots, oldest first. `ids` are the
  // tokens' ids, or empty: then neither these tokens nor later ones are offered to others.
  //
  // A partly filled last page that another sequence shares is replaced by a copy first. Host memory
  // has been copied on return. Of KvAccess::kDevice memory, the caller copies what is returned, in
  // all layers, before anything later is written on the same stream.
  //
  // All or nothing: on error neither the sequence nor `slots` changes.
  //
  // Errors: NOT_FOUND if `sequence` is unknown; INVALID_ARGUMENT if `ids` has another size;
  // OUT_OF_RANGE if the sequence would be longer than max_sequence_tokens; RESOURCE_EXHAUSTED if
  // too few pages are free (release or preempt a sequence, then retry); FAILED_PRECONDITION with
  // options.engine_pages.
  absl::StatusOr<PageCopy> Append(SequenceId sequence, absl::Span<const int32_t> ids,
                                  absl::Span<int32_t> slots);

  // Append where an engine chooses the pages: `num_tokens` more tokens, for which `pages` join the
  // block table, as many as it takes. Pages may be in other sequences' tables too; who writes a
  // page that is shared is the engine's business. A sequence that takes a page whose tag is not
  // EXACT is as inexact itself from there on. All or nothing.
  //
  // Errors: FAILED_PRECONDITION without options.engine_pages; NOT_FOUND if `sequence` is unknown;
  // INVALID_ARGUMENT if `pages` has another size or an id is out of range; OUT_OF_RANGE if the
  // sequence would be longer than max_sequence_tokens.
  absl::Status AppendPages(SequenceId sequence, int32_t num_tokens,
                           absl::Span<const int32_t> pages);

  // The keys and values of the first `num_tokens` tokens are in place, in every layer. Full pages
  // whose ids are known, and that are EXACT back to the first token, are offered to others from now
  // on. Never goes back: a smaller number than before changes nothing.
  //
  // Errors: NOT_FOUND if `sequence` is unknown; INVALID_ARGUMENT if it has fewer tokens.
  absl::Status MarkWritten(SequenceId sequence, int32_t num_tokens);

  // Tokens appended from now on are `provenance`, or worse if the sequence already was. What
  // follows a token that is not EXACT is not EXACT either, so there is no way back.
  //
  // Errors: NOT_FOUND if `sequence` is unknown; INVALID_ARGUMENT if `provenance` is unknown.
  absl::Status SetProvenance(SequenceId sequence, Provenance provenance);

  // A new sequence with the tokens, the salt and the provenance of `parent`, sharing all of its
  // pages. Neither ever sees what the other appends. O(pages).
  //
  // Errors: NOT_FOUND if `parent` is unknown; FAILED_PRECONDITION if a token of it is not written
  // (a copy of its last page would miss that token); RESOURCE_EXHAUSTED if max_sequences exist.
  absl::StatusOr<SequenceId> Fork(SequenceId parent);

  // Ends `sequence`. Its pages that nobody shares or pins become free, the last ones to be taken
  // first. O(pages).
  //
  // Errors: NOT_FOUND if `sequence` is unknown.
  absl::Status Release(SequenceId sequence);

  // Errors: NOT_FOUND if `sequence` is unknown.
  absl::StatusOr<SequenceView> GetSequence(SequenceId sequence) const;

  // Copies the block table into `table` and returns its number of entries; the rest of `table`
  // keeps its values.
  //
  // Errors: NOT_FOUND if `sequence` is unknown; INVALID_ARGUMENT if `table` is too short.
  absl::StatusOr<int32_t> BlockTable(SequenceId sequence, absl::Span<int32_t> table) const;

  // --- Pages ---

  // A pin is a promise that a page's content stays until Unpin: whoever read (page, generation)
  // earlier compares the generation after pinning. Ids may repeat, each entry is one pin. All or
  // nothing.
  //
  // Errors: INVALID_ARGUMENT if an id is out of range; FAILED_PRECONDITION (Unpin) if a page has
  // fewer pins than entries.
  absl::Status Pin(absl::Span<const int32_t> pages);
  absl::Status Unpin(absl::Span<const int32_t> pages);

  // Errors: INVALID_ARGUMENT if `page` is out of range.
  absl::StatusOr<PageState> GetPage(int32_t page) const;

  // Sets the sentences of `page`, and lowers its provenance to the worse of the two; a page that is
  // no longer EXACT is no longer offered to others. first_position and fill are set only on pages
  // that an engine manages itself; of others the manager knows them.
  //
  // Errors: INVALID_ARGUMENT if `page` or a field is out of range; FAILED_PRECONDITION if
  // `tag.generation` is not the page's (its content has changed since).
  absl::Status SetTag(int32_t page, const PageTag& tag);

  // An engine gives its pages new content: each gets an empty tag and the next generation, and is
  // not cached any more. Pins stay. All or nothing.
  //
  // Errors: INVALID_ARGUMENT if an id is out of range; FAILED_PRECONDITION if a sequence holds a
  // page.
  absl::Status ForgetPages(absl::Span<const int32_t> pages);

  BlockManagerStats Stats() const;

 private:
  BlockManager(const BlockManagerOptions& options, KvStorage storage);

  absl::Status CheckAppend(const SequenceState& sequence, size_t num_ids, size_t num_tokens,
                           bool needs_copy) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool SharesLastPage(const SequenceState& sequence) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  int32_t TakePage() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Puts a page of its own in the place of the last one; the sequence keeps its reference to the
  // old one until the caller has copied the bytes.
  PageCopy ReplaceLastPage(SequenceState& sequence) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Extend(SequenceState& sequence, absl::Span<const int32_t> ids, absl::Span<int32_t> slots)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool IsChainIntact(SequenceState& sequence) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Publish(SequenceState& sequence) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Unpublish(int32_t page) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const BlockManagerOptions options_;
  const KvShape shape_;
  // Written under the mutex while layers get their views. A sequence exists only after that, so a
  // copy for one may read it without.
  KvStorage storage_;

  mutable Mutex mutex_;
  PagePool pool_ ABSL_GUARDED_BY(mutex_);
  SequenceTable sequences_ ABSL_GUARDED_BY(mutex_);
  // Null if sharing is off. Holds exactly the pages that pool_ calls cached.
  const std::unique_ptr<PrefixTable> prefixes_ ABSL_PT_GUARDED_BY(mutex_);
  uint64_t num_downgrades_ ABSL_GUARDED_BY(mutex_) = 0;  // pages that SetTag found no longer EXACT
  BlockManagerStats counters_ ABSL_GUARDED_BY(mutex_);   // the monotonic ones only
};

}  // namespace semkv

#endif  // SEMKV_BLOCK_MANAGER_BLOCK_MANAGER_H_
