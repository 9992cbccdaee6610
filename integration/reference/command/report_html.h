// The measurements of `semkv run` as one self-contained page: tables and charts as plain HTML and
// SVG, the maps of what was read drawn by a script from data in the page.

#ifndef SEMKV_INTEGRATION_REFERENCE_COMMAND_REPORT_HTML_H_
#define SEMKV_INTEGRATION_REFERENCE_COMMAND_REPORT_HTML_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "integration/reference/command/measurement.h"

namespace semkv::command {

std::string RunHtml(const RunMeasurement& run);

// Text as HTML text or attribute value; invalid UTF-8 is replaced.
std::string EscapeHtml(absl::string_view text);

// The data of the maps as JSON that may stand in a script element: no "<" in it.
std::string MapJson(const RunMeasurement& run);

// One character of 0-9A-Za-z per share, rounded up, so that only 0 gives '0'.
std::string EncodeShares(const std::vector<float>& shares);

}  // namespace semkv::command

#endif  // SEMKV_INTEGRATION_REFERENCE_COMMAND_REPORT_HTML_H_
