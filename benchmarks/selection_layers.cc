#include "benchmarks/selection_layers.h"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <type_traits>
#include <utility>

#include "benchmarks/plain_read.h"
#include "csrc/ops/numeric/float_convert.h"
#include "tests/api/index_fixture.h"
#include "tests/testing/generator_s1.h"

namespace semkv {
namespace {

constexpr int32_t kNumHeads = 32;
constexpr int32_t kNumKvHeads = 8;
constexpr int32_t kGroup = kNumHeads / kNumKvHeads;
constexpr int32_t kHeadDim = 128;
constexpr int32_t kBudget = 2048;
constexpr int32_t kSteps = 16;  // whose queries differ
constexpr size_t kPlainReadUnit = 4096;

// Calls f(pointer, bytes) for every array of a view.
template <typename F>
void ForEachArray(ListsView* view, const F& f) {
  const size_t nlist = view->nlist;
  f(view->centroids, nlist * CentroidRowBytes(view->form, kHeadDim));
  f(view->scales, nlist * sizeof(float));
  f(view->center, kHeadDim * sizeof(float));
  f(view->variances, nlist * sizeof(float));
  f(view->offsets, (nlist + 1) * sizeof(uint16_t));
  if (view->members != nullptr) f(view->members, view->offsets[nlist] * sizeof(uint16_t));
}

size_t ArrayBytes(size_t bytes) { return (bytes + 63) / 64 * 64; }

size_t ViewBytes(ListsView view) {
  size_t total = 0;
  ForEachArray(&view, [&](const auto*, size_t bytes) { total += ArrayBytes(bytes); });
  return total;
}

// The view with its arrays copied to *memory, which moves on.
ListsView CopyView(ListsView view, uint8_t** memory) {
  ForEachArray(&view, [&](auto*& data, size_t bytes) {
    std::memcpy(*memory, data, bytes);
    data = reinterpret_cast<std::remove_reference_t<decltype(data)>>(*memory);
    *memory += ArrayBytes(bytes);
  });
  return view;
}

semkv_policy MakePolicy(SelectionPolicy policy) {
  semkv_policy result = DefaultPolicy(policy == SelectionPolicy::kHybrid ? SEMKV_POLICY_HYBRID
                                                                         : SEMKV_POLICY_CLUSTER);
  result.budget = kBudget;
  if (policy == SelectionPolicy::kClustersOf64) result.cluster_size = 64;
  return result;
}

}  // namespace

SelectionIndex::SelectionIndex(int32_t num_tokens, SelectionPolicy policy)
    : queries_(int64_t{kSteps} * kNumHeads * kHeadDim) {
  for (int32_t head = 0; head < kNumKvHeads; ++head) {
    AddHead(head, num_tokens, MakePolicy(policy));
  }
}

std::shared_ptr<const SelectionIndex> SelectionIndex::Get(int32_t num_tokens,
                                                          SelectionPolicy policy) {
  static std::map<std::pair<int32_t, SelectionPolicy>, std::shared_ptr<const SelectionIndex>> made;
  auto& index = made[{num_tokens, policy}];
  if (index == nullptr) index = std::make_shared<SelectionIndex>(num_tokens, policy);
  return index;
}

void SelectionIndex::AddHead(int32_t head, int32_t num_tokens, const semkv_policy& policy) {
  testing::S1Options options;
  options.seed = 100 + head;
  options.num_tokens = num_tokens;
  options.num_queries = kSteps * kGroup;
  const testing::S1Data data = testing::GenerateS1(options);
  for (int32_t step = 0; step < kSteps; ++step) {
    std::transform(data.query(step * kGroup), data.query(step * kGroup) + kGroup * kHeadDim,
                   &queries_[(int64_t{step} * kNumHeads + head * kGroup) * kHeadDim],
                   BFloat16FromFloat);
  }
  testing::IndexFixture fixture(1, kHeadDim, data.keys, data.values, policy, 1);
  fixture.Index(num_tokens, data.closes.data());
  std::vector<ListsView> views(fixture.index().max_views());
  views.resize(fixture.index().Views(0, views.data()));
  size_t bytes = 0;
  for (const ListsView& view : views) bytes += ViewBytes(view);
  uint8_t* memory = heads_.emplace_back(bytes).data();
  int32_t lists = 0;
  for (const ListsView& view : views) {
    views_.push_back(CopyView(view, &memory));
    lists += view.nlist;
  }
  view_begin_.push_back(static_cast<int32_t>(views_.size()));
  max_lists_ = std::max(max_lists_, lists);
  bytes_ += bytes;
}

std::vector<ListsView> SelectionIndex::CopyTo(uint8_t* memory) const {
  std::vector<ListsView> copies;
  for (const ListsView& view : views_) copies.push_back(CopyView(view, &memory));
  return copies;
}

const uint16_t* SelectionIndex::queries(int64_t i) const {
  return &queries_[i % kSteps * kNumHeads * kHeadDim];
}

SelectionRun::SelectionRun(const AttentionLayers& layers, int32_t num_tokens,
                           SelectionPolicy policy, bool contiguous)
    : layers_(layers),
      index_(SelectionIndex::Get(num_tokens, policy)),
      slots_(kNumKvHeads * kBudget),
      positions_(slots_.size()),
      counts_(kNumKvHeads),
      out_(kNumHeads * kHeadDim) {
  const size_t layer_bytes = (index_->bytes() + kPlainReadUnit - 1) / kPlainReadUnit;
  for (int32_t i = 0; i < layers_.num_layers(); ++i) {
    uint8_t* const memory = memory_.emplace_back(layer_bytes * kPlainReadUnit).data();
    std::vector<ListsView>& views = views_.emplace_back(index_->CopyTo(memory));
    for (ListsView& view : views) {
      if (contiguous) view.members = nullptr;
    }
  }
  row_.num_tokens = num_tokens;
  row_.budget = kBudget;
  row_.num_sinks = 16;
  row_.num_recent = 64;
  row_.rank_weight[0] = SentenceWeight(MakePolicy(policy));
  row_.block_table = layers_.block_table().data();
  DescribeSelection();
  DescribeAttention();
  retrieval_workspace_.resize(
      RetrieveWorkspaceBytes(kNumHeads, kNumKvHeads, kHeadDim, num_tokens, index_->max_lists(), 1));
  attention_workspace_.resize(
      DecodeAttentionWorkspaceBytes(1, kNumHeads, kNumKvHeads, kHeadDim, kBudget) + 64);
  DescribeRows();
}

void SelectionRun::DescribeSelection() {
  score_.q_dtype = attend_.q_dtype = DType::kBFloat16;
  score_.q_head = kHeadDim;
  score_.num_rows = select_.num_rows = 1;
  score_.num_heads = kNumHeads;
  score_.num_selections = select_.num_selections = kNumKvHeads;
  score_.head_dim = kHeadDim;
  score_.scale = 1.0f / std::sqrt(static_cast<float>(kHeadDim));
  score_.rows = select_.rows = &row_;
  score_.view_begin = select_.view_begin = index_->view_begin().data();
  select_.heads_per_selection = kGroup;
  select_.page_tokens = layers_.page_tokens();
  select_.slots = slots_.data();
  select_.positions = positions_.data();
  select_.counts = counts_.data();
  select_.slots_stride = kBudget;
}

void SelectionRun::DescribeAttention() {
  attend_.out = out_.data();
  attend_.q_head = attend_.out_head = kHeadDim;
  attend_.num_rows = 1;
  attend_.num_heads = kNumHeads;
  attend_.num_kv_heads = attend_.num_selections = kNumKvHeads;
  attend_.head_dim = kHeadDim;
  attend_.scale = score_.scale;
  attend_.position_slots.slots = slots_.data();
  attend_.position_slots.counts = counts_.data();
  attend_.position_slots.selection_stride = kBudget;
}

void SelectionRun::DescribeRows() {
  const KvView kv = layers_.view(0);
  for (int32_t step = 0; step < kSteps; ++step) {
    Select(step);
    std::vector<int64_t>& offsets = row_offsets_.emplace_back();
    for (int32_t head = 0; head < kNumKvHeads; ++head) {
      for (int32_t j = 0; j < counts_[head]; ++j) {
        offsets.push_back(RowOffset(kv, slots_[head * kBudget + j], head));
      }
    }
  }
}

void SelectionRun::ReadSelected(int64_t i) const {
  constexpr size_t kRowBytes = 2 * kHeadDim * sizeof(uint16_t);  // a key and its value
  const std::vector<int64_t>& offsets = row_offsets_[i % kSteps];
  benchmark::DoNotOptimize(
      PlainReadRows(layers_.layer(i), offsets.data(), offsets.size(), kRowBytes));
}

void SelectionRun::Select(int64_t i) {
  score_.q = index_->queries(i);
  score_.views = select_.views = views_[i % layers_.num_layers()].data();
  RetrieveHost(score_, select_, retrieval_workspace_.data(), retrieval_workspace_.size(), pool_);
}

void SelectionRun::SelectAndAttend(int64_t i) {
  Select(i);
  attend_.q = score_.q;
  attend_.position = layers_.view(i);
  uint8_t* workspace = attention_workspace_.data();
  workspace += (64 - reinterpret_cast<uintptr_t>(workspace) % 64) % 64;
  DecodeAttentionHost(attend_, workspace, attention_workspace_.size() - 64, pool_);
}

void SelectionRun::ReadLists(int64_t i) const {
  const std::vector<uint8_t>& memory = memory_[i % layers_.num_layers()];
  benchmark::DoNotOptimize(PlainRead(memory.data(), memory.size()));
}

}  // namespace semkv
