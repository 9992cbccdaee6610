// The one place where exceptions of FAISS become a Status.

#ifndef SEMKV_FAISS_INDEX_FAISS_STATUS_H_
#define SEMKV_FAISS_INDEX_FAISS_STATUS_H_

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace semkv {

// Calls `body`, which may call FAISS; `what` names the operation in the error's text.
//
// Errors: RESOURCE_EXHAUSTED if memory ran out; INTERNAL if FAISS threw.
absl::Status CatchFaiss(absl::string_view what, absl::FunctionRef<void()> body);

}  // namespace semkv

#endif  // SEMKV_FAISS_INDEX_FAISS_STATUS_H_
