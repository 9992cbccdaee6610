// Key and value layers that no cache holds: more than 2 GiB of bfloat16 rows in semkv's own layout
// ([page][kv_head][token][2][head_dim]), from which layers of any context length are cut.

#ifndef SEMKV_BENCHMARKS_ATTENTION_LAYERS_H_
#define SEMKV_BENCHMARKS_ATTENTION_LAYERS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "csrc/ops/attention/decode_attention.h"
#include "csrc/ops/parallel/thread_pool.h"
#include "tests/ops/attention/attention_cases.h"

namespace semkv {

// The buffer is made once per program, on huge pages where the system has them; copies share it,
// but each has its block table.
class AttentionLayers {
 public:
  explicit AttentionLayers(int32_t num_tokens, int32_t page_tokens = 16);

  int32_t page_tokens() const { return page_tokens_; }
  int32_t num_layers() const { return num_layers_; }
  size_t layer_bytes() const { return layer_bytes_; }
  const void* layer(int64_t i) const;

  // Keys and values of layer i, modulo the number of layers.
  KvView view(int64_t i) const;

  // A random order of the pages, the same for all layers.
  const std::vector<int32_t>& block_table() const { return block_table_; }

 private:
  int32_t num_tokens_;
  int32_t page_tokens_;
  int32_t num_layers_;
  size_t layer_bytes_;
  std::vector<int32_t> block_table_;
};

// Bytes from a layer's beginning to a token's key, which its value follows.
int64_t RowOffset(const KvView& view, int32_t slot, int32_t kv_head);

// One decode step's attention of Llama-3-8B over such layers: one row, dense, or sparse over
// `num_selected` tokens per KV head.
class DecodeAttentionRun {
 public:
  enum class Selection { kDense, kScattered, kPages };

  DecodeAttentionRun(const AttentionLayers& layers, int32_t num_tokens, Selection selection,
                     int32_t num_selected, int num_threads);

  // Attends in layer i.
  void Attend(int64_t i);

  // Reads layer i's bytes, all, or as many as the selection has.
  void ReadPlainly(int64_t i);
  // Reads the rows that Attend reads, KV head after KV head, on one thread. Needs DescribeRows.
  void ReadRows(int64_t i) const;
  void DescribeRows();

  size_t bytes() const { return bytes_; }

 private:
  void SelectTokens(int32_t num_tokens, Selection selection, int32_t num_selected);

  const AttentionLayers layers_;
  ThreadPool pool_;
  DecodeAttentionParams params_;
  std::vector<uint16_t> q_, out_;  // bfloat16, as an engine's are
  std::vector<int32_t> row_tokens_, slots_, counts_;
  std::vector<int64_t> row_offsets_;
  std::vector<uint8_t> workspace_;
  size_t bytes_ = 0;
};

}  // namespace semkv

#endif  // SEMKV_BENCHMARKS_ATTENTION_LAYERS_H_
