// The C interface between the EngineCall kernel and the runtime that loads and runs engines.
//
// The runtime lives in Python and registers itself through ctypes, so that this library references no Python symbol.
// `abi.py` mirrors these structures; a change here changes kGraftAbiVersion there and here.

#ifndef GRAFTRT_ENGINE_OP_RUNTIME_ABI_H_
#define GRAFTRT_ENGINE_OP_RUNTIME_ABI_H_

#include <stdint.h>

#define GRAFT_EXPORT __attribute__((visibility("default")))

extern "C" {

enum { kGraftAbiVersion = 3, kGraftReasonSize = 64, kGraftDetailSize = 2048 };

typedef struct GraftBytes {
  const char* data;
  int64_t size;
} GraftBytes;

// A dense tensor in the memory of the kernel's device, or in the host's if `on_host`. `dtype` is a tensorflow::DataType.
// `data` is never null, also for an empty tensor, because engine libraries take null for "not bound".
typedef struct GraftTensor {
  const void* data;
  const int64_t* dims;
  int32_t rank;
  int32_t dtype;
  int32_t on_host;
} GraftTensor;

// Why no engine could run. `reason` is short and stable, a key of the counters; `detail` is for the log. Both are
// terminated by a zero byte.
typedef struct GraftFailure {
  char reason[kGraftReasonSize];
  char detail[kGraftDetailSize];
} GraftFailure;

// `plans` are paths or the plans' bytes, as the interface's `storage` says. `device` is "cpu" or "gpu:<ordinal>", with
// CUDA's ordinal. `stream` as in GraftRunRequest.
typedef struct GraftOpenRequest {
  GraftBytes interface_json;
  GraftBytes device;
  const GraftBytes* plans;
  int32_t num_plans;
  void* stream;
} GraftOpenRequest;

// One execution. `inputs` are the op's device_inputs, then its host_inputs. The runtime calls `allocate_output` for
// each output, on the calling thread; it returns null where TensorFlow can't allocate or the op promises another dtype.
// Allocating an output again replaces it.
// `stream` is the device's stream (a CUstream), null on a CPU.
typedef struct GraftRunRequest {
  int64_t engines;
  const GraftTensor* inputs;
  int32_t num_inputs;
  int32_t num_outputs;
  void* stream;
  void* context;
  void* (*allocate_output)(void* context, int32_t index, int32_t dtype, int32_t rank, const int64_t* dims);
} GraftRunRequest;

// `open` returns a positive handle, or 0 with the failure filled in. `run` returns 0, or not 0 with the failure filled
// in. Every function may be called from any thread, several at a time.
typedef struct GraftRuntime {
  uint32_t abi_version;
  uint32_t size;
  int64_t (*open)(const GraftOpenRequest* request, GraftFailure* failure);
  int32_t (*run)(const GraftRunRequest* request, GraftFailure* failure);
  void (*close)(int64_t engines);
} GraftRuntime;

// Returns 0, or 1 if the table is of another version, or 2 if a runtime is registered already.
GRAFT_EXPORT int32_t GraftRegisterRuntime(const GraftRuntime* runtime);

// From here on native segments run. Waits until no call is inside the runtime, at most `timeout_seconds`; returns the
// number of calls that still are.
GRAFT_EXPORT int32_t GraftUnregisterRuntime(double timeout_seconds);

// One input or output of a captured CUDA graph: the op's input or output `index`, at these sizes, in device memory at
// `buffer`. `copy` is the graph's node that copies it from or to TensorFlow's tensor; null for an input in host memory,
// which is copied before the launch, and for an empty tensor.
typedef struct GraftGraphPort {
  const int64_t* dims;
  uint64_t buffer;
  void* copy;
  int64_t bytes;
  int32_t rank;
  int32_t index;
  int32_t dtype;
} GraftGraphPort;

// Makes a record of a captured graph of the CUDA `context`, instantiated several times; `ports` are its inputs, then its
// outputs. The kernel launches it by itself for
// calls with these shapes to any set of engines that it is installed for, until it is dropped. After GraftGraphDrop has
// returned no launch begins; the memory may then be given back to TensorFlow, which orders its reuse.
GRAFT_EXPORT int64_t GraftGraphCreate(const GraftGraphPort* ports, int32_t num_inputs, int32_t num_outputs,
                                      void* const* executables, int32_t num_executables, void* context);
GRAFT_EXPORT void GraftGraphInstall(int64_t engines, int64_t graph);
GRAFT_EXPORT void GraftGraphDrop(int64_t graph);

// Memory of TensorFlow's own allocator on a GPU that an EngineCall has run on; null if there is none left. Work that
// was enqueued on TensorFlow's stream before may still use it.
GRAFT_EXPORT void* GraftAllocate(int32_t device, int64_t bytes);
GRAFT_EXPORT void GraftFree(int32_t device, void* address);

// While more calls have said 1 than 0, every call runs its native segment, whatever its policy.
GRAFT_EXPORT void GraftNativeOnly(int32_t on);

// The counters as JSON: {region: {"engine_calls": int, "fallbacks": {reason: int}}}. Free it with GraftFreeString.
GRAFT_EXPORT char* GraftStats();
GRAFT_EXPORT void GraftFreeString(char* text);
GRAFT_EXPORT void GraftResetStats();

}  // extern "C"

#endif  // GRAFTRT_ENGINE_OP_RUNTIME_ABI_H_
