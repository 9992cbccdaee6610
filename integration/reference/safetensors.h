// Tensors of a model directory in the safetensors format: one file model.safetensors, or shards
// listed by model.safetensors.index.json. Files are mapped, not read; every header is validated
// when it is opened (sizes, offsets, overlaps, holes, length of the file), so that Read cannot
// leave the mapping. Truncating a file while it is mapped is not survived, as with any mapping.
//
// Thread safety: immutable.
// Source: https://huggingface.co/docs/safetensors, "Format".

#ifndef SEMKV_INTEGRATION_REFERENCE_SAFETENSORS_H_
#define SEMKV_INTEGRATION_REFERENCE_SAFETENSORS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "integration/reference/json_file.h"

namespace semkv::reference {

// A whole file, mapped read-only. Move-only.
class MappedFile {
 public:
  // Errors: NOT_FOUND if it cannot be opened; DATA_LOSS if it cannot be mapped.
  static absl::StatusOr<MappedFile> Open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  absl::string_view bytes() const { return absl::string_view(data_, size_); }

 private:
  MappedFile(const char* data, size_t size) : data_(data), size_(size) {}
  const char* data_ = nullptr;
  size_t size_ = 0;
};

class Safetensors {
 public:
  // Errors: NOT_FOUND names the file or shard; DATA_LOSS names file, tensor and both numbers.
  static absl::StatusOr<std::unique_ptr<Safetensors>> Open(const std::string& directory);

  // Whether Read will succeed.
  //
  // Errors: NOT_FOUND if there is no such tensor; DATA_LOSS if its shape is another one (names
  // both); UNIMPLEMENTED for a dtype other than F32, F16 and BF16.
  absl::Status Check(const std::string& name, absl::Span<const int64_t> shape) const;
  // Writes the tensor to `values` as float32. REQUIRES: values.size() is the product of `shape`.
  //
  // Errors: as Check.
  absl::Status Read(const std::string& name, absl::Span<const int64_t> shape,
                    absl::Span<float> values) const;
  bool Contains(const std::string& name) const { return tensors_.contains(name); }

 private:
  struct Tensor {
    size_t file;  // index into files_
    std::string dtype;
    std::vector<int64_t> shape;
    const char* data;
    int64_t bytes;
  };

  absl::Status OpenFile(const std::string& path);
  absl::Status ReadHeader(size_t file, absl::string_view bytes);
  static absl::StatusOr<Tensor> ReadTensor(const std::string& name, const Json& entry,
                                           absl::string_view data);

  std::string directory_;
  std::vector<std::string> paths_;
  std::vector<MappedFile> files_;
  absl::flat_hash_map<std::string, Tensor> tensors_;
};

}  // namespace semkv::reference

#endif  // SEMKV_INTEGRATION_REFERENCE_SAFETENSORS_H_
