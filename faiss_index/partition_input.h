// The argument check that every partitioner begins with.

#ifndef SEMKV_FAISS_INDEX_PARTITION_INPUT_H_
#define SEMKV_FAISS_INDEX_PARTITION_INPUT_H_

#include "absl/status/status.h"
#include "faiss_index/partitioner.h"

namespace semkv {

absl::Status CheckPartitionInput(const PartitionInput& input, const Partitioner& partitioner);

}  // namespace semkv

#endif  // SEMKV_FAISS_INDEX_PARTITION_INPUT_H_
