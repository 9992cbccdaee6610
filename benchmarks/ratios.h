// Ratios of two times measured in one process, turn by turn, so that a number travels to other
// machines and a busy neighbour harms both sides alike.

#ifndef SEMKV_BENCHMARKS_RATIOS_H_
#define SEMKV_BENCHMARKS_RATIOS_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace semkv {

struct RatioCase {
  std::string name;
  std::string base_name;
  double goal = 0.0;  // least acceptable base time / run time
  // Processor time of the calling thread: what other programs take does not count. Only for work
  // that stays on this thread.
  bool is_single_threaded = true;
  double bytes = 0.0;  // that `run` reads at least
  // Called with increasing numbers, so that every call may work on other memory.
  std::function<void(int64_t)> run;
  std::function<void(int64_t)> base;
  // If set: says after the measurement whether what else the row promises holds, in a few words.
  std::function<bool(std::string*)> holds;
};

struct RatioResult {
  double run_seconds = 0.0;   // shortest
  double base_seconds = 0.0;  // shortest
  double best = 0.0;          // base_seconds / run_seconds
  double median = 0.0;        // of base / run, pair by pair
};

RatioResult MeasureRatio(const RatioCase& ratio_case, int num_pairs);

// A call that is too short to be compared with a read: nanoseconds, by the thread's processor time.
struct TimeCase {
  std::string name;
  std::string lock;   // what is held, and how often it is taken
  int32_t batch = 1;  // items per call
  std::string item;
  int32_t num_calls = 1;           // of one `run`
  std::function<void()> run;       // num_calls calls
  std::function<void()> clean_up;  // after each run, off the clock; may be empty
};

// Each benchmark file adds its rows.
void AddDecodeAttentionRatios(std::vector<RatioCase>& cases);
void AddSelectionRatios(std::vector<RatioCase>& cases);
void AddListMeansRatios(std::vector<RatioCase>& cases);
void AddKMeansRatios(std::vector<RatioCase>& cases);
void AddBlockManagerTimes(std::vector<TimeCase>& cases);

// Measures the rows whose name contains `filter` and prints the tables. Returns how many ratios
// miss their goal by the better of the two, or do not hold what else they promise.
int PrintRatios(const std::string& filter);

}  // namespace semkv

#endif  // SEMKV_BENCHMARKS_RATIOS_H_
