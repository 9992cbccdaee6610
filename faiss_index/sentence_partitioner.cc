#include "absl/strings/str_cat.h"
#include "faiss_index/partition_input.h"
#include "faiss_index/partitioner.h"

namespace semkv {
namespace {

class SentencePartitioner final : public Partitioner {
 public:
  explicit SentencePartitioner(const SentenceOptions& options) : options_(options) {}
  bool uses_keys() const override { return false; }
  bool uses_boundaries() const override { return true; }

  absl::Status Partition(const PartitionInput& input, Lists* lists) const override {
    if (absl::Status status = CheckPartitionInput(input, *this); !status.ok()) return status;
    lists->members.clear();
    lists->num_nonfinite = 0;
    lists->offsets.assign(1, 0);
    std::vector<uint16_t>& offsets = lists->offsets;
    for (int32_t token = 0; token < input.num_tokens; ++token) {
      const int32_t size = token + 1 - offsets.back();
      if (size == options_.max_tokens ||
          (input.closes[token] != 0 && size >= options_.min_tokens)) {
        offsets.push_back(static_cast<uint16_t>(token + 1));
      }
    }
    const int32_t rest = input.num_tokens - offsets.back();
    if (rest == 0) return absl::OkStatus();
    const bool joins = rest < options_.min_tokens && lists->nlist() > 0 &&
                       input.num_tokens - offsets[lists->nlist() - 1] <= options_.max_tokens;
    if (joins) offsets.pop_back();
    offsets.push_back(static_cast<uint16_t>(input.num_tokens));
    return absl::OkStatus();
  }

 private:
  const SentenceOptions options_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Partitioner>> MakeSentencePartitioner(
    const SentenceOptions& options) {
  if (options.min_tokens < 1 || options.max_tokens < options.min_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("sentences of at least ", options.min_tokens,
                                                   " and at most ", options.max_tokens,
                                                   " tokens; 1 <= least <= most is needed"));
  }
  return std::make_unique<SentencePartitioner>(options);
}

}  // namespace semkv
