#include "integration/reference/json_file.h"

#include <cmath>
#include <fstream>
#include <iterator>
#include <limits>

#include "absl/strings/str_cat.h"

namespace semkv::reference {

namespace {

absl::Status UnexpectedValue(const char* name, const Json& value, const std::string& expected) {
  return absl::DataLossError(
      absl::StrCat("field \"", name, "\" is ", JsonExcerpt(value), ", not ", expected));
}

}  // namespace

absl::StatusOr<Json> ReadJsonFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be opened"));
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded() || !json.is_object()) {
    return absl::DataLossError(
        absl::StrCat(path, ": its ", text.size(), " bytes are not a JSON object"));
  }
  return json;
}

const Json& JsonMember(const Json& object, const char* name) {
  static const Json* const null = new Json();
  if (!object.is_object()) return *null;
  const auto member = object.find(name);
  return member == object.end() ? *null : *member;
}

std::string JsonExcerpt(const Json& value) {
  // `replace`: a bad byte in a string must not throw while a message is made.
  const std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  return text.size() <= 80 ? text : text.substr(0, 77) + "...";
}

absl::StatusOr<int64_t> IntMember(const Json& object, const char* name, int64_t fallback,
                                  int64_t minimum, int64_t maximum) {
  const Json& value = JsonMember(object, name);
  if (value.is_null()) return fallback;
  const std::string expected = absl::StrCat("an integer in [", minimum, ", ", maximum, "]");
  if (!value.is_number_integer()) return UnexpectedValue(name, value, expected);
  if (value.is_number_unsigned() &&
      value.get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()}) {
    return UnexpectedValue(name, value, expected);
  }
  const int64_t number = value.get<int64_t>();
  if (number < minimum || number > maximum) return UnexpectedValue(name, value, expected);
  return number;
}

absl::StatusOr<double> NumberMember(const Json& object, const char* name, double fallback) {
  const Json& value = JsonMember(object, name);
  if (value.is_null()) return fallback;
  if (!value.is_number() || !std::isfinite(value.get<double>())) {
    return UnexpectedValue(name, value, "a finite number");
  }
  return value.get<double>();
}

absl::StatusOr<bool> BoolMember(const Json& object, const char* name, bool fallback) {
  const Json& value = JsonMember(object, name);
  if (value.is_null()) return fallback;
  if (!value.is_boolean()) return UnexpectedValue(name, value, "true or false");
  return value.get<bool>();
}

absl::StatusOr<std::string> StringMember(const Json& object, const char* name,
                                         const std::string& fallback) {
  const Json& value = JsonMember(object, name);
  if (value.is_null()) return fallback;
  if (!value.is_string()) return UnexpectedValue(name, value, "a string");
  return value.get<std::string>();
}

}  // namespace semkv::reference
