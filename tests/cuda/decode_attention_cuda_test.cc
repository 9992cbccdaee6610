// DecodeAttentionCuda on the machine's GPU over the cases of every form; without a GPU only that it
// says so.

#include "csrc/ops/attention/decode_attention_cuda.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "tests/cuda/device_copy.h"
#include "tests/cuda/run_captured.h"
#include "tests/ops/attention/decode_cases.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using testing::AttentionResult;
using testing::DecodeProblem;
using testing::DeviceCopy;
using testing::HasDevice;
using testing::PlanFor;

// A problem's memory on the device, and its params with the device's addresses.
class DeviceProblem {
 public:
  explicit DeviceProblem(const DecodeProblem& problem) : params(problem.params) {
    for (const testing::Memory& memory : problem.AllMemory()) {
      blocks_.push_back({memory, std::make_unique<DeviceCopy>(memory.data, memory.bytes)});
    }
    Move(params.q), Move(params.out), Move(params.lse);
    for (KvView* view : {&params.position, &params.list}) Move(view->k), Move(view->v);
    Move(params.block_table), Move(params.row_tokens);
    for (SlotLists* lists : {&params.position_slots, &params.list_slots}) {
      Move(lists->slots), Move(lists->counts);
    }
  }

  void ReadOutputs() const {
    for (const Block& block : blocks_) {
      if (!block.host.is_output) continue;
      const std::vector<uint8_t> bytes = block.device->Read();
      std::memcpy(const_cast<void*>(block.host.data), bytes.data(), bytes.size());
    }
  }

  DecodeAttentionParams params;

 private:
  struct Block {
    testing::Memory host;
    std::unique_ptr<DeviceCopy> device;
  };

  // From an address within a block to the same place on the device; null stays null.
  template <typename T>
  void Move(T*& p) const {
    const uintptr_t address = reinterpret_cast<uintptr_t>(p);
    for (const Block& block : blocks_) {
      const uintptr_t begin = reinterpret_cast<uintptr_t>(block.host.data);
      if (address < begin || address >= begin + static_cast<uintptr_t>(block.host.bytes)) continue;
      p = reinterpret_cast<T*>(static_cast<uint8_t*>(block.device->data()) + (address - begin));
      return;
    }
    EXPECT_EQ(p, nullptr) << "memory that the problem does not name";
  }

  std::vector<Block> blocks_;
};

// Twice with one workspace: the first launch must leave it ready for the second.
void ExpectCudaEqualsReference(DecodeProblem& problem, int32_t max_row_tokens) {
  const AttentionResult expected = problem.RunReference();
  const DecodeAttentionPlan plan = PlanFor(problem.params, max_row_tokens);
  std::vector<uint8_t> bytes(DecodeAttentionCudaWorkspaceBytes(plan), 0xff);
  std::fill(bytes.begin(), bytes.begin() + DecodeCounterBytes(plan), 0);
  DeviceCopy workspace(bytes);
  std::vector<AttentionResult> results;
  for (int i = 0; i < 2; ++i) {
    results.push_back(problem.Run([&] {
      const DeviceProblem device(problem);
      testing::RunCaptured(1, [&](cudaStream_t stream) {
        return DecodeAttentionCuda(device.params, plan, workspace.data(), bytes.size(), stream);
      });
      device.ReadOutputs();
    }));
  }
  EXPECT_TRUE(testing::ResultsNear(results[0], expected, problem.params.q_dtype));
  EXPECT_EQ(results[0], results[1]);
}

TEST(DecodeAttentionCudaTest, EqualsTheReference) {
  if (!HasDevice()) GTEST_SKIP() << "no GPU";
  const uint64_t seed = testing::TestSeed(1);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (bool is_e4m3 : {false, true}) {
    for (const testing::AttentionShape& shape : testing::AttentionShapes(is_e4m3)) {
      if (shape.dtype == DType::kFloat32) continue;
      // The harness has these in decode_attention_simt_test and decode_attention_e4m3_simt_test.
      if (testing::kIsEmulated && shape.num_tokens > (is_e4m3 ? 16 : 300)) continue;
      SCOPED_TRACE(testing::ShapeName(shape));
      DecodeProblem problem = testing::DenseProblem(rng, shape);
      ExpectCudaEqualsReference(problem, shape.num_tokens);
    }
  }
}

TEST(DecodeAttentionCudaTest, HardCasesAndRandomBatchesEqualTheReference) {
  if (!HasDevice()) GTEST_SKIP() << "no GPU";
  const uint64_t seed = testing::TestSeed(16);
  SEMKV_TRACE_SEED(seed);
  std::mt19937_64 rng(seed);
  for (DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    DecodeProblem soft_cap = testing::SoftCapProblem(rng, dtype, 30.0f);
    ExpectCudaEqualsReference(soft_cap, 300);
    DecodeProblem nan_key = testing::NanKeyProblem(dtype, 3);
    ExpectCudaEqualsReference(nan_key, 70);
    for (int32_t masked : {1, 64, 200, 300}) {
      DecodeProblem problem = testing::MinusInfinityProblem(dtype, masked);
      ExpectCudaEqualsReference(problem, 300);
    }
    DecodeProblem infinite =
        testing::InfiniteValuesProblem(dtype, testing::PoolLayout::kTokenMajor);
    ExpectCudaEqualsReference(infinite, 67);
    DecodeProblem per_head = testing::SelectionPerHeadProblem(rng, dtype);
    ExpectCudaEqualsReference(per_head, 100);
    DecodeProblem nan_code = testing::NanKeyProblem(dtype, 3, /*is_e4m3=*/true);
    ExpectCudaEqualsReference(nan_code, 70);
    if (testing::kIsEmulated) continue;
    DecodeProblem two_pools = testing::TwoPoolsProblem(rng, {8, 2, 128, 3000, dtype}, 700, 1500);
    ExpectCudaEqualsReference(two_pools, 2200);
    DecodeProblem e4m3_pools =
        testing::TwoPoolsProblem(rng, {8, 2, 128, 3000, dtype, true}, 700, 1500);
    ExpectCudaEqualsReference(e4m3_pools, 2200);
  }
  for (int round = 0; round < (testing::kIsEmulated ? 4 : 40); ++round) {
    SCOPED_TRACE(round);
    const int32_t tokens = round % 4 == 0 && !testing::kIsEmulated ? 5000 : 300;
    testing::BatchLimits limits{tokens, 2500, 2, 2};
    limits.is_e4m3 = round % 2 == 1;
    DecodeProblem problem = testing::RandomBatch(rng, limits, round % 3 == 0);
    ExpectCudaEqualsReference(problem, 5000);
  }
}

TEST(DecodeAttentionCudaTest, ALaunchWithoutADeviceReturnsItsError) {
  if (HasDevice()) GTEST_SKIP() << "there is a GPU";
  std::mt19937_64 rng(1);
  const DecodeProblem problem = testing::DenseProblem(rng, {8, 2, 64, 5, DType::kFloat16});
  const DecodeAttentionPlan plan = PlanFor(problem.params, 5);
  std::vector<uint8_t> workspace(DecodeAttentionCudaWorkspaceBytes(plan));
  const cudaError_t error =
      DecodeAttentionCuda(problem.params, plan, workspace.data(), workspace.size(), nullptr);
  EXPECT_NE(error, cudaSuccess);
  EXPECT_NE(error, cudaErrorInvalidValue);
}

TEST(DecodeAttentionCudaTest, NoRowsIsASuccessAndWhatItCannotServeIsRefused) {
  std::mt19937_64 rng(1);
  DecodeProblem problem = testing::DenseProblem(rng, {8, 2, 64, 5, DType::kFloat16});
  const DecodeAttentionPlan plan = PlanFor(problem.params, 5);
  const size_t bytes = DecodeAttentionCudaWorkspaceBytes(plan);
  DecodeAttentionParams params = problem.params;
  params.num_rows = 0;
  EXPECT_EQ(DecodeAttentionCuda(params, plan, nullptr, bytes, nullptr), cudaSuccess);
  EXPECT_EQ(DecodeAttentionCuda(params, plan, nullptr, bytes - 1, nullptr), cudaErrorInvalidValue);
  params.num_rows = 2;
  EXPECT_EQ(DecodeAttentionCuda(params, plan, nullptr, bytes, nullptr), cudaErrorInvalidValue);
  params.num_rows = 0;
  params.q_dtype = DType::kFloat32;
  EXPECT_EQ(DecodeAttentionCuda(params, plan, nullptr, bytes, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace semkv
