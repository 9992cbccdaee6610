// std::mutex with Clang's thread-safety annotations.
//
// Why not absl::Mutex: Debian's libabsl is built without ThreadSanitizer, which then sees neither
// its locks nor the order they make and reports every guarded field as a race.

#ifndef SEMKV_BLOCK_MANAGER_MUTEX_H_
#define SEMKV_BLOCK_MANAGER_MUTEX_H_

#include <mutex>

#include "absl/base/thread_annotations.h"

namespace semkv {

class ABSL_LOCKABLE Mutex {
 public:
  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() { mutex_.lock(); }
  void Unlock() ABSL_UNLOCK_FUNCTION() { mutex_.unlock(); }

 private:
  std::mutex mutex_;
};

class ABSL_SCOPED_LOCKABLE MutexLock {
 public:
  explicit MutexLock(Mutex* mutex) ABSL_EXCLUSIVE_LOCK_FUNCTION(mutex) : mutex_(mutex) {
    mutex_->Lock();
  }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;
  ~MutexLock() ABSL_UNLOCK_FUNCTION() { mutex_->Unlock(); }

 private:
  Mutex* const mutex_;
};

}  // namespace semkv

#endif  // SEMKV_BLOCK_MANAGER_MUTEX_H_
