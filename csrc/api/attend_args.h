// What semkv_attend_args leaves to defaults: strides and scale.

#ifndef SEMKV_API_ATTEND_ARGS_H_
#define SEMKV_API_ATTEND_ARGS_H_

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "semkv/semkv.h"
#include "semkv/types.h"

namespace semkv {

struct Strides {
  int64_t token, head;
};

inline Strides QueryStrides(const semkv_attend_args& args, const semkv_options& options) {
  if (args.q_token == 0 && args.q_head == 0) {
    return {int64_t{options.num_heads} * options.head_dim, options.head_dim};
  }
  return {args.q_token, args.q_head};
}

inline Strides OutStrides(const semkv_attend_args& args, const semkv_options& options) {
  if (args.out_token == 0 && args.out_head == 0) {
    return {int64_t{options.num_heads} * options.head_dim, options.head_dim};
  }
  return {args.out_token, args.out_head};
}

inline float Scale(const semkv_attend_args& args, const semkv_options& options) {
  return args.scale > 0.0f ? args.scale : 1.0f / std::sqrt(static_cast<float>(options.head_dim));
}

// What every operation of a step is told alike of a call.
template <typename Params>
Params DescribeCall(const semkv_attend_args& args, const semkv_options& options) {
  Params params;
  params.q_dtype = static_cast<DType>(args.dtype);
  params.num_heads = options.num_heads;
  params.head_dim = options.head_dim;
  params.scale = Scale(args, options);
  return params;
}

template <typename T>
T* Advance(T* data, int64_t elements, DType dtype) {
  using Byte = std::conditional_t<std::is_const_v<T>, const uint8_t, uint8_t>;
  return static_cast<Byte*>(data) + elements * DTypeBytes(dtype);
}

}  // namespace semkv

#endif  // SEMKV_API_ATTEND_ARGS_H_
