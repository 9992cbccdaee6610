// The CUDA kernels' times beside the least time in which this GPU moves what they must move:
//
//   semkv_bench --gpu [--filter part of a name] [--json FILE]
//   semkv_bench --gpu [--filter part of a name] --check
//   semkv_bench --gpu --list
//
// A time is that of one layer's launch within a CUDA graph of many layers' launches, so it has the
// step from kernel to kernel in it (1 to 2 us); each layer has memory of its own, together more
// than caches hold. `floor` is bytes over the rate of a copy measured in the same run. With --check
// nothing is timed (cuda_check.h).

#ifndef SEMKV_BENCHMARKS_CUDA_CUDA_BENCH_H_
#define SEMKV_BENCHMARKS_CUDA_CUDA_BENCH_H_

namespace semkv {

// With the arguments behind --gpu. Returns the program's exit status.
int RunCudaBenchmarks(int argc, char** argv);

}  // namespace semkv

#endif  // SEMKV_BENCHMARKS_CUDA_CUDA_BENCH_H_
