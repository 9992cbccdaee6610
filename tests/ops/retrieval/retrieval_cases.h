// Inputs of the retrieval operations and the table of cases that their tests and benchmark share.

#ifndef SEMKV_TESTS_OPS_RETRIEVAL_RETRIEVAL_CASES_H_
#define SEMKV_TESTS_OPS_RETRIEVAL_RETRIEVAL_CASES_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <numeric>
#include <ostream>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "csrc/ops/numeric/float_convert.h"
#include "csrc/ops/retrieval/score_lists.h"
#include "csrc/ops/retrieval/select_lists.h"

namespace semkv::testing {

struct RetrievalCase {
  std::string name;
  std::vector<int32_t> contexts = {3000, 257, 64};  // one row each
  int32_t num_heads = 8;
  int32_t num_selections = 2;
  int32_t head_dim = 64;
  CentroidForm form = CentroidForm::kInt8;
  DType q_dtype = DType::kFloat32;
  VarianceTerm variance = VarianceTerm::kBounded;
  GroupRank rank = GroupRank::kShareSum;
  TrimKeep trim = TrimKeep::kMostRecent;
  int32_t sentence_tokens = 25;  // mean length of the lists of partition 0; 0: none
  int32_t cluster_tokens = 32;   // of partition 1; 0: none
  int32_t budget = 512;
  int32_t num_sinks = 16;
  int32_t num_recent = 64;
  int32_t page_tokens = 16;
  float mass_target = 0.0f;
  float sentence_weight = 1.0f;
  float cluster_weight = 1.0f;
  int32_t segment_tokens = 1024;
  int32_t list_page_tokens = 0;  // of lists of all segments but a row's last; 0: none has pages
  int32_t wanted_stride = 0;     // 0: what the budget may want
};

inline void PrintTo(const RetrievalCase& c, std::ostream* out) { *out << c.name; }

inline std::vector<RetrievalCase> RetrievalCases() {
  return {
      {.name = "Int8Hybrid"},
      {.name = "Int4SentencesWeighAQuarter",
       .form = CentroidForm::kInt4,
       .mass_target = 0.6f,
       .sentence_weight = 0.25f},
      {.name = "Int8D128Heads4",
       .contexts = {9000},
       .num_heads = 8,
       .num_selections = 2,
       .head_dim = 128,
       .q_dtype = DType::kBFloat16,
       .segment_tokens = 8192},
      {.name = "Int8D80OddMultipleOf16", .num_selections = 8, .head_dim = 80},
      {.name = "Int8D256Heads7",
       .num_heads = 14,
       .head_dim = 256,
       .q_dtype = DType::kFloat16,
       .variance = VarianceTerm::kHalf},
      {.name = "Int8D16Heads3", .num_heads = 3, .num_selections = 1, .head_dim = 16},
      {.name = "Int4D128Heads4",
       .contexts = {5000, 257, 64},
       .num_heads = 8,
       .num_selections = 2,
       .head_dim = 128,
       .form = CentroidForm::kInt4,
       .q_dtype = DType::kBFloat16},
      {.name = "Int4D64Heads3",
       .num_heads = 6,
       .form = CentroidForm::kInt4,
       .q_dtype = DType::kFloat16},
      {.name = "Int4D96Heads7",
       .contexts = {1500},
       .num_heads = 14,
       .head_dim = 96,
       .form = CentroidForm::kInt4},
      {.name = "Int4D80BlockHalfFull",
       .contexts = {1500, 300},
       .num_heads = 9,
       .num_selections = 1,
       .head_dim = 80,
       .form = CentroidForm::kInt4},
      {.name = "Int4D16Heads4",
       .contexts = {300},
       .num_selections = 1,
       .head_dim = 16,
       .form = CentroidForm::kInt4},
      {.name = "Int4D256Heads1",
       .contexts = {1500},
       .num_heads = 2,
       .head_dim = 256,
       .form = CentroidForm::kInt4},
      {.name = "Int8ShareMaxEarliest",
       .variance = VarianceTerm::kNone,
       .rank = GroupRank::kShareMax,
       .trim = TrimKeep::kEarliest},
      {.name = "BFloat16ClustersOnly",
       .form = CentroidForm::kBFloat16,
       .q_dtype = DType::kBFloat16,
       .sentence_tokens = 0},
      {.name = "Float32SentencesOnly",
       .form = CentroidForm::kFloat32,
       .cluster_tokens = 0,
       .page_tokens = 1},
      {.name = "Float32D96MassTarget",
       .num_heads = 12,
       .head_dim = 96,
       .form = CentroidForm::kFloat32,
       .page_tokens = 128,
       .mass_target = 0.6f},
      {.name = "BoundsOfPages",
       .num_heads = 5,
       .num_selections = 5,
       .form = CentroidForm::kBounds,
       .sentence_tokens = 16,
       .cluster_tokens = 0},
      {.name = "PagesOf16", .list_page_tokens = 16},
      {.name = "PagesOf8EarliestMassTarget",
       .contexts = {3000, 300},
       .trim = TrimKeep::kEarliest,
       .mass_target = 0.4f,
       .list_page_tokens = 8},
      {.name = "PagesOf32ClustersRunOut",
       .sentence_tokens = 0,
       .cluster_tokens = 50,
       .list_page_tokens = 32,
       .wanted_stride = 12},
      {.name = "PagesOf1", .contexts = {2000}, .budget = 300, .list_page_tokens = 1},
  };
}

// Owns everything that the parameters of one batch point to.
class RetrievalInput {
 public:
  RetrievalInput(const RetrievalCase& c, uint64_t seed) : case_(c), rng_(seed) {
    for (int32_t context : c.contexts) AddRow(context);
    for (size_t r = 0; r < c.contexts.size(); ++r) rows_[r].block_table = tables_[r].data();
    for (int32_t r = 0; r < num_rows(); ++r) {
      for (int32_t s = 0; s < c.num_selections; ++s) AddLists(c.contexts[r]);
    }
    max_lists_ = std::max(max_lists_, 1);
    const int64_t q_elements = int64_t{num_rows()} * c.num_heads * c.head_dim;
    q_.resize(q_elements * DTypeBytes(c.q_dtype));
    for (int64_t i = 0; i < q_elements; ++i) StoreFromFloat(q_.data(), c.q_dtype, i, Normal());
    keys.resize(num_tasks() * max_lists_);
    slots.resize(num_tasks() * slots_stride());
    positions.resize(slots.size());
    counts.resize(num_tasks());
    wanted.resize(num_tasks() * wanted_stride());
    wanted_counts.resize(num_tasks());
  }
  RetrievalInput(const RetrievalInput&) = delete;
  RetrievalInput& operator=(const RetrievalInput&) = delete;

  ScoreListsParams Score() {
    ScoreListsParams p;
    p.q = q_.data();
    p.q_dtype = case_.q_dtype;
    p.q_row = int64_t{case_.num_heads} * case_.head_dim;
    p.q_head = case_.head_dim;
    p.num_rows = num_rows();
    p.num_heads = case_.num_heads;
    p.num_selections = case_.num_selections;
    p.head_dim = case_.head_dim;
    p.scale = 1.0f / std::sqrt(static_cast<float>(case_.head_dim));
    p.rows = rows_.data();
    p.views = views_.data();
    p.view_begin = view_begin_.data();
    p.keys = keys.data();
    p.keys_stride = max_lists_;
    return p;
  }

  SelectListsParams Select() {
    SelectListsParams p;
    p.num_rows = num_rows();
    p.num_selections = case_.num_selections;
    p.heads_per_selection = case_.num_heads / case_.num_selections;
    p.page_tokens = case_.page_tokens;
    p.rows = rows_.data();
    p.views = views_.data();
    p.view_begin = view_begin_.data();
    p.keys = keys.data();
    p.keys_stride = max_lists_;
    p.slots = slots.data();
    p.positions = positions.data();
    p.counts = counts.data();
    p.slots_stride = slots_stride();
    if (case_.list_page_tokens == 0) return p;
    p.wanted = wanted.data();
    p.wanted_counts = wanted_counts.data();
    p.wanted_stride = wanted_stride();
    p.list_page_tokens = case_.list_page_tokens;
    return p;
  }

  std::vector<uint8_t> RetrieveWorkspace(int num_threads) const {
    return std::vector<uint8_t>(RetrieveWorkspaceBytes(case_.num_heads, case_.num_selections,
                                                       case_.head_dim, max_row_tokens(), max_lists_,
                                                       num_threads));
  }

  int32_t num_rows() const { return static_cast<int32_t>(case_.contexts.size()); }
  int64_t num_tasks() const { return int64_t{num_rows()} * case_.num_selections; }
  int32_t max_lists() const { return max_lists_; }
  int32_t max_row_tokens() const {
    return *std::max_element(case_.contexts.begin(), case_.contexts.end());
  }
  int64_t slots_stride() const { return case_.budget; }
  int32_t wanted_stride() const {
    return case_.wanted_stride > 0 ? case_.wanted_stride : MaxWantedPages(case_.budget);
  }
  int32_t num_home_pages() const { return num_home_pages_; }
  std::vector<ListsView>& views() { return views_; }
  std::vector<RetrievalRow>& rows() { return rows_; }
  int32_t NumLists(int64_t task) const {
    int32_t lists = 0;
    for (int32_t v = view_begin_[task]; v < view_begin_[task + 1]; ++v) lists += views_[v].nlist;
    return lists;
  }
  // Centroid bytes of the whole batch.
  int64_t centroid_bytes() const { return centroid_bytes_; }

  std::vector<uint8_t>& q() { return q_; }

  std::vector<float> keys;
  std::vector<int32_t> slots;
  std::vector<int32_t> positions;
  std::vector<int32_t> counts;
  std::vector<WantedPage> wanted;
  std::vector<int32_t> wanted_counts;

 private:
  void AddRow(int32_t context) {
    const int32_t pages = CeilDiv(context, case_.page_tokens);
    std::vector<int32_t> table(pages);
    std::iota(table.begin(), table.end(), 7);
    std::shuffle(table.begin(), table.end(), rng_);
    tables_.push_back(std::move(table));
    RetrievalRow row;
    row.num_tokens = context;
    row.budget = case_.budget;
    row.num_sinks = case_.num_sinks;
    row.num_recent = case_.num_recent;
    row.variance = case_.variance;
    row.rank = case_.rank;
    row.trim = case_.trim;
    row.mass_target = case_.mass_target;
    row.rank_weight[0] = case_.sentence_weight;
    row.rank_weight[1] = case_.cluster_weight;
    rows_.push_back(row);
  }

  void AddLists(int32_t context) {
    const int64_t task_begin = static_cast<int64_t>(views_.size());
    for (int32_t first = 0; first < context; first += case_.segment_tokens) {
      const int32_t tokens = std::min(case_.segment_tokens, context - first);
      if (case_.sentence_tokens > 0) AddView(0, first, tokens, case_.sentence_tokens);
      if (case_.cluster_tokens > 0) AddView(1, first, tokens, case_.cluster_tokens);
    }
    int32_t lists = 0;
    for (size_t v = task_begin; v < views_.size(); ++v) lists += views_[v].nlist;
    max_lists_ = std::max(max_lists_, lists);
    view_begin_.push_back(static_cast<int32_t>(views_.size()));
  }

  void AddView(int32_t partition, int32_t first, int32_t tokens, int32_t mean) {
    std::vector<uint16_t> offsets = {0};
    while (offsets.back() < tokens) {
      const int32_t size = 1 + static_cast<int32_t>(rng_() % (2 * mean - 1));
      offsets.push_back(static_cast<uint16_t>(std::min(offsets.back() + size, tokens)));
    }
    ListsView view;
    view.nlist = static_cast<int32_t>(offsets.size()) - 1;
    view.partition = partition;
    view.first_position = first;
    view.form = case_.form;
    if (partition == 1) view.members = Keep16(ShuffleMembers(tokens, offsets));
    const bool is_tail = first > 0 && tokens < case_.segment_tokens;
    if (case_.list_page_tokens > 0 && !is_tail) view.first_page = AddPages(offsets);
    view.offsets = Keep16(std::move(offsets));
    AddVectors(view);
    views_.push_back(view);
  }

  // Lists lie at home in any order, some pages of nobody between them.
  const int32_t* AddPages(const std::vector<uint16_t>& offsets) {
    std::vector<int32_t> order(offsets.size() - 1), first_page(offsets.size() - 1);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), rng_);
    for (const int32_t i : order) {
      first_page[i] = num_home_pages_ + static_cast<int32_t>(rng_() % 2);
      num_home_pages_ =
          first_page[i] + CeilDiv(offsets[i + 1] - offsets[i], case_.list_page_tokens);
    }
    return int32_.emplace_back(std::move(first_page)).data();
  }

  std::vector<uint16_t> ShuffleMembers(int32_t tokens, const std::vector<uint16_t>& offsets) {
    std::vector<uint16_t> members(tokens);
    std::iota(members.begin(), members.end(), uint16_t{0});
    std::shuffle(members.begin(), members.end(), rng_);
    for (size_t i = 0; i + 1 < offsets.size(); ++i) {
      std::sort(members.begin() + offsets[i], members.begin() + offsets[i + 1]);
    }
    return members;
  }

  void AddVectors(ListsView& view) {
    const int64_t elements = int64_t{view.nlist} * case_.head_dim;
    std::vector<float> center(case_.head_dim), scales(view.nlist), variances(view.nlist);
    for (float& x : center) x = Normal();
    for (float& x : scales) x = (0.5f + Uniform()) / 100.0f;
    for (float& x : variances) x = 2.0f * Uniform();
    view.variances = KeepFloat(std::move(variances));
    switch (view.form) {
      case CentroidForm::kInt8:
      case CentroidForm::kInt4: {
        const bool is_int4 = view.form == CentroidForm::kInt4;
        // Of int4 also what stands behind head_dim: 0 from the encoders, but never looked at.
        std::vector<int8_t> x(int64_t{view.nlist} * CentroidRowBytes(view.form, case_.head_dim));
        for (int8_t& value : x) value = static_cast<int8_t>(rng_());
        if (is_int4) {  // as far as codes of int8 reach
          for (float& scale : scales) scale *= 16.0f;
        }
        centroid_bytes_ += static_cast<int64_t>(x.size());
        view.centroids = bytes_.emplace_back(std::move(x)).data();
        view.scales = KeepFloat(std::move(scales));
        view.center = KeepFloat(std::move(center));
        break;
      }
      case CentroidForm::kBFloat16:
        view.centroids = RandomBFloat16(elements);
        view.center = KeepFloat(std::move(center));
        centroid_bytes_ += 2 * elements;
        break;
      case CentroidForm::kFloat32: {
        std::vector<float> x(elements);
        for (float& value : x) value = Normal();
        view.centroids = KeepFloat(std::move(x));
        centroid_bytes_ += 4 * elements;
        break;
      }
      case CentroidForm::kBounds:
        view.centroids = RandomBFloat16(2 * elements);  // least > greatest does no harm here
        centroid_bytes_ += 4 * elements;
        break;
    }
  }

  const uint16_t* RandomBFloat16(int64_t elements) {
    std::vector<uint16_t> x(elements);
    for (uint16_t& value : x) value = BFloat16FromFloat(Normal());
    return Keep16(std::move(x));
  }
  const uint16_t* Keep16(std::vector<uint16_t> x) {
    return uint16_.emplace_back(std::move(x)).data();
  }
  const float* KeepFloat(std::vector<float> x) { return float_.emplace_back(std::move(x)).data(); }
  float Normal() { return normal_(rng_); }
  float Uniform() { return static_cast<float>(rng_() >> 40) * 0x1p-24f; }

  RetrievalCase case_;
  std::mt19937_64 rng_;
  std::normal_distribution<float> normal_;
  std::vector<uint8_t> q_;
  std::vector<RetrievalRow> rows_;
  std::vector<std::vector<int32_t>> tables_;
  std::vector<ListsView> views_;
  std::vector<int32_t> view_begin_ = {0};
  int32_t max_lists_ = 0;
  int32_t num_home_pages_ = 0;
  int64_t centroid_bytes_ = 0;
  std::deque<std::vector<uint16_t>> uint16_;
  std::deque<std::vector<int32_t>> int32_;
  std::deque<std::vector<float>> float_;
  std::deque<std::vector<int8_t>> bytes_;
};

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_OPS_RETRIEVAL_RETRIEVAL_CASES_H_
