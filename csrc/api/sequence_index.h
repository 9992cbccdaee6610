// The inverted file of one sequence: sealed segments, immutable and shared by forks, and the tail,
// where decoded tokens are folded in as they arrive.
//
//   position:  0 .. sinks | segment | segment | ... | tail .................. | recent
//
// A segment covers at most recipe.segment_tokens tokens. In the tail, a closed sentence is a list
// at once, every kWindowTokens tokens are clustered on their own (ClusterKV, section III-D), and
// the tokens that neither has reached yet are in provisional lists of kProvisionalTokens tokens, so
// that nothing is ever out of reach. A full tail is repartitioned as segments: k-means of so many
// tokens takes long on a host, so a few cells are built with each of the kRepartitionTokens tokens
// that follow, which join the old tail, and the new lists replace its own when the last of these
// has come. What is selected depends on the number of tokens alone.
//
// Knows positions and keys; not policies at a decode step (step_plan.h), nor who owns pages.
//
// Thread safety: thread-compatible.

#ifndef SEMKV_API_SEQUENCE_INDEX_H_
#define SEMKV_API_SEQUENCE_INDEX_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "csrc/api/device.h"
#include "csrc/api/list_store.h"
#include "csrc/ops/parallel/thread_pool.h"
#include "faiss_index/partitioner.h"
#include "semkv/semkv.h"

namespace semkv {

constexpr int32_t kDefaultSegmentTokens = 8192;
constexpr int32_t kProvisionalTokens = 16;
constexpr int32_t kWindowTokens = 320;
constexpr int32_t kRepartitionTokens = 320;

// How tokens are clustered; `partitioner` was made of `options`.
struct ClusterRecipe {
  ClusterOptions options;
  std::shared_ptr<const Partitioner> partitioner;
};

// Which lists a policy builds, and how.
struct IndexRecipe {
  bool sentences = false;
  bool clusters = false;
  bool pages = false;       // every kProvisionalTokens tokens a list, in segments too
  bool provisional = true;  // provisional lists in the tail; else its end is always attended
  bool value_means = false;
  // Of two partitions the clusters have mean values: they are fewer, and estimate better.
  int32_t estimated_partition() const { return clusters ? 1 : 0; }
  // The prompt's lists are a KeptPrompt's (kept_prompt.h): Index seals nothing and begins the tail.
  bool keeps_tokens = false;
  int32_t num_sinks = 0;
  int32_t segment_tokens = kDefaultSegmentTokens;  // at most kMaxPartitionTokens
  int32_t min_sentence_tokens = 1, max_sentence_tokens = 64;
  // > 0: an open sentence of the tail is closed at so many tokens, so that the budget holds it.
  int32_t max_open_tokens = 0;
  CentroidForm form = CentroidForm::kInt8;
  std::shared_ptr<const Partitioner> range_partitioner;  // sentences or pages; null: none
  ClusterRecipe first_clusters;   // of a context's first segment, which may be all of it
  ClusterRecipe later_clusters;   // of the segments after it
  ClusterRecipe window_clusters;  // of windows in the tail
};

// The recipe of a policy. Dense and window policies build nothing.
absl::StatusOr<IndexRecipe> MakeIndexRecipe(const semkv_policy& policy);

// Per-thread room for building the lists of one cell; sized once.
struct IndexScratch {
  IndexScratch(int32_t head_dim, int num_threads);
  struct Thread {
    std::vector<float> keys, means, value_means, variances;
    std::vector<uint16_t> bounds;
    Lists lists;
    absl::Status status;
  };
  std::vector<Thread> threads;
  std::vector<int32_t> slots;
  std::vector<uint16_t> page_offsets, sentence_offsets;
};

// Where the keys of a sequence are.
struct KeySource {
  absl::Span<const KvView> layers;
  const int32_t* pages = nullptr;  // the sequence's block table
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  ThreadPool* pool = nullptr;
  IndexScratch* scratch = nullptr;
  Device* device = nullptr;  // not null: keys are in its memory, and so are lists
  int32_t num_cells() const { return static_cast<int32_t>(layers.size()) * num_kv_heads; }
};

// Numbers of tokens, of one cell after the other.
struct ExcludedOnDevice {
  std::vector<int32_t> begin;  // [num_cells + 1]; empty: there are none
  std::shared_ptr<const DeviceMemory> tokens;
};

// The lists of [first, first + num_tokens). Immutable and shared once they are sealed.
struct Segment {
  int32_t first = 0;
  int32_t num_tokens = 0;
  ListStore ranges;    // sentences or pages; may be empty()
  ListStore clusters;  // may be empty()
  // Tokens whose key is not finite.
  std::vector<std::vector<uint16_t>> excluded;  // [num_cells], on the host
  ExcludedOnDevice excluded_on_device;
};

class SequenceIndex {
 public:
  // What a call of Index or Observe built, for events and counters.
  struct Progress {
    int32_t segments = 0, sentences = 0, windows = 0, repartitions = 0;
    int32_t first_token = 0;
    bool changed = false;  // some list is new, a provisional one perhaps, or has another place
  };

  SequenceIndex() = default;
  explicit SequenceIndex(IndexRecipe recipe) : recipe_(std::move(recipe)) {}

  // Seals every token before `length` that is not sealed yet, the tail's included. `closes`,
  // [length], tells which tokens close a sentence; may be null without sentences. Of a recipe that
  // keeps tokens, the first call only marks where the prompt ends.
  absl::Status Index(const KeySource& source, int32_t length, const uint8_t* closes,
                     Progress* progress);
  // Before Index: seals the full segments of what will be the prompt, as Index would. After it:
  // folds tokens before `length` into the tail; `closes` is known for the first `num_closes`
  // tokens. On the host it allocates only when a window ends, when the tail grows past its room and
  // while a full one is repartitioned.
  absl::Status Observe(const KeySource& source, int32_t length, const uint8_t* closes,
                       int32_t num_closes, Progress* progress);

  // Takes over the leading segments of `other` that Index would build here from the same first
  // `end` tokens: those that end on a border. Both have the same recipe; this one has no segments.
  // Returns where the last of them ends; 0 if there is none.
  int32_t AdoptSegments(const SequenceIndex& other, int32_t end);

  // Views of one cell's lists, at most max_views() of them. Returns how many were written.
  int32_t Views(int32_t cell, ListsView* views) const;
  int32_t max_views() const { return 2 * static_cast<int32_t>(segments_.size()) + 4; }

  bool indexed() const { return tail_.reserved > 0; }
  bool has_lists() const { return indexed() || !segments_.empty(); }
  // Tokens from here on are in no list: they must be attended as recent ones.
  int32_t reachable_end() const;
  int32_t num_segments() const { return static_cast<int32_t>(segments_.size()); }
  const std::shared_ptr<const Segment>& segment(int32_t i) const { return segments_[i]; }
  int64_t num_lists() const;
  // Most lists that one cell has room for: an upper bound that moves only when stores grow.
  int32_t max_lists() const;
  int64_t bytes() const;
  int64_t reserved_bytes() const;
  const IndexRecipe& recipe() const { return recipe_; }

 private:
  struct Tail {
    int32_t start = 0;         // first position of the tail
    int32_t page_end = 0;      // provisional lists reach to here
    int32_t sentence_end = 0;  // closed sentences reach to here
    int32_t sentence_scanned = 0;
    int32_t window_end = 0;  // clustered windows reach to here
    int32_t reserved = 0;    // tokens the stores have room for; 0: there is no tail yet
    int32_t lists_of_window = 0;
    ListStore pages, sentences, clusters;
    // Of a full tail, on the host: what will replace it, and how many of its cells are built.
    std::vector<Segment> next;
    int64_t next_cells = 0;
  };

  // The lists of one cell of a segment, of thread.keys.
  absl::Status BuildCell(const KeySource& source, int32_t cell, IndexScratch::Thread& thread,
                         Segment* segment) const;
  const ClusterRecipe& ClustersOf(const Segment& segment) const {
    return segment.first < recipe_.segment_tokens ? recipe_.first_clusters : recipe_.later_clusters;
  }
  // Cells [begin, end) of a segment.
  absl::Status BuildCells(const KeySource& source, int32_t begin, int32_t end,
                          Segment* segment) const;
  // Where every range lies, and room for the rest.
  absl::StatusOr<Segment> BeginSegment(const KeySource& source, int32_t first, int32_t end,
                                       const uint8_t* closes) const;
  // Every token before `end` that is in no segment, in as many as that takes.
  absl::StatusOr<std::vector<Segment>> BeginSegments(const KeySource& source, int32_t end,
                                                     const uint8_t* closes) const;
  int32_t first_unsealed() const;
  // Over the stores of all segments and the tail.
  int64_t Sum(int64_t (ListStore::*quantity)() const) const;
  absl::Status SealFull(const KeySource& source, int32_t length, const uint8_t* closes,
                        Progress* progress);
  absl::Status Seal(const KeySource& source, int32_t end, const uint8_t* closes,
                    Progress* progress);
  absl::Status BuildOnDevice(const KeySource& source, Segment* segment) const;
  void AddSegments(std::vector<Segment> segments, Progress* progress);
  // Of a full tail that has grown to `length`.
  absl::Status Repartition(const KeySource& source, int32_t length, const uint8_t* closes,
                           Progress* progress);
  // Until `cells` of tail_.next are built.
  absl::Status BuildNext(const KeySource& source, int64_t cells);
  // Where the tail is full, and where it ends at the latest.
  int32_t full_tail() const { return tail_.start + recipe_.segment_tokens; }
  int32_t end_of_tail() const {
    return full_tail() + std::min(kRepartitionTokens, kMaxPartitionTokens - recipe_.segment_tokens);
  }
  absl::Status ResetTail(const KeySource& source, int32_t start);
  absl::Status ReserveTail();
  absl::Status Fold(const KeySource& source, int32_t end, const uint8_t* closes, int32_t num_closes,
                    Progress* progress);
  absl::Status FoldCell(const KeySource& source, int32_t first, int32_t num_windows, int32_t cell,
                        IndexScratch::Thread& thread);
  absl::Status FoldOnDevice(const KeySource& source, int32_t first, int32_t end,
                            int32_t num_windows);

  IndexRecipe recipe_;
  std::vector<std::shared_ptr<const Segment>> segments_;
  Tail tail_;
  int32_t prompt_end_ = 0;  // of a recipe that keeps tokens: nothing before it is in a segment
};

}  // namespace semkv

#endif  // SEMKV_API_SEQUENCE_INDEX_H_
