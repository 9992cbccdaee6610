// `semkv evaluate`: policies over many documents.

#ifndef SEMKV_INTEGRATION_REFERENCE_COMMAND_EVALUATE_H_
#define SEMKV_INTEGRATION_REFERENCE_COMMAND_EVALUATE_H_

#include "absl/status/status.h"
#include "integration/reference/command/options.h"

namespace semkv::command {

// Evaluates everything, writes the JSON file, and prints the table on stdout. Nothing is written
// unless everything succeeded.
absl::Status Evaluate(const EvaluateOptions& options);

}  // namespace semkv::command

#endif  // SEMKV_INTEGRATION_REFERENCE_COMMAND_EVALUATE_H_
