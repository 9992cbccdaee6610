// docs/support.md is what the library itself answers: contexts of every dtype, head size and page
// size, and sequences of every policy, on the host and on a device (the emulated one).
// SEMKV_WRITE_SUPPORT=1 writes the file anew.

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "semkv/semkv.h"
#include "tests/cuda/device_context.h"

namespace semkv {
namespace {

constexpr int32_t kHost = -1, kDevice = 0;

semkv_options Options(int32_t device, int32_t dtype, int32_t head_dim, int32_t page_tokens) {
  semkv_options o;
  semkv_options_init(&o);
  o.num_layers = 1;
  o.num_heads = o.num_kv_heads = 1;
  o.head_dim = head_dim;
  o.kv_dtype = dtype;
  o.page_tokens = page_tokens;
  o.num_pages = 1;
  o.max_sequence_tokens = page_tokens;
  o.num_threads = 1;
  o.device = device;
  return o;
}

bool CanCreate(const semkv_options& options) {
  semkv_context* context = nullptr;
  const int status = semkv_context_create(&options, &context);
  EXPECT_TRUE(status == SEMKV_OK || status == SEMKV_UNIMPLEMENTED) << semkv_last_error();
  semkv_context_destroy(context);
  return status == SEMKV_OK;
}

std::string Join(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text.empty() ? "none" : text;
}

std::string HeadDims(int32_t device, int32_t dtype) {
  std::vector<std::string> dims;
  for (int32_t head_dim = 16; head_dim <= 512; head_dim += 16) {
    if (CanCreate(Options(device, dtype, head_dim, 16))) dims.push_back(std::to_string(head_dim));
  }
  return Join(dims);
}

std::string PageSizes(int32_t device, int32_t dtype) {
  std::vector<std::string> sizes;
  for (int32_t page_tokens = 1; page_tokens <= 1024; page_tokens *= 2) {
    if (CanCreate(Options(device, dtype, 64, page_tokens))) {
      sizes.push_back(std::to_string(page_tokens));
    }
  }
  return Join(sizes);
}

// "yes", or the fields of the policy's defaults that are refused.
std::string PolicySupport(int32_t device, int32_t kind) {
  semkv_options options = Options(device, SEMKV_DTYPE_BF16, 64, 16);
  // What sentencekv needs.
  if (device == kHost) options.query_window = 64;
  semkv_context* context = nullptr;
  SEMKV_EXPECT_OK(semkv_context_create(&options, &context));
  testing::SetVocabulary(context);
  semkv_sequence sequence = 0;
  SEMKV_EXPECT_OK(semkv_sequence_create(context, 0, &sequence));
  semkv_policy policy;
  SEMKV_EXPECT_OK(semkv_policy_init(&policy, kind));
  const bool is_served = semkv_sequence_set_policy(context, sequence, &policy) == SEMKV_OK;
  const std::string refused = is_served ? "yes" : std::string("no: ") + semkv_last_error();
  semkv_context_destroy(context);
  return refused;
}

std::string CentroidHeadDims(int32_t device, int32_t form) {
  std::vector<std::string> dims;
  for (int32_t head_dim = 16; head_dim <= 512; head_dim += 16) {
    const semkv_options options = Options(device, SEMKV_DTYPE_BF16, head_dim, 16);
    semkv_context* context = nullptr;
    if (semkv_context_create(&options, &context) != SEMKV_OK) continue;
    semkv_sequence sequence = 0;
    SEMKV_EXPECT_OK(semkv_sequence_create(context, 0, &sequence));
    semkv_policy policy;
    SEMKV_EXPECT_OK(semkv_policy_init(&policy, SEMKV_POLICY_CLUSTER));
    policy.centroid_form = form;
    const int status = semkv_sequence_set_policy(context, sequence, &policy);
    EXPECT_TRUE(status == SEMKV_OK || status == SEMKV_INVALID_ARGUMENT) << semkv_last_error();
    if (status == SEMKV_OK) dims.push_back(std::to_string(head_dim));
    semkv_context_destroy(context);
  }
  return Join(dims);
}

std::string SupportPage() {
  std::ostringstream page;
  page << "# What is supported\n\n"
          "Written by `tests/cuda/support_matrix_test.cc` from what `semkv_context_create` and\n"
          "`semkv_sequence_set_policy` answer; a test compares. Everything else is refused by "
          "name. On a\n"
          "device KV is what the sm_90a kernels take, executed in the SIMT harness and not run on "
          "a GPU\n"
          "so far.\n\n"
          "| KV on | dtype | head_dim | page_tokens |\n|---|---|---|---|\n";
  const std::pair<int32_t, const char*> dtypes[] = {{SEMKV_DTYPE_F32, "float32"},
                                                    {SEMKV_DTYPE_F16, "float16"},
                                                    {SEMKV_DTYPE_BF16, "bfloat16"},
                                                    {SEMKV_DTYPE_F8_E4M3, "float8 e4m3"}};
  for (const auto& [device, name] : {std::pair{kHost, "host"}, std::pair{kDevice, "device"}}) {
    for (const auto& [dtype, dtype_name] : dtypes) {
      page << "| " << name << " | " << dtype_name << " | " << HeadDims(device, dtype) << " | "
           << PageSizes(device, dtype) << " |\n";
    }
  }
  page << "\n| policy, its defaults | host | device |\n|---|---|---|\n";
  for (int32_t kind = 0; kind < SEMKV_NUM_POLICIES; ++kind) {
    page << "| " << semkv_policy_name(kind) << " | " << PolicySupport(kHost, kind) << " | "
         << PolicySupport(kDevice, kind) << " |\n";
  }
  page << "\n| centroid_form | head_dim, host | head_dim, device |\n|---|---|---|\n";
  const std::pair<int32_t, const char*> forms[] = {{SEMKV_CENTROID_INT8, "int8"},
                                                   {SEMKV_CENTROID_INT4, "int4"},
                                                   {SEMKV_CENTROID_BF16, "bf16"},
                                                   {SEMKV_CENTROID_F32, "f32"}};
  for (const auto& [form, name] : forms) {
    page << "| " << name << " | " << CentroidHeadDims(kHost, form) << " | "
         << CentroidHeadDims(kDevice, form) << " |\n";
  }
  page
      << "\nAny number of query heads per KV head on the host, up to 64 on a device. q and out of "
         "a "
         "step:\n"
         "float32, float16 or bfloat16 on the host; on a device the pool's, or float16 or bfloat16 "
         "beside\n"
         "float8 e4m3. Prefill (rows of several queries): the host alone.\n";
  return page.str();
}

TEST(SupportMatrixTest, ThePageSaysWhatTheLibrarySays) {
  const std::string path = SEMKV_SOURCE_DIR "/docs/support.md";
  const std::string page = SupportPage();
  if (std::getenv("SEMKV_WRITE_SUPPORT") != nullptr) std::ofstream(path) << page;
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  EXPECT_EQ(text.str(), page) << "SEMKV_WRITE_SUPPORT=1 writes it";
}

}  // namespace
}  // namespace semkv
