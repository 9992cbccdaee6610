// Every host micro-benchmark of semkv, by name and shape; `semkv_bench --help` lists the filters.
// Ratios are taken in one run, against a plain read of the same bytes (plain_read.h).

#include <benchmark/benchmark.h>

BENCHMARK_MAIN();
