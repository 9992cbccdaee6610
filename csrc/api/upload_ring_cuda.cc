#include "csrc/api/upload_ring_cuda.h"

namespace semkv {
namespace {

constexpr size_t kAlignment = 64;

}  // namespace

UploadRing::~UploadRing() {
  for (cudaEvent_t event : read_) {
    if (event == nullptr) continue;
    cudaEventSynchronize(event);
    cudaEventDestroy(event);
  }
  cudaFreeHost(memory_);
}

cudaError_t UploadRing::Create() {
  void* memory = nullptr;
  cudaError_t error = cudaHostAlloc(&memory, kPieces * kPieceBytes, cudaHostAllocDefault);
  memory_ = static_cast<char*>(memory);
  for (cudaEvent_t& event : read_) {
    if (error == cudaSuccess) error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  }
  return error;
}

cudaError_t UploadRing::EndPiece(cudaStream_t stream) {
  if (used_ == 0) return cudaSuccess;
  const cudaError_t error = cudaEventRecord(read_[piece_], stream);
  if (error != cudaSuccess) return error;
  piece_ = (piece_ + 1) % kPieces;
  used_ = 0;
  return cudaEventSynchronize(read_[piece_]);
}

cudaError_t UploadRing::Take(size_t bytes, cudaStream_t stream, void** memory) {
  if (used_ + bytes > kPieceBytes) {
    const cudaError_t error = EndPiece(stream);
    if (error != cudaSuccess) return error;
  }
  *memory = memory_ + piece_ * kPieceBytes + used_;
  used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
  return cudaSuccess;
}

}  // namespace semkv
