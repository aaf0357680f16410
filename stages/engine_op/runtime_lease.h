// Calls into the registered runtime, counted, so that unregistering can wait for them.

#ifndef GRAFTRT_ENGINE_OP_RUNTIME_LEASE_H_
#define GRAFTRT_ENGINE_OP_RUNTIME_LEASE_H_

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "runtime_abi.h"

namespace graftrt {

// The process's runtime table. Its lock is never held during a call into the runtime: a caller may hold the
// interpreter's lock.
class RuntimeSlot {
 public:
  // Never destroyed: TensorFlow's threads may still run kernels while the process exits.
  static RuntimeSlot& Get() {
    static RuntimeSlot* slot = new RuntimeSlot;
    return *slot;
  }

  int32_t Register(const GraftRuntime& runtime) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (runtime.abi_version != kGraftAbiVersion || runtime.size != sizeof(GraftRuntime)) return 1;
    if (registered_) return 2;
    runtime_ = runtime;
    registered_ = true;
    ++generation_;
    return 0;
  }

  int32_t Unregister(double timeout_seconds) {
    std::unique_lock<std::mutex> lock(mutex_);
    registered_ = false;
    idle_.wait_for(lock, std::chrono::duration<double>(timeout_seconds), [this] { return calls_ == 0; });
    return calls_;
  }

 private:
  friend class RuntimeLease;

  std::mutex mutex_;
  std::condition_variable idle_;
  GraftRuntime runtime_ = {};
  bool registered_ = false;
  int64_t generation_ = 0;
  int32_t calls_ = 0;
};

// While it lives, the runtime that it holds is not torn down. Empty if none is registered.
class RuntimeLease {
 public:
  RuntimeLease() {
    RuntimeSlot& slot = RuntimeSlot::Get();
    std::lock_guard<std::mutex> lock(slot.mutex_);
    if (!slot.registered_) return;
    runtime_ = slot.runtime_;
    generation_ = slot.generation_;
    ++slot.calls_;
  }

  ~RuntimeLease() {
    if (!*this) return;
    RuntimeSlot& slot = RuntimeSlot::Get();
    std::lock_guard<std::mutex> lock(slot.mutex_);
    if (--slot.calls_ == 0) slot.idle_.notify_all();
  }

  RuntimeLease(const RuntimeLease&) = delete;
  RuntimeLease& operator=(const RuntimeLease&) = delete;

  explicit operator bool() const { return generation_ != 0; }
  const GraftRuntime* operator->() const { return &runtime_; }

  // Handles belong to one registration; 0 if none.
  int64_t generation() const { return generation_; }

 private:
  GraftRuntime runtime_ = {};
  int64_t generation_ = 0;
};

}  // namespace graftrt

#endif  // GRAFTRT_ENGINE_OP_RUNTIME_LEASE_H_
