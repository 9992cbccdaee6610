#include "integration/reference/command/report_table.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace semkv::command {
namespace {

std::string Cell(const RunMeasurement& run, const PolicyMeasurement& policy, size_t column) {
  const ReadSummary& reads = policy.reads;
  const double dense_bytes = reads.dense_kv_bytes_per_token;
  switch (column) {
    case 0:
      return policy.name;
    case 1:
      return absl::StrFormat(
          "%d/%d",
          std::count(policy.agrees_with_dense.begin(), policy.agrees_with_dense.end(), true),
          policy.agrees_with_dense.size());
    case 2:
      return absl::StrFormat("%.4f", policy.mean_kl_to_dense);
    case 3:
      return absl::StrFormat("%.3f", policy.captured_mass_mean);
    case 4:
      return absl::StrFormat("%.3f", policy.captured_mass_p5);
    case 5:
      return absl::StrFormat("%.0f", reads.attended_tokens_mean);
    case 6:
      return FormatBytes(reads.kv_bytes_per_token + reads.index_bytes_per_token);
    case 7:
      return absl::StrFormat("%.1f %%",
                             100.0 * (reads.kv_bytes_per_token + reads.index_bytes_per_token) /
                                 std::max(dense_bytes, 1.0));
    case 8:
      return absl::StrFormat("%.2f", policy.ms_per_token);
    case 9:
      return absl::StrFormat("%.2f", policy.select_ms_per_token);
    case 10:
      return absl::StrFormat("%.0f", policy.index_build_ms);
    default:
      return absl::StrFormat(
          "%.1f %%", 100.0 * run.geometry.IndexShare(policy.index_bytes, run.context_tokens));
  }
}

// Columns of a terminal that `text` takes: code points, near enough for names and numbers.
size_t Width(absl::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
}

void AppendAligned(const std::vector<TableColumn>& columns, std::string* out) {
  std::vector<size_t> widths;
  for (const TableColumn& column : columns) {
    size_t width = Width(column.head);
    for (const std::string& cell : column.cells) width = std::max(width, Width(cell));
    widths.push_back(width);
  }
  const auto line = [&](auto text_of) {
    std::string row;
    for (size_t c = 0; c < columns.size(); ++c) {
      const std::string& text = text_of(columns[c]);
      const std::string padding(widths[c] - Width(text), ' ');
      // Names to the left, numbers to the right.
      absl::StrAppend(&row, c == 0 ? "" : "  ", c == 0 ? text : padding, c == 0 ? padding : text);
    }
    absl::StrAppend(out, row, "\n");
  };
  line([](const TableColumn& column) -> const std::string& { return column.head; });
  const size_t num_rows = columns.front().cells.size();
  for (size_t r = 0; r < num_rows; ++r) {
    line([r](const TableColumn& column) -> const std::string& { return column.cells[r]; });
  }
}

std::string OnOneLine(std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

void AppendAnswers(const RunMeasurement& run, std::string* out) {
  int name_width = 8;
  for (const PolicyMeasurement& policy : run.policies) {
    name_width = std::max(name_width, static_cast<int>(policy.name.size()));
  }
  for (size_t q = 0; q < run.questions.size(); ++q) {
    const std::string& expected = run.questions[q].expected;
    absl::StrAppend(out, "\n", OnOneLine(run.questions[q].text), "\n");
    if (!expected.empty()) {
      absl::StrAppendFormat(out, "  %-*s    %s\n", name_width, "expected", expected);
    }
    for (const PolicyMeasurement& policy : run.policies) {
      absl::StrAppendFormat(out, "  %-*s  %s %s\n", name_width, policy.name,
                            policy.agrees_with_dense[q] ? "=" : "!", OnOneLine(policy.answers[q]));
    }
  }
}

absl::string_view Bare(absl::string_view answer) {
  answer = absl::StripAsciiWhitespace(answer);
  absl::ConsumeSuffix(&answer, ".");
  return absl::StripAsciiWhitespace(answer);
}

}  // namespace

std::vector<TableColumn> RunColumns(const RunMeasurement& run) {
  std::vector<TableColumn> columns = {{"policy", {}},     {"agrees", {}},   {"KL", {}},
                                      {"mass", {}},       {"mass p5", {}},  {"attended", {}},
                                      {"read/token", {}}, {"of dense", {}}, {"ms/token", {}},
                                      {"select ms", {}},  {"index ms", {}}, {"index/KV16", {}}};
  for (size_t c = 0; c < columns.size(); ++c) {
    for (const PolicyMeasurement& policy : run.policies) {
      columns[c].cells.push_back(Cell(run, policy, c));
    }
  }
  return columns;
}

std::string FormatBytes(double bytes) {
  constexpr const char* kUnits[] = {"B", "kB", "MB", "GB", "TB"};
  size_t unit = 0;
  while (bytes >= 999.5 && unit + 1 < std::size(kUnits)) {
    bytes /= 1000.0;
    ++unit;
  }
  const int decimals = unit == 0 || bytes >= 99.95 ? 0 : bytes >= 9.995 ? 1 : 2;
  return absl::StrFormat("%.*f %s", decimals, bytes, kUnits[unit]);
}

std::string FallbackNote(const PolicyMeasurement& policy) {
  if (policy.reads.fallbacks.empty()) return "";
  std::string note =
      absl::StrCat(policy.name, ": read densely, in (row, layer) pairs: ",
                   absl::StrJoin(policy.reads.fallbacks, ", ", absl::PairFormatter(" ")));
  if (policy.reads.fallbacks.count("short_context") != 0) {
    absl::StrAppend(&note,
                    " (the context is within the budget or below --min-context; see "
                    "--force-sparse)");
  }
  return note;
}

bool IsExpected(const std::string& answer, const std::string& expected) {
  return absl::EqualsIgnoreCase(Bare(answer), Bare(expected));
}

std::string RunTable(const RunMeasurement& run) {
  std::string out =
      absl::StrFormat("%s, %d tokens of %s, budget %d, %d threads, %s KV; prefill %.1f s\n\n",
                      run.model, run.context_tokens, run.document, run.budget, run.threads,
                      KvDtypeName(run.geometry.kv_dtype), run.prefill_ms / 1000.0);
  AppendAligned(RunColumns(run), &out);
  for (const PolicyMeasurement& policy : run.policies) {
    const std::string note = FallbackNote(policy);
    if (!note.empty()) absl::StrAppend(&out, note, "\n");
  }
  absl::StrAppend(&out, "\nAnswers (= the same tokens as dense, ! others):\n");
  AppendAnswers(run, &out);
  return out;
}

}  // namespace semkv::command
