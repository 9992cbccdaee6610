// SelectListsCuda and RetrieveCuda on the machine's GPU over the cases of every form; without a GPU
// only that they say so.

#include "csrc/ops/retrieval/select_lists_cuda.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <deque>
#include <vector>

#include "csrc/ops/retrieval/score_lists_cuda.h"
#include "tests/cuda/device_copy.h"
#include "tests/cuda/run_captured.h"
#include "tests/ops/retrieval/select_cases.h"

namespace semkv {
namespace {

using testing::DeviceCopy;
using testing::HasDevice;
using testing::RetrievalCase;
using testing::RetrievalInput;
using testing::Selected;
using testing::SmallSelectInput;

// The device's copy of everything that params point to. Keys and outputs hold what the host's do.
class DeviceSelectInput {
 public:
  explicit DeviceSelectInput(const SelectListsParams& host) : select_(host) {
    const int64_t tasks = int64_t{host.num_rows} * host.num_selections;
    std::vector<RetrievalRow> rows(host.rows, host.rows + host.num_rows);
    for (RetrievalRow& row : rows) {
      row.block_table = Copy(row.block_table, CeilDiv(row.num_tokens, host.page_tokens));
    }
    views_.assign(host.views, host.views + host.view_begin[tasks]);
    for (ListsView& view : views_) {
      view.members = Copy(view.members, view.offsets[view.nlist]);
      view.offsets = Copy(view.offsets, view.nlist + 1);
      view.excluded = Copy(view.excluded, view.num_excluded);
    }
    if (host.always != nullptr) {
      std::vector<AlwaysTaken> always(host.always, host.always + tasks);
      for (AlwaysTaken& taken : always) taken.positions = Copy(taken.positions, taken.count);
      select_.always = Copy(always.data(), tasks);
    }
    select_.rows = Copy(rows.data(), host.num_rows);
    select_.views = Copy(views_.data(), static_cast<int64_t>(views_.size()));
    select_.view_begin = Copy(host.view_begin, tasks + 1);
    select_.keys = Copy(host.keys, tasks * host.keys_stride);
    select_.slots = Copy(host.slots, tasks * host.slots_stride);
    slots_ = &copies_.back();
    select_.positions = Copy(host.positions, tasks * host.slots_stride);
    positions_ = &copies_.back();
    select_.counts = Copy(host.counts, tasks);
    counts_ = &copies_.back();
  }
  DeviceSelectInput(const DeviceSelectInput&) = delete;
  DeviceSelectInput& operator=(const DeviceSelectInput&) = delete;

  const SelectListsParams& select() const { return select_; }

  // The scores' side of the same rows and views; keys are written where select() reads them.
  ScoreListsParams Score(const ScoreListsParams& host, const std::vector<uint8_t>& q) {
    for (size_t v = 0; v < views_.size(); ++v) {
      const ListsView& from = host.views[v];
      ListsView& view = views_[v];
      view.centroids = Copy(static_cast<const uint8_t*>(from.centroids),
                            view.nlist * CentroidRowBytes(view.form, host.head_dim));
      view.scales = Copy(from.scales, view.nlist);
      view.center = Copy(from.center, host.head_dim);
      view.variances = Copy(from.variances, view.nlist);
    }
    select_.views = Copy(views_.data(), static_cast<int64_t>(views_.size()));
    ScoreListsParams score = host;
    score.q = Copy(q.data(), static_cast<int64_t>(q.size()));
    score.rows = select_.rows;
    score.views = select_.views;
    score.view_begin = select_.view_begin;
    score.keys = const_cast<float*>(select_.keys);
    return score;
  }

  Selected Read() const {
    return {slots_->Read<int32_t>(), positions_->Read<int32_t>(), counts_->Read<int32_t>()};
  }

 private:
  template <typename T>
  T* Copy(const T* host, int64_t n) {
    if (host == nullptr) return nullptr;
    return static_cast<T*>(copies_.emplace_back(host, n * sizeof(T)).data());
  }

  SelectListsParams select_;
  std::vector<ListsView> views_;  // of device pointers
  std::deque<DeviceCopy> copies_;
  const DeviceCopy* slots_ = nullptr;
  const DeviceCopy* positions_ = nullptr;
  const DeviceCopy* counts_ = nullptr;
};

// Twice, with lists in shared memory and in the workspace.
void Select(const SelectListsParams& p, SelectListsPlan plan) {
  for (const bool in_shared : {true, false}) {
    plan.lists_in_shared = in_shared;
    const size_t bytes = SelectListsCudaWorkspaceBytes(plan);
    DeviceCopy workspace(std::vector<uint8_t>(bytes + 1, 0xa5));
    testing::RunCaptured(2, [&](cudaStream_t stream) {
      return SelectListsCuda(p, plan, workspace.data(), bytes, stream);
    });
  }
}

TEST(SelectListsCudaTest, SelectsWhatIsExpectedOfListsByHand) {
  if (!HasDevice()) GTEST_SKIP() << "no GPU";
  for (const testing::SmallSelectCase& c : testing::Thinned(testing::SmallSelectCases())) {
    SCOPED_TRACE(c.name);
    SmallSelectInput input = c.input;
    const DeviceSelectInput device(input.Params());
    Select(device.select(),
           PlanSelectLists(1, 1, input.row.num_tokens, static_cast<int32_t>(input.keys.size()),
                           static_cast<int32_t>(input.views.size())));
    const Selected selected = device.Read();
    std::copy(selected.slots.begin(), selected.slots.end(), input.slots.begin());
    std::copy(selected.positions.begin(), selected.positions.end(), input.positions.begin());
    input.count = selected.counts[0];
    input.ExpectSelected(c.expected);
  }
}

void ExpectCudaEqualsReference(RetrievalInput& input) {
  testing::PoisonSelected(input);
  const SelectListsParams p = input.Select();
  const DeviceSelectInput device(p);
  const Selected expected = SelectReference(input);
  Select(device.select(),
         PlanSelectLists(p.num_rows, p.num_selections, input.max_row_tokens(), input.max_lists(),
                         static_cast<int32_t>(input.views().size())));
  EXPECT_EQ(device.Read(), expected);
}

TEST(SelectListsCudaTest, EqualsTheReference) {
  if (!HasDevice()) GTEST_SKIP() << "no GPU";
  for (const RetrievalCase& c : testing::Thinned(testing::RetrievalCases())) {
    SCOPED_TRACE(c.name);
    RetrievalInput input(c, 1);
    ScoreListsReference(input.Score());
    ExpectCudaEqualsReference(input);
  }
  std::mt19937_64 rng(5);
  for (int round = 0; round < (testing::kIsEmulated ? 3 : 60); ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    RetrievalInput input(testing::RandomSelectCase(rng), rng());
    testing::SetRandomKeys(rng, input);
    ExpectCudaEqualsReference(input);
  }
  testing::BetterHalf half(5121);
  ExpectCudaEqualsReference(half.input);
}

TEST(RetrieveCudaTest, SelectsWhatTheReferenceSelectsByTheKeysOfScoreListsCuda) {
  if (!HasDevice()) GTEST_SKIP() << "no GPU";
  for (const RetrievalCase& c : testing::Thinned(testing::RetrievalCases())) {
    SCOPED_TRACE(c.name);
    RetrievalInput input(c, 2);
    testing::PoisonSelected(input);
    DeviceSelectInput device(input.Select());
    ScoreListsParams score = device.Score(input.Score(), input.q());
    const RetrievePlan plan = PlanRetrieve(
        input.num_rows(), c.num_heads, c.num_selections, c.head_dim, c.form, input.max_row_tokens(),
        input.max_lists(), static_cast<int32_t>(input.views().size()));
    const size_t bytes = RetrieveCudaWorkspaceBytes(plan);
    DeviceCopy workspace(std::vector<uint8_t>(bytes, 0xff));
    ASSERT_EQ(ScoreListsCuda(score, plan.score, workspace.data(), bytes, nullptr), cudaSuccess);
    ASSERT_EQ(cudaMemcpy(input.keys.data(), score.keys, input.keys.size() * sizeof(float),
                         cudaMemcpyDeviceToHost),
              cudaSuccess);
    const Selected expected = SelectReference(input);
    score.keys = nullptr;
    testing::RunCaptured(1, [&](cudaStream_t stream) {
      return RetrieveCuda(score, device.select(), plan, workspace.data(), bytes, stream);
    });
    EXPECT_EQ(device.Read(), expected);
  }
}

TEST(SelectListsCudaTest, ALaunchWithoutADeviceReturnsItsError) {
  if (HasDevice()) GTEST_SKIP() << "there is a GPU";
  SmallSelectInput input = testing::SmallSelectCases()[0].input;
  const SelectListsParams p = input.Params();
  EXPECT_NE(SelectListsCuda(p, PlanSelectLists(1, 1, 64, 1, 1), nullptr, 0, nullptr), cudaSuccess);
  RetrievalCase c;
  RetrievalInput retrieval(c, 1);
  const RetrievePlan plan =
      PlanRetrieve(3, c.num_heads, c.num_selections, c.head_dim, c.form, 3000, 1000, 20);
  std::vector<uint8_t> workspace(RetrieveCudaWorkspaceBytes(plan));
  EXPECT_NE(RetrieveCuda(retrieval.Score(), retrieval.Select(), plan, workspace.data(),
                         workspace.size(), nullptr),
            cudaSuccess);
}

TEST(SelectListsCudaTest, NothingToSelectIsASuccessAndBadBoundsAreRefused) {
  EXPECT_EQ(SelectListsCuda(SelectListsParams(), SelectListsPlan(), nullptr, 0, nullptr),
            cudaSuccess);
  EXPECT_EQ(
      RetrieveCuda(ScoreListsParams(), SelectListsParams(), RetrievePlan(), nullptr, 0, nullptr),
      cudaSuccess);
  SmallSelectInput input = testing::SmallSelectCases()[0].input;
  const SelectListsParams p = input.Params();
  EXPECT_EQ(SelectListsCuda(p, PlanSelectLists(2, 1, 64, 1, 1), nullptr, 0, nullptr),
            cudaErrorInvalidValue);
  SelectListsPlan plan = PlanSelectLists(1, 1, 64, 1, 1);
  plan.lists_in_shared = false;
  EXPECT_EQ(SelectListsCuda(p, plan, nullptr, SelectListsCudaWorkspaceBytes(plan) - 1, nullptr),
            cudaErrorInvalidValue);
  RetrievalCase c;
  RetrievalInput retrieval(c, 1);
  const RetrievePlan retrieve =
      PlanRetrieve(3, c.num_heads, c.num_selections, c.head_dim, c.form, 3000, 1000, 20);
  EXPECT_EQ(RetrieveCuda(retrieval.Score(), retrieval.Select(), retrieve, nullptr,
                         RetrieveCudaWorkspaceBytes(retrieve) - 1, nullptr),
            cudaErrorInvalidValue);
}

}  // namespace
}  // namespace semkv
