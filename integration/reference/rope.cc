#include "integration/reference/rope.h"

#include <cmath>
#include <numbers>

namespace semkv::reference {

namespace {

// The angle per position of channel pair `i`.
double Frequency(const ModelConfig& config, int32_t i) {
  const double frequency = std::pow(config.rope_theta, -2.0 * i / config.head_dim);
  if (config.rope_factor == 0.0) return frequency;
  // Llama 3: wavelengths beyond the original context are stretched by the factor, those well within
  // it stay, and a linear blend lies between.
  const double turns =
      config.rope_original_positions * frequency / (2.0 * std::numbers::pi);  // in the old context
  if (turns < config.rope_low_freq_factor) return frequency / config.rope_factor;
  if (turns > config.rope_high_freq_factor) return frequency;
  const double blend = (turns - config.rope_low_freq_factor) /
                       (config.rope_high_freq_factor - config.rope_low_freq_factor);
  return (1.0 - blend) * frequency / config.rope_factor + blend * frequency;
}

}  // namespace

RopeTable::RopeTable(const ModelConfig& config, int32_t num_positions)
    : half_(config.head_dim / 2),
      cosine_(int64_t{num_positions} * half_),
      sine_(int64_t{num_positions} * half_) {
  for (int32_t i = 0; i < half_; ++i) {
    const double frequency = Frequency(config, i);
    for (int64_t position = 0; position < num_positions; ++position) {
      const double angle = static_cast<double>(position) * frequency;
      cosine_[position * half_ + i] = static_cast<float>(std::cos(angle));
      sine_[position * half_ + i] = static_cast<float>(std::sin(angle));
    }
  }
}

void RopeTable::Rotate(int32_t position, int32_t num_heads, float* x) const {
  const float* cosine = cosine_.data() + int64_t{position} * half_;
  const float* sine = sine_.data() + int64_t{position} * half_;
  for (int32_t h = 0; h < num_heads; ++h) {
    float* a = x + int64_t{h} * 2 * half_;
    float* b = a + half_;
    for (int32_t i = 0; i < half_; ++i) {
      const float first = a[i];
      const float second = b[i];
      a[i] = first * cosine[i] - second * sine[i];
      b[i] = second * cosine[i] + first * sine[i];
    }
  }
}

}  // namespace semkv::reference
