// The GPU's micro-benchmarks over the SIMT harness: --check, and that the rest runs.

#include "benchmarks/cuda/cuda_bench.h"

int main(int argc, char** argv) { return semkv::RunCudaBenchmarks(argc - 1, argv + 1); }
