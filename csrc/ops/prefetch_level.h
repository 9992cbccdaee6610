// How near the host kernels ask for what they will read.

#ifndef SEMKV_OPS_PREFETCH_LEVEL_H_
#define SEMKV_OPS_PREFETCH_LEVEL_H_

namespace semkv {

// An AMD core (Zen 4) has too few outstanding fills of its first-level cache for a stream from
// memory, so what comes next is brought into the second; an Intel core (Cascade Lake) has them and
// then finds it nearer.
inline bool PrefetchesIntoL2() {
#if defined(__x86_64__)
  static const bool is_amd = __builtin_cpu_is("amd");
  return is_amd;
#else
  return false;
#endif
}

}  // namespace semkv

#endif  // SEMKV_OPS_PREFETCH_LEVEL_H_
