// Random calls on a BlockManager and on a model of it (model.h): after each call every page, table
// and counter must agree, and every token must be where its sequence left it.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "block_manager/block_manager.h"
#include "tests/block_manager/model.h"
#include "tests/block_manager/testing.h"
#include "tests/testing/random.h"

namespace semkv {
namespace {

using testing::Model;
using testing::ModelSequence;

constexpr int32_t kNumPages = 24;
constexpr int32_t kPageTokens = 4;
constexpr int32_t kMaxSequences = 6;
constexpr int32_t kMaxTokens = 40;

class Play {
 public:
  explicit Play(uint64_t seed)
      : rng_(seed),
        manager_(testing::MakeManager(
            kNumPages, {.max_sequences = kMaxSequences, .max_sequence_tokens = kMaxTokens})),
        model_(kNumPages, kPageTokens) {}

  void Step() {
    switch (Below(16)) {
      case 0:
      case 1:
        Prompt();
        break;
      case 2:
        Fork();
        break;
      case 3:
      case 4:
        Release();
        break;
      case 5:
        Pin();
        break;
      case 6:
        Unpin();
        break;
      case 7:
        WorsenSequence();
        break;
      case 8:
        WorsenPage();
        break;
      default:
        Append();
        break;
    }
    if (!::testing::Test::HasFatalFailure()) Compare();
  }

  int64_t num_adopted = 0, num_copies = 0, num_refusals = 0;
  int64_t num_evictions() const { return manager_->Stats().num_evictions; }

 private:
  int32_t Below(int32_t n) { return static_cast<int32_t>(rng_() % n); }
  ModelSequence* Any() {
    return sequences_.empty() ? nullptr
                              : &sequences_[Below(static_cast<int32_t>(sequences_.size()))];
  }

  // Few different ids, so that prompts often begin alike; both salts see the same ones.
  std::vector<int32_t> Ids(int32_t count) {
    std::vector<int32_t> ids(count);
    const int32_t text = Below(2);
    for (int32_t i = 0; i < count; ++i) ids[i] = Below(40) == 0 ? 7 : text;
    return ids;
  }

  // What the model of a language model would write: of exact tokens with known ids a function of
  // salt and prefix, else anything. A page that is shared though it must not be shows as a wrong
  // value.
  int32_t Value(const ModelSequence& s, size_t position) {
    bool is_function =
        s.provenance == Provenance::kExact && position < static_cast<size_t>(s.num_known);
    for (size_t i = 0; i <= position / kPageTokens; ++i) {
      is_function = is_function && model_.pages[s.pages[i]].provenance == Provenance::kExact;
    }
    if (!is_function) return Below(1 << 16);
    uint64_t hash = s.salt + 1;
    for (size_t i = 0; i <= position; ++i) hash = (hash * 1000003 + s.ids[i] + 1) % 65521;
    return static_cast<int32_t>(hash);
  }

  void Prompt() {
    ModelSequence s;
    s.salt = Below(2);
    const absl::StatusOr<SequenceId> id = manager_->CreateSequence(s.salt);
    if (sequences_.size() == kMaxSequences) {
      ASSERT_EQ(id.status().code(), absl::StatusCode::kResourceExhausted);
      return;
    }
    ASSERT_TRUE(id.ok());
    s.id = *id;
    const std::vector<int32_t> ids = Ids(Below(24));
    const int32_t adopted = manager_->SharePrefix(s.id, ids).value();
    ASSERT_EQ(adopted, model_.SharePrefix(s, ids));
    num_adopted += adopted;
    for (int32_t i = 0; i < adopted; ++i) s.values.push_back(Value(s, i));
    sequences_.push_back(s);
    AppendTo(sequences_.back(), {ids.begin() + adopted, ids.end()}, true);
  }

  void Append() {
    if (ModelSequence* s = Any()) AppendTo(*s, Ids(Below(4) == 0 ? Below(12) : 1), Below(20) != 0);
  }

  void AppendTo(ModelSequence& s, const std::vector<int32_t>& ids, bool told) {
    const absl::Span<const int32_t> given =
        told ? absl::MakeConstSpan(ids) : absl::Span<const int32_t>();
    std::vector<int32_t> slots(ids.size(), -7);
    const size_t old = s.ids.size();
    const absl::StatusOr<PageCopy> copy = manager_->Append(s.id, given, absl::MakeSpan(slots));
    int32_t expected_src = -1;
    if (old + ids.size() > kMaxTokens) {
      ASSERT_EQ(copy.status().code(), absl::StatusCode::kOutOfRange);
    } else if (!model_.Append(s, ids, told, &expected_src)) {
      ++num_refusals;
      ASSERT_EQ(copy.status().code(), absl::StatusCode::kResourceExhausted);
      ASSERT_TRUE(std::all_of(slots.begin(), slots.end(), [](int32_t slot) { return slot == -7; }));
    } else {
      ASSERT_TRUE(copy.ok()) << copy.status();
      ASSERT_EQ(copy->src, expected_src);
      num_copies += copy->src >= 0;
      for (size_t i = 0; i < slots.size(); ++i) {
        ASSERT_EQ(slots[i],
                  s.pages[(old + i) / kPageTokens] * kPageTokens + (old + i) % kPageTokens);
        s.values.push_back(Value(s, old + i));
        testing::WriteToken(*manager_, slots[i], s.values.back());
      }
      ASSERT_TRUE(manager_->MarkWritten(s.id, static_cast<int32_t>(s.ids.size())).ok());
      model_.MarkWritten(s);
    }
  }

  void Fork() {
    const ModelSequence* parent = Any();
    if (parent == nullptr) return;
    const absl::StatusOr<SequenceId> id = manager_->Fork(parent->id);
    if (sequences_.size() == kMaxSequences) {
      ASSERT_EQ(id.status().code(), absl::StatusCode::kResourceExhausted);
      return;
    }
    ASSERT_TRUE(id.ok()) << id.status();
    ModelSequence child = model_.Fork(*parent);
    child.id = *id;
    sequences_.push_back(child);
  }

  void Release() {
    ModelSequence* s = Any();
    if (s == nullptr) return;
    ASSERT_TRUE(manager_->Release(s->id).ok());
    model_.Release(*s);
    ASSERT_EQ(manager_->Release(s->id).code(), absl::StatusCode::kNotFound);
    sequences_.erase(sequences_.begin() + (s - sequences_.data()));
  }

  void Pin() {
    if (pins_.size() >= kNumPages / 2) return;
    pins_.push_back(Below(kNumPages));
    model_.Pin(pins_.back());
    ASSERT_TRUE(manager_->Pin({&pins_.back(), 1}).ok());
  }

  void Unpin() {
    if (pins_.empty()) return;
    std::swap(pins_[Below(static_cast<int32_t>(pins_.size()))], pins_.back());
    model_.Unpin(pins_.back());
    ASSERT_TRUE(manager_->Unpin({&pins_.back(), 1}).ok());
    pins_.pop_back();
  }

  void WorsenSequence() {
    ModelSequence* s = Any();
    if (s == nullptr || Below(4) != 0) return;
    const Provenance provenance = static_cast<Provenance>(Below(4));
    ASSERT_TRUE(manager_->SetProvenance(s->id, provenance).ok());
    s->provenance = Worse(s->provenance, provenance);
  }

  void WorsenPage() {
    if (Below(4) != 0) return;
    const int32_t page = Below(kNumPages);
    PageTag tag = manager_->GetPage(page)->tag;
    tag.provenance = static_cast<Provenance>(Below(4));
    tag.num_sentences = 3;
    ASSERT_TRUE(manager_->SetTag(page, tag).ok());
    model_.Degrade(page, tag.provenance);
  }

  void Compare() {
    std::vector<int32_t> entries(kNumPages);
    for (const ModelSequence& s : sequences_) {
      ASSERT_EQ(testing::Pages(*manager_, s.id), s.pages);
      ASSERT_EQ(manager_->GetSequence(s.id)->num_tokens, static_cast<int32_t>(s.ids.size()));
      for (int32_t page : s.pages) ++entries[page];
      for (size_t i = 0; i < s.values.size(); ++i) {
        const int32_t slot = testing::SlotOf(*manager_, s.id, static_cast<int32_t>(i));
        ASSERT_TRUE(testing::HoldsToken(*manager_, slot, s.values[i])) << "token " << i;
      }
    }
    int32_t num_pinned = 0;
    for (int32_t page = 0; page < kNumPages; ++page) {
      const PageState state = *manager_->GetPage(page);
      const testing::ModelPage& expected = model_.pages[page];
      ASSERT_EQ(state.num_references, entries[page]) << "page " << page;
      ASSERT_EQ(state.num_pins, std::count(pins_.begin(), pins_.end(), page)) << "page " << page;
      ASSERT_EQ(state.is_free, entries[page] == 0 && state.num_pins == 0) << "page " << page;
      ASSERT_EQ(state.is_free, model_.IsFree(page)) << "page " << page;
      ASSERT_EQ(state.is_cached, model_.IsCached(page)) << "page " << page;
      ASSERT_EQ(state.tag.generation, expected.generation) << "page " << page;
      ASSERT_EQ(state.tag.provenance, expected.provenance) << "page " << page;
      num_pinned += state.num_pins > 0;
    }
    const BlockManagerStats stats = manager_->Stats();
    ASSERT_EQ(stats.num_free_pages, static_cast<int32_t>(model_.free.size()));
    ASSERT_EQ(stats.num_cached_pages, static_cast<int32_t>(model_.cached.size()));
    ASSERT_EQ(stats.num_pinned_pages, num_pinned);
    ASSERT_EQ(stats.num_sequences, static_cast<int32_t>(sequences_.size()));
    ASSERT_EQ(stats.num_copies, num_copies);
    ASSERT_EQ(stats.num_refusals, num_refusals);
    ASSERT_EQ(stats.num_prefix_hits * kPageTokens, num_adopted);
  }

  std::mt19937_64 rng_;
  const std::unique_ptr<BlockManager> manager_;
  Model model_;
  std::vector<ModelSequence> sequences_;
  std::vector<int32_t> pins_;
};

TEST(BlockManagerRandomTest, AgreesWithThePlainModel) {
  const uint64_t first_seed = testing::TestSeed(1);
  int64_t num_adopted = 0, num_copies = 0, num_refusals = 0, num_evictions = 0;
  for (uint64_t seed = first_seed; seed < first_seed + 20 * testing::SoakFactor(); ++seed) {
    SEMKV_TRACE_SEED(seed);
    Play play(seed);
    for (int32_t step = 0; step < 1000; ++step) {
      play.Step();
      if (HasFatalFailure()) FAIL() << "step " << step;
    }
    num_adopted += play.num_adopted;
    num_copies += play.num_copies;
    num_refusals += play.num_refusals;
    num_evictions += play.num_evictions();
  }
  // A play in which these hardly happen would prove little.
  EXPECT_GT(num_adopted, 1000);
  EXPECT_GT(num_copies, 200);
  EXPECT_GT(num_refusals, 200);
  EXPECT_GT(num_evictions, 200);
}

}  // namespace
}  // namespace semkv
