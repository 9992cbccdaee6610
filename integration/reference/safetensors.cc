#include "integration/reference/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <set>
#include <utility>

#include "absl/base/casts.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "integration/reference/json_file.h"
#include "integration/reference/status_macros.h"

namespace semkv::reference {

namespace {

// The limit of the format's own implementation.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr int64_t kMaxElements = int64_t{1} << 48;

// Bytes per element; 0 if the dtype is not known.
int64_t ElementBytes(absl::string_view dtype) {
  static constexpr std::pair<absl::string_view, int64_t> kDtypes[] = {
      {"F64", 8},  {"I64", 8}, {"U64", 8},  {"F32", 4},     {"I32", 4},
      {"U32", 4},  {"F16", 2}, {"BF16", 2}, {"I16", 2},     {"U16", 2},
      {"BOOL", 1}, {"I8", 1},  {"U8", 1},   {"F8_E4M3", 1}, {"F8_E5M2", 1}};
  for (const auto& [name, bytes] : kDtypes) {
    if (name == dtype) return bytes;
  }
  return 0;
}

std::string ShapeText(absl::Span<const int64_t> shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

float FloatFromBFloat16(uint16_t bits) {
  return absl::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// Exact, subnormals, infinities and NaNs included.
float FloatFromFloat16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7fffu) << 13;
  if (magnitude >= 0x7c00u << 13) {  // infinity or NaN: exponent 31 becomes 255
    return absl::bit_cast<float>(sign | 0x70000000u | magnitude);
  }
  // Read as float32, the exponent is 112 too small; the product normalises subnormals.
  const float value = absl::bit_cast<float>(magnitude) * 0x1p112f;
  return absl::bit_cast<float>(sign | absl::bit_cast<uint32_t>(value));
}

// A list of non-negative integers whose product is at most kMaxElements.
absl::StatusOr<std::vector<int64_t>> ReadShape(const Json& json) {
  if (!json.is_array()) return absl::DataLossError(absl::StrCat("shape is ", JsonExcerpt(json)));
  std::vector<int64_t> shape;
  int64_t elements = 1;
  for (const Json& size : json) {
    if (!size.is_number_unsigned() || size.get<uint64_t>() > uint64_t{kMaxElements}) {
      return absl::DataLossError(
          absl::StrCat("shape ", JsonExcerpt(json), " has no size in [0, ", kMaxElements, "]"));
    }
    shape.push_back(size.get<int64_t>());
    if (shape.back() != 0 && elements > kMaxElements / shape.back()) {
      return absl::DataLossError(
          absl::StrCat("shape ", JsonExcerpt(json), " has more than ", kMaxElements, " elements"));
    }
    elements *= shape.back();
  }
  return shape;
}

}  // namespace

absl::StatusOr<MappedFile> MappedFile::Open(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) {
    return absl::NotFoundError(absl::StrCat(path, ": ", std::strerror(errno)));
  }
  struct stat info = {};
  if (fstat(descriptor, &info) != 0 || !S_ISREG(info.st_mode)) {
    close(descriptor);
    return absl::NotFoundError(absl::StrCat(path, ": not a file"));
  }
  const size_t size = static_cast<size_t>(info.st_size);
  // mmap refuses length 0; an empty file is a view of nothing.
  void* data = size == 0 ? nullptr : mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
  const int error = errno;
  close(descriptor);  // the mapping outlives it
  if (data == MAP_FAILED) {
    return absl::DataLossError(
        absl::StrCat(path, ": ", size, " bytes cannot be mapped: ", std::strerror(error)));
  }
  return MappedFile(static_cast<const char*>(data), size);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<char*>(data_), size_);
}

absl::StatusOr<std::unique_ptr<Safetensors>> Safetensors::Open(const std::string& directory) {
  const std::filesystem::path base(directory);
  auto result = std::make_unique<Safetensors>();
  result->directory_ = directory;
  const std::filesystem::path index_path = base / "model.safetensors.index.json";
  std::error_code ignored;
  if (!std::filesystem::exists(index_path, ignored)) {
    SEMKV_RETURN_IF_ERROR(result->OpenFile((base / "model.safetensors").string()));
    return result;
  }
  SEMKV_ASSIGN_OR_RETURN(const Json index, ReadJsonFile(index_path.string()));
  const Json& weight_map = JsonMember(index, "weight_map");
  if (!weight_map.is_object()) {
    return absl::DataLossError(absl::StrCat(index_path.string(), ": no \"weight_map\" object"));
  }
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : weight_map.items()) {
    const std::string name = shard.is_string() ? shard.get<std::string>() : "";
    // A shard lies beside its index: a damaged or hostile index must not open other files.
    if (name.empty() || absl::StrContains(name, '/') || name == "..") {
      return absl::DataLossError(absl::StrCat(index_path.string(), ": tensor \"", tensor,
                                              "\" is in ", JsonExcerpt(shard), ", no file name"));
    }
    shards.insert(name);
  }
  for (const std::string& shard : shards) {
    SEMKV_RETURN_IF_ERROR(result->OpenFile((base / shard).string()));
  }
  return result;
}

absl::Status Safetensors::OpenFile(const std::string& path) {
  SEMKV_ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  const absl::string_view bytes = file.bytes();
  files_.push_back(std::move(file));
  paths_.push_back(path);
  absl::Status status = ReadHeader(files_.size() - 1, bytes);
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
}

absl::Status Safetensors::ReadHeader(size_t file, absl::string_view bytes) {
  uint64_t header_bytes = 0;  // little-endian, as is every host that semkv builds on
  if (bytes.size() < sizeof(header_bytes)) {
    return absl::DataLossError(absl::StrCat("the file is cut off: it holds ", bytes.size(),
                                            " bytes, the length of its header alone takes 8"));
  }
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  bytes.remove_prefix(sizeof(header_bytes));
  if (header_bytes > kMaxHeaderBytes || header_bytes > bytes.size()) {
    return absl::DataLossError(absl::StrCat("the header takes ", header_bytes, " bytes, but ",
                                            std::min<uint64_t>(kMaxHeaderBytes, bytes.size()),
                                            " are the most that can be there"));
  }
  const absl::string_view text = bytes.substr(0, header_bytes);
  const absl::string_view data = bytes.substr(header_bytes);
  const Json header = Json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (header.is_discarded() || !header.is_object()) {
    return absl::DataLossError(
        absl::StrCat("the header's ", header_bytes, " bytes are not a JSON object"));
  }

  std::vector<std::pair<int64_t, std::string>> order;  // first byte, name
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    SEMKV_ASSIGN_OR_RETURN(Tensor tensor, ReadTensor(name, entry, data));
    tensor.file = file;
    order.emplace_back(tensor.data - data.data(), name);
    if (const auto found = tensors_.find(name); found != tensors_.end()) {
      return absl::DataLossError(
          absl::StrCat("tensor \"", name, "\" is also in ", paths_[found->second.file]));
    }
    tensors_.emplace(name, std::move(tensor));
  }
  // The format allows neither overlaps nor holes.
  std::sort(order.begin(), order.end(), [this](const auto& a, const auto& b) {
    return std::make_pair(a.first, tensors_[a.second].bytes) <
           std::make_pair(b.first, tensors_[b.second].bytes);
  });
  int64_t end = 0;
  for (const auto& [begin, name] : order) {
    if (begin != end) {
      return absl::DataLossError(absl::StrCat("tensor \"", name, "\" begins at byte ", begin,
                                              ", but the one before it ends at ", end));
    }
    end = begin + tensors_[name].bytes;
  }
  if (end != static_cast<int64_t>(data.size())) {
    return absl::DataLossError(absl::StrCat("the header describes ", end,
                                            " bytes of tensors, the file holds ", data.size()));
  }
  return absl::OkStatus();
}

absl::StatusOr<Safetensors::Tensor> Safetensors::ReadTensor(const std::string& name,
                                                            const Json& entry,
                                                            absl::string_view data) {
  const auto damaged = [&name](const auto&... parts) {
    return absl::DataLossError(absl::StrCat("tensor \"", name, "\": ", parts...));
  };
  Tensor tensor = {};
  absl::StatusOr<std::string> dtype = StringMember(entry, "dtype", "");
  if (!dtype.ok()) return damaged(dtype.status().message());
  tensor.dtype = *std::move(dtype);
  absl::StatusOr<std::vector<int64_t>> shape = ReadShape(JsonMember(entry, "shape"));
  if (!shape.ok()) return damaged(shape.status().message());
  tensor.shape = *std::move(shape);

  const Json& offsets = JsonMember(entry, "data_offsets");
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned()) {
    return damaged("data_offsets is ", JsonExcerpt(offsets), ", not two byte offsets");
  }
  const uint64_t begin = offsets[0].get<uint64_t>();
  const uint64_t end = offsets[1].get<uint64_t>();
  if (begin > end || end > data.size()) {
    return damaged("data_offsets are [", begin, ", ", end, "), the file holds ", data.size(),
                   " bytes of tensors");
  }
  tensor.data = data.data() + begin;
  tensor.bytes = static_cast<int64_t>(end - begin);
  int64_t elements = 1;
  for (const int64_t size : tensor.shape) elements *= size;
  const int64_t element_bytes = ElementBytes(tensor.dtype);
  if (element_bytes == 0) {
    return absl::UnimplementedError(
        absl::StrCat("tensor \"", name, "\" has the unknown dtype \"", tensor.dtype, "\""));
  }
  if (elements * element_bytes != tensor.bytes) {
    return damaged(tensor.dtype, ShapeText(tensor.shape), " takes ", elements * element_bytes,
                   " bytes, data_offsets span ", tensor.bytes);
  }
  return tensor;
}

absl::Status Safetensors::Check(const std::string& name, absl::Span<const int64_t> shape) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    // A model of one file is the rule; of several shards none in particular lacks the tensor.
    const std::string place =
        files_.size() == 1 ? paths_[0] : absl::StrCat(directory_, ", ", files_.size(), " shards");
    return absl::NotFoundError(
        absl::StrCat(place, ": tensor \"", name, "\" is missing among ", tensors_.size()));
  }
  const Tensor& tensor = found->second;
  const std::string place = absl::StrCat(paths_[tensor.file], ": tensor \"", name, "\" ");
  if (tensor.shape != shape) {
    return absl::DataLossError(absl::StrCat(place, "has shape ", ShapeText(tensor.shape),
                                            ", the model's config needs ", ShapeText(shape)));
  }
  if (tensor.dtype != "F32" && tensor.dtype != "F16" && tensor.dtype != "BF16") {
    return absl::UnimplementedError(
        absl::StrCat(place, "is ", tensor.dtype, "; weights may be F32, F16 or BF16"));
  }
  return absl::OkStatus();
}

absl::Status Safetensors::Read(const std::string& name, absl::Span<const int64_t> shape,
                               absl::Span<float> values) const {
  SEMKV_RETURN_IF_ERROR(Check(name, shape));
  const Tensor& tensor = tensors_.at(name);
  if (tensor.dtype == "F32") {
    std::memcpy(values.data(), tensor.data, values.size() * sizeof(float));
    return absl::OkStatus();
  }
  const bool is_half = tensor.dtype == "F16";
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t bits;  // a tensor may begin at an odd byte
    std::memcpy(&bits, tensor.data + i * sizeof(bits), sizeof(bits));
    values[i] = is_half ? FloatFromFloat16(bits) : FloatFromBFloat16(bits);
  }
  return absl::OkStatus();
}

}  // namespace semkv::reference
