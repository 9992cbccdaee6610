#include "csrc/api/kept_prompt.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "csrc/ops/cache/list_means.h"
#include "csrc/ops/cache/write_kv.h"
#include "csrc/ops/retrieval/keep_tokens.h"
#include "csrc/status_macros.h"

namespace semkv {
namespace {

absl::Status CheckQueries(const QueryWindow& queries, int32_t num_layers, int32_t length) {
  const int32_t needed = std::min(queries.capacity(), length);
  for (int32_t layer = 0; layer < num_layers; ++layer) {
    const int32_t known = queries.NumKnown(layer, length);
    if (known >= needed) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        "the queries of the last ", known, " tokens are known at layer ", layer, ", needed are ",
        needed, " (options.query_window): attend to the prompt's end before semkv_index"));
  }
  return absl::OkStatus();
}

// The kept tokens of one piece, as lists of those sentences that keep any.
struct KeptLists {
  std::vector<uint16_t> offsets = {0};  // [lists + 1], into members and slots
  std::vector<uint16_t> members;        // relative to the piece
  std::vector<int32_t> slots;
};

KeptLists GroupBySentence(const Lists& sentences, int32_t first, const int32_t* kept,
                          const int32_t* kept_end, const KeySource& source) {
  const int32_t page_tokens = source.layers[0].page_tokens;
  KeptLists out;
  for (int32_t i = 0; i < sentences.nlist() && kept < kept_end; ++i) {
    for (; kept < kept_end && *kept - first < sentences.offsets[i + 1]; ++kept) {
      out.members.push_back(static_cast<uint16_t>(*kept - first));
      out.slots.push_back(source.pages[*kept / page_tokens] * page_tokens + *kept % page_tokens);
    }
    if (static_cast<int32_t>(out.members.size()) > out.offsets.back()) {
      out.offsets.push_back(static_cast<uint16_t>(out.members.size()));
    }
  }
  return out;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const KeptPrompt>> KeptPrompt::Build(
    const KeySource& source, const IndexRecipe& recipe, const semkv_policy& policy,
    const QueryWindow& queries, int32_t num_heads, int32_t length, const uint8_t* closes) {
  std::shared_ptr<KeptPrompt> prompt(new KeptPrompt());
  prompt->num_tokens_ = length;
  const double wanted = std::floor(double{policy.keep_factor} * policy.budget);
  prompt->num_kept_ = static_cast<int32_t>(std::min<double>(wanted, length));
  const int32_t num_layers = static_cast<int32_t>(source.layers.size());
  const bool all = prompt->num_kept_ == length;
  if (!all) SEMKV_RETURN_IF_ERROR(CheckQueries(queries, num_layers, length));
  SEMKV_RETURN_IF_ERROR(prompt->CutSentences(source, recipe, num_heads, closes));
  prompt->num_fixed_ = all ? 0 : std::min(policy.sinks, prompt->num_kept_);
  prompt->fixed_.resize(int64_t{num_layers} * num_heads * prompt->num_fixed_);
  std::vector<int32_t> kept(int64_t{num_heads} * prompt->num_kept_);
  for (int32_t layer = 0; layer < num_layers; ++layer) {
    prompt->Choose(source, queries, layer, num_heads, &kept);
    source.pool->Run(num_heads, [&](int64_t h, int thread) {
      const int32_t head = layer * num_heads + static_cast<int32_t>(h);
      const int32_t kv_head = static_cast<int32_t>(h * source.num_kv_heads / num_heads);
      prompt->AppendHead(source, layer * source.num_kv_heads + kv_head, head,
                         kept.data() + h * prompt->num_kept_, source.scratch->threads[thread]);
    });
  }
  return prompt;
}

absl::Status KeptPrompt::CutSentences(const KeySource& source, const IndexRecipe& recipe,
                                      int32_t num_heads, const uint8_t* closes) {
  ListStoreShape shape;
  shape.num_cells = static_cast<int32_t>(source.layers.size()) * num_heads;
  shape.head_dim = source.head_dim;
  shape.form = recipe.form;
  for (int32_t first = 0; first < num_tokens_; first = pieces_.back().end()) {
    Piece piece;
    piece.first = first;
    PartitionInput input;
    input.num_tokens = std::min(num_tokens_ - first, kMaxPartitionTokens);
    input.head_dim = source.head_dim;
    input.closes = closes + first;
    SEMKV_RETURN_IF_ERROR(recipe.range_partitioner->Partition(input, &piece.sentences));
    // What the piece's end cut off is not a whole sentence: the next piece begins with it.
    const bool cut = first + input.num_tokens < num_tokens_;
    if (cut && piece.sentences.nlist() > 1) piece.sentences.offsets.pop_back();
    piece.lists = ListStore(shape);
    const int32_t most = std::min(piece.end() - piece.first, num_kept_);
    SEMKV_RETURN_IF_ERROR(piece.lists.Reserve(std::min(piece.sentences.nlist(), most), most));
    pieces_.push_back(std::move(piece));
  }
  return absl::OkStatus();
}

void KeptPrompt::Choose(const KeySource& source, const QueryWindow& queries, int32_t layer,
                        int32_t num_heads, std::vector<int32_t>* kept) const {
  if (num_kept_ == num_tokens_) {
    for (int32_t h = 0; h < num_heads; ++h) {
      std::iota(kept->begin() + int64_t{h} * num_kept_, kept->begin() + int64_t{h + 1} * num_kept_,
                0);
    }
    return;
  }
  KeepTokensParams params;
  params.num_window = std::min(queries.capacity(), num_tokens_);
  std::vector<float> q(int64_t{params.num_window} * num_heads * source.head_dim);
  queries.Read(layer, params.num_window, q.data());
  params.q = q.data();
  params.num_heads = num_heads;
  params.num_kv_heads = source.num_kv_heads;
  params.head_dim = source.head_dim;
  params.scale = 1.0f;  // the window's queries are scaled
  params.position = source.layers[layer];
  params.block_table = source.pages;
  params.num_tokens = num_tokens_;
  params.num_kept = num_kept_;
  params.kept = kept->data();
  std::vector<uint8_t> workspace(KeepTokensWorkspaceBytes(
      num_tokens_, params.num_window, source.head_dim, source.pool->num_threads()));
  KeepTokensHost(params, workspace.data(), workspace.size(), *source.pool);
}

void KeptPrompt::AppendHead(const KeySource& source, int32_t kv_cell, int32_t head,
                            const int32_t* kept, IndexScratch::Thread& thread) {
  std::copy_n(kept, num_fixed_, fixed_.begin() + int64_t{head} * num_fixed_);
  const int32_t* const kept_end = kept + num_kept_;
  for (Piece& piece : pieces_) {
    const int32_t* const piece_end = std::lower_bound(kept, kept_end, piece.end());
    const KeptLists lists = GroupBySentence(piece.sentences, piece.first, kept, piece_end, source);
    kept = piece_end;
    const int32_t nlist = static_cast<int32_t>(lists.offsets.size()) - 1;
    if (nlist == 0) continue;
    std::vector<float> keys(lists.slots.size() * source.head_dim);
    GatherKeys(source.layers[kv_cell / source.num_kv_heads], kv_cell % source.num_kv_heads,
               source.head_dim, lists.slots.data(), static_cast<int32_t>(lists.slots.size()),
               keys.data());
    thread.means.resize(std::max<size_t>(thread.means.size(), int64_t{nlist} * source.head_dim));
    thread.variances.resize(std::max<size_t>(thread.variances.size(), nlist));
    ListMeansParams means;
    means.keys = keys.data();
    means.head_dim = source.head_dim;
    means.nlist = nlist;
    means.offsets = lists.offsets.data();
    means.means = thread.means.data();
    means.variances = thread.variances.data();
    ListMeansHost(means);
    NewLists added;
    added.nlist = nlist;
    added.offsets = lists.offsets.data();
    added.members = lists.members.data();
    added.means = thread.means.data();
    added.variances = thread.variances.data();
    piece.lists.AppendCell(head, added);
  }
}

AlwaysTaken KeptPrompt::FixedStart(int32_t head) const {
  return {fixed_.data() + int64_t{head} * num_fixed_, num_fixed_};
}

int32_t KeptPrompt::Views(int32_t head, ListsView* views) const {
  int32_t n = 0;
  for (const Piece& piece : pieces_) {
    const ListsView view = piece.lists.View(head, piece.first, /*partition=*/0);
    if (view.nlist > 0) views[n++] = view;
  }
  return n;
}

int64_t KeptPrompt::num_lists() const {
  int64_t total = 0;
  for (const Piece& piece : pieces_) total += piece.lists.num_lists();
  return total;
}

int32_t KeptPrompt::max_lists() const {
  int32_t total = 0;
  for (const Piece& piece : pieces_) total += piece.lists.max_lists();
  return total;
}

int64_t KeptPrompt::bytes() const {
  int64_t total = static_cast<int64_t>(fixed_.size() * sizeof(int32_t));
  for (const Piece& piece : pieces_) total += piece.lists.bytes();
  return total;
}

int64_t KeptPrompt::reserved_bytes() const {
  int64_t total = static_cast<int64_t>(fixed_.size() * sizeof(int32_t));
  for (const Piece& piece : pieces_) total += piece.lists.reserved_bytes();
  return total;
}

}  // namespace semkv
