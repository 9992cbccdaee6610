// The seam to a GPU: its memory, copies between it and the host, and the operations that
// build lists and run decode steps over it. One of the library's three (docs/design.md, section 1);
// CUDA is behind it (device_cuda.cc), so that nothing above needs CUDA's headers.
//
// Everything is enqueued on a stream and returns without waiting, except Wait. What has no stream
// argument goes to the device's own, SetStream. Streams are cudaStream_t.
//
// Thread safety: thread-compatible.

#ifndef SEMKV_API_DEVICE_H_
#define SEMKV_API_DEVICE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "csrc/ops/attention/decode_attention.h"
#include "csrc/ops/attention/decode_attention_plan.h"
#include "csrc/ops/cache/append_lists.h"
#include "csrc/ops/cache/stage_keys.h"
#include "csrc/ops/cache/write_kv.h"
#include "csrc/ops/clustering/kmeans.h"
#include "csrc/ops/clustering/kmeans_plan.h"
#include "csrc/ops/retrieval/estimate_rest.h"
#include "csrc/ops/retrieval/score_lists.h"
#include "csrc/ops/retrieval/score_lists_plan.h"
#include "csrc/ops/retrieval/select_lists.h"
#include "csrc/ops/retrieval/select_lists_plan.h"

namespace semkv {

// Rows of bytes on either side of a copy, [num_rows, row_bytes] at a distance of pitch bytes.
struct CopyShape {
  int64_t row_bytes = 0;
  int64_t num_rows = 1;
  int64_t to_pitch = 0, from_pitch = 0;
};

class Device {
 public:
  virtual ~Device() = default;

  virtual std::string name() const = 0;  // "NVIDIA H200 (sm_90)"
  virtual int32_t num_multiprocessors() const = 0;
  virtual int32_t max_shared_bytes() const = 0;  // of a CTA

  // What the new stream gets runs after what the old one has.
  virtual absl::Status SetStream(void* stream) = 0;

  // Memory aligned to 256 bytes. Free takes effect after what was enqueued before it.
  // Errors: RESOURCE_EXHAUSTED.
  virtual absl::StatusOr<void*> Allocate(size_t bytes) = 0;
  virtual void Free(void* memory) = 0;

  virtual absl::Status Zero(void* memory, size_t bytes) = 0;
  // `from` may be changed or freed on return.
  virtual absl::Status Upload(void* to, const void* from, const CopyShape& shape) = 0;
  // Within the device; the ranges do not overlap.
  virtual absl::Status Copy(void* to, const void* from, const CopyShape& shape) = 0;
  // `to` has the bytes after Wait.
  virtual absl::Status Download(void* to, const void* from, const CopyShape& shape) = 0;
  // Until the device's stream has done all that was enqueued.
  virtual absl::Status Wait() = 0;

  // Operations that build lists, as their *_cuda.h say, on the device's stream.
  // Errors: INTERNAL with the runtime's words; nothing else is checked here.
  virtual absl::Status StageKeys(const StageKeysParams& params) = 0;
  virtual absl::Status AppendLists(const AppendListsParams& params) = 0;
  virtual absl::Status KMeans(const KMeansParams& params, const KMeansPlan& plan, void* workspace,
                              size_t workspace_bytes) = 0;

  // Operations of a step, likewise. May be captured in a graph.
  virtual absl::Status WriteKv(const WriteKvParams& params, void* stream) = 0;
  virtual absl::Status Retrieve(const ScoreListsParams& score, const SelectListsParams& select,
                                const RetrievePlan& plan, void* workspace, size_t workspace_bytes,
                                void* stream) = 0;
  virtual absl::Status EstimateRest(const EstimateRestParams& params, const ScoreListsPlan& plan,
                                    void* workspace, size_t workspace_bytes, void* stream) = 0;
  virtual absl::Status DecodeAttention(const DecodeAttentionParams& params,
                                       const DecodeAttentionPlan& plan, void* workspace,
                                       size_t workspace_bytes, void* stream) = 0;
};

// Is a backend compiled in?
bool HasDeviceBackend();

// Errors: UNIMPLEMENTED without a backend; FAILED_PRECONDITION where there is no driver;
// INVALID_ARGUMENT if the machine has no device of this number; UNIMPLEMENTED for one that the
// kernels were not compiled for.
absl::StatusOr<std::unique_ptr<Device>> OpenDevice(int32_t ordinal);

// Device memory that is freed with its owner. The device outlives it.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(DeviceMemory&& other) noexcept { *this = std::move(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~DeviceMemory() {
    if (data_ != nullptr) device_->Free(data_);
  }

  static absl::StatusOr<DeviceMemory> Allocate(Device* device, size_t bytes) {
    absl::StatusOr<void*> data = device->Allocate(bytes);
    if (!data.ok()) return data.status();
    DeviceMemory memory;
    memory.device_ = device;
    memory.data_ = *data;
    memory.bytes_ = bytes;
    return memory;
  }

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  Device* device_ = nullptr;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace semkv

#endif  // SEMKV_API_DEVICE_H_
