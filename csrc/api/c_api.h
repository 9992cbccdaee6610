// What the files of the C ABI share: the handles, the last error, and how structs cross.

#ifndef SEMKV_API_C_API_H_
#define SEMKV_API_C_API_H_

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "csrc/api/context.h"
#include "csrc/api/step_plan.h"
#include "semkv/semkv.h"

struct semkv_context {
  std::unique_ptr<semkv::Context> rep;
};

struct semkv_plan {
  std::unique_ptr<semkv::StepPlan> rep;
};

namespace semkv::c_api {

// Keeps the text of a failure for semkv_last_error and returns its code.
int Finish(const absl::Status& status);

// Runs a call that returns absl::Status; nothing thrown crosses the ABI.
template <typename Call>
int Guard(Call&& call) {
  try {
    return Finish(call());
  } catch (const std::bad_alloc&) {
    return Finish(absl::ResourceExhaustedError("out of memory"));
  } catch (const std::exception& error) {
    return Finish(absl::InternalError(error.what()));
  }
}

// The same under the context's lock.
template <typename Call>
int GuardContext(semkv_context* context, Call&& call) {
  return Guard([&]() -> absl::Status {
    if (context == nullptr) return absl::InvalidArgumentError("context is null");
    absl::MutexLock lock(&context->rep->mutex());
    return call(*context->rep);
  });
}

template <typename Call>
int GuardPlan(semkv_plan* plan, Call&& call) {
  return Guard([&]() -> absl::Status {
    if (plan == nullptr) return absl::InvalidArgumentError("plan is null");
    absl::MutexLock lock(&plan->rep->context()->mutex());
    return call(*plan->rep);
  });
}

template <typename T>
absl::Status CheckStructSize(const T* value, const char* name) {
  if (value == nullptr) return absl::InvalidArgumentError(absl::StrCat(name, " is null"));
  if (value->struct_size < sizeof(uint32_t) || value->struct_size > 65536) {
    return absl::InvalidArgumentError(absl::StrCat(name, ".struct_size is ", value->struct_size,
                                                   ", this library's is ", sizeof(T)));
  }
  return absl::OkStatus();
}

// Copies a caller's struct over `defaults`: fields beyond its struct_size keep theirs.
template <typename T>
absl::Status CopyIn(const T* from, const char* name, T* defaults) {
  absl::Status status = CheckStructSize(from, name);
  if (!status.ok()) return status;
  std::memcpy(static_cast<void*>(defaults), from, std::min<size_t>(from->struct_size, sizeof(T)));
  defaults->struct_size = sizeof(T);
  return absl::OkStatus();
}

// Writes a result into a caller's struct, as far as its struct_size goes.
template <typename T>
absl::Status CopyOut(const T& from, const char* name, T* to) {
  absl::Status status = CheckStructSize(to, name);
  if (!status.ok()) return status;
  const uint32_t size = to->struct_size;
  std::memcpy(static_cast<void*>(to), &from, std::min<size_t>(size, sizeof(T)));
  to->struct_size = size;
  return absl::OkStatus();
}

}  // namespace semkv::c_api

#endif  // SEMKV_API_C_API_H_
