// How many times this program has called operator new, so that a test can see a call allocate
// nothing. Link count_allocations.cc.

#ifndef SEMKV_TESTS_TESTING_COUNT_ALLOCATIONS_H_
#define SEMKV_TESTS_TESTING_COUNT_ALLOCATIONS_H_

#include <cstdint>

namespace semkv::testing {

int64_t NumAllocations();

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_TESTING_COUNT_ALLOCATIONS_H_
