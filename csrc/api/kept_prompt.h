// What SentenceKV keeps of a prompt: per layer and query head the tokens that the observation
// window attends to most, in buckets by sentence, each with the mean key of its kept tokens. A kept
// prompt is immutable and shared by forks. Tokens that are not kept stay in the pool: they are
// hidden, not freed.
//
// A *head* here is one (layer, query head): head = layer * num_heads + query head.
//
// Source: SentenceKV (arXiv 2504.00970) section 4.1, per query head as in its code.

#ifndef SEMKV_API_KEPT_PROMPT_H_
#define SEMKV_API_KEPT_PROMPT_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "csrc/api/list_store.h"
#include "csrc/api/query_window.h"
#include "csrc/api/sequence_index.h"
#include "csrc/ops/retrieval/select_lists.h"
#include "semkv/semkv.h"

namespace semkv {

class KeptPrompt {
 public:
  // Decides which of the first `length` tokens `policy` keeps, by `queries`, and puts them in
  // sentences by `closes`, [length]. `num_heads`: query heads of a layer.
  //
  // Errors: FAILED_PRECONDITION if tokens must go and the queries of the last queries.capacity()
  // ones are not known in every layer.
  static absl::StatusOr<std::shared_ptr<const KeptPrompt>> Build(
      const KeySource& source, const IndexRecipe& recipe, const semkv_policy& policy,
      const QueryWindow& queries, int32_t num_heads, int32_t length, const uint8_t* closes);

  int32_t num_tokens() const { return num_tokens_; }
  int32_t num_kept() const { return num_kept_; }  // of every head
  // The first policy.sinks kept tokens of a head: the fixed start range, slots of the kept cache
  // rather than positions. Empty if everything is kept: then they are the sequence's first.
  AlwaysTaken FixedStart(int32_t head) const;
  // Views of one head's sentences. Returns how many were written, at most max_views().
  int32_t Views(int32_t head, ListsView* views) const;
  int32_t max_views() const { return static_cast<int32_t>(pieces_.size()); }
  int64_t num_lists() const;
  int32_t max_lists() const;  // of one head
  int64_t bytes() const;
  int64_t reserved_bytes() const;

 private:
  // Consecutive whole sentences, so many that members fit 16 bits.
  struct Piece {
    int32_t first = 0;
    Lists sentences;  // ranges from `first` on
    ListStore lists;  // a cell is a head
    int32_t end() const { return first + sentences.offsets.back(); }
  };
  KeptPrompt() = default;
  absl::Status CutSentences(const KeySource& source, const IndexRecipe& recipe, int32_t num_heads,
                            const uint8_t* closes);
  // Which tokens every query head of `layer` keeps: [num_heads, num_kept].
  void Choose(const KeySource& source, const QueryWindow& queries, int32_t layer, int32_t num_heads,
              std::vector<int32_t>* kept) const;
  void AppendHead(const KeySource& source, int32_t kv_cell, int32_t head, const int32_t* kept,
                  IndexScratch::Thread& thread);

  int32_t num_tokens_ = 0;
  int32_t num_kept_ = 0;
  int32_t num_fixed_ = 0;
  std::vector<int32_t> fixed_;  // [num_layers * num_heads, num_fixed]
  std::vector<Piece> pieces_;
};

}  // namespace semkv

#endif  // SEMKV_API_KEPT_PROMPT_H_
