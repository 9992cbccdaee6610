// Early return of a failed absl::Status. Abseil 20220623 has none of its own.

#ifndef SEMKV_STATUS_MACROS_H_
#define SEMKV_STATUS_MACROS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define SEMKV_RETURN_IF_ERROR(expression)                                                  \
  do {                                                                                     \
    if (absl::Status semkv_status = (expression); !semkv_status.ok()) return semkv_status; \
  } while (false)

#define SEMKV_CONCAT_INNER(a, b) a##b
#define SEMKV_CONCAT(a, b) SEMKV_CONCAT_INNER(a, b)
#define SEMKV_ASSIGN_OR_RETURN(target, expression) \
  SEMKV_ASSIGN_OR_RETURN_IMPL(SEMKV_CONCAT(semkv_statusor_, __LINE__), target, expression)
#define SEMKV_ASSIGN_OR_RETURN_IMPL(result, target, expression) \
  auto result = (expression);                                   \
  if (!result.ok()) return std::move(result).status();          \
  target = *std::move(result)

#endif  // SEMKV_STATUS_MACROS_H_
