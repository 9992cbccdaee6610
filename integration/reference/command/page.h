// Style and script of the page, from page.css and page.js.

#ifndef SEMKV_INTEGRATION_REFERENCE_COMMAND_PAGE_H_
#define SEMKV_INTEGRATION_REFERENCE_COMMAND_PAGE_H_

#include "absl/strings/string_view.h"

namespace semkv::command {

absl::string_view PageStyle();
absl::string_view PageScript();

}  // namespace semkv::command

#endif  // SEMKV_INTEGRATION_REFERENCE_COMMAND_PAGE_H_
