#include "csrc/ops/parallel/thread_pool.h"

namespace semkv {
namespace {

// A layer's regions follow each other within microseconds, so a worker looks a while before it
// sleeps; a futex wake costs more than most regions.
constexpr int kSpins = 4000;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

template <typename T>
void WaitWhileEqual(const std::atomic<T>& value, T old) {
  for (int spin = 0; spin < kSpins; ++spin) {
    if (value.load(std::memory_order_acquire) != old) return;
    Pause();
  }
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  workers_.reserve(num_threads > 1 ? num_threads - 1 : 0);
  for (int thread = 1; thread < num_threads; ++thread) {
    workers_.emplace_back([this, thread] { Work(thread); });
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::RunErased(int64_t num_tasks, const void* context, Function function) {
  if (num_tasks <= 0) return;
  if (workers_.empty() || num_tasks == 1) {
    for (int64_t index = 0; index < num_tasks; ++index) function(context, index, 0);
    return;
  }
  context_ = context;
  function_ = function;
  num_tasks_ = num_tasks;
  next_task_.store(0, std::memory_order_relaxed);
  num_busy_.store(static_cast<int32_t>(workers_.size()), std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  TakeTasks(0);
  for (int32_t busy = num_busy_.load(std::memory_order_acquire); busy != 0;
       busy = num_busy_.load(std::memory_order_acquire)) {
    WaitWhileEqual(num_busy_, busy);
  }
}

void ThreadPool::TakeTasks(int thread) {
  for (int64_t index = next_task_.fetch_add(1, std::memory_order_relaxed); index < num_tasks_;
       index = next_task_.fetch_add(1, std::memory_order_relaxed)) {
    function_(context_, index, thread);
  }
}

void ThreadPool::Work(int thread) {
  uint32_t seen = 0;
  while (true) {
    WaitWhileEqual(epoch_, seen);
    // One epoch at a time: RunErased does not raise the next before every worker finished this one.
    ++seen;
    if (stop_.load(std::memory_order_relaxed)) return;
    TakeTasks(thread);
    if (num_busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) num_busy_.notify_one();
  }
}

}  // namespace semkv
