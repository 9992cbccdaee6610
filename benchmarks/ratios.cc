#include "benchmarks/ratios.h"

#include <time.h>

#include <algorithm>
#include <cstdio>

namespace semkv {
namespace {

constexpr int kNumPairs = 25;

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

int PrintRatios(const std::string& filter) {
  std::vector<RatioCase> cases;
  AddDecodeAttentionRatios(cases);
  int num_missed = 0;
  std::printf("%-34s %9s %7s   %-22s %9s %7s %7s %6s\n", "case", "ms", "GB/s", "base", "base ms",
              "min/min", "median", "goal");
  for (const RatioCase& ratio_case : cases) {
    if (ratio_case.name.find(filter) == std::string::npos) continue;
    const RatioResult result = MeasureRatio(ratio_case, kNumPairs);
    const bool is_missed = std::max(result.best, result.median) < ratio_case.goal;
    num_missed += is_missed ? 1 : 0;
    std::printf("%-34s %9.3f %7.2f   %-22s %9.3f %7.3f %7.3f %6.2f%s\n", ratio_case.name.c_str(),
                1e3 * result.run_seconds, 1e-9 * ratio_case.bytes / result.run_seconds,
                ratio_case.base_name.c_str(), 1e3 * result.base_seconds, result.best, result.median,
                ratio_case.goal, is_missed ? "  missed" : "");
    std::fflush(stdout);
  }
  return num_missed;
}

}  // namespace semkv
