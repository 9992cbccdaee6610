// What the benchmark's cases compute, against the references: the table that is timed is tested.

#ifndef SEMKV_BENCHMARKS_CUDA_CUDA_CHECK_H_
#define SEMKV_BENCHMARKS_CUDA_CUDA_CHECK_H_

#include <string>

namespace semkv {

// Launches every case whose name contains `filter` once, at a 64th of its size, and compares what
// it wrote with its reference. Prints a line of each; returns how many are wrong, or could not be
// run.
int CheckCudaCases(const std::string& filter);

// Prints the names of all cases.
void ListCudaCases();

}  // namespace semkv

#endif  // SEMKV_BENCHMARKS_CUDA_CUDA_CHECK_H_
