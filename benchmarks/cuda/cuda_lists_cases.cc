// Clusters of a prompt, and their stored form.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "benchmarks/cuda/cuda_attention_problem.h"
#include "benchmarks/cuda/cuda_case.h"
#include "benchmarks/cuda/cuda_twin.h"
#include "csrc/ops/cache/append_lists_cuda.h"
#include "csrc/ops/clustering/kmeans_cuda.h"
#include "csrc/ops/numeric/float_convert.h"

namespace semkv {
namespace {

constexpr int64_t kKeyBytes = KvBytes(1) / 2;  // of a token

double SquaredDistance(const KMeansParams& p, const KMeansProblem& problem, int32_t point,
                       const float* centroid) {
  double squared = 0.0;
  for (int32_t d = 0; d < p.head_dim; ++d) {
    const double off =
        LoadAsFloat(problem.points, p.dtype, point * problem.point_stride + d) - centroid[d];
    squared += off * off;
  }
  return squared;
}

// Lists that hold the points of their labels, in order.
std::string CheckMembers(const KMeansProblem& problem, const uint16_t* labels,
                         const uint16_t* offsets, const uint16_t* members) {
  if (offsets[0] != 0 || offsets[problem.num_lists] != problem.num_points) {
    return "offsets do not span the points";
  }
  for (int32_t c = 0; c < problem.num_lists; ++c) {
    for (int32_t i = offsets[c]; i < offsets[c + 1]; ++i) {
      if (members[i] >= problem.num_points || labels[members[i]] != c ||
          (i > offsets[c] && members[i] <= members[i - 1])) {
        return "member " + std::to_string(i) + " is not of list " + std::to_string(c);
      }
    }
  }
  return "";
}

// Labels are the nearest of the centroids that came out, but for centroids' rounding, and the
// objective is theirs, and not worse than the reference's.
std::string CheckObjective(const KMeansParams& p, const KMeansProblem& problem,
                           const uint16_t* labels, const float* centroids, double objective,
                           double expected) {
  double own = 0.0, least = 0.0;
  for (int32_t i = 0; i < problem.num_points; ++i) {
    double nearest = std::numeric_limits<double>::infinity();
    for (int32_t c = 0; c < problem.num_lists; ++c) {
      const double squared = SquaredDistance(p, problem, i, centroids + int64_t{c} * p.head_dim);
      nearest = std::min(nearest, squared);
      if (labels[i] == c) own += squared;
    }
    least += nearest;
  }
  const auto is_near = [](double a, double b, double share) {
    return std::abs(a - b) <= share * b;
  };
  if (is_near(own, least, 1e-3) && is_near(objective, own, 1e-3) && objective <= 1.02 * expected) {
    return "";
  }
  return "objective " + std::to_string(objective) + ", of the labels " + std::to_string(own) +
         ", of the nearest centroids " + std::to_string(least) + ", the reference's " +
         std::to_string(expected);
}

// Of points that are all ordinary, and at most 65,535 a problem.
std::string CheckKMeans(const KMeansParams& p, const CudaTwin& before, const CudaTwin& after) {
  KMeansParams expected = p;
  const KMeansProblem* const on_device = before.At(p.problems);
  std::vector<KMeansProblem> problems(on_device, on_device + p.num_problems);
  for (KMeansProblem& problem : problems) before.Move(problem.points);
  expected.problems = problems.data();
  before.Move(expected.labels, expected.offsets, expected.members, expected.centroids,
              expected.objectives, expected.iterations_done);
  KMeansReference(expected);
  for (int64_t i = 0; i < p.num_problems; ++i) {
    const uint16_t* const labels = after.At(p.labels) + i * p.max_points;
    std::string wrong =
        CheckMembers(problems[i], labels,
                     static_cast<const uint16_t*>(after.At(p.offsets)) + i * KMeansMaxOffsets(p),
                     static_cast<const uint16_t*>(after.At(p.members)) + i * p.max_points);
    if (wrong.empty()) {
      wrong = CheckObjective(p, problems[i], labels,
                             after.At(p.centroids) + i * p.max_lists * p.head_dim,
                             after.At(p.objectives)[i], expected.objectives[i]);
    }
    if (!wrong.empty()) return "problem " + std::to_string(i) + ": " + wrong;
  }
  return "";
}

// Every KV head of every segment of a prompt.
CudaLaunch PrepareKMeans(CudaArena& arena, int32_t num_layers, int32_t tokens,
                         int32_t segment_tokens, int32_t num_lists, int32_t iterations) {
  KMeansParams p;
  p.num_problems = kKvHeads * (tokens / segment_tokens);
  p.head_dim = kHeadDim;
  p.dtype = DType::kBFloat16;
  p.iterations = iterations;
  p.max_points = segment_tokens;
  p.max_lists = num_lists;
  const size_t problems = static_cast<size_t>(p.num_problems);
  const size_t index_bytes = KMeansIsNarrow(segment_tokens) ? 2 : 4;
  p.labels = arena.Array<uint16_t>(problems * segment_tokens);
  p.offsets = arena.Bytes(problems * (num_lists + 3) * index_bytes);
  p.members = arena.Bytes(problems * segment_tokens * index_bytes);
  p.centroids = arena.Array<float>(problems * num_lists * kHeadDim);
  p.objectives = arena.Array<float>(problems);
  p.iterations_done = arena.Array<int32_t>(problems);
  std::vector<KMeansParams> layers(num_layers, p);
  for (KMeansParams& layer : layers) {
    const char* keys = static_cast<char*>(arena.Normal(static_cast<size_t>(tokens * kKeyBytes)));
    std::vector<KMeansProblem> of_layer;
    for (int32_t begin = 0; begin < tokens; begin += segment_tokens) {
      for (int32_t head = 0; head < kKvHeads; ++head) {
        of_layer.push_back({keys + begin * kKeyBytes + head * kHeadDim * 2, kKvHeads * kHeadDim,
                            segment_tokens, num_lists});
      }
    }
    layer.problems = arena.Copy(of_layer);
  }
  const KMeansPlan plan =
      PlanKMeans(p.num_problems, kHeadDim, segment_tokens, num_lists, iterations);
  const size_t bytes = KMeansCudaWorkspaceBytes(plan);
  void* workspace = arena.Bytes(bytes);
  CudaLaunch launch = [=](int32_t layer, cudaStream_t stream) {
    return KMeansCuda(layers[layer], plan, workspace, bytes, stream);
  };
  launch.check = [p = layers[0]](const CudaTwin& before, const CudaTwin& after) {
    return CheckKMeans(p, before, after);
  };
  return launch;
}

constexpr int32_t kAppendCells = 128;  // KV heads of 16 segments

// Codes are rounded: a mean that is as near to two of them may get either, so few may differ, and
// by one.
std::string CheckCodes(const void* actual, const void* expected, int64_t bytes) {
  int64_t num_off = 0;
  for (int64_t i = 0; i < bytes; ++i) {
    const uint8_t a = static_cast<const uint8_t*>(actual)[i];
    const uint8_t b = static_cast<const uint8_t*>(expected)[i];
    for (int32_t c : {0, 16}) {
      const int32_t off = std::abs(Int4Code(a, c) - Int4Code(b, c));
      if (off > 1) return "code " + std::to_string(i) + " differs by " + std::to_string(off);
      num_off += off;
    }
  }
  if (1000 * num_off <= 2 * bytes) return "";
  return std::to_string(num_off) + " of " + std::to_string(2 * bytes) + " codes differ";
}

std::string CheckAppend(const AppendListsParams& p, const CudaTwin& before, const CudaTwin& after) {
  AppendListsParams expected = p;
  before.Move(expected.keys, expected.offsets, expected.members, expected.centers,
              expected.centroids, expected.scales, expected.variances, expected.list_offsets,
              expected.list_members);
  AppendListsReference(expected);
  const int64_t lists = int64_t{p.num_cells} * p.max_lists;
  const auto differs = [&](const char* what, const float* actual, const float* wanted, int64_t n) {
    return Differs(what, DType::kFloat32, after.At(actual), wanted, n, 1e-6, 1e-5);
  };
  const std::string variance = differs("variance", p.variances, expected.variances, lists);
  if (!HasScales(p.form)) {
    return FirstOf(
        {variance, differs("centroid", static_cast<const float*>(p.centroids),
                           static_cast<const float*>(expected.centroids), lists * p.head_dim)});
  }
  return FirstOf(
      {variance, differs("scale", p.scales, expected.scales, lists),
       CheckCodes(after.At(p.centroids), expected.centroids,
                  lists * CentroidRowBytes(p.form, p.head_dim)),
       BytesDiffer("offsets", after.At(p.list_offsets), expected.list_offsets,
                   static_cast<size_t>(lists + p.num_cells) * sizeof(uint16_t)),
       BytesDiffer("members", after.At(p.list_members), expected.list_members,
                   static_cast<size_t>(p.num_cells) * p.max_members * sizeof(uint16_t))});
}

// The lists of one segment in each cell: clusters, or the center alone.
CudaLaunch PrepareAppend(CudaArena& arena, int32_t num_layers, int32_t segment_tokens,
                         int32_t num_lists) {
  AppendListsParams p;
  p.num_cells = kAppendCells;
  p.head_dim = kHeadDim;
  p.nlist = p.max_lists = num_lists;
  p.dtype = DType::kBFloat16;
  p.key_cell = int64_t{segment_tokens} * kHeadDim;
  std::vector<uint16_t> offsets(num_lists + 1);
  for (int32_t i = 0; i <= num_lists; ++i) {
    offsets[i] = static_cast<uint16_t>(i * segment_tokens / num_lists);
  }
  p.offsets = arena.Copy(offsets);
  const size_t lists = static_cast<size_t>(num_lists) * kAppendCells;
  if (num_lists == 1) {
    p.form = CentroidForm::kFloat32;
    p.centroids = arena.Array<float>(lists * kHeadDim);
  } else {
    const size_t members = static_cast<size_t>(segment_tokens) * kAppendCells;
    std::mt19937 rng(7);
    std::vector<uint16_t> rows(members);
    for (auto cell = rows.begin(); cell != rows.end(); cell += segment_tokens) {
      std::iota(cell, cell + segment_tokens, uint16_t{0});
      std::shuffle(cell, cell + segment_tokens, rng);
    }
    p.members = arena.Copy(rows);
    p.members_cell = p.max_members = segment_tokens;
    p.centers = static_cast<float*>(arena.Zeros(kAppendCells * kHeadDim * sizeof(float)));
    p.form = CentroidForm::kInt4;
    p.centroids = arena.Bytes(lists * CentroidRowBytes(p.form, kHeadDim));
    p.scales = arena.Array<float>(lists);
    p.list_offsets = arena.Array<uint16_t>(lists + kAppendCells);
    p.list_members = arena.Array<uint16_t>(members);
  }
  p.variances = arena.Array<float>(lists);
  std::vector<AppendListsParams> layers(num_layers, p);
  for (AppendListsParams& layer : layers) {
    layer.keys = arena.Normal(static_cast<size_t>(kAppendCells * p.key_cell * 2));
  }
  CudaLaunch launch = [=](int32_t layer, cudaStream_t stream) {
    return AppendListsCuda(layers[layer], stream);
  };
  launch.check = [p = layers[0]](const CudaTwin& before, const CudaTwin& after) {
    return CheckAppend(p, before, after);
  };
  return launch;
}

// Keys, and of clusters: members in and out, offsets out, codes, scales, variances and centers.
int64_t AppendFloorBytes(int32_t segment_tokens, int32_t num_lists) {
  const int64_t keys = int64_t{2} * segment_tokens * kHeadDim;
  if (num_lists == 1) return kAppendCells * (keys + 4 * kHeadDim + 4);
  return kAppendCells *
         (keys + 4 * segment_tokens +
          num_lists * (CentroidRowBytes(CentroidForm::kInt4, kHeadDim) + 4 + 4 + 2) + 4 * kHeadDim);
}

}  // namespace

void AddListsCases(int32_t shrink, std::vector<CudaCase>& cases) {
  const int32_t tokens = 131072 / shrink, iterations = shrink == 1 ? 10 : 1;
  for (int32_t segment : {8192, 131072}) {
    const int32_t lists = segment == 8192 ? 512 : 1024;
    cases.push_back({"kmeans/tokens:131072/segment:" + std::to_string(segment) +
                         "/lists:" + std::to_string(lists) + "/iterations:10",
                     (2 * iterations + 2) * tokens * kKeyBytes, CudaYardstick::kMemory, 0,
                     [=](CudaArena& arena, int32_t n) {
                       return PrepareKMeans(arena, n, tokens, segment / shrink,
                                            std::max(lists / shrink, 2), iterations);
                     }});
  }
  for (int32_t lists : {512, 128, 1}) {
    const int32_t segment = 8192 / shrink, some = std::max(lists / shrink, 1);
    cases.push_back(
        {"append_lists/cells:128/tokens:8192/lists:" + std::to_string(lists),
         AppendFloorBytes(segment, some), CudaYardstick::kMemory, 0,
         [=](CudaArena& arena, int32_t n) { return PrepareAppend(arena, n, segment, some); }});
  }
}

}  // namespace semkv
