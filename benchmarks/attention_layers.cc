#include "benchmarks/attention_layers.h"

#include <benchmark/benchmark.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>

#include "benchmarks/plain_read.h"
#include "csrc/ops/numeric/float_convert.h"

namespace semkv {
namespace {

constexpr size_t kBufferBytes = (size_t{2} << 30) + (size_t{128} << 20);
constexpr int32_t kNumHeads = 32;
constexpr int32_t kNumKvHeads = 8;
constexpr int32_t kHeadDim = 128;
constexpr int64_t kTokenBytes = int64_t{2} * kNumKvHeads * kHeadDim * sizeof(uint16_t);

// Random bfloat16 numbers of magnitude [0.5, 1).
char* MakeBuffer() {
  void* memory =
      mmap(nullptr, kBufferBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    std::perror("semkv_bench: mmap");
    std::exit(1);
  }
  madvise(memory, kBufferBytes, MADV_HUGEPAGE);
  uint64_t* words = static_cast<uint64_t*>(memory);
  uint64_t state = 0x9e3779b97f4a7c15u;
  for (size_t i = 0; i < kBufferBytes / sizeof(uint64_t); ++i) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    words[i] = (state & 0x807f807f807f807fu) | 0x3f003f003f003f00u;
  }
  return static_cast<char*>(memory);
}

char* Buffer() {
  static char* const buffer = MakeBuffer();
  return buffer;
}

std::vector<int32_t> Shuffled(int32_t n, uint64_t seed) {
  std::vector<int32_t> x(n);
  std::iota(x.begin(), x.end(), 0);
  std::mt19937_64 rng(seed);
  std::shuffle(x.begin(), x.end(), rng);
  return x;
}

}  // namespace

AttentionLayers::AttentionLayers(int32_t num_tokens, int32_t page_tokens)
    : num_tokens_(num_tokens),
      page_tokens_(page_tokens),
      layer_bytes_(num_tokens * kTokenBytes),
      block_table_(Shuffled(num_tokens / page_tokens, 1)) {
  num_layers_ = static_cast<int32_t>(kBufferBytes / layer_bytes_);
}

const void* AttentionLayers::layer(int64_t i) const {
  return Buffer() + i % num_layers_ * layer_bytes_;
}

KvView AttentionLayers::view(int64_t i) const {
  KvView view;
  char* base = Buffer() + i % num_layers_ * layer_bytes_;
  view.k = base;
  view.v = base + kHeadDim * sizeof(uint16_t);
  view.k_token = view.v_token = 2 * kHeadDim;
  view.k_head = view.v_head = page_tokens_ * view.k_token;
  view.k_page = view.v_page = kNumKvHeads * view.k_head;
  view.page_tokens = page_tokens_;
  view.num_pages = num_tokens_ / page_tokens_;
  view.dtype = DType::kBFloat16;
  return view;
}

int64_t RowOffset(const KvView& view, int32_t slot, int32_t kv_head) {
  return KeyOffset(view, slot, kv_head) * DTypeBytes(view.dtype);
}

DecodeAttentionRun::DecodeAttentionRun(const AttentionLayers& layers, int32_t num_tokens,
                                       Selection selection, int32_t num_selected, int num_threads)
    : layers_(layers), pool_(num_threads), q_(kNumHeads * kHeadDim), out_(q_.size()) {
  std::mt19937_64 rng(2);
  std::normal_distribution<float> normal;
  for (uint16_t& x : q_) x = BFloat16FromFloat(normal(rng));
  params_.q = q_.data();
  params_.q_dtype = DType::kBFloat16;
  params_.out = out_.data();
  params_.q_head = params_.out_head = kHeadDim;
  params_.num_rows = 1;
  params_.num_heads = kNumHeads;
  params_.num_kv_heads = kNumKvHeads;
  params_.head_dim = kHeadDim;
  params_.scale = 1.0f / std::sqrt(static_cast<float>(kHeadDim));
  row_tokens_ = {selection == Selection::kDense ? num_tokens : -1};
  params_.row_tokens = row_tokens_.data();
  params_.block_table = layers_.block_table().data();
  bytes_ = num_tokens * kTokenBytes;
  if (selection != Selection::kDense) SelectTokens(num_tokens, selection, num_selected);
  workspace_.resize(DecodeAttentionWorkspaceBytes(1, kNumHeads, kNumKvHeads, kHeadDim, num_tokens) +
                    64);
}

void DecodeAttentionRun::SelectTokens(int32_t num_tokens, Selection selection,
                                      int32_t num_selected) {
  counts_.assign(kNumKvHeads, num_selected);
  for (int32_t g = 0; g < kNumKvHeads; ++g) {
    if (selection == Selection::kScattered) {
      const std::vector<int32_t> slots = Shuffled(num_tokens, 10 + g);
      slots_.insert(slots_.end(), slots.begin(), slots.begin() + num_selected);
    } else {
      const int32_t page_tokens = layers_.page_tokens();
      const std::vector<int32_t> pages = Shuffled(num_tokens / page_tokens, 10 + g);
      for (int32_t i = 0; i < num_selected; ++i) {
        slots_.push_back(pages[i / page_tokens] * page_tokens + i % page_tokens);
      }
    }
  }
  params_.num_selections = kNumKvHeads;
  params_.list_slots.slots = slots_.data();
  params_.list_slots.counts = counts_.data();
  params_.list_slots.selection_stride = num_selected;
  bytes_ = num_selected * kTokenBytes;
}

void DecodeAttentionRun::Attend(int64_t i) {
  params_.position = layers_.view(i);
  params_.list = params_.position;
  uint8_t* workspace = workspace_.data();
  workspace += (64 - reinterpret_cast<uintptr_t>(workspace) % 64) % 64;
  DecodeAttentionHost(params_, workspace, workspace_.size() - 64, pool_);
}

void DecodeAttentionRun::DescribeRows() {
  const KvView view = layers_.view(0);
  for (int32_t head = 0; head < kNumKvHeads; ++head) {
    if (counts_.empty()) {
      for (int32_t t = 0; t < row_tokens_[0]; ++t) {
        const int32_t page = layers_.block_table()[t / view.page_tokens];
        const int32_t slot = page * view.page_tokens + t % view.page_tokens;
        row_offsets_.push_back(RowOffset(view, slot, head));
      }
      continue;
    }
    const int32_t* slots = slots_.data() + int64_t{head} * counts_[head];
    for (int32_t i = 0; i < counts_[head]; ++i) {
      row_offsets_.push_back(RowOffset(view, slots[i], head));
    }
  }
}

void DecodeAttentionRun::ReadRows(int64_t i) const {
  constexpr size_t kRowBytes = 2 * kHeadDim * sizeof(uint16_t);  // a key and its value
  benchmark::DoNotOptimize(
      PlainReadRows(layers_.layer(i), row_offsets_.data(), row_offsets_.size(), kRowBytes));
}

void DecodeAttentionRun::ReadPlainly(int64_t i) { PlainRead(layers_.layer(i), bytes_, pool_); }

}  // namespace semkv
