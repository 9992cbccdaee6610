// Every micro-benchmark of semkv: the host's by name and shape (`semkv_bench --help` lists the
// filters), the GPU's with --gpu (cuda/cuda_bench.h). Ratios are taken in one run, against a plain
// read of the same bytes (plain_read.h): `semkv_bench --ratios [part of a name]` prints their table
// and fails if one misses its goal.

#include <benchmark/benchmark.h>

#include <cstring>
#include <string>
#include <vector>

#ifdef SEMKV_BENCH_CUDA
#include "benchmarks/cuda/cuda_bench.h"
#endif
#include "benchmarks/ratios.h"

namespace {

// The rows of the table of times, as benchmarks of their own.
void RegisterTimes() {
  std::vector<semkv::TimeCase> cases;
  semkv::AddBlockManagerTimes(cases);
  for (const semkv::TimeCase& time_case : cases) {
    const std::string name =
        time_case.name + "/" + time_case.item + ":" + std::to_string(time_case.batch);
    benchmark::RegisterBenchmark(name.c_str(), [time_case](benchmark::State& state) {
      for (auto _ : state) {
        time_case.run();
        if (!time_case.clean_up) continue;
        state.PauseTiming();
        time_case.clean_up();
        state.ResumeTiming();
      }
      state.SetItemsProcessed(state.iterations() * time_case.num_calls * time_case.batch);
    });
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "--ratios") == 0) {
    return semkv::PrintRatios(argc > 2 ? argv[2] : "") == 0 ? 0 : 1;
  }
#ifdef SEMKV_BENCH_CUDA
  if (argc > 1 && std::strcmp(argv[1], "--gpu") == 0) {
    return semkv::RunCudaBenchmarks(argc - 2, argv + 2);
  }
#endif
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  RegisterTimes();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
