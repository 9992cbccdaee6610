// The stored form of inverted lists, of many cells at once: vectors of the lists' keys, encoded,
// and the lists' places, appended to the arrays of a store. Keys of a cell lie side by side.
//
// The vectors are those of list_means.h: mean key and variance, encoded as EncodeInt8, EncodeInt4
// and EncodeBFloat16 do, or ListBounds. Members whose key is not finite are left out; a list
// without finite members has mean 0 (so the code of 0 - center), variance 0 and bounds 0.
//
// What ListStore::AppendCell (csrc/api/list_store.cc) does cell by cell, over list_means, is the
// host form of this.
//
// Source: as list_means.h; bounds of keys are Quest's.

#ifndef SEMKV_OPS_CACHE_APPEND_LISTS_H_
#define SEMKV_OPS_CACHE_APPEND_LISTS_H_

#include <cstdint>

#include "csrc/ops/retrieval/inverted_lists.h"
#include "semkv/types.h"

namespace semkv {

// List i of a cell has members [offsets[i], offsets[i + 1]) and goes to list first_list + i of the
// store. Nothing else of the store is written; without lists nothing is.
struct AppendListsParams {
  int32_t num_cells = 0;
  int32_t head_dim = 0;
  int32_t nlist = 0;              // of every cell
  DType dtype = DType::kFloat32;  // of the keys
  CentroidForm form = CentroidForm::kInt8;
  const void* keys = nullptr;         // of each cell: rows [head_dim], side by side
  int64_t key_cell = 0;               // elements from cell to cell
  const uint16_t* offsets = nullptr;  // of each cell: [nlist + 1]; offsets[0] need not be 0
  int64_t offsets_cell = 0;           // elements from cell to cell; 0: the same in all
  const uint16_t* members = nullptr;  // of each cell: rows of keys; null: list i is the range of
                                      // rows [offsets[i], offsets[i + 1])
  int64_t members_cell = 0;           // elements from cell to cell
  const float* centers = nullptr;     // [num_cells, head_dim], where HasCenter; null: 0

  int32_t max_lists = 0;       // of a cell of the store
  int32_t first_list = 0;      // where the lists go
  void* centroids = nullptr;   // out: [num_cells, max_lists, head_dim], of the form's type;
                               // kBounds: [num_cells, max_lists, 2, head_dim], least first
  float* scales = nullptr;     // out: [num_cells, max_lists], where HasScales
  float* variances = nullptr;  // out: [num_cells, max_lists], not kBounds; may be null

  // Places; null: not written.
  uint16_t* list_offsets = nullptr;  // out: [num_cells, max_lists + 1]: entry first_list + i, for
                                     // i in [0, nlist], is first_member + offsets[i] - offsets[0]
  uint16_t* list_members = nullptr;  // out: [num_cells, max_members]: from first_member on,
                                     // members [offsets[0], offsets[nlist]) + member_shift
  int32_t max_members = 0;           // of a cell of the store
  int32_t first_member = 0;          // where the members go
  int32_t member_shift = 0;          // added to every member that is written
};

// In plain loops, sums in float64: the specification. All pointers are host pointers.
void AppendListsReference(const AppendListsParams& params);

// Null when the CUDA form takes `params`, else the reason.
inline const char* AppendListsCudaUnsupported(const AppendListsParams& params) {
  const int32_t d = params.head_dim;
  if (params.num_cells < 0 || params.num_cells > 65535) return "num_cells is not in 0..65535";
  if (params.nlist < 0 || params.nlist > 65535) return "nlist is not in 0..65535";
  if (d != 64 && d != 80 && d != 96 && d != 128 && d != 256) {
    return "head_dim is not 64, 80, 96, 128 or 256";
  }
  if (params.dtype != DType::kFloat16 && params.dtype != DType::kBFloat16) {
    return "keys are not float16 or bfloat16";
  }
  if (reinterpret_cast<uintptr_t>(params.keys) % 16 != 0 || params.key_cell % 8 != 0) {
    return "keys of a cell do not begin at a multiple of 16 bytes";
  }
  return nullptr;
}

}  // namespace semkv

#endif  // SEMKV_OPS_CACHE_APPEND_LISTS_H_
