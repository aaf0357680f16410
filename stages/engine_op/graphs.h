// Captured CUDA graphs: engines at fixed shapes over buffers of their own, launched without the runtime.

#ifndef GRAFTRT_ENGINE_OP_GRAPHS_H_
#define GRAFTRT_ENGINE_OP_GRAPHS_H_

#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "cuda_driver.h"
#include "runtime_abi.h"

namespace graftrt {

// One graph: copies into its buffers, the engine, copies out of them, made executable several times over. An executable
// whose copies point at a call's tensors is launched as it is, for TensorFlow's allocator hands out few addresses in turn;
// else the one used longest ago is pointed there. Calls on one stream follow one another there; a call on another stream
// waits for the one before.
class CapturedGraph {
 public:
  struct Port {
    int32_t index;
    int32_t dtype;
    std::vector<int64_t> dims;
    size_t bytes;
    uint64_t buffer;
    void* copy;  // The graph's node that copies; null where the tensor is in host memory, or empty.
  };

  CapturedGraph(const GraftGraphPort* ports, int32_t num_inputs, int32_t num_outputs, void* const* executables,
                int32_t num_executables, void* context)
      : inputs(Ports(ports, num_inputs)), outputs(Ports(ports + num_inputs, num_outputs)), context_(context) {
    for (int32_t i = 0; i < num_executables; ++i) {
      executables_.push_back({executables[i], std::vector<uint64_t>(num_inputs + num_outputs, 0)});
    }
    if (CudaDriver::Get()) CudaDriver::Get().create_event(&done_, 2 /* CU_EVENT_DISABLE_TIMING */);
  }

  ~CapturedGraph() {
    if (done_ != nullptr) CudaDriver::Get().destroy_event(done_);
  }

  bool Matches(const std::vector<GraftTensor>& tensors) const {
    for (const Port& port : inputs) {
      const GraftTensor& tensor = tensors[port.index];
      if (tensor.rank != static_cast<int32_t>(port.dims.size())) return false;
      for (int32_t axis = 0; axis < tensor.rank; ++axis) {
        if (tensor.dims[axis] != port.dims[axis]) return false;
      }
    }
    return true;
  }

  // Launches on `stream`; the lock is held for no longer than that takes. `targets` are the outputs' addresses. False if
  // the graph was dropped or the driver refused.
  bool Launch(const std::vector<GraftTensor>& tensors, const std::vector<void*>& targets, void* stream) {
    const CudaDriver& cuda = CudaDriver::Get();
    std::lock_guard<std::mutex> lock(mutex_);
    if (executables_.empty()) return false;
    if (last_stream_ != nullptr && last_stream_ != stream &&
        (cuda.record_event(done_, last_stream_) != 0 || cuda.wait_event(stream, done_, 0) != 0)) {
      return false;
    }
    std::vector<uint64_t> addresses;
    for (const Port& port : inputs) {
      const GraftTensor& tensor = tensors[port.index];
      if (port.copy == nullptr && port.bytes != 0 &&
          cuda.copy_host_to_device(port.buffer, tensor.data, port.bytes, stream) != 0) {
        return false;
      }
      if (port.copy != nullptr && tensor.on_host) return false;
      addresses.push_back(port.copy == nullptr ? 0 : reinterpret_cast<uint64_t>(tensor.data));
    }
    for (size_t i = 0; i < outputs.size(); ++i) {
      addresses.push_back(outputs[i].copy == nullptr ? 0 : reinterpret_cast<uint64_t>(targets[i]));
    }
    Executable* chosen = nullptr;
    for (Executable& executable : executables_) {
      if (executable.addresses == addresses) {
        chosen = &executable;
        break;
      }
      if (chosen == nullptr || executable.used < chosen->used) chosen = &executable;
    }
    if (!Point(chosen, addresses) || cuda.launch_graph(chosen->handle, stream) != 0) return false;
    chosen->used = ++launches_;
    last_stream_ = stream;
    return true;
  }

  // No launch begins after this returns.
  void Drop() {
    std::lock_guard<std::mutex> lock(mutex_);
    executables_.clear();
  }

  const std::vector<Port> inputs;
  const std::vector<Port> outputs;

 private:
  static std::vector<Port> Ports(const GraftGraphPort* ports, int32_t count) {
    std::vector<Port> result;
    for (int32_t i = 0; i < count; ++i) {
      result.push_back({ports[i].index, ports[i].dtype, {ports[i].dims, ports[i].dims + ports[i].rank},
                        static_cast<size_t>(ports[i].bytes), ports[i].buffer, ports[i].copy});
    }
    return result;
  }

  struct Executable {
    void* handle;
    std::vector<uint64_t> addresses;
    uint64_t used = 0;
  };

  // Makes an executable's copies use these addresses from its next launch on. Launches under way keep theirs.
  bool Point(Executable* executable, const std::vector<uint64_t>& addresses) {
    for (size_t i = 0; i < addresses.size(); ++i) {
      if (executable->addresses[i] == addresses[i]) continue;
      const bool is_input = i < inputs.size();
      const Port& port = is_input ? inputs[i] : outputs[i - inputs.size()];
      const CudaCopy copy(is_input ? port.buffer : addresses[i], is_input ? addresses[i] : port.buffer, port.bytes);
      if (CudaDriver::Get().set_copy(executable->handle, port.copy, &copy, context_) != 0) return false;
      executable->addresses[i] = addresses[i];
    }
    return true;
  }

  std::mutex mutex_;
  std::vector<Executable> executables_;
  void* const context_;
  uint64_t launches_ = 0;
  void* done_ = nullptr;
  void* last_stream_ = nullptr;
};

// The graphs of one set of engines.
class GraphTable {
 public:
  std::shared_ptr<CapturedGraph> Find(const std::vector<GraftTensor>& tensors) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& graph : graphs_) {
      if (graph->Matches(tensors)) return graph;
    }
    return nullptr;
  }

  void Add(std::shared_ptr<CapturedGraph> graph) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& known : graphs_) {
      if (known == graph) return;
    }
    graphs_.push_back(std::move(graph));
  }

  void Remove(const CapturedGraph* graph) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto it = graphs_.begin(); it != graphs_.end(); ++it) {
      if (it->get() == graph) {
        graphs_.erase(it);
        return;
      }
    }
  }

 private:
  std::mutex mutex_;
  std::vector<std::shared_ptr<CapturedGraph>> graphs_;
};

// All graphs and tables of the process, by the numbers that the runtime knows them by.
class Graphs {
 public:
  static Graphs& Get() {
    static Graphs* graphs = new Graphs;
    return *graphs;
  }

  int64_t Create(std::shared_ptr<CapturedGraph> graph) {
    std::lock_guard<std::mutex> lock(mutex_);
    graphs_[++last_] = std::move(graph);
    return last_;
  }

  void Drop(int64_t record) {
    std::shared_ptr<CapturedGraph> graph;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      const auto found = graphs_.find(record);
      if (found == graphs_.end()) return;
      graph = found->second;
      graphs_.erase(found);
      for (auto& [engines, table] : tables_) table->Remove(graph.get());
    }
    graph->Drop();
  }

  void Install(int64_t engines, int64_t record) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = graphs_.find(record);
    const auto table = tables_.find(engines);
    if (found != graphs_.end() && table != tables_.end()) table->second->Add(found->second);
  }

  std::shared_ptr<GraphTable> Open(int64_t engines) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto& table = tables_[engines];
    if (table == nullptr) table = std::make_shared<GraphTable>();
    return table;
  }

  void Close(int64_t engines) {
    std::lock_guard<std::mutex> lock(mutex_);
    tables_.erase(engines);
  }

 private:
  std::mutex mutex_;
  int64_t last_ = 0;
  std::map<int64_t, std::shared_ptr<CapturedGraph>> graphs_;
  std::map<int64_t, std::shared_ptr<GraphTable>> tables_;
};

}  // namespace graftrt

#endif  // GRAFTRT_ENGINE_OP_GRAPHS_H_
