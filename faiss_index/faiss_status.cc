#include "faiss_index/faiss_status.h"

#include <exception>
#include <new>

#include "absl/strings/str_cat.h"

namespace semkv {

absl::Status CatchFaiss(absl::string_view what, absl::FunctionRef<void()> body) {
  try {
    body();
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(absl::StrCat(what, ": out of memory"));
  } catch (const std::exception& error) {  // faiss::FaissException is one
    return absl::InternalError(absl::StrCat(what, ": ", error.what()));
  }
  return absl::OkStatus();
}

}  // namespace semkv
