#include "csrc/ops/parallel/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <vector>

namespace semkv {
namespace {

TEST(ThreadPoolTest, RunsEveryIndexExactlyOnce) {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    for (int64_t num_tasks : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> hits(num_tasks);
      pool.Run(num_tasks, [&](int64_t index, int thread) {
        ASSERT_GE(thread, 0);
        ASSERT_LT(thread, pool.num_threads());
        hits[index].fetch_add(1);
      });
      for (const std::atomic<int>& hit : hits) EXPECT_EQ(hit.load(), 1);
    }
  }
}

TEST(ThreadPoolTest, ScratchOfAThreadIsNeverUsedTwiceAtOnce) {
  ThreadPool pool(4);
  std::vector<std::atomic<int>> in_use(4);
  pool.Run(2000, [&](int64_t, int thread) {
    EXPECT_EQ(in_use[thread].fetch_add(1), 0);
    in_use[thread].fetch_sub(1);
  });
}

// Region after region: a worker that missed an epoch, or a Run that returned early, shows as a
// wrong sum (and as a race under tsan, since the sums are plain).
TEST(ThreadPoolTest, ResultsOfARegionAreVisibleWhenRunReturns) {
  ThreadPool pool(3);
  std::vector<int64_t> out(64);
  for (int64_t round = 0; round < 5000; ++round) {
    pool.Run(64, [&](int64_t index, int) { out[index] = index * round; });
    for (int64_t i = 0; i < 64; ++i) ASSERT_EQ(out[i], i * round);
  }
}

}  // namespace
}  // namespace semkv
