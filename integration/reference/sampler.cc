#include "integration/reference/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"

namespace semkv::reference {

absl::Status SamplerOptions::Validate() const {
  if (!(temperature >= 0.0f) || !std::isfinite(temperature)) {
    return absl::InvalidArgumentError(
        absl::StrCat("temperature is ", temperature, ", not a finite number >= 0"));
  }
  if (top_k < 0) return absl::InvalidArgumentError(absl::StrCat("top_k is ", top_k, ", not >= 0"));
  if (!(top_p > 0.0f && top_p <= 1.0f)) {
    return absl::InvalidArgumentError(absl::StrCat("top_p is ", top_p, ", not in (0, 1]"));
  }
  return absl::OkStatus();
}

Sampler::Sampler(const SamplerOptions& options, int32_t vocab_size)
    : options_(options), random_(options.seed) {
  candidates_.reserve(vocab_size);
}

int32_t Sampler::Sample(absl::Span<const float> logits) {
  if (options_.temperature == 0.0f) return GreedyToken(logits);

  candidates_.clear();
  for (size_t i = 0; i < logits.size(); ++i) {
    const float logit = std::isnan(logits[i]) ? -std::numeric_limits<float>::infinity() : logits[i];
    candidates_.emplace_back(logit, static_cast<int32_t>(i));
  }
  const auto likelier = [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
  };
  const size_t top_k = options_.top_k == 0 ? logits.size() : static_cast<size_t>(options_.top_k);
  const size_t kept = std::min(candidates_.size(), top_k);
  std::partial_sort(candidates_.begin(), candidates_.begin() + kept, candidates_.end(), likelier);
  candidates_.resize(kept);
  const float largest = candidates_.front().first;
  if (!std::isfinite(largest)) return candidates_.front().second;

  double total = 0.0;
  for (auto& [value, id] : candidates_) {
    value = std::exp((value - largest) / options_.temperature);
    total += value;
  }
  double nucleus = 0.0;
  size_t last = 0;
  while (last < kept && (last == 0 || nucleus < options_.top_p * total)) {
    nucleus += candidates_[last++].first;
  }
  // 53 random bits, as std::uniform_real_distribution differs between libraries.
  double rest = static_cast<double>(random_() >> 11) * 0x1p-53 * nucleus;
  for (size_t i = 0; i < last; ++i) {
    rest -= candidates_[i].first;
    if (rest < 0.0) return candidates_[i].second;
  }
  return candidates_[last - 1].second;
}

int32_t GreedyToken(absl::Span<const float> logits) {
  size_t best = 0;
  for (size_t i = 1; i < logits.size(); ++i) {
    // True also if the best so far is NaN and this one is not.
    if (logits[i] > logits[best] || (std::isnan(logits[best]) && !std::isnan(logits[i]))) best = i;
  }
  return static_cast<int32_t>(best);
}

}  // namespace semkv::reference
