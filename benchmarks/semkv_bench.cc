// Every host micro-benchmark of semkv, by name and shape; `semkv_bench --help` lists the filters.
// Ratios are taken in one run, against a plain read of the same bytes (plain_read.h):
// `semkv_bench --ratios [part of a name]` prints their table and fails if one misses its goal.

#include <benchmark/benchmark.h>

#include <cstring>

#include "benchmarks/ratios.h"

int main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "--ratios") == 0) {
    return semkv::PrintRatios(argc > 2 ? argv[2] : "") == 0 ? 0 : 1;
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
