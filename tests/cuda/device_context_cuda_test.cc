// The decode step on device memory through semkv.h, beside a host context with the same tokens;
// without a GPU only that it says so.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "semkv/semkv.h"
#include "tests/cuda/device_context.h"
#include "tests/cuda/graph_engine.h"
#include "tests/cuda/run_captured.h"

namespace semkv {
namespace {

using testing::DeviceContextShape;
using testing::GraphEngine;
using testing::HasDevice;
using testing::kIsEmulated;
using testing::Policy;
using testing::PoolLayout;
using testing::TwoContexts;

class DeviceContextTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!HasDevice()) GTEST_SKIP() << "no GPU";
  }
};

void ExpectSameLayerRows(TwoContexts& contexts) {
  semkv_stats host = {}, device = {};
  host.struct_size = device.struct_size = sizeof(host);
  SEMKV_ASSERT_OK(semkv_stats_get(contexts.host(), &host));
  SEMKV_ASSERT_OK(semkv_stats_get(contexts.device(), &device));
  for (int32_t reason = 0; reason < SEMKV_NUM_ROW_REASONS; ++reason) {
    EXPECT_EQ(device.layer_rows[reason], host.layer_rows[reason]) << semkv_row_reason_name(reason);
  }
}

struct PolicyCase {
  std::string name;
  semkv_policy policy;
};

std::vector<PolicyCase> PolicyCases() {
  std::vector<PolicyCase> cases;
  for (int32_t kind :
       {SEMKV_POLICY_DENSE, SEMKV_POLICY_HYBRID, SEMKV_POLICY_SENTENCE, SEMKV_POLICY_CLUSTER,
        SEMKV_POLICY_PAGES, SEMKV_POLICY_QUEST, SEMKV_POLICY_WINDOW, SEMKV_POLICY_CLUSTERKV}) {
    cases.push_back({semkv_policy_name(kind), Policy(kind, 128)});
  }
  PolicyCase heads = {"per_query_head", Policy(SEMKV_POLICY_HYBRID, 128)};
  heads.policy.per_query_head = 1;
  PolicyCase bf16 = {"bf16_centroids", Policy(SEMKV_POLICY_CLUSTER, 128)};
  bf16.policy.centroid_form = SEMKV_CENTROID_BF16;
  PolicyCase int8 = {"int8_centroids", Policy(SEMKV_POLICY_HYBRID, 128)};
  int8.policy.centroid_form = SEMKV_CENTROID_INT8;
  PolicyCase later = {"dense_first_layer", Policy(SEMKV_POLICY_HYBRID, 128)};
  later.policy.dense_layers = 1;
  PolicyCase mass = {"mass_target", Policy(SEMKV_POLICY_HYBRID, 128)};
  mass.policy.mass_target = 0.5f;
  cases.insert(cases.end(), {heads, bf16, int8, later, mass});
  return cases;
}

TEST_F(DeviceContextTest, EveryPolicySelectsAndAttendsAsOnTheHost) {
  for (const PolicyCase& c : PolicyCases()) {
    SCOPED_TRACE(c.name);
    TwoContexts contexts(DeviceContextShape{});
    const semkv_sequence sequence = contexts.NewSequence(c.policy);
    contexts.Append(sequence, 300);
    contexts.Index(sequence);
    contexts.DecodeAndCompare(sequence, 10, 256, 9);
    if (HasFatalFailure()) return;
    ExpectSameLayerRows(contexts);
  }
}

TEST_F(DeviceContextTest, EstimatesTheRestAsOnTheHost) {
  for (int32_t kind :
       {SEMKV_POLICY_HYBRID, SEMKV_POLICY_SENTENCE, SEMKV_POLICY_CLUSTER, SEMKV_POLICY_QUEST}) {
    SCOPED_TRACE(semkv_policy_name(kind));
    DeviceContextShape shape;
    shape.num_layers = 1;
    shape.kv_dtype = SEMKV_DTYPE_F16;  // the estimate is small
    TwoContexts contexts(shape);
    semkv_policy policy = Policy(kind, 128);
    const semkv_sequence plain = contexts.NewSequence(policy);
    policy.estimate_rest = 1;
    const semkv_sequence sequence = contexts.NewSequence(policy);
    for (semkv_sequence s : {plain, sequence}) {
      contexts.Append(s, 300);
      contexts.Index(s);
    }
    // The first row that estimates comes after steps without, and beside one.
    contexts.StepAndCompare({plain}, 128);
    ASSERT_EQ(contexts.plain_error(), 0.0);
    const semkv_sequence fork = contexts.Fork(sequence);
    for (int32_t i = 0; i < 3; ++i) {
      contexts.Append(sequence, 7);
      contexts.StepAndCompare({plain, sequence, fork}, 128);
      contexts.Observe(sequence);
      if (HasFatalFailure()) return;
    }
    if (kind == SEMKV_POLICY_QUEST) {  // of bounds nothing is estimated
      EXPECT_NEAR(contexts.estimate_error(), contexts.plain_error(), 0.05);
    } else if (kind == SEMKV_POLICY_SENTENCE) {
      EXPECT_GT(std::abs(contexts.estimate_error() - contexts.plain_error()), 0.1);
      EXPECT_GE(contexts.num_estimates(), 16);
    } else {
      EXPECT_LT(contexts.estimate_error(), 0.9 * contexts.plain_error());
    }
  }
}

TEST_F(DeviceContextTest, ServesPoolsOfAnEngine) {
  for (PoolLayout layout : {PoolLayout::kTokensInside, PoolLayout::kHeadsInside}) {
    for (int32_t dtype : {SEMKV_DTYPE_F16, SEMKV_DTYPE_BF16}) {
      SCOPED_TRACE(std::to_string(static_cast<int>(layout)) + ", dtype " + std::to_string(dtype));
      DeviceContextShape shape;
      shape.layout = layout;
      shape.kv_dtype = dtype;
      shape.head_dim = 128;
      TwoContexts contexts(shape);
      const semkv_sequence sequence = contexts.NewSequence(Policy(SEMKV_POLICY_HYBRID, 96));
      contexts.Append(sequence, 200);
      contexts.Index(sequence);
      contexts.DecodeAndCompare(sequence, 18, 96, 17);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(DeviceContextTest, TailsAreFoldedSealedAndRepartitioned) {
  DeviceContextShape shape;
  shape.num_layers = 1;
  shape.num_pages = 256;
  shape.max_sequence_tokens = 4096;
  TwoContexts contexts(shape);
  semkv_policy policy = Policy(SEMKV_POLICY_HYBRID, 128);
  policy.segment_tokens = 1024;
  semkv_policy all = policy;
  all.budget = 4096;
  all.force_sparse = 1;
  const semkv_sequence sequence = contexts.NewSequence(policy);
  contexts.Append(sequence, 900);
  contexts.Index(sequence);
  // Windows of 320 tokens end, segments of 1,024 fill and are replaced 320 tokens later.
  for (int32_t i = 0; i < 14; ++i) {
    contexts.Append(sequence, 100, {950, 960, 1300, 2000});
    contexts.StepAndCompare({sequence}, 4096);
    contexts.Observe(sequence);
    // Every list is within reach.
    contexts.SetPolicy(sequence, all);
    contexts.StepAndCompare({sequence}, 4096);
    contexts.SetPolicy(sequence, policy);
    if (HasFatalFailure()) return;
  }
  semkv_sequence_info info = {};
  info.struct_size = sizeof(info);
  SEMKV_ASSERT_OK(semkv_sequence_info_get(contexts.device(), sequence, &info));
  EXPECT_GT(info.num_segments, 1);
}

// A tail's stores move to more memory at a token that completes no list.
TEST_F(DeviceContextTest, TailsThatMoveAreReadWhereTheyAre) {
  DeviceContextShape shape;
  shape.num_layers = 1;
  shape.num_pages = 64;
  shape.max_sequence_tokens = 1024;
  TwoContexts contexts(shape);
  const semkv_sequence sequence = contexts.NewSequence(Policy(SEMKV_POLICY_CLUSTER, 128));
  contexts.Append(sequence, 64);
  contexts.Index(sequence);
  contexts.Append(sequence, 700);
  contexts.Observe(sequence);
  contexts.DecodeAndCompare(sequence, 10, 128, 1);
}

TEST_F(DeviceContextTest, ABatchMixesRowsAndForksCopyWhatTheyWrite) {
  DeviceContextShape shape;
  TwoContexts contexts(shape);
  const semkv_sequence a = contexts.NewSequence(Policy(SEMKV_POLICY_HYBRID, 128));
  const semkv_sequence dense = contexts.NewSequence(Policy(SEMKV_POLICY_DENSE, 128));
  const semkv_sequence brief = contexts.NewSequence(Policy(SEMKV_POLICY_CLUSTER, 128));
  contexts.Append(a, 250);
  contexts.Append(dense, 70);
  contexts.Append(brief, 5);
  for (semkv_sequence s : {a, dense, brief}) contexts.Index(s);
  const semkv_sequence fork = contexts.Fork(a);
  for (int32_t i = 0; i < 5; ++i) {
    for (semkv_sequence s : {a, fork, brief}) contexts.Append(s, 1);
    // Rows change places, as batches of an engine do.
    contexts.StepAndCompare({a, dense, fork, brief}, 128);
    contexts.StepAndCompare({fork, a, brief}, 128);
    for (semkv_sequence s : {a, fork, brief}) contexts.Observe(s);
    if (HasFatalFailure()) return;
  }
  SEMKV_ASSERT_OK(semkv_sequence_release(contexts.device(), a));
  SEMKV_ASSERT_OK(semkv_sequence_release(contexts.host(), a));
  contexts.StepAndCompare({fork, brief}, 128);
}

TEST_F(DeviceContextTest, KeysThatAreNotFiniteAreNeverSelected) {
  TwoContexts contexts(DeviceContextShape{});
  const semkv_sequence sequence = contexts.NewSequence(Policy(SEMKV_POLICY_HYBRID, 128));
  contexts.Append(sequence, 300, {17, 18, 150, 299});
  contexts.Index(sequence);
  contexts.Append(sequence, 1);
  contexts.StepAndCompare({sequence}, 128);
}

TEST_F(DeviceContextTest, AllOfItWithinTheBudgetIsDense) {
  TwoContexts contexts(DeviceContextShape{});
  semkv_policy policy = Policy(SEMKV_POLICY_HYBRID, 512);
  policy.force_sparse = 1;
  const semkv_sequence sequence = contexts.NewSequence(policy);
  contexts.Append(sequence, 200);
  contexts.Index(sequence);
  contexts.Append(sequence, 1);
  const auto plans = contexts.Plans(1, 512);
  SEMKV_ASSERT_OK(semkv_plan_step(plans.second, 1, &sequence, nullptr));
  const std::vector<uint8_t> q = contexts.NewQueries(1);
  testing::DeviceCopy device_q(q), sparse(q), dense(q);
  semkv_attend_args args = contexts.AttendArgs();
  args.q = device_q.data();
  args.out = sparse.data();
  SEMKV_ASSERT_OK(semkv_run_layer(plans.second, 0, nullptr, &args));
  args.out = dense.data();
  args.flags = SEMKV_ATTEND_DENSE;
  SEMKV_ASSERT_OK(semkv_attend(plans.second, 0, &args));
  const std::vector<uint8_t> a = sparse.Read(), b = dense.Read();
  for (int64_t i = 0; i < contexts.shape().query_floats(); ++i) {
    EXPECT_NEAR(LoadAsFloat(a.data(), contexts.dtype(), i),
                LoadAsFloat(b.data(), contexts.dtype(), i), 1.6e-2);
  }
}

// Research check A19: keys come late, on a stream of their own.
TEST_F(DeviceContextTest, AProducersStreamIsWaitedForByItsEvent) {
  cudaStream_t producer = nullptr, stream = nullptr;
  cudaEvent_t written = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&producer, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaEventCreateWithFlags(&written, cudaEventDisableTiming), cudaSuccess);
  {
    const testing::LazyStreams lazy;
    TwoContexts contexts(DeviceContextShape{});
    contexts.SetStream(stream);
    contexts.set_producer(producer);
    const semkv_sequence sequence = contexts.NewSequence(Policy(SEMKV_POLICY_HYBRID, 96));
    for (int32_t tokens : {200, 1, 1}) {
      contexts.Append(sequence, tokens);
      ASSERT_EQ(cudaEventRecord(written, producer), cudaSuccess);
      ASSERT_EQ(cudaStreamWaitEvent(stream, written, 0), cudaSuccess);
      if (tokens > 1) {
        contexts.Index(sequence);
      } else {
        contexts.StepAndCompare({sequence}, 96);
        contexts.Observe(sequence);
      }
    }
  }
  ASSERT_EQ(cudaEventDestroy(written), cudaSuccess);
  ASSERT_EQ(cudaStreamDestroy(producer), cudaSuccess);
  ASSERT_EQ(cudaStreamDestroy(stream), cudaSuccess);
}

TEST_F(DeviceContextTest, OneGraphServesGrowingLengths) {
  TwoContexts contexts(DeviceContextShape{});
  semkv_policy policy = Policy(SEMKV_POLICY_HYBRID, 96);
  policy.estimate_rest = 1;
  policy.min_context = 125;  // dense at first
  const semkv_sequence sequence = contexts.NewSequence(policy);
  contexts.Append(sequence, 119);
  contexts.Index(sequence);
  const auto plans = contexts.Plans(1, 96);
  contexts.set_writes_device(false);
  testing::LazyStreams lazy;
  GraphEngine engine(&contexts, plans);
  int num_sparse = 0;
  for (int32_t i = 0; i < 24; ++i) {
    SCOPED_TRACE("step " + std::to_string(i));
    engine.Step(sequence);
    int32_t reason = 0;
    SEMKV_ASSERT_OK(semkv_plan_row(plans.second, 0, 0, &reason));
    num_sparse += reason == SEMKV_ROW_SPARSE;
    for (int32_t layer = 0; layer < contexts.shape().num_layers && i % 6 == 5; ++layer) {
      engine.CompareWithCalls(sequence, layer);
    }
    contexts.Observe(sequence);
    if (HasFailure()) return;
  }
  EXPECT_EQ(num_sparse, 24 - 6);
  EXPECT_EQ(engine.num_captures(), 1);
}

TEST_F(DeviceContextTest, AStepAllocatesNothingAndWaitsForNothing) {
  if (!kIsEmulated) GTEST_SKIP() << "calls are counted by the emulated runtime";
  TwoContexts contexts(DeviceContextShape{});
  // Without sentences, which may close at any token.
  const semkv_sequence sequence = contexts.NewSequence(Policy(SEMKV_POLICY_CLUSTER, 96));
  contexts.Append(sequence, 200);
  contexts.Index(sequence);
  const auto plans = contexts.Plans(1, 96);
  testing::DeviceCopy q(contexts.NewQueries(1)), out(contexts.NewQueries(1));
  semkv_attend_args args = contexts.AttendArgs();
  args.q = q.data();
  args.out = out.data();
  for (int32_t i = 0; i < 6; ++i) {
    contexts.Append(sequence, 1);
    testing::TakeRuntimeCalls();
    SEMKV_ASSERT_OK(semkv_plan_step(plans.second, 1, &sequence, nullptr));
    for (const auto& [call, count] : testing::TakeRuntimeCalls()) {
      EXPECT_TRUE(call == "cudaMemcpy2DAsync" || call == "cudaMemsetAsync" ||
                  call == "cudaGetDevice")
          << count << " " << call;
    }
    SEMKV_ASSERT_OK(semkv_run_layer(plans.second, 0, nullptr, &args));
    for (const auto& [call, count] : testing::TakeRuntimeCalls()) {
      EXPECT_TRUE(call == "launch" || call == "cudaGetDevice") << count << " " << call;
    }
    // Nothing is folded between two steps: the next one sends lengths alone.
    SEMKV_ASSERT_OK(semkv_observe(contexts.device(), sequence));
    SEMKV_ASSERT_OK(semkv_plan_step(plans.second, 1, &sequence, nullptr));
    EXPECT_EQ(testing::TakeRuntimeCalls()["cudaMemcpy2DAsync"], 1);
  }
}

TEST_F(DeviceContextTest, AllMemoryIsGivenBack) {
  if (!kIsEmulated) GTEST_SKIP() << "calls are counted by the emulated runtime";
  testing::TakeRuntimeCalls();
  {
    TwoContexts contexts(DeviceContextShape{});
    const semkv_sequence sequence = contexts.NewSequence(Policy(SEMKV_POLICY_HYBRID, 96));
    contexts.Append(sequence, 200, {30});
    contexts.Index(sequence);
    contexts.Append(sequence, 1);
    contexts.StepAndCompare({sequence, contexts.Fork(sequence)}, 96);
  }
  testing::RuntimeCalls calls = testing::TakeRuntimeCalls();
  EXPECT_GT(calls["cudaMallocAsync"], 3);
  EXPECT_EQ(calls["cudaMallocAsync"], calls["cudaFreeAsync"]);
  EXPECT_EQ(calls["cudaHostAlloc"], calls["cudaFreeHost"]);
  EXPECT_EQ(calls["cudaEventCreateWithFlags"], calls["cudaEventDestroy"]);
}

// Every allocation of a life fails once. The call that needed it says so, and succeeds afterwards.
TEST_F(DeviceContextTest, AnyAllocationMayFail) {
  if (!kIsEmulated) GTEST_SKIP() << "the emulated runtime fails them";
  int num_failures = 0;
  for (int which = 1;; ++which) {
    SCOPED_TRACE("allocation " + std::to_string(which));
    TwoContexts contexts(DeviceContextShape{});
    const semkv_sequence sequence = contexts.NewSequence(Policy(SEMKV_POLICY_HYBRID, 96));
    contexts.Append(sequence, 200, {30});
    testing::FailAllocation(which);
    const int before = num_failures;
    const auto attempt = [&](auto call) {
      const int status = call();
      if (status == SEMKV_OK) return;
      ++num_failures;
      EXPECT_EQ(status, SEMKV_RESOURCE_EXHAUSTED) << semkv_last_error();
      EXPECT_EQ(call(), SEMKV_OK) << semkv_last_error();
    };
    semkv_plan* plan = nullptr;
    semkv_sequence fork = 0;
    attempt([&] { return semkv_plan_create(contexts.device(), 2, 96, &plan); });
    attempt([&] { return semkv_index(contexts.device(), sequence); });
    attempt([&] { return semkv_sequence_fork(contexts.device(), sequence, &fork); });
    const semkv_sequence rows[] = {sequence, fork};
    attempt([&] { return semkv_plan_step(plan, 2, rows, nullptr); });
    testing::FailAllocation(0);
    semkv_plan_destroy(plan);
    SEMKV_ASSERT_OK(semkv_index(contexts.host(), sequence));
    SEMKV_ASSERT_OK(semkv_sequence_release(contexts.device(), fork));
    contexts.StepAndCompare({sequence}, 96);
    if (HasFailure()) return;
    if (num_failures == before) break;
  }
  EXPECT_GT(num_failures, 5);
}

// Lists that could not be folded are gone, until they are built anew.
TEST_F(DeviceContextTest, AnAllocationOfObserveMayFail) {
  if (!kIsEmulated) GTEST_SKIP() << "the emulated runtime fails them";
  int which = 0;
  for (int status = SEMKV_RESOURCE_EXHAUSTED; status != SEMKV_OK;) {
    SCOPED_TRACE("allocation " + std::to_string(++which));
    TwoContexts contexts(DeviceContextShape{});
    const semkv_sequence sequence = contexts.NewSequence(Policy(SEMKV_POLICY_HYBRID, 96));
    contexts.Append(sequence, 30);
    contexts.Index(sequence);
    const semkv_sequence fork = contexts.Fork(sequence);
    contexts.Append(sequence, 330);
    testing::FailAllocation(which);
    status = semkv_observe(contexts.device(), sequence);
    testing::FailAllocation(0);
    if (status == SEMKV_OK) break;
    EXPECT_EQ(status, SEMKV_RESOURCE_EXHAUSTED) << semkv_last_error();
    contexts.Index(sequence);
    contexts.StepAndCompare({sequence, fork}, 96);
    if (HasFailure()) return;
  }
  EXPECT_GT(which, 4);  // memory for the work, and three stores that the fork has too
}

TEST_F(DeviceContextTest, AContextThatFindsNoMemoryLeavesNone) {
  if (!kIsEmulated) GTEST_SKIP() << "the emulated runtime fails allocations";
  semkv_options o;
  semkv_options_init(&o);
  o.num_layers = 1;
  o.num_heads = o.num_kv_heads = 2;
  o.head_dim = 64;
  o.num_pages = 16;
  o.max_sequence_tokens = 256;
  o.kv_dtype = SEMKV_DTYPE_F16;
  o.device = 0;
  int status = SEMKV_RESOURCE_EXHAUSTED;
  int which = 0;
  while (status == SEMKV_RESOURCE_EXHAUSTED) {
    testing::TakeRuntimeCalls();
    testing::FailAllocation(++which);
    semkv_context* context = nullptr;
    status = semkv_context_create(&o, &context);
    testing::FailAllocation(0);
    semkv_context_destroy(context);
    testing::RuntimeCalls calls = testing::TakeRuntimeCalls();
    EXPECT_EQ(calls["cudaEventCreateWithFlags"], calls["cudaEventDestroy"]);
    EXPECT_EQ(calls["cudaMallocAsync"] - (status != SEMKV_OK && calls["cudaMallocAsync"] > 0),
              calls["cudaFreeAsync"]);
  }
  EXPECT_EQ(status, SEMKV_OK) << semkv_last_error();
  EXPECT_EQ(which, 3);  // pinned memory, the pool, and then none
}

// What is refused leaves everything as it was.
TEST_F(DeviceContextTest, RefusesByNameWhatItDoesNotServe) {
  semkv_options o;
  semkv_options_init(&o);
  EXPECT_EQ(o.device, -1);
  o.num_layers = 1;
  o.num_heads = o.num_kv_heads = 2;
  o.head_dim = 64;
  o.num_pages = 16;
  o.max_sequence_tokens = 256;
  o.device = 0;
  semkv_context* context = nullptr;
  const auto error = [] { return std::string(semkv_last_error()); };
  EXPECT_EQ(semkv_context_create(&o, &context), SEMKV_UNIMPLEMENTED);
  EXPECT_NE(error().find("options.kv_dtype is 0"), std::string::npos) << error();
  o.kv_dtype = SEMKV_DTYPE_F16;
  o.query_window = 32;
  EXPECT_EQ(semkv_context_create(&o, &context), SEMKV_UNIMPLEMENTED);
  EXPECT_NE(error().find("options.query_window is 32"), std::string::npos) << error();
  o.query_window = 0;
  o.device = 77;
  EXPECT_EQ(semkv_context_create(&o, &context), SEMKV_INVALID_ARGUMENT);
  EXPECT_NE(error().find("options.device is 77"), std::string::npos) << error();
  o.device = 0;
  SEMKV_ASSERT_OK(semkv_context_create(&o, &context));
  semkv_sequence sequence = 0;
  SEMKV_ASSERT_OK(semkv_sequence_create(context, 0, &sequence));
  semkv_policy policy = Policy(SEMKV_POLICY_CLUSTER, 128);
  policy.mean_query = 1;
  EXPECT_EQ(semkv_sequence_set_policy(context, sequence, &policy), SEMKV_UNIMPLEMENTED);
  EXPECT_NE(error().find("policy.mean_query"), std::string::npos) << error();
  SEMKV_ASSERT_OK(semkv_sequence_append(context, sequence, 4, nullptr, nullptr));
  semkv_plan* plan = nullptr;
  SEMKV_ASSERT_OK(semkv_plan_create(context, 2, 64, &plan));
  uint64_t key = 0;
  EXPECT_EQ(semkv_plan_graph_key(plan, &key), SEMKV_FAILED_PRECONDITION);
  const int32_t two = 2;
  EXPECT_EQ(semkv_plan_step(plan, 1, &sequence, &two), SEMKV_UNIMPLEMENTED);
  EXPECT_NE(error().find("row 0 has 2 queries"), std::string::npos) << error();
  std::vector<uint8_t> memory(64);
  EXPECT_EQ(semkv_plan_bind(plan, memory.data(), memory.size()), SEMKV_UNIMPLEMENTED);
  SEMKV_ASSERT_OK(semkv_plan_step(plan, 1, &sequence, nullptr));
  SEMKV_ASSERT_OK(semkv_plan_graph_key(plan, &key));
  testing::DeviceCopy q(memory), out(memory);
  semkv_attend_args args = {};
  args.struct_size = sizeof(args);
  args.dtype = SEMKV_DTYPE_BF16;
  args.q = q.data();
  args.out = out.data();
  EXPECT_EQ(semkv_attend(plan, 0, &args), SEMKV_INVALID_ARGUMENT);
  EXPECT_NE(error().find("position pool is not that of q"), std::string::npos) << error();
  semkv_plan_destroy(plan);
  semkv_context_destroy(context);
}

}  // namespace
}  // namespace semkv
