// semkv: see `semkv --help`.

#include <cstdio>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_replace.h"
#include "integration/reference/command/evaluate.h"
#include "integration/reference/command/options.h"
#include "integration/reference/command/runner.h"

namespace semkv::command {
namespace {

constexpr int kExitInput = 2;     // what was asked for cannot be done
constexpr int kExitInternal = 1;  // a defect of ours

absl::Status Perform(const CommandLine& command_line) {
  if (const auto* run = std::get_if<RunOptions>(&command_line)) return Run(*run);
  if (const auto* evaluate = std::get_if<EvaluateOptions>(&command_line)) {
    return Evaluate(*evaluate);
  }
  std::fputs(std::get<Message>(command_line).text.c_str(), stdout);
  return absl::OkStatus();
}

int Main(const std::vector<std::string>& arguments) {
  absl::StatusOr<CommandLine> command_line = ParseCommandLine(arguments);
  const absl::Status status = command_line.ok() ? Perform(*command_line) : command_line.status();
  if (status.ok()) return 0;
  const std::string line = absl::StrReplaceAll(status.message(), {{"\n", " "}});
  std::fprintf(stderr, "semkv: %s\n", line.c_str());
  return absl::IsInternal(status) ? kExitInternal : kExitInput;
}

}  // namespace
}  // namespace semkv::command

int main(int argc, char** argv) {
  return semkv::command::Main(std::vector<std::string>(argv + 1, argv + argc));
}
