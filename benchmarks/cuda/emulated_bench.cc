// The GPU's micro-benchmarks over the SIMT harness, at a 64th of the sizes: that they run.

#include "benchmarks/cuda/cuda_bench.h"

int main(int argc, char** argv) { return semkv::RunCudaBenchmarks(argc - 1, argv + 1); }
