// The measurements of `semkv run` as JSON.

#ifndef SEMKV_INTEGRATION_REFERENCE_COMMAND_REPORT_JSON_H_
#define SEMKV_INTEGRATION_REFERENCE_COMMAND_REPORT_JSON_H_

#include <string>

#include "integration/reference/command/measurement.h"

namespace semkv::command {

// An object of the run and, under "policies", one object per policy in the order of `run`. Times in
// milliseconds, sizes in bytes, divergence in nats. Ends with a newline; invalid UTF-8 is replaced.
std::string RunJson(const RunMeasurement& run);

}  // namespace semkv::command

#endif  // SEMKV_INTEGRATION_REFERENCE_COMMAND_REPORT_JSON_H_
