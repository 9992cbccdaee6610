// Collects which parts of the document the selections of every layer touched, step by step.
//
// Thread safety: thread-compatible.

#ifndef SEMKV_INTEGRATION_REFERENCE_COMMAND_SELECTION_MAP_H_
#define SEMKV_INTEGRATION_REFERENCE_COMMAND_SELECTION_MAP_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "integration/reference/engine.h"

namespace semkv::command {

class SelectionMap {
 public:
  // The document's first `num_tokens` positions, `bin_tokens` to a bin. `num_selections`: of a row,
  // per KV head or query head.
  SelectionMap(int32_t num_layers, int32_t num_selections, int32_t num_tokens, int32_t bin_tokens);

  int32_t num_bins() const { return num_bins_; }

  // The selections of row 0; a row attended densely touches everything. Steps come in order, all
  // layers of one before the next.
  absl::Status Add(const reference::LayerObservation& layer);
  // One selection: ascending positions.
  void AddSelection(int32_t layer, absl::Span<const int32_t> positions);

  // [num_layers][num_steps * num_bins]: share of the bin's tokens, mean over the selections.
  std::vector<std::vector<float>> Shares() const;

 private:
  int32_t BinTokens(int32_t bin) const;

  const int32_t num_selections_;
  const int32_t num_tokens_;
  const int32_t bin_tokens_;
  const int32_t num_bins_;
  std::vector<std::vector<float>> touched_;  // tokens, summed over the selections
  std::vector<int32_t> num_added_;           // [num_layers] selections
};

}  // namespace semkv::command

#endif  // SEMKV_INTEGRATION_REFERENCE_COMMAND_SELECTION_MAP_H_
