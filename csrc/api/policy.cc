#include "csrc/api/policy.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "csrc/api/sequence_index.h"
#include "csrc/ops/clustering/kmeans_assign.h"
#include "csrc/status_macros.h"

namespace semkv {
namespace {

// Clusters that a segment of 8,192 tokens has at the default size.
constexpr int32_t kMinFirstClusters = 256;

constexpr const char* kPolicyNames[] = {"dense", "hybrid", "sentence",   "cluster",  "pages",
                                        "quest", "window", "sentencekv", "clusterkv"};
static_assert(std::size(kPolicyNames) == SEMKV_NUM_POLICIES);

constexpr const char* kRowReasons[] = {"sparse",        "dense_policy", "multi_query",
                                       "short_context", "dense_layer",  "not_indexed",
                                       "requested"};
static_assert(std::size(kRowReasons) == SEMKV_NUM_ROW_REASONS);

absl::Status CheckRange(const char* field, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("policy.", field, " is ", value, ", must be in [", least, ", ", most, "]"));
}

}  // namespace

const char* PolicyName(int32_t kind) {
  return kind >= 0 && kind < SEMKV_NUM_POLICIES ? kPolicyNames[kind] : nullptr;
}

const char* RowReasonName(int32_t reason) {
  return reason >= 0 && reason < SEMKV_NUM_ROW_REASONS ? kRowReasons[reason] : nullptr;
}

int32_t PolicyKind(const char* name) {
  for (int32_t kind = 0; name != nullptr && kind < SEMKV_NUM_POLICIES; ++kind) {
    if (std::strcmp(name, kPolicyNames[kind]) == 0) return kind;
  }
  return -1;
}

bool SameLists(const semkv_policy& a, const semkv_policy& b) {
  return a.struct_size == b.struct_size && a.kind == b.kind && a.sinks == b.sinks &&
         a.cluster_size == b.cluster_size && a.cluster_metric == b.cluster_metric &&
         a.kmeans_iterations == b.kmeans_iterations && a.lone_share == b.lone_share &&
         a.sentence_min_tokens == b.sentence_min_tokens &&
         a.sentence_max_tokens == b.sentence_max_tokens && a.centroid_form == b.centroid_form &&
         a.estimate_rest == b.estimate_rest && a.segment_tokens == b.segment_tokens &&
         KeepsTokens(a) == KeepsTokens(b) &&
         (!KeepsTokens(a) || (a.keep_factor == b.keep_factor && a.budget == b.budget));
}

semkv_policy DefaultPolicy(int32_t kind) {
  semkv_policy policy = {};
  policy.struct_size = sizeof(policy);
  policy.kind = kind;
  policy.budget = 2048;
  policy.sinks = 16;
  policy.recent = -1;
  policy.min_context = 4096;
  policy.dense_layers = -1;
  policy.cluster_size = 16;
  policy.cluster_metric = SEMKV_METRIC_L2;
  policy.kmeans_iterations = 10;
  policy.sentence_min_tokens = 8;
  policy.sentence_max_tokens = 64;
  policy.centroid_form = SEMKV_CENTROID_INT4;
  policy.variance_term = SEMKV_VARIANCE_BOUNDED;
  policy.group_rank = SEMKV_RANK_SHARE_SUM;
  policy.segment_tokens = kDefaultSegmentTokens;
  switch (kind) {
    case SEMKV_POLICY_HYBRID:
    case SEMKV_POLICY_CLUSTER:
      policy.lone_share = 0.25f;
      break;
    case SEMKV_POLICY_PAGES:
    case SEMKV_POLICY_QUEST:
      // The baselines as their authors have them: no variance term.
      policy.variance_term = SEMKV_VARIANCE_NONE;
      break;
    case SEMKV_POLICY_SENTENCEKV:
      policy.sinks = 32;
      policy.recent = 32;
      policy.sentence_min_tokens = 1;
      policy.sentence_max_tokens = 8192;
      policy.centroid_form = SEMKV_CENTROID_F32;
      policy.variance_term = SEMKV_VARIANCE_NONE;
      policy.per_query_head = 1;
      policy.mean_query = 1;
      policy.keep_factor = 3.0f;
      policy.warm_up = 1;
      break;
    case SEMKV_POLICY_CLUSTERKV:
      policy.recent = 1;
      policy.cluster_size = 80;
      policy.cluster_metric = SEMKV_METRIC_COSINE;
      policy.kmeans_iterations = 20;
      policy.segment_tokens = kMaxPartitionTokens;
      policy.open_beside = 1;
      policy.centroid_form = SEMKV_CENTROID_F32;
      policy.variance_term = SEMKV_VARIANCE_NONE;
      policy.per_query_head = 1;
      break;
    default:
      break;
  }
  return policy;
}

namespace {

// The fields of SentenceKV's keep set.
absl::Status ValidateKeep(const semkv_policy& policy) {
  SEMKV_RETURN_IF_ERROR(CheckRange("warm_up", policy.warm_up, 0, 1 << 20));
  if (policy.keep_factor == 0.0f) return absl::OkStatus();
  if (!(policy.keep_factor >= 1.0f && policy.keep_factor <= 1024.0f)) {
    return absl::InvalidArgumentError(
        absl::StrCat("policy.keep_factor is ", policy.keep_factor, ", must be 0 or in [1, 1024]"));
  }
  if (policy.kind != SEMKV_POLICY_SENTENCEKV || policy.per_query_head == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "policy.keep_factor is ", policy.keep_factor, ", must be 0 unless kind is sentencekv (",
        SEMKV_POLICY_SENTENCEKV, ") and per_query_head 1; they are ", policy.kind, " and ",
        policy.per_query_head));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidatePolicy(const semkv_policy& policy) {
  SEMKV_RETURN_IF_ERROR(CheckRange("kind", policy.kind, 0, SEMKV_NUM_POLICIES - 1));
  SEMKV_RETURN_IF_ERROR(CheckRange("sinks", policy.sinks, 0, 1 << 20));
  if (policy.recent != -1) {
    SEMKV_RETURN_IF_ERROR(CheckRange("recent", policy.recent, 1, 1 << 20));
  }
  SEMKV_RETURN_IF_ERROR(CheckRange("min_context", policy.min_context, 0, INT32_MAX));
  SEMKV_RETURN_IF_ERROR(CheckRange("dense_layers", policy.dense_layers, -1, 1 << 16));
  SEMKV_RETURN_IF_ERROR(CheckRange("cluster_size", policy.cluster_size, 1, kWindowTokens));
  SEMKV_RETURN_IF_ERROR(CheckRange("cluster_metric", policy.cluster_metric, 0, 1));
  SEMKV_RETURN_IF_ERROR(CheckRange("kmeans_iterations", policy.kmeans_iterations, 1, 1000));
  SEMKV_RETURN_IF_ERROR(CheckRange(
      "segment_tokens", policy.segment_tokens, 1024,
      std::min<int64_t>(kMaxPartitionTokens, int64_t{kMaxCentroids} * policy.cluster_size)));
  SEMKV_RETURN_IF_ERROR(CheckRange("open_beside", policy.open_beside, 0, 1));
  SEMKV_RETURN_IF_ERROR(ValidateKeep(policy));
  SEMKV_RETURN_IF_ERROR(CheckRange("sentence_max_tokens", policy.sentence_max_tokens, 1, 8192));
  SEMKV_RETURN_IF_ERROR(
      CheckRange("sentence_min_tokens", policy.sentence_min_tokens, 1, policy.sentence_max_tokens));
  SEMKV_RETURN_IF_ERROR(CheckRange("centroid_form", policy.centroid_form, 0, 3));
  SEMKV_RETURN_IF_ERROR(CheckRange("variance_term", policy.variance_term, 0, 2));
  SEMKV_RETURN_IF_ERROR(CheckRange("group_rank", policy.group_rank, 0, 1));
  SEMKV_RETURN_IF_ERROR(CheckRange("force_sparse", policy.force_sparse, 0, 1));
  SEMKV_RETURN_IF_ERROR(CheckRange("per_query_head", policy.per_query_head, 0, 1));
  SEMKV_RETURN_IF_ERROR(CheckRange("mean_query", policy.mean_query, 0, 1));
  SEMKV_RETURN_IF_ERROR(CheckRange("estimate_rest", policy.estimate_rest, 0, 1));
  if (!(policy.mass_target >= 0.0f && policy.mass_target < 1.0f)) {
    return absl::InvalidArgumentError(
        absl::StrCat("policy.mass_target is ", policy.mass_target, ", must be in [0, 1)"));
  }
  if (!(policy.lone_share >= 0.0f && policy.lone_share < 1.0f)) {
    return absl::InvalidArgumentError(
        absl::StrCat("policy.lone_share is ", policy.lone_share, ", must be in [0, 1)"));
  }
  const int32_t recent = policy.recent == -1 ? kLeastRecent : policy.recent;
  if (policy.kind != SEMKV_POLICY_DENSE && policy.budget < policy.sinks + recent) {
    return absl::InvalidArgumentError(absl::StrCat("policy.budget is ", policy.budget,
                                                   ", must hold sinks + recent = ", policy.sinks,
                                                   " + ", recent));
  }
  return absl::OkStatus();
}

namespace {

absl::StatusOr<ClusterRecipe> MakeClusterRecipe(const ClusterOptions& options) {
  SEMKV_ASSIGN_OR_RETURN(std::shared_ptr<const Partitioner> partitioner,
                         MakeClusterPartitioner(options));
  return ClusterRecipe{options, std::move(partitioner)};
}

}  // namespace

absl::StatusOr<IndexRecipe> MakeIndexRecipe(const semkv_policy& policy) {
  IndexRecipe recipe;
  recipe.num_sinks = policy.sinks;
  recipe.segment_tokens = policy.segment_tokens;
  recipe.keeps_tokens = KeepsTokens(policy);
  recipe.value_means = policy.estimate_rest != 0;
  recipe.form = policy.kind == SEMKV_POLICY_QUEST ? CentroidForm::kBounds
                                                  : static_cast<CentroidForm>(policy.centroid_form);
  recipe.sentences = UsesSentences(policy);
  recipe.clusters = policy.kind == SEMKV_POLICY_HYBRID || policy.kind == SEMKV_POLICY_CLUSTER ||
                    policy.kind == SEMKV_POLICY_CLUSTERKV;
  recipe.pages = policy.kind == SEMKV_POLICY_PAGES || policy.kind == SEMKV_POLICY_QUEST;
  recipe.provisional = policy.kind != SEMKV_POLICY_CLUSTERKV && !recipe.keeps_tokens;
  if (recipe.sentences) {
    recipe.min_sentence_tokens = policy.sentence_min_tokens;
    recipe.max_sentence_tokens = policy.sentence_max_tokens;
    if (recipe.keeps_tokens) recipe.max_open_tokens = (policy.budget - policy.sinks) / 2;
    SentenceOptions options;
    options.min_tokens = policy.sentence_min_tokens;
    options.max_tokens = policy.sentence_max_tokens;
    SEMKV_ASSIGN_OR_RETURN(recipe.range_partitioner, MakeSentencePartitioner(options));
  } else if (recipe.pages) {
    SEMKV_ASSIGN_OR_RETURN(recipe.range_partitioner, MakePagePartitioner(kProvisionalTokens));
  }
  if (recipe.clusters) {
    ClusterOptions options;
    options.mean_size = policy.cluster_size;
    options.metric = policy.cluster_metric == SEMKV_METRIC_COSINE ? ClusterMetric::kCosine
                                                                  : ClusterMetric::kCenteredL2;
    options.iterations = policy.kmeans_iterations;
    options.lone_share = policy.lone_share;
    SEMKV_ASSIGN_OR_RETURN(recipe.later_clusters, MakeClusterRecipe(options));
    ClusterOptions first = options;
    // Short contexts have small budgets, which clusters of 32 fill with a handful of lists.
    if (policy.kind != SEMKV_POLICY_CLUSTERKV) first.min_nlist = kMinFirstClusters;
    SEMKV_ASSIGN_OR_RETURN(recipe.first_clusters, MakeClusterRecipe(first));
    options.nlist = kWindowTokens / policy.cluster_size;
    SEMKV_ASSIGN_OR_RETURN(recipe.window_clusters, MakeClusterRecipe(options));
  }
  return recipe;
}

}  // namespace semkv
