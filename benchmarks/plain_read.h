// The yardstick of every memory-bound operation: the shortest time in which this machine reads the
// same bytes, measured in the same process and between the measurements it is compared with.

#ifndef SEMKV_BENCHMARKS_PLAIN_READ_H_
#define SEMKV_BENCHMARKS_PLAIN_READ_H_

#include <cstddef>
#include <cstdint>

namespace semkv {

class ThreadPool;

// Reads `bytes` bytes, a multiple of 4 KiB, with the widest loads and the prefetch distance that
// served best; returns their exclusive or, so that the reads are not optimised away.
uint64_t PlainRead(const void* data, size_t bytes);

// The same in equal contiguous shares on the threads of `pool`.
uint64_t PlainRead(const void* data, size_t bytes, ThreadPool& pool);

// Reads rows of `row_bytes`, a multiple of 256, at data + offsets[i], the rows of a few turns ahead
// asked for: the shortest time in which one thread reads rows that lie scattered.
uint64_t PlainReadRows(const void* data, const int64_t* offsets, size_t num_rows, size_t row_bytes);

}  // namespace semkv

#endif  // SEMKV_BENCHMARKS_PLAIN_READ_H_
