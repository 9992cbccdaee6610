#include "benchmarks/cuda/cuda_bench.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "benchmarks/cuda/cuda_check.h"
#include "benchmarks/cuda/cuda_timer.h"
#include "nlohmann/json.hpp"

namespace semkv {
namespace {

constexpr int64_t kCacheBytes = int64_t{256} << 20;  // more than the L2 of any GPU
constexpr int32_t kLeastLayers = 32, kMostLayers = 512;
constexpr int64_t kMostBytes = int64_t{32} << 30;  // of all layers

int32_t NumLayers(const CudaCase& c) {
  if (kIsEmulated) return 1;
  // A prompt's k-means, and its keys, move far more than caches hold.
  if (c.name.starts_with("kmeans") || c.name.starts_with("stage_keys")) return 2;
  const int64_t wanted = kCacheBytes / std::max<int64_t>(c.floor_bytes, 1) + 1;
  const int64_t held = std::max({c.layer_bytes, c.floor_bytes, int64_t{1}});
  const int64_t most = std::max<int64_t>(kMostBytes / held, 1);
  return static_cast<int32_t>(
      std::min(std::clamp<int64_t>(wanted, kLeastLayers, kMostLayers), most));
}

struct Rates {
  double memory_gbs = 0.0, bus_gbs = 0.0;
};

// Prints a line, and returns the same as JSON; null after an error, which is printed.
nlohmann::json RunCase(const CudaCase& c, const Rates& rates) {
  CudaArena arena;
  const int32_t num_layers = NumLayers(c);
  const CudaLaunch launch = c.prepare(arena, num_layers);
  cudaError_t error = arena.error();
  CudaTimes times;
  if (error == cudaSuccess) error = TimeLayers(launch, num_layers, &times);
  if (error != cudaSuccess) {
    std::printf("%-56s %s\n", c.name.c_str(), cudaGetErrorString(error));
    return nullptr;
  }
  const bool is_bus = c.yardstick == CudaYardstick::kBus;
  const double floor_us =
      1e-3 * static_cast<double>(c.floor_bytes) / (is_bus ? rates.bus_gbs : rates.memory_gbs);
  std::printf("%-56s %9.2f %9.2f %9.2f %7.2f %s\n", c.name.c_str(), times.median_us, times.least_us,
              floor_us, times.median_us / floor_us, is_bus ? "bus" : "");
  std::fflush(stdout);
  return {{"name", c.name},
          {"layers", num_layers},
          {"median_us", times.median_us},
          {"least_us", times.least_us},
          {"floor_bytes", c.floor_bytes},
          {"floor_us", floor_us}};
}

int Run(const std::string& filter, const std::string& json_path) {
  Rates rates;
  if (const cudaError_t error = MeasureYardsticks(&rates.memory_gbs, &rates.bus_gbs);
      error != cudaSuccess) {
    std::fprintf(stderr, "semkv_bench --gpu: %s\n", cudaGetErrorString(error));
    return 1;
  }
  std::printf("copy: %.0f GB/s within the GPU (read and written), %.1f GB/s from the host\n",
              rates.memory_gbs, rates.bus_gbs);
  std::printf("%-56s %9s %9s %9s %7s\n", "us per launch", "median", "least", "floor", "ratio");
  nlohmann::json results = {{"memory_gbs", rates.memory_gbs}, {"bus_gbs", rates.bus_gbs}};
  bool failed = false;
  for (const CudaCase& c : AllCudaCases(1)) {
    if (c.name.find(filter) == std::string::npos) continue;
    const nlohmann::json result = RunCase(c, rates);
    failed = failed || result.is_null();
    if (!result.is_null()) results["cases"].push_back(result);
  }
  if (!json_path.empty()) std::ofstream(json_path) << results.dump(1) << "\n";
  return failed ? 1 : 0;
}

}  // namespace

int RunCudaBenchmarks(int argc, char** argv) {
  std::string filter, json_path;
  bool checks = false;
  if (argc == 1 && std::strcmp(argv[0], "--list") == 0) {
    ListCudaCases();
    return 0;
  }
  for (int i = 0; i < argc; ++i) {
    if (std::strcmp(argv[i], "--check") == 0) {
      checks = true;
    } else if (i + 1 < argc && std::strcmp(argv[i], "--filter") == 0) {
      filter = argv[++i];
    } else if (i + 1 < argc && std::strcmp(argv[i], "--json") == 0) {
      json_path = argv[++i];
    } else {
      std::fprintf(stderr,
                   "usage: semkv_bench --gpu --list\n"
                   "       semkv_bench --gpu [--filter PART_OF_A_NAME] --check | [--json FILE]\n");
      return 2;
    }
  }
  if (checks) return CheckCudaCases(filter) == 0 ? 0 : 1;
  return Run(filter, json_path);
}

}  // namespace semkv
