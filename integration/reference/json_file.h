// JSON files of a model directory, read without exceptions: every accessor returns a Status that
// names the file, the field and what was found.

#ifndef SEMKV_INTEGRATION_REFERENCE_JSON_FILE_H_
#define SEMKV_INTEGRATION_REFERENCE_JSON_FILE_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace semkv::reference {

using Json = nlohmann::json;

// Errors: NOT_FOUND if the file cannot be opened; DATA_LOSS if it is no JSON object.
absl::StatusOr<Json> ReadJsonFile(const std::string& path);

// The member `name` of an object, or null if it is missing.
const Json& JsonMember(const Json& object, const char* name);

// The first 80 bytes of the value as JSON, for messages.
std::string JsonExcerpt(const Json& value);

// A member, or `fallback` if it is missing or null.
// Errors: DATA_LOSS if the value has another type, is outside [minimum, maximum], or not finite.
absl::StatusOr<int64_t> IntMember(const Json& object, const char* name, int64_t fallback,
                                  int64_t minimum, int64_t maximum);
absl::StatusOr<double> NumberMember(const Json& object, const char* name, double fallback);
absl::StatusOr<bool> BoolMember(const Json& object, const char* name, bool fallback);
absl::StatusOr<std::string> StringMember(const Json& object, const char* name,
                                         const std::string& fallback);

}  // namespace semkv::reference

#endif  // SEMKV_INTEGRATION_REFERENCE_JSON_FILE_H_
