// Reading whole files, and writing them so that nobody ever sees half of one.
//
// Thread safety: pure functions over the file system.

#ifndef SEMKV_INTEGRATION_REFERENCE_COMMAND_FILES_H_
#define SEMKV_INTEGRATION_REFERENCE_COMMAND_FILES_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace semkv::command {

// Errors: NOT_FOUND; FAILED_PRECONDITION if it cannot be read. Both name the path.
absl::StatusOr<std::string> ReadFile(const std::string& path);

// OK if WriteFile could write there now. Leaves everything as it was.
// Errors: FAILED_PRECONDITION names the path and the reason.
absl::Status CheckWritable(const std::string& path);

// Writes a file beside `path` and renames it, so that `path` holds the old bytes or all the new
// ones. What is not a regular file (a pipe, /dev/stdout) is written directly.
// Errors: FAILED_PRECONDITION names the path and the reason.
absl::Status WriteFile(const std::string& path, absl::string_view bytes);

}  // namespace semkv::command

#endif  // SEMKV_INTEGRATION_REFERENCE_COMMAND_FILES_H_
