// semkv.h: validate, translate, forward.

#include "csrc/api/c_api.h"

#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/string_view.h"
#include "csrc/api/policy.h"
#include "csrc/status_macros.h"

namespace semkv::c_api {
namespace {

// The one thread-local of the library.
std::string& LastError() {
  thread_local std::string text;
  return text;
}

}  // namespace

int Finish(const absl::Status& status) {
  if (status.ok()) return SEMKV_OK;
  LastError().assign(status.message().data(), status.message().size());
  return static_cast<int>(status.code());
}

namespace {

template <absl::StatusCode code, int number>
constexpr bool kSame = static_cast<int>(code) == number;
static_assert(kSame<absl::StatusCode::kOk, SEMKV_OK>);
static_assert(kSame<absl::StatusCode::kInvalidArgument, SEMKV_INVALID_ARGUMENT>);
static_assert(kSame<absl::StatusCode::kNotFound, SEMKV_NOT_FOUND>);
static_assert(kSame<absl::StatusCode::kAlreadyExists, SEMKV_ALREADY_EXISTS>);
static_assert(kSame<absl::StatusCode::kResourceExhausted, SEMKV_RESOURCE_EXHAUSTED>);
static_assert(kSame<absl::StatusCode::kFailedPrecondition, SEMKV_FAILED_PRECONDITION>);
static_assert(kSame<absl::StatusCode::kOutOfRange, SEMKV_OUT_OF_RANGE>);
static_assert(kSame<absl::StatusCode::kUnimplemented, SEMKV_UNIMPLEMENTED>);
static_assert(kSame<absl::StatusCode::kInternal, SEMKV_INTERNAL>);

absl::Status CheckOut(const void* pointer, const char* name) {
  if (pointer != nullptr) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, " is null"));
}

semkv_options DefaultOptions() {
  semkv_options options = {};
  options.struct_size = sizeof(options);
  options.kv_dtype = SEMKV_DTYPE_F32;
  options.page_tokens = 16;
  options.max_sequences = 16;
  options.prefix_sharing = 1;
  options.device = -1;
  return options;
}

bool SupportsNumber(absl::string_view text, std::initializer_list<int32_t> numbers) {
  int32_t number = 0;
  if (!absl::SimpleAtoi(text, &number)) return false;
  return std::find(numbers.begin(), numbers.end(), number) != numbers.end();
}

}  // namespace
}  // namespace semkv::c_api

using semkv::c_api::CheckOut;
using semkv::c_api::CopyIn;
using semkv::c_api::CopyOut;
using semkv::c_api::Guard;
using semkv::c_api::GuardContext;

extern "C" {

const char* semkv_version(void) { return SEMKV_VERSION_STRING; }

int32_t semkv_abi_version(void) { return SEMKV_ABI_VERSION; }

const char* semkv_last_error(void) { return semkv::c_api::LastError().c_str(); }

const char* semkv_status_name(int32_t status) {
  switch (status) {
    case SEMKV_OK:
      return "OK";
    case SEMKV_INVALID_ARGUMENT:
      return "INVALID_ARGUMENT";
    case SEMKV_NOT_FOUND:
      return "NOT_FOUND";
    case SEMKV_ALREADY_EXISTS:
      return "ALREADY_EXISTS";
    case SEMKV_RESOURCE_EXHAUSTED:
      return "RESOURCE_EXHAUSTED";
    case SEMKV_FAILED_PRECONDITION:
      return "FAILED_PRECONDITION";
    case SEMKV_OUT_OF_RANGE:
      return "OUT_OF_RANGE";
    case SEMKV_UNIMPLEMENTED:
      return "UNIMPLEMENTED";
    case SEMKV_INTERNAL:
      return "INTERNAL";
    default:
      return "UNKNOWN";
  }
}

int32_t semkv_supports(const char* feature) {
  if (feature == nullptr) return 0;
  absl::string_view text(feature);
  if (text == "host") return 1;
  if (text == "cuda") return semkv::HasDeviceBackend();
  if (text == "dtype:f8e4m3") return semkv::HasDeviceBackend();
  if (text == "dtype:f32" || text == "dtype:f16" || text == "dtype:bf16") return 1;
  constexpr absl::string_view kHeadDim = "head_dim:", kPolicy = "policy:";
  if (absl::StartsWith(text, kHeadDim)) {
    return semkv::c_api::SupportsNumber(text.substr(kHeadDim.size()), {64, 80, 96, 128, 256});
  }
  if (absl::StartsWith(text, kPolicy)) {
    return semkv::PolicyKind(feature + kPolicy.size()) >= 0;
  }
  return 0;
}

int semkv_policy_init(semkv_policy* policy, int32_t kind) {
  return Guard([&]() -> absl::Status {
    SEMKV_RETURN_IF_ERROR(CheckOut(policy, "policy"));
    if (kind < 0 || kind >= SEMKV_NUM_POLICIES) {
      return absl::InvalidArgumentError(
          absl::StrCat("policy kind ", kind, " is not in [0, ", SEMKV_NUM_POLICIES, ")"));
    }
    *policy = semkv::DefaultPolicy(kind);
    return absl::OkStatus();
  });
}

const char* semkv_policy_name(int32_t kind) { return semkv::PolicyName(kind); }

int32_t semkv_policy_kind(const char* name) { return semkv::PolicyKind(name); }

int semkv_options_init(semkv_options* options) {
  return Guard([&]() -> absl::Status {
    SEMKV_RETURN_IF_ERROR(CheckOut(options, "options"));
    *options = semkv::c_api::DefaultOptions();
    return absl::OkStatus();
  });
}

int semkv_context_create(const semkv_options* options, semkv_context** context) {
  return Guard([&]() -> absl::Status {
    SEMKV_RETURN_IF_ERROR(CheckOut(context, "context"));
    semkv_options copy = semkv::c_api::DefaultOptions();
    SEMKV_RETURN_IF_ERROR(CopyIn(options, "options", &copy));
    std::unique_ptr<semkv::Device> device;
    if (copy.device != -1) {
      SEMKV_ASSIGN_OR_RETURN(device, semkv::OpenDevice(copy.device));
    }
    SEMKV_ASSIGN_OR_RETURN(std::unique_ptr<semkv::Context> rep,
                           semkv::Context::Create(copy, std::move(device)));
    *context = new semkv_context{std::move(rep)};
    return absl::OkStatus();
  });
}

void semkv_context_destroy(semkv_context* context) { delete context; }

int semkv_context_reset(semkv_context* context) {
  return GuardContext(context, [](semkv::Context& c) { return c.Reset(); });
}

int semkv_set_stream(semkv_context* context, void* stream) {
  return GuardContext(context, [&](semkv::Context& c) { return c.SetStream(stream); });
}

int semkv_register_kv(semkv_context* context, const semkv_kv_view* view) {
  return GuardContext(context, [&](semkv::Context& c) -> absl::Status {
    semkv_kv_view copy = {};
    SEMKV_RETURN_IF_ERROR(CopyIn(view, "view", &copy));
    SEMKV_RETURN_IF_ERROR(CheckOut(copy.k, "view.k"));
    SEMKV_RETURN_IF_ERROR(CheckOut(copy.v, "view.v"));
    semkv::KvView kv;
    kv.k = copy.k;
    kv.v = copy.v;
    kv.k_page = copy.k_page;
    kv.k_head = copy.k_head;
    kv.k_token = copy.k_token;
    kv.v_page = copy.v_page;
    kv.v_head = copy.v_head;
    kv.v_token = copy.v_token;
    kv.k_scale = copy.k_scale;
    kv.v_scale = copy.v_scale;
    return c.RegisterKv(copy.layer, kv);
  });
}

int semkv_vocabulary_set(semkv_context* context, int32_t num_tokens, const char* bytes,
                         const int64_t* offsets) {
  return GuardContext(context, [&](semkv::Context& c) -> absl::Status {
    SEMKV_RETURN_IF_ERROR(CheckOut(bytes, "bytes"));
    SEMKV_RETURN_IF_ERROR(CheckOut(offsets, "offsets"));
    if (num_tokens < 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("num_tokens is ", num_tokens, ", must be at least 1"));
    }
    std::vector<absl::string_view> vocabulary(num_tokens);
    for (int32_t i = 0; i < num_tokens; ++i) {
      if (offsets[i] < 0 || offsets[i + 1] < offsets[i]) {
        return absl::InvalidArgumentError(absl::StrCat("offsets[", i + 1, "] = ", offsets[i + 1],
                                                       " is below offsets[", i,
                                                       "] = ", offsets[i]));
      }
      vocabulary[i] = absl::string_view(bytes + offsets[i], offsets[i + 1] - offsets[i]);
    }
    return c.SetVocabulary(vocabulary);
  });
}

int semkv_stats_get(semkv_context* context, semkv_stats* stats) {
  return GuardContext(context,
                      [&](semkv::Context& c) { return CopyOut(c.Stats(), "stats", stats); });
}

int semkv_explain(semkv_context* context, char* text, size_t capacity, size_t* length) {
  return GuardContext(context, [&](semkv::Context& c) -> absl::Status {
    if (text == nullptr && capacity > 0) return absl::InvalidArgumentError("text is null");
    const std::string full = c.Explain();
    if (capacity > 0) {
      const size_t n = std::min(full.size(), capacity - 1);
      std::memcpy(text, full.data(), n);
      text[n] = '\0';
    }
    if (length != nullptr) *length = full.size();
    return absl::OkStatus();
  });
}

int semkv_events_drain(semkv_context* context, semkv_event* events, int32_t capacity,
                       int32_t* num_events) {
  return GuardContext(context, [&](semkv::Context& c) -> absl::Status {
    SEMKV_RETURN_IF_ERROR(CheckOut(num_events, "num_events"));
    if (capacity < 0 || (events == nullptr && capacity > 0)) {
      return absl::InvalidArgumentError(
          absl::StrCat("events is null or capacity ", capacity, " is negative"));
    }
    *num_events = c.DrainEvents(absl::MakeSpan(events, capacity));
    return absl::OkStatus();
  });
}

}  // extern "C"
