#include "integration/reference/command/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_format.h"

namespace semkv::command {
namespace {

constexpr int kBarColumns = 32;
constexpr std::chrono::milliseconds kInterval(100);

}  // namespace

std::string ProgressLine(absl::string_view label, int64_t done, int64_t total) {
  const int64_t filled =
      total <= 0 ? 0 : std::clamp<int64_t>(done * kBarColumns / total, 0, kBarColumns);
  const std::string bar =
      std::string(filled, '#') + std::string(static_cast<size_t>(kBarColumns - filled), '-');
  return absl::StrFormat("%-34s [%s] %d / %d", label.substr(0, 34), bar, done, total);
}

Progress::Progress() : on_terminal_(isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() {
  if (drawn_) std::fputs("\r\033[K", stderr);
}

void Progress::Show(absl::string_view label, int64_t done, int64_t total) {
  if (!on_terminal_) return;
  const auto now = std::chrono::steady_clock::now();
  if (drawn_ && done != total && now - last_ < kInterval) return;
  last_ = now;
  drawn_ = true;
  std::fprintf(stderr, "\r%s\033[K", ProgressLine(label, done, total).c_str());
  std::fflush(stderr);
}

}  // namespace semkv::command
