#include "integration/reference/command/report_html.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "integration/reference/command/page.h"
#include "integration/reference/command/report_charts.h"
#include "integration/reference/command/report_table.h"

namespace semkv::command {
namespace {

using Json = nlohmann::ordered_json;

std::string ValidUtf8(absl::string_view text) {
  const Json json = std::string(text);
  return Json::parse(json.dump(-1, ' ', false, Json::error_handler_t::replace));
}

void AppendHeader(const RunMeasurement& run, std::string* page) {
  absl::StrAppendFormat(
      page,
      "<header><h1>%s reads %s</h1>\n<p>%d tokens, budget %d per KV head and step, %d threads, %s "
      "keys and values, prefill %.1f s. semkv %s.</p></header>\n",
      EscapeHtml(run.model), EscapeHtml(run.document), run.context_tokens, run.budget, run.threads,
      KvDtypeName(run.geometry.kv_dtype), run.prefill_ms / 1000.0, run.version);
}

void AppendSummary(const RunMeasurement& run, std::string* page) {
  const std::vector<TableColumn> columns = RunColumns(run);
  absl::StrAppend(page, "<section><h2>Policies</h2>\n<div class=\"wide\"><table><thead><tr>");
  for (const TableColumn& column : columns) {
    absl::StrAppend(page, "<th>", EscapeHtml(column.head), "</th>");
  }
  absl::StrAppend(page, "</tr></thead><tbody>\n");
  for (size_t r = 0; r < run.policies.size(); ++r) {
    absl::StrAppend(page, "<tr>");
    for (size_t c = 0; c < columns.size(); ++c) {
      const std::string cell = EscapeHtml(columns[c].cells[r]);
      if (c == 0) {
        absl::StrAppend(page, "<th style=\"color:", PolicyColour(run.policies[r].name), "\">", cell,
                        "</th>");
      } else {
        absl::StrAppend(page, "<td>", cell, "</td>");
      }
    }
    absl::StrAppend(page, "</tr>\n");
  }
  absl::StrAppend(
      page,
      "</tbody></table></div>\n<p class=\"note\"><b>agrees</b>: answers with the same tokens "
      "as dense. <b>KL</b>: mean divergence of the next-token distributions from dense over "
      "the dense answers, nats. <b>mass</b>: share of the attention mass that the tokens "
      "read hold, mean and 5th percentile over layers and heads. <b>attended</b>: tokens per "
      "KV head and step. <b>read/token</b>: keys, values and index.</p>\n");
  for (const PolicyMeasurement& policy : run.policies) {
    const std::string note = FallbackNote(policy);
    if (!note.empty()) absl::StrAppend(page, "<p class=\"note\">", EscapeHtml(note), "</p>\n");
  }
  absl::StrAppend(page, "</section>\n");
}

std::string AnswerCell(const RunMeasurement& run, const PolicyMeasurement& policy, size_t q) {
  const std::string& expected = run.questions[q].expected;
  std::string mark = policy.agrees_with_dense[q]
                         ? "<span class=\"same\" title=\"the same tokens as dense\">=</span>"
                         : "<span class=\"other\" title=\"not dense's tokens\">&ne;</span>";
  if (policy.name == semkv_policy_name(SEMKV_POLICY_DENSE)) mark.clear();
  std::string right;
  if (!expected.empty()) {
    right = IsExpected(policy.answers[q], expected)
                ? "<span class=\"same\" title=\"as expected\">&#10003;</span>"
                : "<span class=\"other\" title=\"not as expected\">&#10007;</span>";
  }
  return absl::StrCat("<td class=\"answer\">", EscapeHtml(policy.answers[q]), " ", mark, right,
                      "</td>");
}

void AppendAnswers(const RunMeasurement& run, std::string* page) {
  const bool any_expected =
      std::any_of(run.questions.begin(), run.questions.end(),
                  [](const Question& question) { return !question.expected.empty(); });
  absl::StrAppend(
      page,
      "<section><h2>Answers</h2>\n<div class=\"wide\"><table class=\"answers\"><thead><tr>"
      "<th>question</th>",
      any_expected ? "<th>expected</th>" : "");
  for (const PolicyMeasurement& policy : run.policies) {
    absl::StrAppend(page, "<th style=\"color:", PolicyColour(policy.name), "\">", policy.name,
                    "</th>");
  }
  absl::StrAppend(page, "</tr></thead><tbody>\n");
  for (size_t q = 0; q < run.questions.size(); ++q) {
    absl::StrAppend(page, "<tr><th class=\"question\">", EscapeHtml(run.questions[q].text),
                    "</th>");
    if (any_expected) {
      absl::StrAppend(page, "<td class=\"answer\">", EscapeHtml(run.questions[q].expected),
                      "</td>");
    }
    for (const PolicyMeasurement& policy : run.policies) {
      absl::StrAppend(page, AnswerCell(run, policy, q));
    }
    absl::StrAppend(page, "</tr>\n");
  }
  absl::StrAppend(page,
                  "</tbody></table></div>\n<p class=\"note\"><span class=\"same\">=</span> "
                  "the same tokens as dense, <span class=\"other\">&ne;</span> others");
  if (any_expected) {
    absl::StrAppend(page,
                    "; <span class=\"same\">&#10003;</span> as expected, "
                    "<span class=\"other\">&#10007;</span> not");
  }
  absl::StrAppend(page, ".</p></section>\n");
}

void AppendMaps(const RunMeasurement& run, std::string* page) {
  if (run.steps.empty()) return;
  absl::StrAppend(
      page, "<section><h2>What each layer read</h2>\n<p class=\"note\">Across: the document, ",
      run.bins.size(), " parts of ", run.bins.empty() ? 0 : run.bins.front().num_tokens,
      " tokens. Down: the decode steps of a question, then of its answer. The darker, the larger "
      "the share of that part's tokens that was read (mean over KV heads). Red marks: where the "
      "answer stands in the document. Point at a map to read the text.</p>\n"
      "<noscript><p class=\"note\">The maps are drawn by a script; everything else on this page "
      "is not.</p></noscript>\n"
      "<div id=\"controls\"></div><div id=\"maps\"></div><div id=\"tip\" hidden></div></section>\n"
      "<script type=\"application/json\" id=\"data\">",
      MapJson(run), "</script>\n<script>", PageScript(), "</script>\n");
}

void AppendSweepTable(const RunMeasurement& run, std::string* page) {
  absl::StrAppend(page,
                  "<details><summary>Numbers</summary><table><thead><tr><th>policy</th>"
                  "<th>budget</th><th>mass</th></tr></thead><tbody>\n");
  for (const PolicyMeasurement& policy : run.policies) {
    for (const BudgetPoint& point : policy.budget_sweep) {
      absl::StrAppendFormat(page, "<tr><th>%s</th><td>%d</td><td>%.4f</td></tr>\n", policy.name,
                            point.budget, point.captured_mass_mean);
    }
  }
  absl::StrAppend(page, "</tbody></table></details>\n");
}

void AppendCharts(const RunMeasurement& run, std::string* page) {
  absl::StrAppend(page,
                  "<div class=\"charts\"><section><h2>Read per decoded token</h2>\n<p "
                  "class=\"note\">Solid: keys and values. Lighter: the index. Grey: what dense "
                  "attention reads.</p>\n",
                  BytesChart(run), "</section>\n");
  const std::string mass = MassChart(run);
  if (!mass.empty()) {
    absl::StrAppend(page,
                    "<section><h2>Mass captured against budget</h2>\n<p class=\"note\">Mean share "
                    "of the attention mass, over the answers' tokens, layers and heads.</p>\n",
                    mass);
    AppendSweepTable(run, page);
    absl::StrAppend(page, "</section>\n");
  }
  absl::StrAppend(page, "</div>\n");
}

}  // namespace

std::string EscapeHtml(absl::string_view text) {
  return absl::StrReplaceAll(
      ValidUtf8(text),
      {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}, {"'", "&#39;"}});
}

std::string EncodeShares(const std::vector<float>& shares) {
  constexpr absl::string_view kDigits =
      "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
  std::string encoded;
  encoded.reserve(shares.size());
  for (float share : shares) {
    const float level = std::ceil(std::clamp(share, 0.0f, 1.0f) * (kDigits.size() - 1));
    encoded.push_back(kDigits[static_cast<size_t>(level)]);
  }
  return encoded;
}

std::string MapJson(const RunMeasurement& run) {
  Json bins = Json::array();
  for (const MapBin& bin : run.bins) bins.push_back({bin.first_position, bin.num_tokens, bin.text});
  Json steps = Json::array();
  for (const MapStep& step : run.steps) {
    steps.push_back({step.question, step.is_answer ? 1 : 0, step.token});
  }
  Json questions = Json::array();
  for (const Question& question : run.questions) questions.push_back(question.text);
  Json policies = Json::array();
  for (const PolicyMeasurement& policy : run.policies) {
    if (policy.maps.empty()) continue;
    Json layers = Json::array();
    for (const std::vector<float>& layer : policy.maps) layers.push_back(EncodeShares(layer));
    policies.push_back(
        {{"name", policy.name}, {"colour", PolicyColour(policy.name)}, {"layers", layers}});
  }
  const Json json = {{"bins", bins},           {"steps", steps},
                     {"questions", questions}, {"places", run.answer_bins},
                     {"policies", policies},   {"layers", run.geometry.num_layers}};
  // "</script>" and "<!--" must not appear inside a script element.
  return absl::StrReplaceAll(json.dump(-1, ' ', false, Json::error_handler_t::replace),
                             {{"<", "\\u003c"}});
}

std::string RunHtml(const RunMeasurement& run) {
  std::string page = absl::StrCat(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n<meta name=\"viewport\" "
      "content=\"width=device-width, initial-scale=1\">\n<title>semkv: ",
      EscapeHtml(run.model), " reads ", EscapeHtml(run.document), "</title>\n<style>", PageStyle(),
      "</style></head><body>\n");
  AppendHeader(run, &page);
  AppendSummary(run, &page);
  AppendAnswers(run, &page);
  AppendCharts(run, &page);
  AppendMaps(run, &page);
  return page + "</body></html>\n";
}

}  // namespace semkv::command
