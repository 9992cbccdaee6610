// `semkv run`: one document, its questions, every policy.

#ifndef SEMKV_INTEGRATION_REFERENCE_COMMAND_RUNNER_H_
#define SEMKV_INTEGRATION_REFERENCE_COMMAND_RUNNER_H_

#include "absl/status/status.h"
#include "integration/reference/command/options.h"

namespace semkv::command {

// Runs everything and writes the files and the table on stdout. Nothing is written unless
// everything succeeded.
absl::Status Run(const RunOptions& options);

}  // namespace semkv::command

#endif  // SEMKV_INTEGRATION_REFERENCE_COMMAND_RUNNER_H_
