// Programmatic dependent launch (sm_90 on): a kernel whose LaunchShape says overlaps_previous is
// set up while the stream's previous kernel still runs, which hides most of a launch's 1 to 2 us.

#ifndef SEMKV_OPS_CUDA_DEPENDENT_LAUNCH_CUH_
#define SEMKV_OPS_CUDA_DEPENDENT_LAUNCH_CUH_

namespace semkv {

// The first statement of such a kernel, by every thread: nothing before it may touch global memory.
// Returns when all that the stream was given before is done and visible, as an ordinary launch
// begins; then lets the next kernel be set up. In an ordinary launch it returns at once.
//
// A kernel that returned without it would be done before the kernels it follows are, and the next
// one would take that for theirs too; so no thread may leave before it either.
#ifdef SEMKV_SIMT

__device__ inline void WaitForPreviousKernel() { simt::WaitForPreviousKernel(); }

#else

__device__ __forceinline__ void WaitForPreviousKernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#endif

}  // namespace semkv

#endif  // SEMKV_OPS_CUDA_DEPENDENT_LAUNCH_CUH_
