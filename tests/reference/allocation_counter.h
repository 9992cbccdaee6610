// Counts what a test program takes from operator new: link allocation_counter.cc.

#ifndef SEMKV_TESTS_REFERENCE_ALLOCATION_COUNTER_H_
#define SEMKV_TESTS_REFERENCE_ALLOCATION_COUNTER_H_

#include <cstdint>

namespace semkv::reference {

// Allocations of every thread since the program began.
int64_t AllocationCount();

}  // namespace semkv::reference

#endif  // SEMKV_TESTS_REFERENCE_ALLOCATION_COUNTER_H_
