// The measurements of `semkv run` as text for a terminal.

#ifndef SEMKV_INTEGRATION_REFERENCE_COMMAND_REPORT_TABLE_H_
#define SEMKV_INTEGRATION_REFERENCE_COMMAND_REPORT_TABLE_H_

#include <string>
#include <vector>

#include "integration/reference/command/measurement.h"

namespace semkv::command {

// The head of a column and its cell for every policy: what the terminal's and the page's table
// show.
struct TableColumn {
  std::string head;
  std::vector<std::string> cells;  // [num_policies]
};
std::vector<TableColumn> RunColumns(const RunMeasurement& run);

// A line about the run, an aligned table with a line per policy, the answers, and why rows were
// attended densely, if any were.
std::string RunTable(const RunMeasurement& run);

// "1.5 MB", in powers of 1,000, three significant digits.
std::string FormatBytes(double bytes);

// Why some of a policy's rows were attended densely, for a reader; "" if none was.
std::string FallbackNote(const PolicyMeasurement& policy);

// Whether an answer is the expected one, but for case, spaces around it and the closing period.
bool IsExpected(const std::string& answer, const std::string& expected);

}  // namespace semkv::command

#endif  // SEMKV_INTEGRATION_REFERENCE_COMMAND_REPORT_TABLE_H_
