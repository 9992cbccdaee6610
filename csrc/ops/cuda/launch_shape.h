// Grid, CTA size and dynamic shared memory of a kernel launch: computed by host code that the SIMT
// harness and nvcc share. Standard library only.

#ifndef SEMKV_OPS_CUDA_LAUNCH_SHAPE_H_
#define SEMKV_OPS_CUDA_LAUNCH_SHAPE_H_

#include <cstdint>

namespace semkv {

constexpr int kWarpSize = 32;

struct LaunchShape {
  uint32_t grid_x = 1, grid_y = 1, grid_z = 1;  // CTAs; any 0: nothing is launched
  uint32_t threads = 1;                         // per CTA, at most 1,024
  uint32_t dynamic_shared_bytes = 0;            // per CTA, at most 227 KiB
  // Set up while the stream's previous kernel runs (dependent_launch.cuh).
  bool overlaps_previous = false;
};

// Above this much static and dynamic shared memory together a launch has to ask for it. It does so
// by the dynamic alone, which it knows: static memory is at most the difference.
constexpr uint32_t kSharedWithoutAsking = 48 * 1024;
constexpr uint32_t kDynamicWithoutAsking = 28 * 1024;

constexpr bool IsEmpty(const LaunchShape& shape) {
  return shape.grid_x == 0 || shape.grid_y == 0 || shape.grid_z == 0;
}

}  // namespace semkv

#endif  // SEMKV_OPS_CUDA_LAUNCH_SHAPE_H_
