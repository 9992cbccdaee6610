// Results of the C ABI as absl::Status: the codes are equal by the ABI's first convention.

#ifndef SEMKV_INTEGRATION_REFERENCE_SEMKV_STATUS_H_
#define SEMKV_INTEGRATION_REFERENCE_SEMKV_STATUS_H_

#include "absl/status/status.h"
#include "semkv/semkv.h"

namespace semkv::reference {

// Call at once after the function that returned `code`: the text is the thread's last error.
inline absl::Status SemkvStatus(int code) {
  if (code == SEMKV_OK) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(code), semkv_last_error());
}

}  // namespace semkv::reference

#endif  // SEMKV_INTEGRATION_REFERENCE_SEMKV_STATUS_H_
