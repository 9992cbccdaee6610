// k-means on the GPU. Apart from kmeans.h because it needs CUDA's headers.

#ifndef SEMKV_OPS_CLUSTERING_KMEANS_CUDA_H_
#define SEMKV_OPS_CLUSTERING_KMEANS_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstddef>

#include "csrc/ops/clustering/kmeans.h"
#include "csrc/ops/clustering/kmeans_plan.h"

namespace semkv {

// Runs kmeans.h, with float32 sums and with centroids rounded to the points' dtype (less their
// problem's mean point) where points choose between them: a point's centroid is then at most 2^-7
// (bfloat16) or 2^-10 (float16) of the greatest distance of a centroid from the mean farther than
// its nearest. Centroids that come out, means and objective are of float32. Results do not depend
// on the schedule.
//
// Enqueues 4 * iterations + 7 kernels on `stream`, 3 more for lone points where max_lone is not 0,
// and returns without waiting; may be captured in a graph. All pointers of `params` are device
// pointers, those inside its device array `problems` too; points are float16 or bfloat16, begin at
// multiples of 16 bytes and have strides that are multiples of 8. Problems may have changed since
// the plan was made. `workspace` is 256-byte aligned device memory of KMeansCudaWorkspaceBytes,
// whatever it holds; runs that may overlap need one each.
//
// REQUIRES: no problem has more points, lists or lone points than the plan's bounds.
//
// Returns cudaErrorInvalidValue for params that are not the plan's, what KMeansCudaUnsupported
// refuses, float32 points, and a workspace that is too small.
cudaError_t KMeansCuda(const KMeansParams& params, const KMeansPlan& plan, void* workspace,
                       size_t workspace_bytes, cudaStream_t stream);

}  // namespace semkv

#endif  // SEMKV_OPS_CLUSTERING_KMEANS_CUDA_H_
