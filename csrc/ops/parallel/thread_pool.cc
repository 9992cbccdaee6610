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
  num_running_.store(static_cast<int32_t>(num_tasks), std::memory_order_relaxed);
  const uint32_t epoch = epoch_.load(std::memory_order_relaxed) + 1;
  tickets_.store(uint64_t{epoch} << 32 | static_cast<uint64_t>(num_tasks),
                 std::memory_order_release);
  epoch_.store(epoch, std::memory_order_release);
  epoch_.notify_all();
  TakeTasks(0);
  for (int32_t running = num_running_.load(std::memory_order_acquire); running != 0;
       running = num_running_.load(std::memory_order_acquire)) {
    WaitWhileEqual(num_running_, running);
  }
}

void ThreadPool::TakeTasks(int thread) {
  uint64_t tickets = tickets_.load(std::memory_order_relaxed);
  while (static_cast<uint32_t>(tickets) != 0) {
    if (!tickets_.compare_exchange_weak(tickets, tickets - 1, std::memory_order_acquire,
                                        std::memory_order_relaxed)) {
      continue;
    }
    function_(context_, num_tasks_ - static_cast<uint32_t>(tickets), thread);
    // The release also tells Run what the task wrote.
    if (num_running_.fetch_sub(1, std::memory_order_acq_rel) == 1) num_running_.notify_one();
    tickets = tickets_.load(std::memory_order_relaxed);
  }
}

void ThreadPool::Work(int thread) {
  uint32_t seen = 0;
  while (true) {
    WaitWhileEqual(epoch_, seen);
    seen = epoch_.load(std::memory_order_acquire);
    if (stop_.load(std::memory_order_relaxed)) return;
    TakeTasks(thread);
  }
}

}  // namespace semkv
