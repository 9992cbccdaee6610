// A sparse decode step over layers that no cache holds: lists as the library's own index builds
// them over keys of generator S1 (one data set per KV head), copied for every layer, then scored,
// selected and attended to.

#ifndef SEMKV_BENCHMARKS_SELECTION_LAYERS_H_
#define SEMKV_BENCHMARKS_SELECTION_LAYERS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "benchmarks/attention_layers.h"
#include "csrc/ops/attention/decode_attention.h"
#include "csrc/ops/parallel/thread_pool.h"
#include "csrc/ops/retrieval/select_lists.h"
#include "semkv/semkv.h"

namespace semkv {

enum class SelectionPolicy {
  kClustersOf64,  // k-means, lists of 64 tokens on average
  kHybrid,        // the default policy: clusters of 16, lone keys, sentences of 25
};
constexpr int kNumSelectionPolicies = 2;

// The lists of one layer of Llama-3-8B (8 KV heads, int4) over `num_tokens` tokens, and queries.
class SelectionIndex {
 public:
  SelectionIndex(int32_t num_tokens, SelectionPolicy policy);

  // Lists of `num_tokens` tokens; built when first asked for (about half a minute for 131,072).
  static std::shared_ptr<const SelectionIndex> Get(int32_t num_tokens, SelectionPolicy policy);

  // Views of all KV heads whose data lie in `memory`, which must hold bytes().
  std::vector<ListsView> CopyTo(uint8_t* memory) const;
  size_t bytes() const { return bytes_; }
  const std::vector<int32_t>& view_begin() const { return view_begin_; }  // [num_kv_heads + 1]
  int32_t max_lists() const { return max_lists_; }                        // of a KV head

  // [num_heads, head_dim] of step i.
  const uint16_t* queries(int64_t i) const;

 private:
  void AddHead(int32_t head, int32_t num_tokens, const semkv_policy& policy);

  std::vector<std::vector<uint8_t>> heads_;  // what views_ point to
  std::vector<ListsView> views_;
  std::vector<int32_t> view_begin_ = {0};
  std::vector<uint16_t> queries_;  // [steps, num_heads, head_dim], bfloat16
  int32_t max_lists_ = 0;
  size_t bytes_ = 0;
};

// Select and attend of one row on one thread, budget 2,048. The layers are `layers`' in turn; each
// has lists of its own in memory.
class SelectionRun {
 public:
  // `contiguous`: every list holds neighbouring tokens, as many as it has members.
  SelectionRun(const AttentionLayers& layers, int32_t num_tokens, SelectionPolicy policy,
               bool contiguous);

  void Select(int64_t i);
  void SelectAndAttend(int64_t i);

  // Reads keys and values of the tokens that SelectAndAttend(i) selects, where it does. (Those of
  // one step would stay in the last-level cache where 2 GiB are few layers.)
  void ReadSelected(int64_t i) const;

  // Reads the lists of layer i: their vectors, members and all else.
  void ReadLists(int64_t i) const;

 private:
  void DescribeSelection();
  void DescribeAttention();
  void DescribeRows();

  const AttentionLayers layers_;
  ThreadPool pool_{1};
  std::shared_ptr<const SelectionIndex> index_;
  std::vector<std::vector<uint8_t>> memory_;   // [num_layers]
  std::vector<std::vector<ListsView>> views_;  // [num_layers]
  RetrievalRow row_;
  ScoreListsParams score_;
  SelectListsParams select_;
  DecodeAttentionParams attend_;
  std::vector<int32_t> slots_, positions_, counts_;
  std::vector<std::vector<int64_t>> row_offsets_;  // [steps], in a layer, of what is selected
  std::vector<uint16_t> out_;
  std::vector<uint8_t> retrieval_workspace_, attention_workspace_;
};

}  // namespace semkv

#endif  // SEMKV_BENCHMARKS_SELECTION_LAYERS_H_
