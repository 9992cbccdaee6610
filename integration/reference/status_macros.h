// Early returns for absl::Status, which this version of Abseil does not ship.

#ifndef SEMKV_INTEGRATION_REFERENCE_STATUS_MACROS_H_
#define SEMKV_INTEGRATION_REFERENCE_STATUS_MACROS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Returns from the enclosing function if the expression, an absl::Status, is not OK.
#define SEMKV_RETURN_IF_ERROR(expression)                                             \
  do {                                                                                \
    if (absl::Status semkv_status_result = (expression); !semkv_status_result.ok()) { \
      return semkv_status_result;                                                     \
    }                                                                                 \
  } while (false)

#define SEMKV_STATUS_CONCAT_INNER(a, b) a##b
#define SEMKV_STATUS_CONCAT(a, b) SEMKV_STATUS_CONCAT_INNER(a, b)

// Assigns the value of an absl::StatusOr to `target`, which may be a declaration, or returns its
// status from the enclosing function.
#define SEMKV_ASSIGN_OR_RETURN(target, expression) \
  SEMKV_ASSIGN_OR_RETURN_INNER(SEMKV_STATUS_CONCAT(semkv_status_or_, __LINE__), target, expression)
#define SEMKV_ASSIGN_OR_RETURN_INNER(result, target, expression) \
  auto result = (expression);                                    \
  if (!result.ok()) return std::move(result).status();           \
  target = *std::move(result)

#endif  // SEMKV_INTEGRATION_REFERENCE_STATUS_MACROS_H_
