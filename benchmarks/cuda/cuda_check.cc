#include "benchmarks/cuda/cuda_check.h"

#include <cstdio>
#include <vector>

#include "benchmarks/cuda/cuda_case.h"
#include "benchmarks/cuda/cuda_twin.h"

namespace semkv {
namespace {

// What is wrong, or nothing.
std::string CheckCase(const CudaCase& c) {
  CudaArena arena;
  const CudaLaunch launch = c.prepare(arena, 1);
  cudaError_t error = arena.error();
  if (error == cudaSuccess && launch.before_replay) error = launch.before_replay(nullptr);
  const CudaTwin before(arena);
  if (error == cudaSuccess) error = launch.enqueue(0, nullptr);
  const CudaTwin after(arena);
  if (error == cudaSuccess) error = arena.error();
  return error == cudaSuccess ? launch.check(before, after) : cudaGetErrorString(error);
}

}  // namespace

std::vector<CudaCase> AllCudaCases(int32_t shrink) {
  std::vector<CudaCase> cases;
  AddAttentionCases(shrink, cases);
  AddRetrievalCases(shrink, cases);
  AddMovementCases(shrink, cases);
  AddListsCases(shrink, cases);
  AddStepCases(shrink, cases);
  return cases;
}

int CheckCudaCases(const std::string& filter) {
  int num_wrong = 0;
  for (const CudaCase& c : AllCudaCases(kCheckShrink)) {
    if (c.name.find(filter) == std::string::npos) continue;
    const std::string wrong = CheckCase(c);
    num_wrong += wrong.empty() ? 0 : 1;
    std::printf("%-64s %s\n", c.name.c_str(), wrong.empty() ? "as the reference" : wrong.c_str());
    std::fflush(stdout);
  }
  return num_wrong;
}

void ListCudaCases() {
  for (const CudaCase& c : AllCudaCases(1)) std::printf("%s\n", c.name.c_str());
}

}  // namespace semkv
