// From a dtype at run time to a template argument. Host code; float_convert-inl.h has the form that
// is compiled once per Highway target.

#ifndef SEMKV_OPS_CUDA_DISPATCH_H_
#define SEMKV_OPS_CUDA_DISPATCH_H_

#include <cassert>
#include <type_traits>

#include "semkv/types.h"

namespace semkv::cuda {

// Returns f(std::integral_constant<DType, dtype>). dtype is not kFloat8E4M3, which has a scale too.
template <typename F>
auto DispatchDType(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat16:
      return f(std::integral_constant<DType, DType::kFloat16>{});
    case DType::kBFloat16:
      return f(std::integral_constant<DType, DType::kBFloat16>{});
    case DType::kFloat8E4M3:
      assert(false);
      break;
    case DType::kFloat32:
      break;
  }
  return f(std::integral_constant<DType, DType::kFloat32>{});
}

}  // namespace semkv::cuda

#endif  // SEMKV_OPS_CUDA_DISPATCH_H_
