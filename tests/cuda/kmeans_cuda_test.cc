// KMeansCuda on the machine's GPU over the cases of every form; without a GPU only that it says so.

#include "csrc/ops/clustering/kmeans_cuda.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <deque>
#include <random>
#include <vector>

#include "tests/cuda/device_copy.h"
#include "tests/cuda/run_captured.h"
#include "tests/ops/clustering/kmeans_cases.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using testing::DeviceCopy;
using testing::HasDevice;
using testing::KMeansCase;
using testing::KMeansInput;

KMeansPlan PlanFor(const KMeansParams& p) {
  return PlanKMeans(p.num_problems, p.head_dim, p.max_points, p.max_lists, p.iterations,
                    p.max_lone);
}

// The device's copy of a problem, its outputs and a workspace of random bytes.
class DeviceKMeans {
 public:
  explicit DeviceKMeans(const KMeansInput& input)
      : plan_(PlanFor(input.params)),
        params_(input.params),
        labels_(input.labels),
        offsets_(input.offsets),
        members_(input.members),
        centroids_(input.centroids),
        objectives_(input.objectives),
        iterations_done_(input.iterations_done),
        workspace_(std::vector<uint8_t>(KMeansCudaWorkspaceBytes(plan_), 0xa5)) {
    std::vector<KMeansProblem> problems = input.problems;
    for (size_t i = 0; i < problems.size(); ++i) {
      problems[i].points = nullptr;
      if (!input.points[i].empty())
        problems[i].points = inputs_.emplace_back(input.points[i]).data();
    }
    params_.problems = static_cast<const KMeansProblem*>(inputs_.emplace_back(problems).data());
    if (params_.draws != nullptr) {
      params_.draws = static_cast<const uint64_t*>(inputs_.emplace_back(input.draws).data());
    }
    params_.labels = static_cast<uint16_t*>(labels_.data());
    params_.offsets = offsets_.data();
    params_.members = members_.data();
    params_.centroids = static_cast<float*>(centroids_.data());
    params_.objectives = static_cast<float*>(objectives_.data());
    params_.iterations_done = static_cast<int32_t*>(iterations_done_.data());
  }
  DeviceKMeans(const DeviceKMeans&) = delete;
  DeviceKMeans& operator=(const DeviceKMeans&) = delete;

  cudaError_t Enqueue(cudaStream_t stream) {
    return KMeansCuda(params_, plan_, workspace_.data(), KMeansCudaWorkspaceBytes(plan_), stream);
  }

  void Read(KMeansInput& input) const {
    const auto read = []<typename T>(const DeviceCopy& copy, std::vector<T>& to) {
      to = copy.Read<T>();
    };
    read(labels_, input.labels);
    read(offsets_, input.offsets);
    read(members_, input.members);
    read(centroids_, input.centroids);
    read(objectives_, input.objectives);
    read(iterations_done_, input.iterations_done);
  }

 private:
  const KMeansPlan plan_;
  KMeansParams params_;
  std::deque<DeviceCopy> inputs_;
  DeviceCopy labels_, offsets_, members_, centroids_, objectives_, iterations_done_, workspace_;
};

void RunCuda(KMeansInput& input) {
  input.Reset();
  DeviceKMeans device(input);
  testing::RunCaptured(1, [&](cudaStream_t stream) { return device.Enqueue(stream); });
  device.Read(input);
}

void ExpectCudaIsAsGoodAsReference(KMeansInput& input) {
  input.Reset();
  KMeansReference(input.params);
  const std::vector<float> expected = input.objectives;
  RunCuda(input);
  testing::ExpectResult(input);
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(input.objectives[i], expected[i], 0.005 * expected[i] + 1e-3) << "problem " << i;
  }
}

TEST(KMeansCudaTest, LabelsOfExactProductsEqualTheReference) {
  if (!HasDevice()) GTEST_SKIP() << "no GPU";
  std::mt19937_64 rng(1);
  for (int32_t head_dim : testing::kKMeansHeadDims) {
    for (DType dtype : {DType::kFloat16, DType::kBFloat16}) {
      KMeansCase c;
      c.head_dim = head_dim;
      c.dtype = dtype;
      c.data = testing::KMeansData::kIntegers;
      c.iterations = 0;
      c.sizes = {{300, 70}, {40, 33}, {2, 1}};
      KMeansInput input(c, rng);
      KMeansReference(input.params);
      const std::vector<uint16_t> labels = input.labels;
      RunCuda(input);
      EXPECT_EQ(input.labels, labels);
    }
  }
}

TEST(KMeansCudaTest, LonePointsOfExactDistancesEqualTheReference) {
  if (!HasDevice()) GTEST_SKIP() << "no GPU";
  std::mt19937_64 rng(6);
  for (int32_t head_dim : testing::kKMeansHeadDims) {
    if (testing::kIsEmulated && head_dim != 128) continue;
    KMeansCase c = testing::ExactLoneCase(head_dim, DType::kFloat16);
    if (!testing::kIsEmulated) c.sizes.push_back({65000, 200, 4000});
    KMeansInput input(c, rng);
    testing::AddExtraordinaryPairs(input);
    input.Reset();
    KMeansReference(input.params);
    const std::vector<uint16_t> labels = input.labels;
    const std::vector<uint8_t> offsets = input.offsets, members = input.members;
    RunCuda(input);
    EXPECT_EQ(input.labels, labels);
    EXPECT_EQ(input.offsets, offsets);
    EXPECT_EQ(input.members, members);
  }
}

TEST(KMeansCudaTest, LonePointsAreTheFarthest) {
  if (!HasDevice()) GTEST_SKIP() << "no GPU";
  std::mt19937_64 rng(7);
  for (KMeansMetric metric : {KMeansMetric::kCenteredL2, KMeansMetric::kCosine}) {
    KMeansCase c;
    c.metric = metric;
    c.iterations = 2;
    c.sizes = {{testing::kIsEmulated ? 300 : 8192, 48, 16}, {200, 20, 0}, {100, 60, 100}};
    KMeansInput input(c, rng);
    const std::vector<KMeansProblem> problems = input.problems;
    for (KMeansProblem& problem : input.problems) problem.num_lone = 0;
    RunCuda(input);
    const std::vector<uint16_t> trained = input.labels;
    input.problems = problems;
    RunCuda(input);
    testing::ExpectResult(input);
    testing::ExpectFarthestLeft(input, trained);
  }
}

TEST(KMeansCudaTest, IsAsGoodAsTheReference) {
  if (!HasDevice()) GTEST_SKIP() << "no GPU";
  std::mt19937_64 rng(3);
  for (KMeansMetric metric : {KMeansMetric::kCenteredL2, KMeansMetric::kCosine}) {
    KMeansCase c;
    c.head_dim = 128;
    c.metric = metric;
    c.sizes = testing::OddSizes();
    if (!testing::kIsEmulated) c.sizes.push_back({8192, 256});
    KMeansInput odd(c, rng);
    ExpectCudaIsAsGoodAsReference(odd);
    if (testing::kIsEmulated) continue;
    c.sizes = {{70000, 64}};
    c.iterations = 2;
    KMeansInput large(c, rng);
    ExpectCudaIsAsGoodAsReference(large);
  }
}

TEST(KMeansCudaTest, RandomCases) {
  if (!HasDevice()) GTEST_SKIP() << "no GPU";
  const uint64_t seed = testing::TestSeed(4);
  for (int round = 0; round < (testing::kIsEmulated ? 2 : 40) * testing::SoakFactor(); ++round) {
    SEMKV_TRACE_SEED(seed + round);
    std::mt19937_64 rng(seed + round);
    KMeansInput input(testing::RandomKMeansCase(rng), rng);
    if (round % 2 == 0) testing::AddExtraordinaryPoints(input, rng);
    RunCuda(input);
    testing::ExpectResult(input);
  }
}

// In one workspace, over what the run before left.
TEST(KMeansCudaTest, ARunGivesTheSameBitsAgain) {
  if (!HasDevice()) GTEST_SKIP() << "no GPU";
  std::mt19937_64 rng(5);
  KMeansCase c;
  c.sizes = {{testing::kIsEmulated ? 900 : 3000, 100, 40}, {500, 20}};
  KMeansInput input(c, rng);
  RunCuda(input);
  const std::vector<uint8_t> members = input.members;
  const std::vector<float> centroids = input.centroids;
  input.Reset();
  DeviceKMeans device(input);
  testing::RunCaptured(2, [&](cudaStream_t stream) { return device.Enqueue(stream); });
  device.Read(input);
  EXPECT_EQ(input.members, members);
  EXPECT_EQ(input.centroids, centroids);
}

TEST(KMeansCudaTest, ALaunchWithoutADeviceReturnsItsError) {
  if (HasDevice()) GTEST_SKIP() << "there is a GPU";
  std::mt19937_64 rng(1);
  KMeansInput input(KMeansCase(), rng);
  const KMeansPlan plan = PlanFor(input.params);
  EXPECT_NE(KMeansCuda(input.params, plan, nullptr, KMeansCudaWorkspaceBytes(plan), nullptr),
            cudaSuccess);
}

TEST(KMeansCudaTest, BadBoundsAreRefusedAndNoProblemsAreASuccess) {
  std::mt19937_64 rng(1);
  KMeansInput input(KMeansCase(), rng);
  KMeansParams params = input.params;
  KMeansPlan plan = PlanFor(params);
  const size_t bytes = KMeansCudaWorkspaceBytes(plan);
  EXPECT_EQ(KMeansCuda(params, plan, nullptr, bytes - 1, nullptr), cudaErrorInvalidValue);
  params.max_lists += 1;
  EXPECT_EQ(KMeansCuda(params, plan, nullptr, bytes, nullptr), cudaErrorInvalidValue);
  params = input.params;
  params.max_lone += 1;
  EXPECT_EQ(KMeansCuda(params, plan, nullptr, bytes, nullptr), cudaErrorInvalidValue);
  params = input.params;
  params.dtype = DType::kFloat32;
  EXPECT_EQ(KMeansCuda(params, plan, nullptr, bytes, nullptr), cudaErrorInvalidValue);
  params = input.params;
  params.num_problems = 0;
  plan = PlanFor(params);
  EXPECT_EQ(KMeansCuda(params, plan, nullptr, KMeansCudaWorkspaceBytes(plan), nullptr),
            cudaSuccess);
}

}  // namespace
}  // namespace semkv
