// Per query head: one pass over the keys gives the logits of all window queries, which stay in the
// thread's scratch for the softmax; then a few passes over one float per token.

#include "csrc/ops/retrieval/keep_tokens.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>

#include "csrc/ops/cache/write_kv.h"
#include "csrc/ops/parallel/thread_pool.h"
#include "csrc/ops/retrieval/workspace.h"

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "csrc/ops/retrieval/keep_tokens_host.cc"
#include <hwy/foreach_target.h>  // before highway.h and math-inl.h
#include <hwy/highway.h>
#include <hwy/contrib/math/math-inl.h>
// clang-format on

#ifndef SEMKV_OPS_RETRIEVAL_KEEP_TOKENS_HOST_ONCE_
#define SEMKV_OPS_RETRIEVAL_KEEP_TOKENS_HOST_ONCE_

namespace semkv {

constexpr int32_t kKeyBlock = 64;      // keys gathered at a time
constexpr int32_t kWidestVector = 16;  // floats

struct KeepScratch {
  KeepScratch(Workspace& workspace, int32_t num_tokens, int32_t num_window, int32_t head_dim)
      : stride(CeilDiv(num_tokens, kWidestVector) * kWidestVector),
        logits(workspace.Take<float>(int64_t{num_window} * stride)),
        keys(workspace.Take<float>(int64_t{kKeyBlock} * head_dim)),
        alpha(workspace.Take<float>(stride)),
        pooled(workspace.Take<float>(stride)),
        order(workspace.Take<int32_t>(stride)) {}

  int32_t stride;  // num_tokens, rounded up to a vector
  float* logits;   // [num_window, stride]
  float* keys;     // [kKeyBlock, head_dim]
  float* alpha;    // [stride]
  float* pooled;   // [stride]; before pooling: -1 where the key is not finite, else 0
  int32_t* order;  // [stride]
};

}  // namespace semkv

#endif  // SEMKV_OPS_RETRIEVAL_KEEP_TOKENS_HOST_ONCE_

HWY_BEFORE_NAMESPACE();
namespace semkv {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;
using VF = hn::Vec<DF>;

constexpr float kNever = -std::numeric_limits<float>::infinity();

class TokenKeeper {
 public:
  TokenKeeper(const KeepTokensParams& params, int32_t head, Workspace& workspace)
      : p_(params),
        head_(head),
        scored_(params.num_tokens - params.num_window),
        s_(workspace, params.num_tokens, params.num_window, params.head_dim) {}

  void Keep() {
    ComputeLogits();
    std::fill_n(s_.alpha, s_.stride, 0.0f);
    for (int32_t j = 0; j < p_.num_window; ++j) AddSoftmax(s_.logits + int64_t{j} * s_.stride);
    if (p_.alpha != nullptr) {
      std::copy_n(s_.alpha, scored_, p_.alpha + int64_t{head_} * scored_);
    }
    Pool();
    WriteKept(p_.kept + int64_t{head_} * p_.num_kept);
  }

 private:
  void ComputeLogits() {
    std::fill_n(s_.logits, int64_t{p_.num_window} * s_.stride, kNever);
    const int32_t kv_head = head_ / (p_.num_heads / p_.num_kv_heads);
    const int32_t page_tokens = p_.position.page_tokens;
    int32_t slots[kKeyBlock];
    for (int32_t first = 0; first < p_.num_tokens; first += kKeyBlock) {
      const int32_t count = std::min(kKeyBlock, p_.num_tokens - first);
      for (int32_t i = 0; i < count; ++i) {
        const int32_t t = first + i;
        slots[i] = p_.block_table[t / page_tokens] * page_tokens + t % page_tokens;
      }
      GatherKeys(p_.position, kv_head, p_.head_dim, slots, count, s_.keys);
      for (int32_t i = 0; i < count; ++i) {
        const float* const key = s_.keys + int64_t{i} * p_.head_dim;
        const bool finite = IsFinite(key);
        s_.pooled[first + i] = finite ? 0.0f : -1.0f;
        if (finite) ScoreKey(key, first + i);
      }
    }
  }

  bool IsFinite(const float* key) const {
    const DF df;
    VF sum = hn::Zero(df);  // 0 * infinity and 0 * NaN are NaN, which no summand takes back
    for (int32_t c = 0; c < p_.head_dim; c += hn::Lanes(df)) {
      sum = hn::MulAdd(hn::LoadU(df, key + c), hn::Zero(df), sum);
    }
    return hn::GetLane(hn::SumOfLanes(df, sum)) == 0.0f;
  }

  void ScoreKey(const float* key, int32_t token) {
    const DF df;
    for (int32_t j = std::max(0, token - scored_); j < p_.num_window; ++j) {
      const float* const query = p_.q + (int64_t{j} * p_.num_heads + head_) * p_.head_dim;
      VF sum = hn::Zero(df);
      for (int32_t c = 0; c < p_.head_dim; c += hn::Lanes(df)) {
        sum = hn::MulAdd(hn::LoadU(df, key + c), hn::LoadU(df, query + c), sum);
      }
      const float dot = hn::GetLane(hn::SumOfLanes(df, sum));
      if (dot - dot == 0.0f) s_.logits[int64_t{j} * s_.stride + token] = dot * p_.scale;
    }
  }

  void AddSoftmax(float* logits) {
    const DF df;
    VF greatest = hn::Set(df, kNever);
    for (int32_t t = 0; t < s_.stride; t += hn::Lanes(df)) {
      greatest = hn::Max(greatest, hn::Load(df, logits + t));
    }
    greatest = hn::MaxOfLanes(df, greatest);
    if (hn::GetLane(greatest) == kNever) return;
    VF sum = hn::Zero(df);
    for (int32_t t = 0; t < s_.stride; t += hn::Lanes(df)) {
      // hn::Exp of -infinity is 0 at every target, but only a finite argument is documented.
      const VF logit = hn::Load(df, logits + t);
      const VF weight = hn::IfThenElseZero(hn::Gt(logit, hn::Set(df, kNever)),
                                           hn::Exp(df, hn::Sub(logit, greatest)));
      hn::Store(weight, df, logits + t);
      sum = hn::Add(sum, weight);
    }
    const VF share = hn::Set(df, 1.0f / hn::GetLane(hn::SumOfLanes(df, sum)));
    for (int32_t t = 0; t < s_.stride; t += hn::Lanes(df)) {
      const VF alpha = hn::MulAdd(hn::Load(df, logits + t), share, hn::Load(df, s_.alpha + t));
      hn::Store(alpha, df, s_.alpha + t);
    }
  }

  void Pool() {
    const int32_t reach = p_.pool_width / 2;
    for (int32_t i = 0; i < scored_; ++i) {
      if (s_.pooled[i] < 0.0f) continue;
      s_.pooled[i] = *std::max_element(s_.alpha + std::max(0, i - reach),
                                       s_.alpha + std::min(scored_, i + reach + 1));
    }
  }

  void WriteKept(int32_t* kept) {
    const int32_t count = p_.num_kept - p_.num_window;
    std::iota(s_.order, s_.order + scored_, 0);
    const float* const pooled = s_.pooled;
    std::nth_element(s_.order, s_.order + count, s_.order + scored_, [=](int32_t a, int32_t b) {
      return pooled[a] > pooled[b] || (pooled[a] == pooled[b] && a < b);
    });
    std::sort(s_.order, s_.order + count);
    std::copy_n(s_.order, count, kept);
    std::iota(kept + count, kept + p_.num_kept, scored_);
  }

  const KeepTokensParams& p_;
  const int32_t head_;
  const int32_t scored_;  // tokens before the window
  const KeepScratch s_;
};

void KeepTokensOfHead(const KeepTokensParams& params, int32_t head, Workspace workspace) {
  TokenKeeper(params, head, workspace).Keep();
}

}  // namespace HWY_NAMESPACE
}  // namespace semkv
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace semkv {

HWY_EXPORT(KeepTokensOfHead);

size_t KeepTokensWorkspaceBytes(int32_t num_tokens, int32_t num_window, int32_t head_dim,
                                int num_threads) {
  Workspace measure;
  const KeepScratch scratch(measure, num_tokens, num_window, head_dim);
  return Workspace::TotalBytes(measure.used_bytes(), num_threads);
}

void KeepTokensHost(const KeepTokensParams& params, void* workspace, size_t workspace_bytes,
                    ThreadPool& pool) {
  pool.Run(params.num_heads, [&](int64_t head, int thread) {
    HWY_DYNAMIC_DISPATCH(KeepTokensOfHead)
    (params, static_cast<int32_t>(head),
     Workspace(workspace, workspace_bytes, pool.num_threads(), thread));
  });
}

}  // namespace semkv
#endif  // HWY_ONCE
