// The few functions of the CUDA driver that the kernel calls, found at run time: the library links to no CUDA.

#ifndef GRAFTRT_ENGINE_OP_CUDA_DRIVER_H_
#define GRAFTRT_ENGINE_OP_CUDA_DRIVER_H_

#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>

namespace graftrt {

// CUDA_MEMCPY3D of cuda.h (version 2), of which copies of one row are made here.
struct CudaCopy {
  struct End {
    size_t x_bytes = 0, y = 0, z = 0, lod = 0;
    unsigned memory_type = 2;  // CU_MEMORYTYPE_DEVICE
    void* host = nullptr;
    uint64_t device = 0;
    void* array = nullptr;
    void* reserved = nullptr;
    size_t pitch = 0, height = 0;
  };

  CudaCopy(uint64_t target, uint64_t source, size_t bytes) : width_bytes(bytes) {
    from.device = source;
    to.device = target;
  }

  End from, to;
  size_t width_bytes, height = 1, depth = 1;
};

// All null where there is no driver. Every function returns 0 on success.
struct CudaDriver {
  typedef void* Stream;
  typedef void* Event;

  int (*set_copy)(void* executable, void* node, const CudaCopy* copy, void* context) = nullptr;
  int (*copy_host_to_device)(uint64_t target, const void* source, size_t bytes, Stream stream) = nullptr;
  int (*launch_graph)(void* executable, Stream stream) = nullptr;
  int (*create_event)(Event* event, unsigned flags) = nullptr;
  int (*record_event)(Event event, Stream stream) = nullptr;
  int (*wait_event)(Stream stream, Event event, unsigned flags) = nullptr;
  int (*destroy_event)(Event event) = nullptr;

  static const CudaDriver& Get() {
    static const CudaDriver* driver = new CudaDriver(Load());
    return *driver;
  }

  explicit operator bool() const { return destroy_event != nullptr; }

 private:
  static CudaDriver Load() {
    CudaDriver driver;
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return driver;
    bool complete = true;
    const auto find = [library, &complete](auto& function, const char* name) {
      void* symbol = dlsym(library, name);
      complete = complete && symbol != nullptr;
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(symbol);
    };
    find(driver.set_copy, "cuGraphExecMemcpyNodeSetParams");
    find(driver.copy_host_to_device, "cuMemcpyHtoDAsync_v2");
    find(driver.launch_graph, "cuGraphLaunch");
    find(driver.create_event, "cuEventCreate");
    find(driver.record_event, "cuEventRecord");
    find(driver.wait_event, "cuStreamWaitEvent");
    find(driver.destroy_event, "cuEventDestroy_v2");
    return complete ? driver : CudaDriver();
  }
};

}  // namespace graftrt

#endif  // GRAFTRT_ENGINE_OP_CUDA_DRIVER_H_
