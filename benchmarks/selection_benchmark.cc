// The ratios of a sparse decode step: select and attend together, beside a plain read of the whole
// context and beside our own dense attention.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "benchmarks/attention_layers.h"
#include "benchmarks/ratios.h"
#include "benchmarks/selection_layers.h"

namespace semkv {
namespace {

// Where selected tokens lie.
enum Place { kScattered, kScatteredInPagesOf64, kAdjacent, kNumPlaces };

// One context length and policy. Lists take long to build, so only a row that is measured makes
// them.
class SelectionCase {
 public:
  SelectionCase(int32_t num_tokens, SelectionPolicy policy)
      : num_tokens_(num_tokens),
        policy_(policy),
        layers_(num_tokens),
        layers_of_64_(num_tokens, 64) {}

  SelectionRun& run(Place place) {
    std::unique_ptr<SelectionRun>& run = runs_[place];
    if (run == nullptr) {
      const AttentionLayers& layers = place == kScatteredInPagesOf64 ? layers_of_64_ : layers_;
      run = std::make_unique<SelectionRun>(layers, num_tokens_, policy_, place == kAdjacent);
    }
    return *run;
  }
  DecodeAttentionRun& dense() {
    if (dense_ == nullptr) {
      dense_ = std::make_unique<DecodeAttentionRun>(layers_, num_tokens_,
                                                    DecodeAttentionRun::Selection::kDense, 0, 1);
    }
    return *dense_;
  }

 private:
  const int32_t num_tokens_;
  const SelectionPolicy policy_;
  const AttentionLayers layers_, layers_of_64_;
  std::unique_ptr<SelectionRun> runs_[kNumPlaces];
  std::unique_ptr<DecodeAttentionRun> dense_;
};

void AddRow(std::string name, std::string base_name, double goal, std::function<void(int64_t)> run,
            std::function<void(int64_t)> base, std::vector<RatioCase>& cases) {
  RatioCase& row = cases.emplace_back();
  row.name = std::move(name);
  row.base_name = std::move(base_name);
  row.goal = goal;
  row.run = std::move(run);
  row.base = std::move(base);
}

// `gate`: of the time of a plain read of the context.
void AddRows(const std::string& name, const std::string& context, int32_t num_tokens,
             SelectionPolicy policy, double gate, std::vector<RatioCase>& cases) {
  const auto c = std::make_shared<SelectionCase>(num_tokens, policy);
  const std::string plain = "plain read of " + context;
  const auto select_and_attend = [c](int64_t i) { c->run(kScattered).SelectAndAttend(i); };
  const auto read = [c](int64_t i) { c->dense().ReadPlainly(i); };
  AddRow("select+attend/" + name, plain, 1 / gate, select_and_attend, read, cases);
  AddRow(
      "select+attend/" + name + "/pages64", plain, 1 / gate,
      [c](int64_t i) { c->run(kScatteredInPagesOf64).SelectAndAttend(i); }, read, cases);
  AddRow(
      "select+attend/" + name + "/adjacent", plain, 1 / gate,
      [c](int64_t i) { c->run(kAdjacent).SelectAndAttend(i); }, read, cases);
  // What no kernel can save: the lists, and the rows that were selected, read where they lie.
  AddRow(
      "select+attend/" + name + "/bare", plain, 0.0,
      [c](int64_t i) {
        c->run(kScattered).ReadLists(i);
        c->run(kScattered).ReadSelected(i);
      },
      read, cases);
  AddRow(
      "select+attend/" + name + "/dense", "attend, dense", 0.0, select_and_attend,
      [c](int64_t i) { c->dense().Attend(i); }, cases);
  AddRow(
      "select/" + name, "plain read of lists", 0.0,
      [c](int64_t i) { c->run(kScattered).Select(i); },
      [c](int64_t i) { c->run(kScattered).ReadLists(i); }, cases);
}

}  // namespace

void AddSelectionRatios(std::vector<RatioCase>& cases) {
  AddRows("clusters64/32k", "32k", 32768, SelectionPolicy::kClustersOf64, 0.10, cases);
  AddRows("hybrid/32k", "32k", 32768, SelectionPolicy::kHybrid, 0.12, cases);
  AddRows("clusters64/128k", "128k", 131072, SelectionPolicy::kClustersOf64, 0.040, cases);
  AddRows("hybrid/128k", "128k", 131072, SelectionPolicy::kHybrid, 0.060, cases);
}

}  // namespace semkv
