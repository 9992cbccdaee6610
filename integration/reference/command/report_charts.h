// Charts of a run as inline SVG: no script, no outside resource.

#ifndef SEMKV_INTEGRATION_REFERENCE_COMMAND_REPORT_CHARTS_H_
#define SEMKV_INTEGRATION_REFERENCE_COMMAND_REPORT_CHARTS_H_

#include <string>

#include "absl/strings/string_view.h"
#include "integration/reference/command/measurement.h"

namespace semkv::command {

// Colour of a policy, the same in every chart, told apart with common colour blindness.
std::string PolicyColour(absl::string_view name);

// A line per policy: mean captured mass over the budget, on a logarithmic axis. "" if no policy has
// a sweep.
std::string MassChart(const RunMeasurement& run);

// A bar per policy: keys and values, and the index, read per token, against dense.
std::string BytesChart(const RunMeasurement& run);

}  // namespace semkv::command

#endif  // SEMKV_INTEGRATION_REFERENCE_COMMAND_REPORT_CHARTS_H_
