#include "faiss_index/partition_input.h"

#include "absl/strings/str_cat.h"

namespace semkv {

absl::Status CheckPartitionInput(const PartitionInput& input, const Partitioner& partitioner) {
  if (input.num_tokens < 0 || input.num_tokens > kMaxPartitionTokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a segment of ", input.num_tokens, " tokens; 0 to ", kMaxPartitionTokens, " are allowed"));
  }
  if (input.num_tokens == 0) return absl::OkStatus();
  if (partitioner.uses_keys() && (input.keys == nullptr || input.head_dim < 1)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "this partitioner needs the keys of ", input.num_tokens, " tokens; head_dim is ",
        input.head_dim, ", keys ", input.keys == nullptr ? "null" : "given"));
  }
  if (partitioner.uses_boundaries() && input.closes == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("this partitioner needs the sentence flags of ",
                                                   input.num_tokens, " tokens, 0 given"));
  }
  return absl::OkStatus();
}

}  // namespace semkv
