// The reports of a synthetic run whose texts try to break them.

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "integration/reference/command/measurement.h"
#include "integration/reference/command/report_charts.h"
#include "integration/reference/command/report_html.h"
#include "integration/reference/command/report_json.h"
#include "integration/reference/command/report_table.h"

namespace semkv::command {
namespace {

constexpr char kNasty[] = "</script><img src=x onerror=\"alert('1')\"> & \xff\xe4";

PolicyMeasurement Policy(const std::string& name, bool agrees, double share) {
  PolicyMeasurement policy;
  policy.name = name;
  policy.answers = {"7413.", kNasty};
  policy.agrees_with_dense = {true, agrees};
  policy.mean_kl_to_dense = agrees ? 0.0 : 0.25;
  policy.captured_mass_mean = 0.9;
  policy.captured_mass_p5 = 0.7;
  policy.reads.attended_tokens_mean = 100.0 * share;
  policy.reads.kv_bytes_per_token = 4096.0 * 100.0 * share;
  policy.reads.dense_kv_bytes_per_token = 4096.0 * 100.0;
  policy.ms_per_token = 1.5;
  if (name == "dense") return policy;
  policy.reads.index_bytes_per_token = 1000.0;
  policy.reads.fallbacks = {{"short_context", 12}};
  policy.select_ms_per_token = 0.5;
  policy.index_build_ms = 33.0;
  policy.index_bytes = 20000;
  policy.budget_sweep = {{25, 0.5}, {50, 0.75}};
  policy.maps = {{0.0f, 1.0f, 0.001f, 0.0f}, {0.5f, 0.0f, 0.0f, 0.0f}};
  return policy;
}

RunMeasurement SyntheticRun() {
  RunMeasurement run;
  run.model = "tiny";
  run.version = "0.1.0";
  run.document = kNasty;
  run.geometry = {2, 2, 64, SEMKV_DTYPE_F32};
  run.context_tokens = 100;
  run.budget = 25;
  run.threads = 2;
  run.prefill_ms = 12.5;
  run.questions = {{"What is it?", "7413"}, {kNasty, ""}};
  run.policies = {Policy("dense", true, 1.0), Policy("hybrid", false, 0.25)};
  run.steps = {{0, false, kNasty}, {1, true, "7"}};
  run.bins = {{0, 50, kNasty}, {50, 50, "b"}};
  run.answer_bins = {{1}, {}};
  return run;
}

TEST(CommandReportTest, JsonHasEveryFieldAndFiniteNumbers) {
  const nlohmann::json json = nlohmann::json::parse(RunJson(SyntheticRun()));
  EXPECT_EQ(json.at("model"), "tiny");
  EXPECT_EQ(json.at("context_tokens"), 100);
  ASSERT_EQ(json.at("policies").size(), 2u);
  for (const nlohmann::json& policy : json.at("policies")) {
    EXPECT_TRUE(policy.at("name").is_string());
    EXPECT_EQ(policy.at("answers").size(), 2u);
    EXPECT_EQ(policy.at("agrees_with_dense").size(), 2u);
    EXPECT_TRUE(policy.at("agrees_with_dense")[0].is_boolean());
    EXPECT_TRUE(policy.at("fallbacks").is_object());
    for (const char* field :
         {"mean_kl_to_dense", "attended_tokens_mean", "captured_mass_mean", "captured_mass_p5",
          "kv_bytes_read_per_token", "dense_kv_bytes_per_token", "ms_per_token",
          "select_ms_per_token", "index_build_ms", "prefill_ms"}) {
      ASSERT_TRUE(policy.at(field).is_number()) << field;
      EXPECT_TRUE(std::isfinite(policy.at(field).get<double>())) << field;
    }
  }
  EXPECT_EQ(json["policies"][1]["fallbacks"]["short_context"], 12);
  EXPECT_EQ(json["policies"][1]["prefill_ms"], 12.5);
}

TEST(CommandReportTest, TableHasALinePerPolicyAndTheAnswers) {
  const std::string table = RunTable(SyntheticRun());
  EXPECT_TRUE(absl::StrContains(table, "hybrid     1/2  0.2500  0.900"));
  EXPECT_TRUE(absl::StrContains(table, "short_context 12"));
  EXPECT_TRUE(absl::StrContains(table, "  expected    7413"));
  EXPECT_TRUE(absl::StrContains(table, "  dense     = 7413."));
  EXPECT_TRUE(absl::StrContains(table, "  hybrid    ! "));
}

TEST(CommandReportTest, TableLinesAreAligned) {
  std::vector<std::string> lines = absl::StrSplit(RunTable(SyntheticRun()), '\n');
  ASSERT_GT(lines.size(), 4u);
  EXPECT_EQ(lines[2].size(), lines[3].size());
  EXPECT_EQ(lines[3].size(), lines[4].size());
}

TEST(CommandReportTest, PageEscapesWhatItShows) {
  const std::string page = RunHtml(SyntheticRun());
  EXPECT_FALSE(absl::StrContains(page, "<img"));
  EXPECT_TRUE(absl::StrContains(page, "&lt;/script&gt;&lt;img src=x onerror=&quot;alert(&#39;1"));
  // Two scripts, data and code, each closed once.
  const std::vector<std::string> parts = absl::StrSplit(page, "</script");
  EXPECT_EQ(parts.size(), 3u);
  EXPECT_FALSE(absl::StrContains(page, "\xff"));
}

TEST(CommandReportTest, PageNeedsNothingFromOutside) {
  const std::string page = RunHtml(SyntheticRun());
  for (const char* outside :
       {"http://", "https://", "src=\"", "href=", "@import", "url(", "fetch("}) {
    EXPECT_FALSE(absl::StrContains(page, outside)) << outside;
  }
}

TEST(CommandReportTest, PageShowsTablesAndChartsWithoutScript) {
  const std::string page = RunHtml(SyntheticRun());
  const std::string before_script = page.substr(0, page.find("<script"));
  for (const char* part : {"<h2>Policies</h2>", "<h2>Answers</h2>", "<polyline", "<rect",
                           "budget 50: 75.00 %", "short_context 12", "What is it?"}) {
    EXPECT_TRUE(absl::StrContains(before_script, part)) << part;
  }
}

TEST(CommandReportTest, PageWithoutMapsHasNoScript) {
  RunMeasurement run = SyntheticRun();
  run.steps.clear();
  EXPECT_FALSE(absl::StrContains(RunHtml(run), "<script"));
}

TEST(CommandReportTest, MapDataSurvivesTheScriptElement) {
  const std::string data = MapJson(SyntheticRun());
  EXPECT_FALSE(absl::StrContains(data, "<"));
  const nlohmann::json json = nlohmann::json::parse(data);
  EXPECT_TRUE(absl::StartsWith(json["steps"][0][2].get<std::string>(), "</script><img"));
  EXPECT_EQ(json["bins"][1][0], 50);
  EXPECT_EQ(json["places"][0][0], 1);
  ASSERT_EQ(json["policies"].size(), 1u);
  EXPECT_EQ(json["policies"][0]["layers"][0], "0z10");
}

TEST(CommandReportTest, OnlyNothingIsShownAsNothing) {
  EXPECT_EQ(EncodeShares({0.0f, 1e-6f, 1.0f, 2.0f}), "01zz");
}

TEST(CommandReportTest, NoSweepNoChart) {
  RunMeasurement run = SyntheticRun();
  run.policies.resize(1);
  EXPECT_EQ(MassChart(run), "");
}

TEST(CommandReportTest, BytesHaveThreeDigits) {
  EXPECT_EQ(FormatBytes(0.0), "0 B");
  EXPECT_EQ(FormatBytes(999.0), "999 B");
  EXPECT_EQ(FormatBytes(1000.0), "1.00 kB");
  EXPECT_EQ(FormatBytes(12345.0), "12.3 kB");
  EXPECT_EQ(FormatBytes(123456789.0), "123 MB");
}

TEST(CommandReportTest, ExpectedAnswersMatchButForCaseSpacesAndThePeriod) {
  EXPECT_TRUE(IsExpected("Otter.", " otter"));
  EXPECT_TRUE(IsExpected("7413", " 7413."));
  EXPECT_FALSE(IsExpected("74130", "7413"));
}

}  // namespace
}  // namespace semkv::command
