// What a decode step does in one layer: lists are scored and selected and their tokens attended to;
// and the same with a home tier in host memory, where a tenth of the pages that a step wants is not
// resident.

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "benchmarks/cuda/cuda_attention_problem.h"
#include "benchmarks/cuda/cuda_case.h"
#include "benchmarks/cuda/cuda_lists_problem.h"
#include "benchmarks/cuda/cuda_twin.h"
#include "csrc/ops/residency/gather_pages_cuda.h"
#include "csrc/ops/residency/resolve_cuda.h"

namespace semkv {
namespace {

CudaLaunch PrepareStep(CudaArena& arena, int32_t num_layers, const ListsShape& shape) {
  const RetrieveProblem retrieve = MakeRetrieve(arena, num_layers, shape);
  AttentionProblem attention = MakeAttention(arena, shape.num_rows, kKvHeads, shape.budget);
  attention.params.position_slots = {retrieve.select.slots, retrieve.select.counts,
                                     int64_t{kKvHeads} * shape.budget, shape.budget};
  std::vector<KvView> layers(num_layers);
  for (KvView& view : layers) view = MakeView(arena, int64_t{shape.num_rows} * shape.tokens);
  CudaLaunch launch = [=](int32_t layer, cudaStream_t stream) {
    const cudaError_t error = retrieve.EnqueueRetrieve(layer, stream);
    return error != cudaSuccess ? error : attention.Enqueue(layers[layer], KvView(), stream);
  };
  launch.check = [=](const CudaTwin& before, const CudaTwin& after) {
    const std::string wrong = retrieve.CheckRetrieve(before, after);
    return wrong.empty() ? attention.Check(layers[0], KvView(), after, after) : wrong;
  };
  return launch;
}

// ------------------------------ a home tier in host memory

// Steps alternate between two sets of pages, so that each misses what the other has not.
constexpr int32_t kSets = 2;
constexpr int64_t kPageBytes = int64_t{2} * kPageTokens * kHeadDim * kElementBytes;

struct TierShape {
  int32_t wanted = 0;  // pages of a KV head and step
  int32_t misses = 0;  // of them, not resident
};

struct TierLayer {
  Residency residency;
  void* hot;
  void* resolve_workspace;
};

enum class TierWork { kResolve, kResolveAttend, kAll };

// Resolve, gather and attend over the same two sets in all layers; a residency and a hot pool each.
class TierProblem {
 public:
  TierProblem(CudaArena& arena, int32_t num_layers, const TierShape& tier);

  cudaError_t AdvanceSteps(cudaStream_t stream);
  cudaError_t Resolve(int32_t layer, int32_t set, cudaStream_t stream) const;
  cudaError_t Gather(int32_t layer, cudaStream_t stream) const;
  cudaError_t Attend(int32_t layer, cudaStream_t stream) const;
  // After a step of each set.
  std::string Check(TierWork work, const CudaTwin& before, const CudaTwin& after) const;

 private:
  KvView HotView(int32_t layer) const;
  // The residency and the slots after both steps.
  std::string CheckResolve(const CudaTwin& before, const CudaTwin& after) const;
  void MakeWanted(CudaArena& arena, const TierShape& tier);
  void MakeLayers(CudaArena& arena, int32_t num_layers);

  ResolveParams resolve_;
  const WantedPage* wanted_[kSets];
  int32_t* steps_;
  int32_t next_step_ = 0;
  int32_t host_steps_[kSets];
  PageCopyParams gather_;
  AttentionProblem attention_;
  std::vector<TierLayer> layers_;
};

TierProblem::TierProblem(CudaArena& arena, int32_t num_layers, const TierShape& tier) {
  ResolveShape& shape = resolve_.shape;
  shape.num_rows = 1;
  shape.num_selections = kKvHeads;
  shape.max_wanted = tier.wanted;
  shape.max_slots = tier.wanted * kPageTokens;
  shape.page_tokens = kPageTokens;
  shape.num_home_pages = kKvHeads * (tier.wanted + tier.misses);
  shape.num_hot_pages = kKvHeads * tier.wanted;
  MakeWanted(arena, tier);
  steps_ = arena.Array<int32_t>(kSets);
  const size_t num_slots = static_cast<size_t>(kKvHeads) * shape.max_slots;
  resolve_.misses = arena.Array<PagePair>(shape.num_hot_pages);
  resolve_.num_misses = arena.Array<int32_t>(1);
  resolve_.num_unplaced = static_cast<int32_t*>(arena.Zeros(sizeof(int32_t)));
  resolve_.slots = arena.Array<int32_t>(num_slots);
  resolve_.slot_counts = arena.Array<int32_t>(kKvHeads);
  gather_.home = arena.Mapped(static_cast<size_t>(shape.num_home_pages * kPageBytes));
  gather_.page_bytes = kPageBytes;
  gather_.num_home_pages = shape.num_home_pages;
  gather_.num_hot_pages = gather_.max_pages = shape.num_hot_pages;
  gather_.pages = resolve_.misses;
  gather_.num_pages = resolve_.num_misses;
  attention_ = MakeAttention(arena, 1, kKvHeads, shape.max_slots);
  attention_.params.list_slots = {resolve_.slots, resolve_.slot_counts,
                                  int64_t{kKvHeads} * shape.max_slots, shape.max_slots};
  MakeLayers(arena, num_layers);
}

// Of each head's pages the second set leaves out the first `misses`, the first the last.
void TierProblem::MakeWanted(CudaArena& arena, const TierShape& tier) {
  std::mt19937 rng(8);
  const int32_t head_pages = tier.wanted + tier.misses;
  for (int32_t set = 0; set < kSets; ++set) {
    std::vector<WantedPage> wanted;
    for (int32_t head = 0; head < kKvHeads; ++head) {
      for (int32_t page : RandomOrder(tier.wanted, rng)) {
        wanted.push_back({head * head_pages + set * tier.misses + page, (1u << kPageTokens) - 1});
      }
    }
    wanted_[set] = arena.Copy(wanted);
  }
  resolve_.wanted_counts = arena.Copy(std::vector<int32_t>(kKvHeads, tier.wanted));
}

void TierProblem::MakeLayers(CudaArena& arena, int32_t num_layers) {
  const ResolveShape& shape = resolve_.shape;
  for (int32_t i = 0; i < num_layers; ++i) {
    TierLayer layer;
    layer.residency.hot_of_home =
        arena.Copy(std::vector<int32_t>(shape.num_home_pages, kNotResident));
    layer.residency.home_of_hot =
        arena.Copy(std::vector<int32_t>(shape.num_hot_pages, kNotResident));
    layer.residency.stamps = arena.Copy(std::vector<int32_t>(shape.num_hot_pages, kNeverUsed));
    layer.residency.hand = static_cast<int32_t*>(arena.Zeros(sizeof(int32_t)));
    layer.hot = arena.Bytes(static_cast<size_t>(shape.num_hot_pages * kPageBytes));
    layer.resolve_workspace = arena.Zeros(ResolveCudaWorkspaceBytes(PlanResolve(shape)));
    layers_.push_back(layer);
  }
}

// A replay's steps come after those before it.
cudaError_t TierProblem::AdvanceSteps(cudaStream_t stream) {
  for (int32_t& step : host_steps_) step = next_step_++;
  return cudaMemcpyAsync(steps_, host_steps_, sizeof(host_steps_), cudaMemcpyHostToDevice, stream);
}

cudaError_t TierProblem::Resolve(int32_t layer, int32_t set, cudaStream_t stream) const {
  ResolveParams p = resolve_;
  p.wanted = wanted_[set];
  p.step = steps_ + set;
  p.residency = layers_[layer].residency;
  return ResolveCuda(p, layers_[layer].resolve_workspace,
                     ResolveCudaWorkspaceBytes(PlanResolve(p.shape)), stream);
}

cudaError_t TierProblem::Gather(int32_t layer, cudaStream_t stream) const {
  PageCopyParams p = gather_;
  p.hot = layers_[layer].hot;
  return GatherPagesCuda(p, kPageCopyCtas, stream);
}

// [page][K, V][token, channel]
KvView TierProblem::HotView(int32_t layer) const {
  KvView hot;
  hot.k = layers_[layer].hot;
  hot.v = static_cast<char*>(hot.k) + kPageBytes / 2;
  hot.k_page = hot.v_page = kPageBytes / kElementBytes;
  hot.k_token = hot.v_token = kHeadDim;
  hot.page_tokens = kPageTokens;
  hot.num_pages = resolve_.shape.num_hot_pages;
  hot.dtype = DType::kBFloat16;
  return hot;
}

cudaError_t TierProblem::Attend(int32_t layer, cudaStream_t stream) const {
  return attention_.Enqueue(HotView(layer), HotView(layer), stream);
}

std::string TierProblem::CheckResolve(const CudaTwin& before, const CudaTwin& after) const {
  const ResolveShape& shape = resolve_.shape;
  const Residency& actual = layers_[0].residency;
  ResolveParams p = resolve_;
  Residency& expected = p.residency;
  expected = actual;
  before.Move(p.wanted_counts, p.misses, p.num_misses, p.num_unplaced, p.slots, p.slot_counts,
              expected.hot_of_home, expected.home_of_hot, expected.stamps, expected.hand);
  for (int32_t set = 0; set < kSets; ++set) {
    p.wanted = before.At(wanted_[set]);
    p.step = before.At(steps_ + set);
    ResolveReference(p);
  }
  const auto differs = [&](const char* what, const int32_t* wrote, const int32_t* must, int64_t n) {
    return BytesDiffer(what, after.At(wrote), must, static_cast<size_t>(n) * sizeof(int32_t));
  };
  return FirstOf(
      {differs("misses", resolve_.num_misses, p.num_misses, 1),
       differs("pages without a place", resolve_.num_unplaced, p.num_unplaced, 1),
       differs("counts of slots", resolve_.slot_counts, p.slot_counts, kKvHeads),
       differs("slots", resolve_.slots, p.slots, int64_t{kKvHeads} * shape.max_slots),
       differs("hot pages", actual.hot_of_home, expected.hot_of_home, shape.num_home_pages),
       differs("home pages", actual.home_of_hot, expected.home_of_hot, shape.num_hot_pages),
       differs("stamps", actual.stamps, expected.stamps, shape.num_hot_pages)});
}

std::string TierProblem::Check(TierWork work, const CudaTwin& before, const CudaTwin& after) const {
  std::string wrong = CheckResolve(before, after);
  if (work != TierWork::kAll) return wrong;  // nothing was brought into the hot pool
  for (int32_t hot = 0; hot < resolve_.shape.num_hot_pages && wrong.empty(); ++hot) {
    const int32_t home = after.At(layers_[0].residency.home_of_hot)[hot];
    wrong = BytesDiffer("hot page " + std::to_string(hot),
                        after.At(static_cast<const char*>(layers_[0].hot) + hot * kPageBytes),
                        before.At(static_cast<const char*>(gather_.home) + home * kPageBytes),
                        static_cast<size_t>(kPageBytes));
  }
  return wrong.empty() ? attention_.Check(HotView(0), HotView(0), after, after) : wrong;
}

// One step of each set.
CudaLaunch PrepareTier(CudaArena& arena, int32_t num_layers, const TierShape& tier, TierWork work) {
  auto problem = std::make_shared<TierProblem>(arena, num_layers, tier);
  CudaLaunch launch = [=](int32_t layer, cudaStream_t stream) {
    cudaError_t error = cudaSuccess;
    for (int32_t set = 0; set < kSets && error == cudaSuccess; ++set) {
      error = problem->Resolve(layer, set, stream);
      if (error == cudaSuccess && work == TierWork::kAll) error = problem->Gather(layer, stream);
      if (error == cudaSuccess && work != TierWork::kResolve) {
        error = problem->Attend(layer, stream);
      }
    }
    return error;
  };
  launch.before_replay = [=](cudaStream_t stream) { return problem->AdvanceSteps(stream); };
  launch.check = [=](const CudaTwin& before, const CudaTwin& after) {
    return problem->Check(work, before, after);
  };
  return launch;
}

void AddTierCases(int32_t shrink, std::vector<CudaCase>& cases) {
  const int32_t wanted = shrink == 1 ? 128 : 4;
  const int32_t misses = shrink == 1 ? 13 : 1;
  const int64_t read = kSets * kKvHeads * wanted * (kPageBytes + int64_t{sizeof(WantedPage)});
  const int64_t recalled = kSets * kKvHeads * misses * kPageBytes;
  const int64_t hot_bytes = kKvHeads * wanted * kPageBytes;
  const auto add = [&](const std::string& name, int64_t floor, CudaYardstick yardstick,
                       const TierShape& tier, TierWork work) {
    cases.push_back(
        {"tier/" + name + "/pages:128/steps:2", floor, yardstick, hot_bytes,
         [=](CudaArena& arena, int32_t n) { return PrepareTier(arena, n, tier, work); }});
  };
  const TierShape hits = {wanted, 0}, some = {wanted, misses};
  add("resolve/misses:13", kSets * kKvHeads * wanted * int64_t{sizeof(WantedPage)},
      CudaYardstick::kMemory, some, TierWork::kResolve);
  add("resolve+attend/misses:0", read, CudaYardstick::kMemory, hits, TierWork::kResolveAttend);
  add("resolve+gather+attend/misses:13", recalled, CudaYardstick::kBus, some, TierWork::kAll);
}

}  // namespace

void AddStepCases(int32_t shrink, std::vector<CudaCase>& cases) {
  struct Step {
    int32_t rows, budget, tokens;
  };
  for (const Step& full : {Step{1, 2048, 32768},
                           {1, 2048, 131072},
                           {1, 2048, 1048576},
                           {8, 1024, 32768},
                           {8, 2048, 131072}}) {
    if (shrink > 1 && full.rows * full.tokens > 131072) continue;  // nothing new, and slow
    const std::string size = "/budget:" + std::to_string(full.budget) +
                             "/rows:" + std::to_string(full.rows) +
                             "/tokens:" + std::to_string(full.tokens);
    const auto add = [&](const std::string& name, const std::vector<Partition>& partitions) {
      const ListsShape shape =
          MakeListsShape(full.rows, full.tokens, full.budget, shrink, partitions);
      const int64_t floor =
          shape.list_bytes() + shape.taken_bytes() + shape.num_rows * KvBytes(shape.budget);
      cases.push_back({name + size, floor, CudaYardstick::kMemory,
                       shape.num_rows * KvBytes(shape.tokens),
                       [=](CudaArena& arena, int32_t n) { return PrepareStep(arena, n, shape); }});
    };
    add("retrieve+attend/clusters64", Clusters64());
    add("retrieve+attend/hybrid", Hybrid());
  }
  AddTierCases(shrink, cases);
}

}  // namespace semkv
