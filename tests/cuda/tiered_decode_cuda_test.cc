// A decode step whose lists lie at home: RetrieveCuda, ResolveCuda, GatherPagesCuda and
// DecodeAttentionCuda in one CUDA graph, replayed step after step without the host. What attention
// reads must be the tokens that select_lists takes by position.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "csrc/ops/attention/decode_attention_cuda.h"
#include "csrc/ops/numeric/float_convert.h"
#include "csrc/ops/residency/gather_pages_cuda.h"
#include "csrc/ops/residency/resolve_cuda.h"
#include "csrc/ops/retrieval/score_lists_cuda.h"
#include "csrc/ops/retrieval/select_lists_cuda.h"
#include "tests/cuda/device_copy.h"
#include "tests/cuda/device_select_input.h"
#include "tests/cuda/run_captured.h"
#include "tests/ops/retrieval/select_cases.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using testing::DeviceCopy;
using testing::MappedCopy;
using testing::RetrievalCase;
using testing::RetrievalInput;
using testing::Selected;

constexpr int32_t kSteps = 8;
constexpr int32_t kHeadDim = 64;
constexpr int32_t kTokenBytes = kHeadDim * 2;  // of a bfloat16 key, or value

std::vector<uint16_t> RandomBFloat16(std::mt19937_64& rng, int64_t n) {
  std::normal_distribution<float> normal;
  std::vector<uint16_t> x(n);
  for (uint16_t& value : x) value = BFloat16FromFloat(normal(rng));
  return x;
}

// The engine's pool, one page after another: [page, K and V, token, KV head, channel].
class PositionPool {
 public:
  PositionPool(const RetrievalCase& c, int32_t num_pages, std::mt19937_64& rng)
      : case_(c),
        num_pages_(num_pages),
        data_(RandomBFloat16(rng, int64_t{2} * num_pages * PageHalf())) {}

  KvView View(void* data) const {
    KvView view;
    view.k = data;
    view.v = static_cast<uint16_t*>(data) + PageHalf();
    view.k_page = view.v_page = 2 * PageHalf();
    view.k_token = view.v_token = int64_t{case_.num_selections} * kHeadDim;
    view.k_head = view.v_head = kHeadDim;
    view.page_tokens = case_.page_tokens;
    view.num_pages = num_pages_;
    view.dtype = DType::kBFloat16;
    return view;
  }

  std::vector<uint16_t>& data() { return data_; }

 private:
  int64_t PageHalf() const { return int64_t{case_.page_tokens} * case_.num_selections * kHeadDim; }

  RetrievalCase case_;
  int32_t num_pages_;
  std::vector<uint16_t> data_;
};

// A list page is [K and V, token, channel].
KvView ListPagesView(void* data, int32_t page_tokens, int32_t num_pages) {
  KvView view;
  view.k = data;
  view.v = static_cast<uint16_t*>(data) + int64_t{page_tokens} * kHeadDim;
  view.k_page = view.v_page = int64_t{2} * page_tokens * kHeadDim;
  view.k_token = view.v_token = kHeadDim;
  view.page_tokens = page_tokens;
  view.num_pages = num_pages;
  view.dtype = DType::kBFloat16;
  return view;
}

// A token's key and value, as bytes.
std::string TokenOf(const KvView& view, int32_t slot, int32_t head) {
  const auto* k = static_cast<const uint16_t*>(view.k) + KeyOffset(view, slot, head);
  const auto* v = static_cast<const uint16_t*>(view.v) + ValueOffset(view, slot, head);
  return std::string(reinterpret_cast<const char*>(k), kTokenBytes) +
         std::string(reinterpret_cast<const char*>(v), kTokenBytes);
}

// The members of every list that has pages, from the position pool to where the list's pages lie.
std::vector<uint8_t> PackHome(const SelectListsParams& p, const KvView& pool,
                              int32_t num_home_pages) {
  std::vector<uint8_t> home(int64_t{num_home_pages} * p.list_page_tokens * 2 * kTokenBytes);
  const KvView pages = ListPagesView(home.data(), p.list_page_tokens, num_home_pages);
  for (int64_t task = 0; task < int64_t{p.num_rows} * p.num_selections; ++task) {
    const int32_t head = static_cast<int32_t>(task % p.num_selections);
    const int32_t* const table = p.rows[task / p.num_selections].block_table;
    for (int32_t v = p.view_begin[task]; v < p.view_begin[task + 1]; ++v) {
      const ListsView& view = p.views[v];
      if (view.first_page == nullptr) continue;
      for (int32_t i = 0; i < view.nlist; ++i) {
        for (int32_t j = 0; j < ListSize(view, i); ++j) {
          const int32_t position = MemberPosition(view, i, j);
          const int32_t from =
              table[position / p.page_tokens] * p.page_tokens + position % p.page_tokens;
          const int32_t to = view.first_page[i] * p.list_page_tokens + j;
          std::memcpy(static_cast<uint16_t*>(pages.k) + KeyOffset(pages, to, 0),
                      static_cast<uint16_t*>(pool.k) + KeyOffset(pool, from, head), kTokenBytes);
          std::memcpy(static_cast<uint16_t*>(pages.v) + ValueOffset(pages, to, 0),
                      static_cast<uint16_t*>(pool.v) + ValueOffset(pool, from, head), kTokenBytes);
        }
      }
    }
  }
  return home;
}

// Device memory, a copy of which is kept of every step; the host reads them at the end.
class Kept {
 public:
  explicit Kept(int64_t bytes)
      : now_(std::vector<uint8_t>(bytes)), steps_(std::vector<uint8_t>(bytes * kSteps)) {
    bytes_ = bytes;
  }

  template <typename T>
  T* now() {
    return static_cast<T*>(now_.data());
  }
  void Keep(int32_t step, cudaStream_t stream) {
    EXPECT_EQ(cudaMemcpyAsync(static_cast<uint8_t*>(steps_.data()) + step * bytes_, now_.data(),
                              bytes_, cudaMemcpyDeviceToDevice, stream),
              cudaSuccess);
  }
  template <typename T>
  std::vector<T> Read(int32_t step) const {
    const std::vector<T> all = steps_.Read<T>();
    const auto n = static_cast<int64_t>(all.size()) / kSteps;
    return {all.begin() + step * n, all.begin() + (step + 1) * n};
  }

 private:
  DeviceCopy now_, steps_;
  int64_t bytes_ = 0;
};

// The tiers, and the parameters of the four operations; all that they point to is the device's.
class TieredDecode {
 public:
  TieredDecode(const RetrievalCase& c, uint64_t seed)
      : case_(c),
        rng_(seed),
        input_(c, seed),
        pool_(c, 7 + CeilDiv(input_.max_row_tokens(), c.page_tokens), rng_),
        num_tasks_(input_.num_tasks()),
        shape_(Shape()),
        home_(PackHome(input_.Select(), pool_.View(pool_.data().data()), shape_.num_home_pages)),
        device_pool_(pool_.data()),
        steps_(Iota()),
        step_(std::vector<int32_t>(1)),
        hot_of_home_(std::vector<int32_t>(shape_.num_home_pages, kNotResident)),
        home_of_hot_(std::vector<int32_t>(shape_.num_hot_pages, kNotResident)),
        stamps_(std::vector<int32_t>(shape_.num_hot_pages, kNeverUsed)),
        hand_(std::vector<int32_t>(1)),
        misses_(std::vector<PagePair>(shape_.num_hot_pages)),
        num_unplaced_(std::vector<int32_t>(1)),
        slots_(num_tasks_ * c.budget * 4),
        counts_(num_tasks_ * 4),
        wanted_(num_tasks_ * shape_.max_wanted * int64_t{sizeof(WantedPage)}),
        wanted_counts_(num_tasks_ * 4),
        list_slots_(num_tasks_ * c.budget * 4),
        list_counts_(num_tasks_ * 4),
        num_misses_(4),
        hot_(int64_t{shape_.num_hot_pages} * PageBytes()),
        out_(QueryElements() * 2),
        lse_(int64_t{input_.num_rows()} * c.num_heads * 4),
        device_(input_.Select()),
        score_(device_.Score(input_.Score(), input_.q())) {
    MakeQueries();
    queries_.emplace(all_queries_);
  }

  // All steps, enqueued at once.
  void Run() {
    cudaStream_t stream = nullptr;
    ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
    Plan();
    const testing::CapturedGraph graph(stream, [&](cudaStream_t s) { return Launch(s); });
    for (int32_t step = 0; step < kSteps; ++step) {
      CopyWithin(const_cast<void*>(score_.q), queries_->data(), step, 2 * QueryElements(), stream);
      CopyWithin(step_.data(), steps_.data(), step, 4, stream);
      graph.Replay(stream);
      for (Kept* kept : {&slots_, &counts_, &wanted_counts_, &list_slots_, &list_counts_,
                         &num_misses_, &hot_, &out_, &lse_}) {
        kept->Keep(step, stream);
      }
    }
    EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
  }

  void ExpectStepsOfPlainSelection() {
    int64_t misses = 0;
    bool has_hit = false;
    for (int32_t step = 0; step < kSteps; ++step) {
      SCOPED_TRACE("step " + std::to_string(step));
      ExpectStep(step);
      const std::vector<int32_t> wanted = wanted_counts_.Read<int32_t>(step);
      const int32_t num_misses = num_misses_.Read<int32_t>(step)[0];
      misses += num_misses;
      has_hit = has_hit || num_misses < std::accumulate(wanted.begin(), wanted.end(), 0);
      // A selection that ended early would have other tokens.
      for (const int32_t count : wanted) EXPECT_LT(count, shape_.max_wanted);
    }
    EXPECT_EQ(num_unplaced_.Read<int32_t>()[0], 0);
    EXPECT_TRUE(has_hit);
    EXPECT_LT(shape_.num_hot_pages, shape_.num_home_pages);
    EXPECT_GT(misses, shape_.num_hot_pages) << "nothing was evicted";
  }

 private:
  int64_t QueryElements() const { return int64_t{input_.num_rows()} * case_.num_heads * kHeadDim; }
  int64_t PageBytes() const { return int64_t{2} * case_.list_page_tokens * kTokenBytes; }

  static std::vector<int32_t> Iota() {
    std::vector<int32_t> x(kSteps);
    std::iota(x.begin(), x.end(), 0);
    return x;
  }

  ResolveShape Shape() const {
    ResolveShape shape;
    shape.num_rows = input_.num_rows();
    shape.num_selections = case_.num_selections;
    shape.max_wanted = input_.wanted_stride();
    shape.max_slots = case_.budget;
    shape.page_tokens = case_.list_page_tokens;
    shape.num_home_pages = input_.num_home_pages();
    shape.num_hot_pages = static_cast<int32_t>(NeededHotPages(shape));
    return shape;
  }

  // Each step's are half those of the step before.
  void MakeQueries() {
    std::vector<float> q(QueryElements());
    std::normal_distribution<float> normal;
    for (int32_t step = 0; step < kSteps; ++step) {
      for (float& x : q) x = 0.7f * (step == 0 ? normal(rng_) : x) + 0.7f * normal(rng_);
      for (const float x : q) all_queries_.push_back(BFloat16FromFloat(x));
    }
  }

  static void CopyWithin(void* to, const void* from, int32_t step, int64_t bytes,
                         cudaStream_t stream) {
    EXPECT_EQ(cudaMemcpyAsync(to, static_cast<const uint8_t*>(from) + step * bytes, bytes,
                              cudaMemcpyDeviceToDevice, stream),
              cudaSuccess);
  }

  void Plan() {
    retrieve_plan_ = PlanRetrieve(input_.num_rows(), case_.num_heads, case_.num_selections,
                                  kHeadDim, case_.form, input_.max_row_tokens(), input_.max_lists(),
                                  static_cast<int32_t>(input_.views().size()), {true});
    DecodeAttentionBounds bounds;
    bounds.num_rows = input_.num_rows();
    bounds.max_row_tokens = case_.budget;
    bounds.num_heads = case_.num_heads;
    bounds.num_kv_heads = bounds.num_selections = case_.num_selections;
    bounds.head_dim = kHeadDim;
    attention_plan_ = PlanDecodeAttention(bounds);
    for (const size_t bytes : {RetrieveCudaWorkspaceBytes(retrieve_plan_),
                               ResolveCudaWorkspaceBytes(PlanResolve(shape_)),
                               DecodeAttentionCudaWorkspaceBytes(attention_plan_)}) {
      workspaces_.emplace_back(std::vector<uint8_t>(bytes));
      workspace_bytes_.push_back(bytes);
    }
    score_.keys = nullptr;
  }

  cudaError_t Launch(cudaStream_t stream) {
    cudaError_t error = RetrieveCuda(score_, Select(), retrieve_plan_, workspaces_[0].data(),
                                     workspace_bytes_[0], stream);
    if (error != cudaSuccess) return error;
    error = ResolveCuda(Resolve(), workspaces_[1].data(), workspace_bytes_[1], stream);
    if (error != cudaSuccess) return error;
    error = GatherPagesCuda(Gather(), kPageCopyCtas, stream);
    if (error != cudaSuccess) return error;
    return DecodeAttentionCuda(Attention(device_pool_.data(), hot_.now<void>()), attention_plan_,
                               workspaces_[2].data(), workspace_bytes_[2], stream);
  }

  SelectListsParams Select() {
    SelectListsParams p = device_.select();
    p.slots = slots_.now<int32_t>();
    p.positions = nullptr;
    p.counts = counts_.now<int32_t>();
    p.wanted = wanted_.now<WantedPage>();
    p.wanted_counts = wanted_counts_.now<int32_t>();
    return p;
  }

  ResolveParams Resolve() {
    ResolveParams p;
    p.shape = shape_;
    p.wanted = wanted_.now<WantedPage>();
    p.wanted_counts = wanted_counts_.now<int32_t>();
    p.step = static_cast<int32_t*>(step_.data());
    p.residency = {static_cast<int32_t*>(hot_of_home_.data()),
                   static_cast<int32_t*>(home_of_hot_.data()),
                   static_cast<int32_t*>(stamps_.data()), static_cast<int32_t*>(hand_.data())};
    p.misses = static_cast<PagePair*>(misses_.data());
    p.num_misses = num_misses_.now<int32_t>();
    p.num_unplaced = static_cast<int32_t*>(num_unplaced_.data());
    p.slots = list_slots_.now<int32_t>();
    p.slot_counts = list_counts_.now<int32_t>();
    return p;
  }

  PageCopyParams Gather() {
    PageCopyParams p;
    p.home = home_.device();
    p.hot = hot_.now<void>();
    p.page_bytes = PageBytes();
    p.num_home_pages = shape_.num_home_pages;
    p.num_hot_pages = shape_.num_hot_pages;
    p.pages = static_cast<PagePair*>(misses_.data());
    p.num_pages = num_misses_.now<int32_t>();
    p.max_pages = shape_.num_hot_pages;
    return p;
  }

  DecodeAttentionParams Attention(void* pool, void* hot) {
    DecodeAttentionParams p;
    p.q = score_.q;
    p.out = out_.now<void>();
    p.lse = lse_.now<float>();
    p.q_dtype = DType::kBFloat16;
    p.q_row = p.out_row = int64_t{case_.num_heads} * kHeadDim;
    p.q_head = p.out_head = kHeadDim;
    p.num_rows = input_.num_rows();
    p.num_heads = case_.num_heads;
    p.num_kv_heads = p.num_selections = case_.num_selections;
    p.head_dim = kHeadDim;
    p.scale = score_.scale;
    p.position = pool_.View(pool);
    p.list = ListPagesView(hot, case_.list_page_tokens, shape_.num_hot_pages);
    const int64_t row_slots = int64_t{case_.num_selections} * case_.budget;
    p.position_slots = {slots_.now<int32_t>(), counts_.now<int32_t>(), row_slots, case_.budget};
    p.list_slots = {list_slots_.now<int32_t>(), list_counts_.now<int32_t>(), row_slots,
                    case_.budget};
    return p;
  }

  // By position, with the keys that the GPU computes.
  void SelectPlain(int32_t step) {
    const auto* q = reinterpret_cast<const uint8_t*>(all_queries_.data() + step * QueryElements());
    std::copy_n(q, 2 * QueryElements(), input_.q().begin());
    testing::DeviceSelectInput device(input_.Select());
    const ScoreListsParams score = device.Score(input_.Score(), input_.q());
    DeviceCopy workspace(
        std::vector<uint8_t>(ScoreListsCudaWorkspaceBytes(retrieve_plan_.score) + 1));
    ASSERT_EQ(ScoreListsCuda(score, retrieve_plan_.score, workspace.data(),
                             ScoreListsCudaWorkspaceBytes(retrieve_plan_.score), nullptr),
              cudaSuccess);
    ASSERT_EQ(cudaMemcpy(input_.keys.data(), score.keys, input_.keys.size() * sizeof(float),
                         cudaMemcpyDeviceToHost),
              cudaSuccess);
    SelectListsParams select = input_.Select();
    select.wanted = nullptr;
    SelectReference(input_, select);
  }

  void ExpectStep(int32_t step) {
    SelectPlain(step);
    const std::vector<int32_t> slots = slots_.Read<int32_t>(step);
    const std::vector<int32_t> counts = counts_.Read<int32_t>(step);
    const std::vector<int32_t> list_slots = list_slots_.Read<int32_t>(step);
    const std::vector<int32_t> list_counts = list_counts_.Read<int32_t>(step);
    std::vector<uint8_t> hot = hot_.Read<uint8_t>(step);
    const KvView pool = pool_.View(pool_.data().data());
    const KvView lists = ListPagesView(hot.data(), case_.list_page_tokens, shape_.num_hot_pages);
    for (int64_t task = 0; task < num_tasks_; ++task) {
      const int32_t head = static_cast<int32_t>(task % case_.num_selections);
      const int64_t first = task * case_.budget;
      std::vector<std::string> tokens, expected;
      for (int32_t i = 0; i < counts[task]; ++i) {
        tokens.push_back(TokenOf(pool, slots[first + i], head));
      }
      for (int32_t i = 0; i < list_counts[task]; ++i) {
        tokens.push_back(TokenOf(lists, list_slots[first + i], 0));
      }
      for (int32_t i = 0; i < input_.counts[task]; ++i) {
        expected.push_back(TokenOf(pool, input_.slots[first + i], head));
      }
      std::sort(tokens.begin(), tokens.end());
      std::sort(expected.begin(), expected.end());
      EXPECT_TRUE(tokens == expected) << "task " << task;
    }
    ExpectAttention(step, pool);
  }

  // Attention of the same tokens, all of them in the position pool.
  void ExpectAttention(int32_t step, const KvView& pool) {
    std::vector<uint16_t> out(QueryElements());
    std::vector<float> lse(int64_t{input_.num_rows()} * case_.num_heads);
    DecodeAttentionParams p = Attention(pool.k, nullptr);
    p.q = input_.q().data();
    p.out = out.data();
    p.lse = lse.data();
    p.list = {};
    p.list_slots = {};
    p.position_slots.slots = input_.slots.data();
    p.position_slots.counts = input_.counts.data();
    DecodeAttentionReference(p);
    const std::vector<uint16_t> actual = out_.Read<uint16_t>(step);
    const std::vector<float> actual_lse = lse_.Read<float>(step);
    for (size_t i = 0; i < lse.size(); ++i) EXPECT_NEAR(actual_lse[i], lse[i], 1e-4f) << i;
    for (size_t i = 0; i < out.size(); ++i) {
      ASSERT_NEAR(FloatFromBFloat16(actual[i]), FloatFromBFloat16(out[i]), 1.6e-2f) << i;
    }
  }

  const RetrievalCase case_;
  std::mt19937_64 rng_;
  RetrievalInput input_;
  PositionPool pool_;
  const int64_t num_tasks_;
  const ResolveShape shape_;
  MappedCopy home_;
  DeviceCopy device_pool_, steps_, step_;
  DeviceCopy hot_of_home_, home_of_hot_, stamps_, hand_, misses_, num_unplaced_;
  Kept slots_, counts_, wanted_, wanted_counts_, list_slots_, list_counts_, num_misses_;
  Kept hot_, out_, lse_;
  testing::DeviceSelectInput device_;
  ScoreListsParams score_;
  std::vector<uint16_t> all_queries_;
  std::optional<DeviceCopy> queries_;
  RetrievePlan retrieve_plan_;
  DecodeAttentionPlan attention_plan_;
  std::deque<DeviceCopy> workspaces_;
  std::vector<size_t> workspace_bytes_;
};

RetrievalCase HybridCase() {
  RetrievalCase c;
  c.contexts = {2000, 900};
  c.num_heads = 4;
  c.num_selections = 2;
  c.head_dim = kHeadDim;
  c.q_dtype = DType::kBFloat16;
  c.budget = 256;
  c.num_sinks = 8;
  c.num_recent = 32;
  c.segment_tokens = 256;
  c.list_page_tokens = 16;
  c.wanted_stride = 48;
  return c;
}

void ExpectTieredDecodeEqualsPlain(const RetrievalCase& c) {
  const uint64_t seed = testing::TestSeed(81);
  SEMKV_TRACE_SEED(seed);
  TieredDecode decode(c, seed);
  {
    const testing::LazyStreams lazy;
    decode.Run();
  }
  decode.ExpectStepsOfPlainSelection();
}

TEST(TieredDecodeTest, AttendsToWhatPlainSelectionTakes) {
  if (!testing::HasDevice()) GTEST_SKIP() << "no GPU";
  ExpectTieredDecodeEqualsPlain(HybridCase());
}

TEST(TieredDecodeTest, AttendsToTheEarliestUpToAMassTarget) {
  if (!testing::HasDevice()) GTEST_SKIP() << "no GPU";
  RetrievalCase c = HybridCase();
  c.contexts = {2000};
  c.trim = TrimKeep::kEarliest;
  c.mass_target = 0.6f;
  c.list_page_tokens = 8;
  ExpectTieredDecodeEqualsPlain(c);
}

}  // namespace
}  // namespace semkv
