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
#include "faiss_index/kmeans.h"

namespace semkv {

// At most this many tokens are partitioned at once, so that offsets and members fit 16 bits.
constexpr int32_t kMaxPartitionTokens = 65520;

struct PartitionInput {
  int32_t num_tokens = 0;  // at most kMaxPartitionTokens
  int32_t head_dim = 0;
  const float* keys = nullptr;      // [num_tokens, head_dim]; null if !uses_keys()
  const uint8_t* closes = nullptr;  // [num_tokens]: 1 where a token closes its sentence; may be
                                    // null if !uses_boundaries()
};

// Inverted lists in CSR form; no list is empty, every token is in exactly one.
struct Lists {
  std::vector<uint16_t> offsets;  // [nlist + 1], offsets[0] = 0
  std::vector<uint16_t> members;  // ascending within a list; empty: list i is the range
                                  // [offsets[i], offsets[i + 1])
  // > 0: the last list holds the tokens whose key is not finite, so many, and no other list has
  // one. No score can rank it, so it is never selected. 0: there is none.
  int32_t num_nonfinite = 0;

  int32_t nlist() const { return offsets.empty() ? 0 : static_cast<int32_t>(offsets.size()) - 1; }
  // Which list that is; -1 if there is none.
  int32_t nonfinite_list() const { return num_nonfinite > 0 ? nlist() - 1 : -1; }
};

class Partitioner {
 public:
  virtual ~Partitioner() = default;
  virtual bool uses_keys() const = 0;  // else one partition serves all layers and heads
  virtual bool uses_boundaries() const = 0;
  // Replaces `lists`. num_tokens 0 gives no list.
  //
  // Errors: INVALID_ARGUMENT if num_tokens is below 0 or above kMaxPartitionTokens, or a needed
  // input is null; `lists` is then unspecified.
  virtual absl::Status Partition(const PartitionInput& input, Lists* lists) const = 0;
};

// Sentences: a list ends at the first token that closes a sentence and makes at least min_tokens,
// and at max_tokens in any case. So fragments are merged with what follows, and feeding tokens one
// by one gives the same lists. A last list below min_tokens joins the one before if both together
// stay within max_tokens.
//
// Errors: INVALID_ARGUMENT unless 1 <= min_tokens <= max_tokens.
struct SentenceOptions {
  int32_t min_tokens = 8;  // 1: no merging (the paper)
  int32_t max_tokens = 64;
};
absl::StatusOr<std::unique_ptr<Partitioner>> MakeSentencePartitioner(
    const SentenceOptions& options);

enum class ClusterBackend : int32_t {
  kSemkv = 0,  // kmeans.h: TrainKMeans
  kFaiss = 1,  // kmeans.h: TrainWithFaiss, to compare with
};
// Clusters by k-means. Keys that are not finite form the last list (Lists::num_nonfinite); keys
// that are zero, which have no direction and would drag a centroid to the origin, form the list
// before it; both stay out of the training, so the other lists are what they would be without those
// tokens.
//
// At most nlist + 1 lists come out: nlist clusters (fewer where fewer keys differ) and the keys
// that are not finite. A list of zero keys takes the place of a cluster where there would be more.
//
// With lone_share a part of the nlist clusters holds one token each: after the training the keys
// farthest from the centroid of their cluster leave it. A query that asks for such a key alone
// scores its cluster's mean too low, whatever the variance.
//
// Errors: INVALID_ARGUMENT if mean_size is below 1, nlist below 0 or above 8,192, iterations below
// 0, or lone_share outside [0, 1); of Partition also if mean_size asks for more than 8,192
// clusters.
struct ClusterOptions {
  int32_t mean_size = 32;  // tokens per cluster; nlist = max(1, num_tokens / mean_size), counting
                           // tokens whose key is finite and not zero
  int32_t min_nlist = 0;  // at least so many in short inputs, of not less than mean_size / 2 tokens
  int32_t nlist = 0;      // > 0: this many, whatever mean_size says; at most one per such token
  float lone_share = 0.0f;
  ClusterMetric metric = ClusterMetric::kCenteredL2;
  int32_t iterations = 10;  // stops early when fewer than 0.1 % of the labels change
  uint64_t seed = 1;
  KMeansInit init = KMeansInit::kStratified;
  ClusterBackend backend = ClusterBackend::kSemkv;
};
// Clusters of `num_tokens` tokens whose key is finite and not zero: an upper bound for any others.
int32_t NumClusters(const ClusterOptions& options, int32_t num_tokens);
absl::StatusOr<std::unique_ptr<Partitioner>> MakeClusterPartitioner(const ClusterOptions& options);

// Singletons: every page of page_tokens tokens is a list (Quest's granularity).
//
// Errors: INVALID_ARGUMENT if page_tokens is below 1.
absl::StatusOr<std::unique_ptr<Partitioner>> MakePagePartitioner(int32_t page_tokens);

}  // namespace semkv

#endif  // SEMKV_FAISS_INDEX_PARTITIONER_H_
