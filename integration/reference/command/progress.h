// A progress bar on stderr, on a terminal only.
//
// Thread safety: thread-compatible.

#ifndef SEMKV_INTEGRATION_REFERENCE_COMMAND_PROGRESS_H_
#define SEMKV_INTEGRATION_REFERENCE_COMMAND_PROGRESS_H_

#include <chrono>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace semkv::command {

class Progress {
 public:
  Progress();
  // Clears the line.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // Draws `label`, a bar and done / total; at most ten times a second unless done == total.
  void Show(absl::string_view label, int64_t done, int64_t total);

 private:
  const bool on_terminal_;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point last_;
};

// "prefill            [#######-------]  512 / 1024", 100 columns at most.
std::string ProgressLine(absl::string_view label, int64_t done, int64_t total);

}  // namespace semkv::command

#endif  // SEMKV_INTEGRATION_REFERENCE_COMMAND_PROGRESS_H_
