// A partitioner assigns every token of a segment to exactly one inverted list. It is one of the
// library's three seams (docs/design.md, section 1): sentences, clusters, singleton pages, and
// later LSH buckets differ in nothing else.
//
// Thread safety: Partition is const and may run in several threads at once.

#ifndef SEMKV_FAISS_INDEX_PARTITIONER_H_
#define SEMKV_FAISS_INDEX_PARTITIONER_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace semkv {

// At most this many tokens are partitioned at once, so that members fit 16 bits.
constexpr int32_t kMaxSegmentTokens = 8192;

struct PartitionInput {
  int32_t num_tokens = 0;  // at most kMaxSegmentTokens
  int32_t head_dim = 0;
  const float* keys = nullptr;      // [num_tokens, head_dim]; null if !uses_keys()
  const uint8_t* closes = nullptr;  // [num_tokens]: 1 where a token closes its sentence; may be
                                    // null if !uses_boundaries()
};

// Inverted lists in CSR form; no list is empty.
struct Lists {
  std::vector<uint16_t> offsets;  // [nlist + 1], offsets[0] = 0
  std::vector<uint16_t> members;  // ascending within a list; empty: list i is the range
                                  // [offsets[i], offsets[i + 1])
  int32_t nlist() const { return offsets.empty() ? 0 : static_cast<int32_t>(offsets.size()) - 1; }
};

class Partitioner {
 public:
  virtual ~Partitioner() = default;
  virtual bool uses_keys() const = 0;  // else one partition serves all layers and heads
  virtual bool uses_boundaries() const = 0;
  // Replaces `lists`. num_tokens 0 gives no list.
  //
  // Errors: INVALID_ARGUMENT if num_tokens is above kMaxSegmentTokens or a needed input is null.
  virtual absl::Status Partition(const PartitionInput& input, Lists* lists) const = 0;
};

// Sentences: lists end where `closes` says; longer than max_tokens they are split, shorter than
// min_tokens they are merged with the next one (the last with the one before, if that stays within
// max_tokens).
struct SentenceOptions {
  int32_t min_tokens = 8;  // 1: no merging (the paper)
  int32_t max_tokens = 64;
};
absl::StatusOr<std::unique_ptr<Partitioner>> MakeSentencePartitioner(
    const SentenceOptions& options);

enum class ClusterMetric : int32_t {
  kCenteredL2 = 0,  // squared distance after subtracting the segment's mean key
  kCosine = 1,      // 1 - cosine of the raw keys (ClusterKV); centroids are means of raw members
};
struct ClusterOptions {
  int32_t mean_size = 32;  // tokens per cluster; nlist = max(1, num_tokens / mean_size)
  int32_t nlist = 0;       // > 0: this many, whatever mean_size says
  ClusterMetric metric = ClusterMetric::kCenteredL2;
  int32_t iterations = 10;  // stops early when fewer than 0.1 % of the labels change
  uint64_t seed = 1;
};
absl::StatusOr<std::unique_ptr<Partitioner>> MakeClusterPartitioner(const ClusterOptions& options);

// Singletons: every page of page_tokens tokens is a list (Quest's granularity).
absl::StatusOr<std::unique_ptr<Partitioner>> MakePagePartitioner(int32_t page_tokens);

}  // namespace semkv

#endif  // SEMKV_FAISS_INDEX_PARTITIONER_H_
