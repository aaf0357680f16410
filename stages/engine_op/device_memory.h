// TensorFlow's own allocators of GPU memory, for what engines keep between calls.

#ifndef GRAFTRT_ENGINE_OP_DEVICE_MEMORY_H_
#define GRAFTRT_ENGINE_OP_DEVICE_MEMORY_H_

#include <map>
#include <mutex>

#include "tensorflow/core/framework/allocator.h"
#include "tensorflow/core/framework/device_base.h"

namespace graftrt {

class DeviceMemory {
 public:
  // Never destroyed: TensorFlow's threads may still run kernels while the process exits.
  static DeviceMemory& Get() {
    static DeviceMemory* memory = new DeviceMemory;
    return *memory;
  }

  // Devices live as long as the process.
  void Register(int ordinal, tensorflow::DeviceBase* device) {
    std::lock_guard<std::mutex> lock(mutex_);
    allocators_[ordinal] = device->GetAllocator(tensorflow::AllocatorAttributes());
  }

  void* Allocate(int ordinal, int64_t bytes) {
    tensorflow::Allocator* allocator = Find(ordinal);
    if (allocator == nullptr) return nullptr;
    // No waiting for memory: a region that does not fit runs in TensorFlow.
    const tensorflow::AllocationAttributes once(/*retry_on_failure=*/false, /*allocation_will_be_logged=*/false,
                                                /*freed_by_func=*/nullptr);
    return allocator->AllocateRaw(kAlignment, bytes, once);
  }

  void Free(int ordinal, void* address) {
    tensorflow::Allocator* allocator = Find(ordinal);
    if (allocator != nullptr && address != nullptr) allocator->DeallocateRaw(address);
  }

 private:
  static constexpr size_t kAlignment = 256;

  tensorflow::Allocator* Find(int ordinal) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = allocators_.find(ordinal);
    return found == allocators_.end() ? nullptr : found->second;
  }

  std::mutex mutex_;
  std::map<int, tensorflow::Allocator*> allocators_;
};

}  // namespace graftrt

#endif  // GRAFTRT_ENGINE_OP_DEVICE_MEMORY_H_
