// Pinned host memory through which small copies to the device go, so that the caller may reuse its
// own memory at once and nobody waits: a copy from memory that is not pinned would wait for the
// stream first. The ring's pieces are reused in turn; one that the device has not read yet is
// waited for, which happens when the host is kPieces * kPieceBytes ahead.

#ifndef SEMKV_API_UPLOAD_RING_CUDA_H_
#define SEMKV_API_UPLOAD_RING_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstddef>

namespace semkv {

class UploadRing {
 public:
  static constexpr size_t kPieceBytes = size_t{1} << 20;
  static constexpr int kPieces = 4;

  UploadRing() = default;
  UploadRing(const UploadRing&) = delete;
  UploadRing& operator=(const UploadRing&) = delete;
  ~UploadRing();

  // Before anything else.
  cudaError_t Create();

  // Room for at most kPieceBytes bytes, which a copy that is enqueued on `stream` before the next
  // call may read.
  cudaError_t Take(size_t bytes, cudaStream_t stream, void** memory);

  // Nothing more goes into the current piece: copies from it are on another stream than what
  // follows.
  cudaError_t EndPiece(cudaStream_t stream);

 private:
  char* memory_ = nullptr;          // [kPieces, kPieceBytes]
  cudaEvent_t read_[kPieces] = {};  // the device has read the piece
  int piece_ = 0;
  size_t used_ = 0;  // of the piece
};

}  // namespace semkv

#endif  // SEMKV_API_UPLOAD_RING_CUDA_H_
