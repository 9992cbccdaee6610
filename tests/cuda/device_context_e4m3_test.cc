// Contexts in device memory whose keys and values are float8 e4m3, beside a host context in
// bfloat16 with the same numbers.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
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
using testing::Policy;
using testing::PoolLayout;
using testing::TwoContexts;

class DeviceContextE4M3Test : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!HasDevice()) GTEST_SKIP() << "no GPU";
  }
};

// Keys and values of the tests are below 8; with these scales numbers are the same in bfloat16.
DeviceContextShape E4M3Shape() {
  DeviceContextShape shape;
  shape.kv_dtype = SEMKV_DTYPE_F8_E4M3;
  shape.k_scale = 0x1p-5f;
  shape.v_scale = 0x1p-7f;
  return shape;
}

TEST_F(DeviceContextE4M3Test, PoliciesSelectAndAttendAsOnTheHost) {
  for (int32_t kind : {SEMKV_POLICY_DENSE, SEMKV_POLICY_HYBRID, SEMKV_POLICY_SENTENCE,
                       SEMKV_POLICY_CLUSTER, SEMKV_POLICY_QUEST, SEMKV_POLICY_CLUSTERKV}) {
    SCOPED_TRACE(semkv_policy_name(kind));
    TwoContexts contexts(E4M3Shape());
    semkv_policy policy = Policy(kind, 128);
    policy.estimate_rest = kind == SEMKV_POLICY_SENTENCE;
    const semkv_sequence sequence = contexts.NewSequence(policy);
    contexts.Append(sequence, 300);
    contexts.Index(sequence);
    contexts.DecodeAndCompare(sequence, 5, 256, 4);
    if (HasFatalFailure()) return;
    EXPECT_EQ(contexts.num_estimates() > 0, policy.estimate_rest != 0);
  }
}

// Every layer has scales of its own, no powers of two.
TEST_F(DeviceContextE4M3Test, ServesPoolsOfAnEngine) {
  for (const auto& [layout, head_dim] :
       {std::pair{PoolLayout::kTokensInside, 80}, std::pair{PoolLayout::kHeadsInside, 128}}) {
    SCOPED_TRACE(head_dim);
    DeviceContextShape shape = E4M3Shape();
    shape.layout = layout;
    shape.head_dim = head_dim;
    shape.k_scale = 0.021f;
    shape.v_scale = 0.0057f;
    TwoContexts contexts(shape);
    const semkv_sequence sequence = contexts.NewSequence(Policy(SEMKV_POLICY_HYBRID, 96));
    contexts.Append(sequence, 200);
    contexts.Index(sequence);
    contexts.DecodeAndCompare(sequence, 18, 96, 17);
    if (HasFatalFailure()) return;
  }
}

// Scales that are not given are 1. Small numbers are subnormal then, or 0.
TEST_F(DeviceContextE4M3Test, WithoutScales) {
  for (PoolLayout layout : {PoolLayout::kOwned, PoolLayout::kHeadsInside}) {
    DeviceContextShape shape = E4M3Shape();
    shape.layout = layout;
    shape.k_scale = shape.v_scale = 0;
    TwoContexts contexts(shape);
    const semkv_sequence sequence = contexts.NewSequence(Policy(SEMKV_POLICY_CLUSTER, 96));
    contexts.Append(sequence, 150);
    contexts.Index(sequence);
    contexts.DecodeAndCompare(sequence, 2, 96, 1);
    if (HasFatalFailure()) return;
  }
}

// Windows and segments are built of staged keys, NaN among them; forks copy pages of a byte a
// number.
TEST_F(DeviceContextE4M3Test, TailsForksAndKeysThatAreNotFinite) {
  DeviceContextShape shape = E4M3Shape();
  shape.num_layers = 1;
  shape.num_pages = 256;
  shape.max_sequence_tokens = 2048;
  TwoContexts contexts(shape);
  semkv_policy policy = Policy(SEMKV_POLICY_HYBRID, 128);
  policy.segment_tokens = 1024;
  const semkv_sequence sequence = contexts.NewSequence(policy);
  contexts.Append(sequence, 900, {17, 300});
  contexts.Index(sequence);
  const semkv_sequence fork = contexts.Fork(sequence);
  for (int32_t i = 0; i < 4; ++i) {
    contexts.Append(sequence, 110, {950, 1000, 1300});
    contexts.Append(fork, 3);
    contexts.StepAndCompare({sequence, fork}, 128);
    contexts.Observe(sequence);
    contexts.Observe(fork);
    if (HasFatalFailure()) return;
  }
}

// One graph of all layers, replayed over growing lengths.
TEST_F(DeviceContextE4M3Test, StepsAreReplayedFromAGraph) {
  TwoContexts contexts(E4M3Shape());
  const semkv_sequence sequence = contexts.NewSequence(Policy(SEMKV_POLICY_HYBRID, 96));
  contexts.Append(sequence, 120);
  contexts.Index(sequence);
  contexts.set_writes_device(false);
  GraphEngine engine(&contexts, contexts.Plans(1, 96));
  for (int32_t i = 0; i < 6; ++i) {
    SCOPED_TRACE("step " + std::to_string(i));
    engine.Step(sequence);
    engine.CompareWithCalls(sequence, contexts.shape().num_layers - 1);
    contexts.Observe(sequence);
    if (HasFailure()) return;
  }
}

// ------------------------------ refusals

semkv_options SmallOptions(int32_t device) {
  semkv_options o;
  semkv_options_init(&o);
  o.num_layers = 2;
  o.num_heads = o.num_kv_heads = 2;
  o.head_dim = 64;
  o.num_pages = 16;
  o.max_sequence_tokens = 256;
  o.num_threads = 1;
  o.kv_dtype = SEMKV_DTYPE_F8_E4M3;
  o.device = device;
  return o;
}

void ExpectRefused(int status, int expected, const std::string& words) {
  EXPECT_EQ(status, expected) << words;
  const std::string error = semkv_last_error();
  EXPECT_NE(error.find(words), std::string::npos) << error;
}

TEST(DeviceContextE4M3RefusalTest, AHostContextNamesIt) {
  const semkv_options o = SmallOptions(-1);
  semkv_context* context = nullptr;
  ExpectRefused(semkv_context_create(&o, &context), SEMKV_UNIMPLEMENTED, "float8 e4m3");
  ExpectRefused(semkv_context_create(&o, &context), SEMKV_UNIMPLEMENTED, "kv_dtype 3");
  EXPECT_EQ(context, nullptr);
}

TEST(DeviceContextE4M3RefusalTest, ScalesOfOtherDTypes) {
  for (float semkv_options::*scale : {&semkv_options::k_scale, &semkv_options::v_scale}) {
    semkv_options o = SmallOptions(-1);
    o.kv_dtype = SEMKV_DTYPE_BF16;
    semkv_context* context = nullptr;
    o.*scale = 0.5f;
    ExpectRefused(semkv_context_create(&o, &context), SEMKV_INVALID_ARGUMENT, "_scale is 0.5");
    o.*scale = 1.0f;
    SEMKV_EXPECT_OK(semkv_context_create(&o, &context));
    semkv_context_destroy(context);
  }
}

TEST_F(DeviceContextE4M3Test, ScalesMustBePositiveAndFinite) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (float bad : {-1.0f, kInfinity, -kInfinity, std::nanf("")}) {
    semkv_options o = SmallOptions(0);
    o.v_scale = bad;
    semkv_context* context = nullptr;
    ExpectRefused(semkv_context_create(&o, &context), SEMKV_INVALID_ARGUMENT, "options.v_scale");
    o.v_scale = 0;
    o.borrow_storage = 1;
    SEMKV_ASSERT_OK(semkv_context_create(&o, &context));
    testing::DeviceCopy memory(std::vector<uint8_t>(2 * 16 * 16 * 2 * 64));
    semkv_kv_view view = {};
    view.struct_size = sizeof(view);
    view.k = memory.data();
    view.v = static_cast<uint8_t*>(memory.data()) + 64;
    view.k_token = view.v_token = 128;
    view.k_head = view.v_head = 16 * view.k_token;
    view.k_page = view.v_page = 2 * view.k_head;
    view.k_scale = bad;
    ExpectRefused(semkv_register_kv(context, &view), SEMKV_INVALID_ARGUMENT, "view.k_scale");
    view.k_scale = 0.5f;
    SEMKV_EXPECT_OK(semkv_register_kv(context, &view));
    semkv_context_destroy(context);
  }
}

TEST_F(DeviceContextE4M3Test, RowsOfAnEngineMustBeAligned) {
  semkv_options o = SmallOptions(0);
  o.borrow_storage = 1;
  semkv_context* context = nullptr;
  SEMKV_ASSERT_OK(semkv_context_create(&o, &context));
  testing::DeviceCopy memory(std::vector<uint8_t>(8192));
  semkv_kv_view view = {};
  view.struct_size = sizeof(view);
  view.k = memory.data();
  view.v = static_cast<uint8_t*>(memory.data()) + 4096;
  view.k_token = view.v_token = 64 + 8;  // enough for 16-bit numbers
  ExpectRefused(semkv_register_kv(context, &view), SEMKV_INVALID_ARGUMENT,
                "view.k_token is 8 bytes past a multiple of 16");
  view.k_token = view.v_token = 64;
  view.v = static_cast<uint8_t*>(memory.data()) + 4097;
  ExpectRefused(semkv_register_kv(context, &view), SEMKV_INVALID_ARGUMENT,
                "view.v is 1 bytes past");
  semkv_context_destroy(context);
}

TEST_F(DeviceContextE4M3Test, WhatACallGivesIsNotOfIt) {
  EXPECT_EQ(semkv_supports("dtype:f8e4m3"), 1);
  const semkv_options o = SmallOptions(0);
  semkv_context* context = nullptr;
  SEMKV_ASSERT_OK(semkv_context_create(&o, &context));
  semkv_sequence sequence = 0;
  SEMKV_ASSERT_OK(semkv_sequence_create(context, 0, &sequence));
  SEMKV_ASSERT_OK(semkv_sequence_append(context, sequence, 4, nullptr, nullptr));
  semkv_sequence_info info = {};
  info.struct_size = sizeof(info);
  SEMKV_ASSERT_OK(semkv_sequence_info_get(context, sequence, &info));
  EXPECT_EQ(info.kv_bytes, 2 * 4 * 2 * 2 * 64);
  testing::DeviceCopy memory(std::vector<uint8_t>(4096));
  semkv_write_args write = {};
  write.struct_size = sizeof(write);
  write.dtype = SEMKV_DTYPE_F8_E4M3;
  write.num_tokens = 1;
  write.slots = static_cast<const int32_t*>(memory.data());
  write.k = write.v = memory.data();
  ExpectRefused(semkv_write_kv(context, 0, &write), SEMKV_INVALID_ARGUMENT, "dtype 3");
  semkv_plan* plan = nullptr;
  SEMKV_ASSERT_OK(semkv_plan_create(context, 1, 64, &plan));
  SEMKV_ASSERT_OK(semkv_plan_step(plan, 1, &sequence, nullptr));
  semkv_attend_args args = {};
  args.struct_size = sizeof(args);
  args.q = args.out = memory.data();
  for (int32_t dtype : {SEMKV_DTYPE_F8_E4M3, SEMKV_DTYPE_F32}) {
    args.dtype = dtype;
    ExpectRefused(semkv_attend(plan, 0, &args), SEMKV_INVALID_ARGUMENT, "dtype");
  }
  for (int32_t dtype : {SEMKV_DTYPE_F16, SEMKV_DTYPE_BF16}) {
    args.dtype = dtype;
    SEMKV_EXPECT_OK(semkv_attend(plan, 0, &args));
  }
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  semkv_plan_destroy(plan);
  semkv_context_destroy(context);
}

}  // namespace
}  // namespace semkv
