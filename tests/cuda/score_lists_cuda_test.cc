// ScoreListsCuda on the machine's GPU over the cases of every form; without a GPU only that it says
// so.

#include "csrc/ops/retrieval/score_lists_cuda.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <deque>
#include <vector>

#include "tests/cuda/device_copy.h"
#include "tests/cuda/run_captured.h"
#include "tests/ops/retrieval/score_lists_cases.h"

namespace semkv {
namespace {

using testing::DeviceCopy;
using testing::HasDevice;
using testing::RetrievalInput;

// The device's copy of everything that params point to.
class DeviceScoreInput {
 public:
  DeviceScoreInput(const ScoreListsParams& host, size_t q_bytes) : params_(host) {
    const int64_t tasks = int64_t{host.num_rows} * host.num_selections;
    const int32_t num_views = host.view_begin[tasks];
    std::vector<ListsView> views(host.views, host.views + num_views);
    for (ListsView& view : views) {
      const int64_t row_bytes = CentroidRowBytes(view.form, host.head_dim);
      view.centroids = Copy(static_cast<const uint8_t*>(view.centroids), view.nlist * row_bytes);
      view.scales = Copy(view.scales, view.nlist);
      view.center = Copy(view.center, host.head_dim);
      view.variances = Copy(view.variances, view.nlist);
      view.offsets = Copy(view.offsets, view.nlist + 1);
    }
    params_.q = Copy(static_cast<const uint8_t*>(host.q), static_cast<int64_t>(q_bytes));
    params_.rows = Copy(host.rows, host.num_rows);
    params_.views = Copy(views.data(), num_views);
    params_.view_begin = Copy(host.view_begin, tasks + 1);
    params_.keys = Copy(host.keys, tasks * host.keys_stride);
    keys_ = &copies_.back();
  }
  DeviceScoreInput(const DeviceScoreInput&) = delete;
  DeviceScoreInput& operator=(const DeviceScoreInput&) = delete;

  const ScoreListsParams& params() const { return params_; }
  std::vector<float> ReadKeys() const { return keys_->Read<float>(); }

 private:
  template <typename T>
  T* Copy(const T* host, int64_t n) {
    if (host == nullptr) return nullptr;
    return static_cast<T*>(copies_.emplace_back(host, n * sizeof(T)).data());
  }

  ScoreListsParams params_;
  std::deque<DeviceCopy> copies_;
  const DeviceCopy* keys_ = nullptr;
};

void ExpectCudaEqualsReference(const ScoreListsParams& p, const ScoreListsPlan& plan,
                               size_t q_bytes) {
  const int64_t num_keys = int64_t{p.num_rows} * p.num_selections * p.keys_stride;
  std::fill_n(p.keys, num_keys, testing::kPoison);
  const DeviceScoreInput device(p, q_bytes);
  ScoreListsReference(p);
  const std::vector<float> expected(p.keys, p.keys + num_keys);
  DeviceCopy workspace(std::vector<uint8_t>(ScoreListsCudaWorkspaceBytes(plan), 0xff));
  testing::RunCaptured(testing::kIsEmulated ? 1 : 2, [&](cudaStream_t stream) {
    return ScoreListsCuda(device.params(), plan, workspace.data(),
                          ScoreListsCudaWorkspaceBytes(plan), stream);
  });
  testing::ExpectKeysNear(device.ReadKeys(), expected, 2e-4);
}

void ExpectCudaEqualsReference(const testing::RetrievalCase& c, uint64_t seed) {
  RetrievalInput input(c, seed);
  const ScoreListsParams p = input.Score();
  const ScoreListsPlan plan =
      PlanScoreLists(p.num_rows, p.num_heads, p.num_selections, p.head_dim, c.form,
                     input.max_lists(), static_cast<int32_t>(input.views().size()));
  ExpectCudaEqualsReference(p, plan, input.q().size());
}

TEST(ScoreListsCudaTest, EqualsTheReference) {
  if (!HasDevice()) GTEST_SKIP() << "no GPU";
  for (const testing::RetrievalCase& c : testing::Thinned(testing::RetrievalCases())) {
    SCOPED_TRACE(c.name);
    ExpectCudaEqualsReference(c, 1);
  }
  std::mt19937_64 rng(3);
  for (int round = 0; round < (testing::kIsEmulated ? 2 : 20); ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    ExpectCudaEqualsReference(testing::RandomScoreCase(rng), rng());
  }
}

TEST(ScoreListsCudaTest, NumbersThatAreNotFiniteAreTheReferences) {
  if (!HasDevice()) GTEST_SKIP() << "no GPU";
  for (testing::SmallScoreInput input :
       {testing::NotANumberCase(), testing::EmptyListCase(), testing::InfiniteScoresCase(),
        testing::ZeroQueryCase(), testing::QueryNotFiniteCase(testing::kNan),
        testing::QueryNotFiniteCase(testing::kInfinity),
        testing::VarianceCase(VarianceTerm::kBounded),
        testing::VarianceCase(VarianceTerm::kHalf)}) {
    const ScoreListsParams p = input.Params();
    const ScoreListsPlan plan =
        PlanScoreLists(1, p.num_heads, 1, 16, CentroidForm::kFloat32, input.view.nlist, 1);
    ExpectCudaEqualsReference(p, plan, input.q.size() * sizeof(float));
  }
}

TEST(ScoreListsCudaTest, ALaunchWithoutADeviceReturnsItsError) {
  if (HasDevice()) GTEST_SKIP() << "there is a GPU";
  testing::SmallScoreInput input = testing::ZeroQueryCase();
  const ScoreListsPlan plan = PlanScoreLists(1, 1, 1, 16, CentroidForm::kFloat32, 4, 1);
  std::vector<uint8_t> workspace(ScoreListsCudaWorkspaceBytes(plan));
  EXPECT_NE(ScoreListsCuda(input.Params(), plan, workspace.data(), workspace.size(), nullptr),
            cudaSuccess);
}

TEST(ScoreListsCudaTest, NothingToScoreIsASuccessAndTooLittleWorkspaceIsRefused) {
  EXPECT_EQ(ScoreListsCuda(ScoreListsParams(), ScoreListsPlan(), nullptr, 0, nullptr), cudaSuccess);
  testing::SmallScoreInput input = testing::ZeroQueryCase();
  const ScoreListsParams p = input.Params();
  const ScoreListsPlan none = PlanScoreLists(1, 1, 1, 16, CentroidForm::kFloat32, 0, 0);
  EXPECT_EQ(ScoreListsCuda(p, none, nullptr, 0, nullptr), cudaSuccess);
  const ScoreListsPlan plan = PlanScoreLists(1, 1, 1, 16, CentroidForm::kFloat32, 4, 1);
  EXPECT_EQ(ScoreListsCuda(p, plan, nullptr, ScoreListsCudaWorkspaceBytes(plan) - 1, nullptr),
            cudaErrorInvalidValue);
  const ScoreListsPlan other = PlanScoreLists(1, 2, 1, 16, CentroidForm::kFloat32, 4, 1);
  std::vector<uint8_t> workspace(ScoreListsCudaWorkspaceBytes(other));
  EXPECT_EQ(ScoreListsCuda(p, other, workspace.data(), workspace.size(), nullptr),
            cudaErrorInvalidValue);
}

}  // namespace
}  // namespace semkv
