// The semantic vectors of the inverted lists of one partition: mean key, variance around it, and
// their stored forms.
//
//   mean[i]     = sum over members t of list i of keys[t] / size[i]           (float32
//   accumulation) variance[i] = sum over members t of |keys[t] - mean[i]|^2 / size[i]
//
// Members whose key is not finite are left out of both (the caller attends such tokens always);
// a list without finite members has mean 0, variance 0.
//
// Source: SentenceKV section 4 (mean key), ClusterKV section III-B; the variance is ours.

#ifndef SEMKV_OPS_CACHE_LIST_MEANS_H_
#define SEMKV_OPS_CACHE_LIST_MEANS_H_

#include <cstdint>

namespace semkv {

struct ListMeansParams {
  const float* keys = nullptr;  // [num_tokens, head_dim]
  int32_t head_dim = 0;
  int32_t nlist = 0;
  const uint16_t* offsets = nullptr;  // [nlist + 1]
  const uint16_t* members = nullptr;  // null: list i is the range [offsets[i], offsets[i + 1])
  float* means = nullptr;             // out: [nlist, head_dim]
  float* variances = nullptr;         // out: [nlist]; may be null
};

void ListMeansHost(const ListMeansParams& params);
void ListMeansReference(const ListMeansParams& params);

// Least and greatest key per channel of each list, as bf16 rounded outwards: [nlist, 2, head_dim].
// Members whose key is not finite are left out here too; a list without finite members has bounds
// 0.
void ListBounds(const ListMeansParams& params, uint16_t* bounds);

// codes[i] = round((mean[i] - center) / scales[i]), scales[i] = max |mean[i] - center| / 127; below
// 1e-30 scale and codes are 0. center may be null (0).
void EncodeInt8(const float* means, const float* center, int32_t nlist, int32_t head_dim,
                int8_t* codes, float* scales);
// The same with codes in [-7, 7], scales[i] = max |mean[i] - center| / 7, as CentroidForm::kInt4
// has them: [nlist, Int4Channels(head_dim) / 2].
void EncodeInt4(const float* means, const float* center, int32_t nlist, int32_t head_dim,
                uint8_t* codes, float* scales);
// codes[i] = bf16(mean[i] - center); center may be null (0).
void EncodeBFloat16(const float* means, const float* center, int32_t nlist, int32_t head_dim,
                    uint16_t* codes);

}  // namespace semkv

#endif  // SEMKV_OPS_CACHE_LIST_MEANS_H_
