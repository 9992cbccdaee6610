// A fixed set of threads that run the host operations. One Run at a time; the caller's thread works
// too, so a pool of one thread starts none.
//
// Why not oneTBB: a decode step runs a few of these regions per layer, each tens of microseconds
// long, and must not allocate (docs/design.md, section 10).
//
// Thread safety: Run may be called from one thread at a time.

#ifndef SEMKV_OPS_PARALLEL_THREAD_POOL_H_
#define SEMKV_OPS_PARALLEL_THREAD_POOL_H_

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace semkv {

class ThreadPool {
 public:
  // `num_threads` >= 1 counts the caller. Starts num_threads - 1 threads.
  explicit ThreadPool(int num_threads);
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool();

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls task(index, thread) for every index in [0, num_tasks), each exactly once, and returns
  // when all have finished; num_tasks < 2^31; `thread` in [0, num_threads()) tells which thread's
  // scratch may be used. Tasks are taken in order of index, so put long ones first. Allocates
  // nothing.
  template <typename Task>
  void Run(int64_t num_tasks, const Task& task) {
    RunErased(num_tasks, &task, [](const void* context, int64_t index, int thread) {
      (*static_cast<const Task*>(context))(index, thread);
    });
  }

 private:
  using Function = void (*)(const void* context, int64_t index, int thread);
  void RunErased(int64_t num_tasks, const void* context, Function function);
  void Work(int thread);
  void TakeTasks(int thread);

  std::vector<std::thread> workers_;
  // Of the region that `tickets_` belongs to. Run cannot return, and so cannot change them, while a
  // ticket that was taken has not finished: whoever holds one may read them.
  const void* context_ = nullptr;
  Function function_ = nullptr;
  int64_t num_tasks_ = 0;
  // epoch << 32 | tasks not taken yet. A worker that wakes late finds no ticket or a newer
  // region's, so Run waits for tasks only, never for a worker that the system has not scheduled.
  alignas(64) std::atomic<uint64_t> tickets_{0};
  alignas(64) std::atomic<uint32_t> epoch_{0};       // what sleeping workers wait for
  alignas(64) std::atomic<int32_t> num_running_{0};  // tasks of the region that have not finished
  std::atomic<bool> stop_{false};
};

}  // namespace semkv

#endif  // SEMKV_OPS_PARALLEL_THREAD_POOL_H_
