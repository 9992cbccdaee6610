#include <algorithm>

#include "absl/strings/str_cat.h"
#include "faiss_index/partition_input.h"
#include "faiss_index/partitioner.h"

namespace semkv {
namespace {

class PagePartitioner final : public Partitioner {
 public:
  explicit PagePartitioner(int32_t page_tokens) : page_tokens_(page_tokens) {}
  bool uses_keys() const override { return false; }
  bool uses_boundaries() const override { return false; }

  absl::Status Partition(const PartitionInput& input, Lists* lists) const override {
    if (absl::Status status = CheckPartitionInput(input, *this); !status.ok()) return status;
    lists->members.clear();
    lists->num_nonfinite = 0;
    lists->offsets.assign(1, 0);
    for (int32_t first = 0; first < input.num_tokens;) {
      first += std::min(page_tokens_, input.num_tokens - first);
      lists->offsets.push_back(static_cast<uint16_t>(first));
    }
    return absl::OkStatus();
  }

 private:
  const int32_t page_tokens_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Partitioner>> MakePagePartitioner(int32_t page_tokens) {
  if (page_tokens < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("pages of ", page_tokens, " tokens, at least 1 is needed"));
  }
  return std::make_unique<PagePartitioner>(page_tokens);
}

}  // namespace semkv
