#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "integration/reference/command/evaluation.h"

namespace semkv::command {
namespace {

constexpr char kLine[] =
    R"({"id": "a", "kind": "facts", "text": "t", "questions": [{"question": "q", "answer":"x."}]})";

TEST(CommandEvaluationTest, ReadsADocumentALine) {
  const auto documents = ParseDocuments(std::string(kLine) + "\n\n" + kLine + "\n");
  ASSERT_TRUE(documents.ok()) << documents.status();
  ASSERT_EQ(documents->size(), 2u);
  EXPECT_EQ((*documents)[1].kind, "facts");
  EXPECT_EQ((*documents)[1].questions[0].question, "q");
  // The period is asked for apart, whether the file has it or not.
  EXPECT_EQ((*documents)[1].questions[0].answer, "x");
}

TEST(CommandEvaluationTest, RefusalsNameTheLineAndTheField) {
  const auto message = [](const std::string& lines) {
    return std::string(ParseDocuments(lines).status().message());
  };
  EXPECT_EQ(message(std::string(kLine) + "\n{"), "line 2 is no JSON object");
  EXPECT_TRUE(absl::StrContains(message(R"({"id": "a", "kind": "b"})"), "\"text\""));
  EXPECT_TRUE(absl::StrContains(
      message(R"({"id": "a", "kind": "b", "text": "c", "questions": []})"), "\"questions\""));
  EXPECT_TRUE(absl::StrContains(
      message(R"({"id": "a", "kind": "b", "text": "c", "questions": [{"question": "d"}]})"),
      "\"answer\""));
}

TEST(CommandEvaluationTest, ContextsAreNamedByTheNearestPowerOfTwo) {
  EXPECT_EQ(NominalContext(1994), 2048);
  EXPECT_EQ(NominalContext(2100), 2048);
  EXPECT_EQ(NominalContext(3000), 4096);
  EXPECT_EQ(NominalContext(1), 1);
}

TEST(CommandEvaluationTest, AnAnswerIsRightIfEveryTokenIsTheLikeliest) {
  const std::vector<int32_t> answer = {1, 0};
  const std::vector<float> right = {0.0f, 1.0f, 1.0f, 0.0f};
  const std::vector<float> wrong = {0.0f, 1.0f, 0.0f, 1.0f};
  const Verdict kept = Judge(answer, right, right);
  EXPECT_TRUE(kept.dense_right && kept.right && kept.agrees);
  EXPECT_EQ(kept.divergence, (std::vector<double>{0.0, 0.0}));
  const Verdict lost = Judge(answer, right, wrong);
  EXPECT_TRUE(lost.dense_right);
  EXPECT_FALSE(lost.right || lost.agrees);
  EXPECT_EQ(lost.divergence[0], 0.0);
  // softmax(1, 0) against its mirror image: (2 p - 1) * 1, p = 1 / (1 + 1/e).
  EXPECT_NEAR(lost.divergence[1], 2.0 / (1.0 + std::exp(-1.0)) - 1.0, 1e-7);
  const Verdict both_wrong = Judge(answer, wrong, wrong);
  EXPECT_TRUE(both_wrong.agrees);
  EXPECT_FALSE(both_wrong.dense_right || both_wrong.right);
}

Cells SyntheticCells() {
  Cells cells;
  ReadSummary reads;
  reads.attended_tokens_mean = 200.0;
  Cell& hybrid = cells[{"facts", 2048, 0.125, "hybrid"}];
  hybrid.AddVerdict({true, true, true, {0.0, 0.2}});
  hybrid.AddVerdict({true, false, false, {0.4}});
  hybrid.AddVerdict({false, true, false, {0.2}});
  hybrid.AddReads(reads, 256, 30);
  hybrid.captured_mass = {0.5, 1.0};
  hybrid.index_share = 0.03;
  hybrid.num_documents = 1;
  cells[{"facts", 2048, 0.0625, "hybrid"}].AddReads(reads, 200, 1);
  cells[{"facts", 2048, 1.0, "dense"}].AddVerdict({true, true, true, {0.0}});
  return cells;
}

TEST(CommandEvaluationTest, CellsAddUp) {
  const Cells cells = SyntheticCells();
  const Cell& cell = cells.at({"facts", 2048, 0.125, "hybrid"});
  EXPECT_EQ(cell.num_questions, 3);
  EXPECT_EQ(cell.num_dense_right, 2);
  EXPECT_EQ(cell.num_right, 2);
  EXPECT_DOUBLE_EQ(cell.kept_share(), 0.5);
  EXPECT_DOUBLE_EQ(Mean(cell.divergence), 0.2);
  EXPECT_DOUBLE_EQ(cell.attended_mean(), 200.0);
  EXPECT_DOUBLE_EQ(cell.budget_mean(), 256.0);
  EXPECT_DOUBLE_EQ(cell.most_attended_of_budget, 200.0 / 256.0);
}

TEST(CommandEvaluationTest, TableBeginsWithDenseThenLargeBudgets) {
  const std::string table = EvaluationTable(SyntheticCells());
  const size_t dense = table.find("| all | dense |");
  const size_t large = table.find(
      "| facts | 2048 | 0.125 | hybrid | 3 | 2 | 0.500 | 0.333 | 0.20000 | 200 | 0.750 | 0.525 |");
  const size_t small = table.find("| 0.0625 | hybrid |");
  ASSERT_NE(small, std::string::npos) << table;
  ASSERT_NE(large, std::string::npos) << table;
  EXPECT_LT(dense, large);
  EXPECT_LT(large, small);
}

TEST(CommandEvaluationTest, JsonHasTheCells) {
  const nlohmann::json json = nlohmann::json::parse(EvaluationJson("m", 1, SyntheticCells()));
  ASSERT_EQ(json.at("cells").size(), 3u);
  const nlohmann::json& cell = json["cells"][1];
  EXPECT_EQ(cell.at("policy"), "hybrid");
  EXPECT_EQ(cell.at("kept"), 1);
  EXPECT_EQ(cell.at("captured_mass_mean"), 0.75);
  EXPECT_EQ(cell.at("fallbacks").size(), 0u);
}

}  // namespace
}  // namespace semkv::command
