// Device over the CUDA runtime.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "csrc/api/device.h"
#include "csrc/api/upload_ring_cuda.h"
#include "csrc/ops/attention/decode_attention_cuda.h"
#include "csrc/ops/cache/append_lists_cuda.h"
#include "csrc/ops/cache/stage_keys_cuda.h"
#include "csrc/ops/cache/write_kv_cuda.h"
#include "csrc/ops/clustering/kmeans_cuda.h"
#include "csrc/ops/retrieval/estimate_rest_cuda.h"
#include "csrc/ops/retrieval/select_lists_cuda.h"
#include "csrc/status_macros.h"

namespace semkv {
namespace {

absl::Status ToStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string text = absl::StrCat("CUDA: ", what, ": ", cudaGetErrorString(error));
  return error == cudaErrorMemoryAllocation ? absl::ResourceExhaustedError(text)
                                            : absl::InternalError(text);
}

// Do the kernels run on this capability? "90a" is code for 9.0 alone, "80" for 8.0 and later 8.x.
bool HasCodeFor(int major, int minor) {
  for (const absl::string_view name : absl::StrSplit(SEMKV_CUDA_ARCHITECTURES, ',')) {
    int32_t number = 0;
    const bool exact = absl::EndsWith(name, "a");
    if (!absl::SimpleAtoi(absl::StripSuffix(name, "a"), &number)) continue;
    if (major == number / 10 && (exact ? minor == number % 10 : minor >= number % 10)) return true;
  }
  return false;
}

// The calling thread works on device `ordinal` for as long as this lives.
class ScopedDevice {
 public:
  explicit ScopedDevice(int ordinal) {
    if (cudaGetDevice(&before_) != cudaSuccess || before_ == ordinal) return;
    changed_ = cudaSetDevice(ordinal) == cudaSuccess;
  }
  ~ScopedDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  ScopedDevice(const ScopedDevice&) = delete;
  ScopedDevice& operator=(const ScopedDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(int ordinal) : ordinal_(ordinal) {}
  ~CudaDevice() override {
    const ScopedDevice scope(ordinal_);
    cudaStreamSynchronize(stream_);
    if (handover_ != nullptr) cudaEventDestroy(handover_);
  }

  absl::Status Open();

  std::string name() const override { return name_; }
  int32_t num_multiprocessors() const override { return num_multiprocessors_; }
  int32_t max_shared_bytes() const override { return max_shared_bytes_; }
  absl::Status SetStream(void* stream) override;
  absl::StatusOr<void*> Allocate(size_t bytes) override;
  void Free(void* memory) override;
  absl::Status Zero(void* memory, size_t bytes) override;
  absl::Status Upload(void* to, const void* from, const CopyShape& shape) override;
  absl::Status Copy(void* to, const void* from, const CopyShape& shape) override;
  absl::Status Download(void* to, const void* from, const CopyShape& shape) override;
  absl::Status Wait() override;
  absl::Status StageKeys(const StageKeysParams& params) override;
  absl::Status AppendLists(const AppendListsParams& params) override;
  absl::Status KMeans(const KMeansParams& params, const KMeansPlan& plan, void* workspace,
                      size_t workspace_bytes) override;
  absl::Status WriteKv(const WriteKvParams& params, void* stream) override;
  absl::Status Retrieve(const ScoreListsParams& score, const SelectListsParams& select,
                        const RetrievePlan& plan, void* workspace, size_t workspace_bytes,
                        void* stream) override;
  absl::Status EstimateRest(const EstimateRestParams& params, const ScoreListsPlan& plan,
                            void* workspace, size_t workspace_bytes, void* stream) override;
  absl::Status DecodeAttention(const DecodeAttentionParams& params, const DecodeAttentionPlan& plan,
                               void* workspace, size_t workspace_bytes, void* stream) override;

 private:
  cudaError_t Copy2D(void* to, const void* from, const CopyShape& shape, cudaMemcpyKind kind) {
    return cudaMemcpy2DAsync(to, shape.to_pitch, from, shape.from_pitch, shape.row_bytes,
                             shape.num_rows, kind, stream_);
  }
  cudaError_t UploadRows(char* to, const char* from, const CopyShape& shape);

  const int ordinal_;
  std::string name_;
  int32_t num_multiprocessors_ = 0;
  int32_t max_shared_bytes_ = 0;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t handover_ = nullptr;  // between streams
  UploadRing ring_;
};

absl::Status CudaDevice::Open() {
  const ScopedDevice scope(ordinal_);
  int major = 0, minor = 0;
  cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal_);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ordinal_);
  }
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&num_multiprocessors_, cudaDevAttrMultiProcessorCount, ordinal_);
  }
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&max_shared_bytes_, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                   ordinal_);
  }
  if (error == cudaSuccess) {
    error = cudaEventCreateWithFlags(&handover_, cudaEventDisableTiming);
  }
  if (error == cudaSuccess) error = ring_.Create();
  SEMKV_RETURN_IF_ERROR(ToStatus(error, "opening the device"));
  name_ = absl::StrCat("CUDA device ", ordinal_, ", sm_", major, minor);
  if (!HasCodeFor(major, minor)) {
    return absl::UnimplementedError(
        absl::StrCat("options.device ", ordinal_, " has compute capability ", major, ".", minor,
                     ", this build's kernels are for ", SEMKV_CUDA_ARCHITECTURES));
  }
  constexpr int32_t kLeastSharedBytes = 163 * 1024;  // sm_80's; 8.6 and 8.9 have 99
  if (max_shared_bytes_ < kLeastSharedBytes) {
    return absl::UnimplementedError(
        absl::StrCat("options.device ", ordinal_, " has ", max_shared_bytes_,
                     " bytes of shared memory for a CTA, the kernels need ", kLeastSharedBytes));
  }
  return absl::OkStatus();
}

absl::Status CudaDevice::SetStream(void* stream) {
  const ScopedDevice scope(ordinal_);
  cudaStream_t next = static_cast<cudaStream_t>(stream);
  if (next == stream_) return absl::OkStatus();
  cudaError_t error = ring_.EndPiece(stream_);
  if (error == cudaSuccess) error = cudaEventRecord(handover_, stream_);
  if (error == cudaSuccess) error = cudaStreamWaitEvent(next, handover_, 0);
  SEMKV_RETURN_IF_ERROR(ToStatus(error, "changing the stream"));
  stream_ = next;
  return absl::OkStatus();
}

absl::StatusOr<void*> CudaDevice::Allocate(size_t bytes) {
  const ScopedDevice scope(ordinal_);
  void* memory = nullptr;
  const cudaError_t error = cudaMallocAsync(&memory, std::max<size_t>(bytes, 1), stream_);
  SEMKV_RETURN_IF_ERROR(ToStatus(error, absl::StrCat("allocating ", bytes, " bytes").c_str()));
  return memory;
}

void CudaDevice::Free(void* memory) {
  const ScopedDevice scope(ordinal_);
  cudaFreeAsync(memory, stream_);
}

absl::Status CudaDevice::Zero(void* memory, size_t bytes) {
  const ScopedDevice scope(ordinal_);
  return ToStatus(cudaMemsetAsync(memory, 0, bytes, stream_), "clearing memory");
}

// Rows of at most a piece.
cudaError_t CudaDevice::UploadRows(char* to, const char* from, const CopyShape& shape) {
  const int64_t at_once =
      std::min<int64_t>(shape.num_rows, UploadRing::kPieceBytes / shape.row_bytes);
  for (int64_t row = 0; row < shape.num_rows; row += at_once) {
    CopyShape part = shape;
    part.num_rows = std::min(at_once, shape.num_rows - row);
    part.from_pitch = shape.row_bytes;
    void* pinned = nullptr;
    cudaError_t error = ring_.Take(part.num_rows * part.row_bytes, stream_, &pinned);
    if (error != cudaSuccess) return error;
    for (int64_t i = 0; i < part.num_rows; ++i) {
      std::memcpy(static_cast<char*>(pinned) + i * part.row_bytes,
                  from + (row + i) * shape.from_pitch, part.row_bytes);
    }
    error = Copy2D(to + row * shape.to_pitch, pinned, part, cudaMemcpyHostToDevice);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

absl::Status CudaDevice::Upload(void* to, const void* from, const CopyShape& shape) {
  const ScopedDevice scope(ordinal_);
  constexpr int64_t kPiece = UploadRing::kPieceBytes;
  char* const out = static_cast<char*>(to);
  const char* const in = static_cast<const char*>(from);
  if (shape.row_bytes <= 0 || shape.num_rows <= 0) return absl::OkStatus();
  if (shape.row_bytes <= kPiece) return ToStatus(UploadRows(out, in, shape), "copying to it");
  for (int64_t row = 0; row < shape.num_rows; ++row) {
    for (int64_t at = 0; at < shape.row_bytes; at += kPiece) {
      const int64_t bytes = std::min(kPiece, shape.row_bytes - at);
      const cudaError_t error =
          UploadRows(out + row * shape.to_pitch + at, in + row * shape.from_pitch + at,
                     CopyShape{bytes, 1, bytes, bytes});
      SEMKV_RETURN_IF_ERROR(ToStatus(error, "copying to it"));
    }
  }
  return absl::OkStatus();
}

absl::Status CudaDevice::Copy(void* to, const void* from, const CopyShape& shape) {
  const ScopedDevice scope(ordinal_);
  return ToStatus(Copy2D(to, from, shape, cudaMemcpyDeviceToDevice), "copying within it");
}

absl::Status CudaDevice::Download(void* to, const void* from, const CopyShape& shape) {
  const ScopedDevice scope(ordinal_);
  return ToStatus(Copy2D(to, from, shape, cudaMemcpyDeviceToHost), "copying from it");
}

absl::Status CudaDevice::Wait() {
  const ScopedDevice scope(ordinal_);
  return ToStatus(cudaStreamSynchronize(stream_), "waiting for it");
}

absl::Status CudaDevice::StageKeys(const StageKeysParams& params) {
  const ScopedDevice scope(ordinal_);
  return ToStatus(StageKeysCuda(params, stream_), "stage_keys");
}

absl::Status CudaDevice::AppendLists(const AppendListsParams& params) {
  const ScopedDevice scope(ordinal_);
  return ToStatus(AppendListsCuda(params, stream_), "append_lists");
}

absl::Status CudaDevice::KMeans(const KMeansParams& params, const KMeansPlan& plan, void* workspace,
                                size_t workspace_bytes) {
  const ScopedDevice scope(ordinal_);
  return ToStatus(KMeansCuda(params, plan, workspace, workspace_bytes, stream_), "k-means");
}

absl::Status CudaDevice::WriteKv(const WriteKvParams& params, void* stream) {
  const ScopedDevice scope(ordinal_);
  return ToStatus(WriteKvCuda(params, static_cast<cudaStream_t>(stream)), "write_kv");
}

absl::Status CudaDevice::Retrieve(const ScoreListsParams& score, const SelectListsParams& select,
                                  const RetrievePlan& plan, void* workspace, size_t workspace_bytes,
                                  void* stream) {
  const ScopedDevice scope(ordinal_);
  return ToStatus(RetrieveCuda(score, select, plan, workspace, workspace_bytes,
                               static_cast<cudaStream_t>(stream)),
                  "retrieve");
}

absl::Status CudaDevice::EstimateRest(const EstimateRestParams& params, const ScoreListsPlan& plan,
                                      void* workspace, size_t workspace_bytes, void* stream) {
  const ScopedDevice scope(ordinal_);
  return ToStatus(
      EstimateRestCuda(params, plan, workspace, workspace_bytes, static_cast<cudaStream_t>(stream)),
      "estimate_rest");
}

absl::Status CudaDevice::DecodeAttention(const DecodeAttentionParams& params,
                                         const DecodeAttentionPlan& plan, void* workspace,
                                         size_t workspace_bytes, void* stream) {
  const ScopedDevice scope(ordinal_);
  return ToStatus(DecodeAttentionCuda(params, plan, workspace, workspace_bytes,
                                      static_cast<cudaStream_t>(stream)),
                  "decode attention");
}

}  // namespace

bool HasDeviceBackend() { return true; }

absl::StatusOr<std::unique_ptr<Device>> OpenDevice(int32_t ordinal) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    return absl::FailedPreconditionError(
        absl::StrCat("options.device ", ordinal, ": CUDA: ", cudaGetErrorString(error)));
  }
  if (ordinal < 0 || ordinal >= count) {
    return absl::InvalidArgumentError(
        absl::StrCat("options.device is ", ordinal, ", this machine has ", count, " CUDA devices"));
  }
  auto device = std::make_unique<CudaDevice>(ordinal);
  SEMKV_RETURN_IF_ERROR(device->Open());
  return device;
}

}  // namespace semkv
