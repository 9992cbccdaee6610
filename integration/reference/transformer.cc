#include "integration/reference/transformer.h"

#include <cblas.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "integration/reference/semkv_status.h"
#include "integration/reference/status_macros.h"

namespace semkv::reference {

namespace {

// Rows up to which one GEMV per row beats a GEMM: measured with OpenBLAS 0.3.21, AVX-512, weights
// of 512 x 256 to 8192 x 2048.
constexpr int32_t kMaxGemvRows = 3;

int64_t NowNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// y = x * weight^T + beta * y for x [rows, inputs] of row stride `x_stride` and weight [outputs,
// inputs]; y is compact.
void Multiply(const float* x, int64_t x_stride, const std::vector<float>& weight, int32_t rows,
              int32_t inputs, float beta, float* y) {
  const int32_t outputs = static_cast<int32_t>(weight.size() / inputs);
  // A GEMM packs the weights before it uses them, which few rows do not pay for.
  if (rows <= kMaxGemvRows) {
    for (int32_t r = 0; r < rows; ++r) {
      cblas_sgemv(CblasRowMajor, CblasNoTrans, outputs, inputs, 1.0f, weight.data(), inputs,
                  x + r * x_stride, 1, beta, y + int64_t{r} * outputs, 1);
    }
    return;
  }
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, outputs, inputs, 1.0f, x,
              static_cast<blasint>(x_stride), weight.data(), inputs, beta, y, outputs);
}

}  // namespace

Transformer::Transformer(const ModelConfig& config, const ModelWeights& weights,
                         const RopeTable& rope, semkv_context* context, int32_t max_tokens,
                         int32_t max_rows)
    : config_(config),
      weights_(weights),
      rope_(rope),
      context_(context),
      q_width_(config.num_heads * config.head_dim),
      qkv_width_((config.num_heads + 2 * config.num_kv_heads) * config.head_dim),
      hidden_(int64_t{max_tokens} * config.hidden_size),
      normalized_(hidden_.size()),
      qkv_(int64_t{max_tokens} * qkv_width_),
      attended_(int64_t{max_tokens} * q_width_),
      gate_up_(int64_t{max_tokens} * 2 * config.intermediate_size),
      lse_(int64_t{max_rows} * config.num_heads),
      dense_lse_(lse_.size()),
      dense_out_(int64_t{max_rows} * q_width_) {}

absl::Status Transformer::Forward(const TokenBatch& batch, const StepOptions& options,
                                  StepTimes& times) {
  const int64_t width = config_.hidden_size;
  const int32_t n = static_cast<int32_t>(batch.ids.size());
  for (int64_t t = 0; t < n; ++t) {
    std::copy_n(weights_.embedding.begin() + batch.ids[t] * width, width,
                hidden_.begin() + t * width);
  }
  for (int32_t layer = 0; layer < config_.num_layers; ++layer) {
    const LayerWeights& weights = weights_.layers[layer];
    Normalize(weights.attention_norm, 0, n);
    ProjectQkv(weights, batch);
    SEMKV_RETURN_IF_ERROR(WriteKv(layer, batch));
    SEMKV_RETURN_IF_ERROR(Attend(layer, batch, options, times));
    Multiply(attended_.data(), q_width_, weights.output, n, q_width_, 1.0f, hidden_.data());
    Normalize(weights.mlp_norm, 0, n);
    Mlp(weights, n);
  }
  return absl::OkStatus();
}

void Transformer::Logits(int32_t first_row, int32_t num_rows, float* logits) {
  Normalize(weights_.final_norm, first_row, num_rows);
  Multiply(normalized_.data() + int64_t{first_row} * config_.hidden_size, config_.hidden_size,
           weights_.head(), num_rows, config_.hidden_size, 0.0f, logits);
}

void Transformer::ProjectQkv(const LayerWeights& layer, const TokenBatch& batch) {
  const int32_t n = static_cast<int32_t>(batch.ids.size());
  Multiply(normalized_.data(), config_.hidden_size, layer.qkv, n, config_.hidden_size, 0.0f,
           qkv_.data());
  for (int32_t t = 0; t < n; ++t) {  // keys follow the queries, both are rotated
    rope_.Rotate(batch.positions[t], config_.num_heads + config_.num_kv_heads,
                 qkv_.data() + int64_t{t} * qkv_width_);
  }
}

absl::Status Transformer::WriteKv(int32_t layer, const TokenBatch& batch) {
  semkv_write_args args = {};
  args.struct_size = sizeof(args);
  args.dtype = SEMKV_DTYPE_F32;
  args.num_tokens = static_cast<int32_t>(batch.ids.size());
  args.slots = batch.slots.data();
  const float* k = qkv_.data() + q_width_;
  args.k = k;
  args.v = k + int64_t{config_.num_kv_heads} * config_.head_dim;
  args.k_token = args.v_token = qkv_width_;
  args.k_head = args.v_head = config_.head_dim;
  return SemkvStatus(semkv_write_kv(context_, layer, &args));
}

absl::Status Transformer::Attend(int32_t layer, const TokenBatch& batch, const StepOptions& options,
                                 StepTimes& times) {
  semkv_attend_args args = {};
  args.struct_size = sizeof(args);
  args.dtype = SEMKV_DTYPE_F32;
  args.q = qkv_.data();
  args.out = attended_.data();
  args.lse = batch.prefill ? nullptr : lse_.data();
  args.q_token = qkv_width_;
  args.q_head = config_.head_dim;
  args.out_token = q_width_;
  args.out_head = config_.head_dim;
  args.flags = batch.prefill ? SEMKV_ATTEND_DENSE : 0;

  const int64_t begin = NowNs();
  if (!batch.prefill) SEMKV_RETURN_IF_ERROR(SemkvStatus(semkv_select(batch.plan, layer, &args)));
  const int64_t selected = NowNs();
  SEMKV_RETURN_IF_ERROR(SemkvStatus(semkv_attend(batch.plan, layer, &args)));
  times.select_ns += selected - begin;
  times.attend_ns += NowNs() - selected;
  return batch.prefill ? absl::OkStatus() : Observe(layer, batch, options, args);
}

absl::Status Transformer::Observe(int32_t layer, const TokenBatch& batch,
                                  const StepOptions& options, semkv_attend_args args) {
  if (!options.observer) return absl::OkStatus();
  if (options.measure_mass) {
    args.out = dense_out_.data();
    args.lse = dense_lse_.data();
    args.flags = SEMKV_ATTEND_DENSE;
    SEMKV_RETURN_IF_ERROR(SemkvStatus(semkv_attend(batch.plan, layer, &args)));
  }
  LayerObservation observation = {};
  observation.layer = layer;
  observation.plan = batch.plan;
  observation.num_rows = static_cast<int32_t>(batch.ids.size());
  observation.lse = lse_.data();
  observation.dense_lse = options.measure_mass ? dense_lse_.data() : nullptr;
  return options.observer(observation);
}

void Transformer::Mlp(const LayerWeights& layer, int32_t num_tokens) {
  const int64_t inner = config_.intermediate_size;
  Multiply(normalized_.data(), config_.hidden_size, layer.gate_up, num_tokens, config_.hidden_size,
           0.0f, gate_up_.data());
  for (int64_t t = 0; t < num_tokens; ++t) {
    float* gate = gate_up_.data() + t * 2 * inner;
    const float* up = gate + inner;
    for (int64_t i = 0; i < inner; ++i) gate[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
  }
  Multiply(gate_up_.data(), 2 * inner, layer.down, num_tokens, config_.intermediate_size, 1.0f,
           hidden_.data());
}

void Transformer::Normalize(const std::vector<float>& weight, int32_t first_row, int32_t num_rows) {
  const int64_t width = config_.hidden_size;
  for (int64_t t = first_row; t < first_row + num_rows; ++t) {
    const float* x = hidden_.data() + t * width;
    float* y = normalized_.data() + t * width;
    const float mean_square = cblas_sdot(config_.hidden_size, x, 1, x, 1) / width;
    const float scale = 1.0f / std::sqrt(mean_square + config_.rms_norm_eps);
    for (int64_t i = 0; i < width; ++i) y[i] = x[i] * scale * weight[i];
  }
}

}  // namespace semkv::reference
