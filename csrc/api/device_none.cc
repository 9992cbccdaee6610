// A build without CUDA.

#include "csrc/api/device.h"

namespace semkv {

bool HasDeviceBackend() { return false; }

absl::StatusOr<std::unique_ptr<Device>> OpenDevice(int32_t) {
  return absl::UnimplementedError("options.device: this build has no CUDA backend");
}

}  // namespace semkv
