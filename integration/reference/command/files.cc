#include "integration/reference/command/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"

namespace semkv::command {
namespace {

absl::Status WriteError(absl::string_view path, absl::string_view reason) {
  return absl::FailedPreconditionError(absl::StrCat("cannot write ", path, ": ", reason));
}

// Where the bytes go in the end: links are followed, so that a rename replaces their target.
std::string FinalPath(const std::string& path) {
  std::error_code error;
  const std::filesystem::path target = std::filesystem::canonical(path, error);
  return error ? path : target.string();
}

// A new file beside `path`; its descriptor, or -1 with errno.
int OpenBeside(const std::string& path, std::string* name) {
  *name = path + ".XXXXXX";
  const int file = mkstemp(name->data());
  if (file < 0) return file;
  // mkstemp's 0600 is for secrets; this becomes an ordinary file.
  const mode_t mask = umask(0);
  umask(mask);
  (void)fchmod(file, 0666 & ~mask);
  return file;
}

bool WriteAll(int file, absl::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = write(file, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return false;
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return true;
}

bool IsDirect(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode) && !S_ISDIR(info.st_mode);
}

absl::Status WriteDirect(const std::string& path, absl::string_view bytes) {
  const int file = open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (file < 0) return WriteError(path, std::strerror(errno));
  const bool written = WriteAll(file, bytes);
  const int error = errno;
  if (close(file) != 0 || !written) return WriteError(path, std::strerror(written ? errno : error));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    return absl::NotFoundError(absl::StrCat("no such file: ", path));
  }
  if (std::filesystem::is_directory(path, error)) {
    return absl::FailedPreconditionError(absl::StrCat(path, " is a directory, not a file"));
  }
  std::ifstream file(path, std::ios::binary);
  std::ostringstream bytes;
  bytes << file.rdbuf();
  // An empty file sets failbit of `bytes` alone.
  if (!file.is_open() || file.bad()) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot read ", path, ": ", std::strerror(errno)));
  }
  return bytes.str();
}

absl::Status CheckWritable(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) return WriteError(path, "it is a directory");
  if (IsDirect(path)) {
    if (access(path.c_str(), W_OK) != 0) return WriteError(path, std::strerror(errno));
    return absl::OkStatus();
  }
  std::string beside;
  const int file = OpenBeside(FinalPath(path), &beside);
  if (file < 0) return WriteError(path, std::strerror(errno));
  close(file);
  unlink(beside.c_str());
  return absl::OkStatus();
}

absl::Status WriteFile(const std::string& path, absl::string_view bytes) {
  if (IsDirect(path)) return WriteDirect(path, bytes);
  const std::string target = FinalPath(path);
  std::string beside;
  const int file = OpenBeside(target, &beside);
  if (file < 0) return WriteError(path, std::strerror(errno));
  bool done = WriteAll(file, bytes);
  int error = errno;
  if (close(file) != 0 && done) {
    done = false;
    error = errno;
  }
  if (done && std::rename(beside.c_str(), target.c_str()) != 0) {
    done = false;
    error = errno;
  }
  if (done) return absl::OkStatus();
  unlink(beside.c_str());
  return WriteError(path, std::strerror(error));
}

}  // namespace semkv::command
