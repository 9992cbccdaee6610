// The root object behind semkv_context: the only place that knows pages (block_manager), lists
// (faiss_index) and operations (csrc/ops) at once.
//
// Thread safety: callers hold mutex() for every call; the C ABI does (c_api.cc).

#ifndef SEMKV_API_CONTEXT_H_
#define SEMKV_API_CONTEXT_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "block_manager/block_manager.h"
#include "csrc/api/device.h"
#include "csrc/api/kept_prompt.h"
#include "csrc/api/open_sentence.h"
#include "csrc/api/query_window.h"
#include "csrc/api/sequence_index.h"
#include "csrc/ops/parallel/thread_pool.h"
#include "faiss_index/sentence_boundary.h"
#include "semkv/semkv.h"

namespace semkv {

// What semkv knows of a sequence beyond its pages.
struct IndexedSequence {
  IndexedSequence(const BoundaryTable* table, const semkv_options& o)
      : scanner(table), queries(o.query_window, o.num_layers, o.num_heads, o.head_dim) {}
  semkv_policy policy = {};  // struct_size 0: none was set yet
  SequenceIndex index;
  std::shared_ptr<const KeptPrompt> kept;  // the prompt's lists where tokens are put out of reach
  BoundaryScanner scanner;
  std::vector<uint8_t> closes;  // flags of the tokens whose fate is known
  int32_t num_tokens = 0;
  bool sparse = false;            // some token was computed under sparse attention
  int32_t num_tagged_pages = 0;   // pages whose tag knows its sentences
  int32_t num_tagged_closes = 0;  // sentences that end in them
  QueryWindow queries;
  OpenSentence open_sentence;  // kept while the policy has mean_query or warm_up
  uint64_t index_version = 0;  // another one whenever the lists of the context's index change
};

class Context {
 public:
  // `device` is where options.device says that keys and values are; null for the host.
  static absl::StatusOr<std::unique_ptr<Context>> Create(const semkv_options& options,
                                                         std::unique_ptr<Device> device = nullptr);

  absl::Status SetStream(void* stream);

  absl::Status Reset();
  absl::Status RegisterKv(int32_t layer, const KvView& view);
  absl::Status SetVocabulary(absl::Span<const absl::string_view> vocabulary);

  absl::StatusOr<semkv_sequence> CreateSequence(uint64_t salt);
  absl::Status SetPolicy(semkv_sequence sequence, const semkv_policy& policy);
  absl::StatusOr<int32_t> SharePrefix(semkv_sequence sequence, absl::Span<const int32_t> ids);
  absl::Status Append(semkv_sequence sequence, int32_t num_tokens, const int32_t* ids,
                      int32_t* slots);
  absl::Status AppendPages(semkv_sequence sequence, int32_t num_tokens, const int32_t* ids,
                           absl::Span<const int32_t> pages);
  absl::StatusOr<int32_t> ShareLists(semkv_sequence sequence, semkv_sequence from);
  absl::StatusOr<semkv_sequence> Fork(semkv_sequence sequence);
  absl::Status Release(semkv_sequence sequence);
  absl::Status WriteKv(int32_t layer, const semkv_write_args& args);
  absl::Status Index(semkv_sequence sequence);
  absl::Status Observe(semkv_sequence sequence);
  absl::StatusOr<semkv_page_tag> GetPageTag(int32_t page) const;
  absl::Status ForgetPages(absl::Span<const int32_t> pages);
  absl::StatusOr<semkv_sequence_info> SequenceInfo(semkv_sequence sequence) const;
  std::string Explain() const;
  int32_t DrainEvents(absl::Span<semkv_event> events);

  absl::StatusOr<IndexedSequence*> FindSequence(semkv_sequence sequence);
  absl::StatusOr<const IndexedSequence*> FindSequence(semkv_sequence sequence) const;

  absl::Mutex& mutex() { return mutex_; }
  const semkv_options& options() const { return options_; }
  BlockManager& pages() { return *pages_; }
  absl::Span<const KvView> layers() const { return layers_; }
  // The sequence's last token is computed under sparse attention: it and what follows is not EXACT.
  absl::Status NoteSparse(semkv_sequence sequence, IndexedSequence* state);
  // The pages of a sequence that exists; valid until it is released.
  absl::Span<const int32_t> SequencePages(semkv_sequence sequence) const;
  ThreadPool& pool() { return *pool_; }
  Device* device() { return device_.get(); }  // null: the host
  semkv_stats& counters() { return counters_; }
  semkv_stats Stats() const;
  // Longest block table of a sequence, in pages.
  int32_t max_pages() const { return CeilDiv(options_.max_sequence_tokens, options_.page_tokens); }

 private:
  explicit Context(const semkv_options& options) : options_(options) {}
  absl::StatusOr<std::unique_ptr<BlockManager>> MakeBlockManager();
  absl::Status CheckStorage() const;
  // What is known of tokens that have their pages. `ids` may be null: none is known.
  void AddTokens(int32_t num_tokens, const int32_t* ids, IndexedSequence* state) const;
  // All layers of the sequence's tokens are written: full pages may be offered to other sequences,
  // unless they were computed under sparse attention, and their tags learn their sentences.
  absl::Status MarkWritten(semkv_sequence sequence, IndexedSequence* state);
  KeySource MakeKeySource(semkv_sequence sequence);
  // Memory of the device for every layer, lent to `storage`.
  absl::Status AllocateOnDevice(KvStorage* storage);
  // The last page of a sequence, which it shared, in every layer.
  absl::Status CopyOnDevice(const PageCopy& copy);
  absl::Status CheckAligned(const KvView& view) const;
  // After lists were `built` on a device, if any `changed`. If that failed the sequence has no
  // lists any more: some may be there in part.
  absl::Status FinishLists(absl::Status built, bool changed, IndexedSequence* state);
  // Can the context serve what the policy asks of it?
  absl::Status CheckPolicy(const semkv_policy& policy) const;
  void StartOpenSentence(IndexedSequence* state) const;
  // Flags of all tokens, the last one's as if the text ended here.
  void ResolveCloses(const IndexedSequence& state, std::vector<uint8_t>* closes) const;
  void AddEvent(int32_t kind, int64_t a, int64_t b, int64_t c);
  void AddIndexEvents(semkv_sequence sequence, const IndexedSequence& state,
                      const SequenceIndex::Progress& progress, int32_t num_before);

  absl::Mutex mutex_;
  semkv_options options_;
  std::unique_ptr<Device> device_;  // outlives all that is in its memory
  DeviceMemory kv_memory_;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<BlockManager> pages_;
  std::vector<KvView> layers_;  // k null until registered, when storage is borrowed
  std::unique_ptr<BoundaryTable> boundaries_;
  std::unique_ptr<IndexScratch> index_scratch_;
  std::vector<uint8_t> closes_scratch_;
  std::vector<int32_t> slots_scratch_;
  absl::flat_hash_map<semkv_sequence, std::unique_ptr<IndexedSequence>> sequences_;
  semkv_stats counters_ = {};
  uint64_t last_index_version_ = 0;
  std::vector<semkv_event> events_;  // ring
  size_t first_event_ = 0, num_events_ = 0;
  int64_t events_dropped_ = 0;
};

}  // namespace semkv

#endif  // SEMKV_API_CONTEXT_H_
