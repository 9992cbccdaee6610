#include "benchmarks/ratios.h"

#include <time.h>

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <limits>

namespace semkv {
namespace {

constexpr int kNumPairs = 25;
constexpr int kNumTimes = 25;

double Now(bool is_single_threaded) {
  timespec now;
  clock_gettime(is_single_threaded ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace

RatioResult MeasureRatio(const RatioCase& ratio_case, int num_pairs) {
  std::vector<double> run, base, ratio;
  for (int64_t i = -2; i < num_pairs; ++i) {
    const int64_t at = 2 * (i + 2);
    const double begin = Now(ratio_case.is_single_threaded);
    ratio_case.base(at);
    const double middle = Now(ratio_case.is_single_threaded);
    ratio_case.run(at + 1);
    const double base_time = middle - begin;
    const double run_time = Now(ratio_case.is_single_threaded) - middle;
    if (i < 0) continue;  // page faults, clock frequency
    run.push_back(run_time);
    base.push_back(base_time);
    ratio.push_back(base_time / run_time);
  }
  std::nth_element(ratio.begin(), ratio.begin() + ratio.size() / 2, ratio.end());
  RatioResult result;
  result.run_seconds = *std::min_element(run.begin(), run.end());
  result.base_seconds = *std::min_element(base.begin(), base.end());
  result.best = result.base_seconds / result.run_seconds;
  result.median = ratio[ratio.size() / 2];
  return result;
}

namespace {

// Returns whether the row met its goal.
bool PrintRatio(const RatioCase& ratio_case) {
  const RatioResult result = MeasureRatio(ratio_case, kNumPairs);
  std::string remark;
  bool is_met = std::max(result.best, result.median) >= ratio_case.goal;
  if (ratio_case.holds && !ratio_case.holds(&remark)) is_met = false;
  std::printf("%-38s %9.3f ", ratio_case.name.c_str(), 1e3 * result.run_seconds);
  if (ratio_case.bytes > 0) {
    std::printf("%7.2f", 1e-9 * ratio_case.bytes / result.run_seconds);
  } else {
    std::printf("%7s", "");
  }
  std::printf("   %-20s %9.3f %7.3f %7.3f ", ratio_case.base_name.c_str(),
              1e3 * result.base_seconds, result.best, result.median);
  if (ratio_case.goal > 0) {
    std::printf("%6.2f", ratio_case.goal);
  } else {
    std::printf("%6s", "");
  }
  std::printf("%s%s%s\n", is_met ? "" : "  missed", remark.empty() ? "" : "  ", remark.c_str());
  std::fflush(stdout);
  return is_met;
}

void PrintTime(const TimeCase& time_case) {
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kNumTimes; ++i) {
    const double begin = Now(/*is_single_threaded=*/true);
    time_case.run();
    best = std::min(best, Now(/*is_single_threaded=*/true) - begin);
    if (time_case.clean_up) time_case.clean_up();
  }
  const double nanoseconds = 1e9 * best / time_case.num_calls;
  std::printf("%-38s %9.1f   %6d %-7s %9.2f   %s\n", time_case.name.c_str(), nanoseconds,
              time_case.batch, time_case.item.c_str(), nanoseconds / time_case.batch,
              time_case.lock.c_str());
}

template <typename Case>
std::vector<Case> Wanted(const std::vector<Case>& cases, const std::string& filter) {
  std::vector<Case> wanted;
  std::copy_if(cases.begin(), cases.end(), std::back_inserter(wanted),
               [&](const Case& row) { return row.name.find(filter) != std::string::npos; });
  return wanted;
}

int PrintRatioTable(const std::string& filter) {
  std::vector<RatioCase> cases;
  AddDecodeAttentionRatios(cases);
  AddSelectionRatios(cases);
  AddListMeansRatios(cases);
  AddKMeansRatios(cases);
  cases = Wanted(cases, filter);
  if (cases.empty()) return 0;
  std::printf("%-38s %9s %7s   %-20s %9s %7s %7s %6s\n", "case", "ms", "GB/s", "base", "base ms",
              "min/min", "median", "goal");
  int num_missed = 0;
  for (const RatioCase& ratio_case : cases) num_missed += PrintRatio(ratio_case) ? 0 : 1;
  std::printf("%d of %zu ratios miss their goal\n", num_missed, cases.size());
  return num_missed;
}

void PrintTimeTable(const std::string& filter) {
  std::vector<TimeCase> cases;
  AddBlockManagerTimes(cases);
  cases = Wanted(cases, filter);
  if (cases.empty()) return;
  std::printf("%-38s %9s   %6s %-7s %9s   %s\n", "call", "ns", "batch", "of", "ns/item", "lock");
  for (const TimeCase& time_case : cases) PrintTime(time_case);
}

}  // namespace

int PrintRatios(const std::string& filter) {
  const int num_missed = PrintRatioTable(filter);
  PrintTimeTable(filter);
  return num_missed;
}

}  // namespace semkv
