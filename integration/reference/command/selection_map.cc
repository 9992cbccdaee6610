#include "integration/reference/command/selection_map.h"

#include <algorithm>

#include "integration/reference/semkv_status.h"
#include "integration/reference/status_macros.h"

namespace semkv::command {

using reference::SemkvStatus;

SelectionMap::SelectionMap(int32_t num_layers, int32_t num_selections, int32_t num_tokens,
                           int32_t bin_tokens)
    : num_selections_(num_selections),
      num_tokens_(num_tokens),
      bin_tokens_(bin_tokens),
      num_bins_((num_tokens + bin_tokens - 1) / bin_tokens),
      touched_(num_layers),
      num_added_(num_layers) {}

int32_t SelectionMap::BinTokens(int32_t bin) const {
  return std::min(bin_tokens_, num_tokens_ - bin * bin_tokens_);
}

absl::Status SelectionMap::Add(const reference::LayerObservation& layer) {
  int32_t reason = 0;
  SEMKV_RETURN_IF_ERROR(SemkvStatus(semkv_plan_row(layer.plan, layer.layer, 0, &reason)));
  for (int32_t i = 0; i < num_selections_; ++i) {
    const int32_t* positions = nullptr;
    int32_t count = 0;
    if (reason == SEMKV_ROW_SPARSE) {
      SEMKV_RETURN_IF_ERROR(SemkvStatus(semkv_select_result(layer.plan, 0, i, &positions, &count)));
      AddSelection(layer.layer, {positions, static_cast<size_t>(count)});
      continue;
    }
    std::vector<int32_t> everything(num_tokens_);
    for (int32_t p = 0; p < num_tokens_; ++p) everything[p] = p;
    AddSelection(layer.layer, everything);
  }
  return absl::OkStatus();
}

void SelectionMap::AddSelection(int32_t layer, absl::Span<const int32_t> positions) {
  std::vector<float>& touched = touched_[layer];
  const size_t step = num_added_[layer]++ / num_selections_;
  touched.resize((step + 1) * num_bins_);
  for (int32_t position : positions) {
    if (position >= num_tokens_) break;
    touched[step * num_bins_ + position / bin_tokens_] += 1.0f;
  }
}

std::vector<std::vector<float>> SelectionMap::Shares() const {
  std::vector<std::vector<float>> shares = touched_;
  for (std::vector<float>& layer : shares) {
    for (size_t cell = 0; cell < layer.size(); ++cell) {
      layer[cell] /= static_cast<float>(num_selections_ * BinTokens(cell % num_bins_));
    }
  }
  return shares;
}

}  // namespace semkv::command
