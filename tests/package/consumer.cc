// The header from C++: it compiles, links and agrees with the library on its version.

#include <semkv/semkv.h>

#include <cstdio>
#include <string>

int main() {
  const std::string header = std::to_string(SEMKV_VERSION_MAJOR) + "." +
                             std::to_string(SEMKV_VERSION_MINOR) + "." +
                             std::to_string(SEMKV_VERSION_PATCH);
  std::printf("header %s, library %s\n", header.c_str(), semkv_version());
  return header == semkv_version() && semkv_supports("host") == 1 ? 0 : 1;
}
