// How long launches take: captured in a CUDA graph, replayed, between events. Where kernels are
// emulated every launch runs once, and times say nothing.

#ifndef SEMKV_BENCHMARKS_CUDA_CUDA_TIMER_H_
#define SEMKV_BENCHMARKS_CUDA_CUDA_TIMER_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>

#include "benchmarks/cuda/cuda_case.h"

namespace semkv {

#ifdef SEMKV_EMULATED
constexpr bool kIsEmulated = true;
#else
constexpr bool kIsEmulated = false;
#endif

struct CudaTimes {
  double least_us = 0.0, median_us = 0.0;  // of one layer's launch
};

// Of a graph with the launches of all layers one after the other.
cudaError_t TimeLayers(const CudaLaunch& launch, int32_t num_layers, CudaTimes* times);

// Gigabytes per second: of a copy within the GPU's memory, read and written, and of one from
// page-locked host memory.
cudaError_t MeasureYardsticks(double* memory_gbs, double* bus_gbs);

}  // namespace semkv

#endif  // SEMKV_BENCHMARKS_CUDA_CUDA_TIMER_H_
