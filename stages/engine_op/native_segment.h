// The TensorFlow function that computes a region when no engine can.

#ifndef GRAFTRT_ENGINE_OP_NATIVE_SEGMENT_H_
#define GRAFTRT_ENGINE_OP_NATIVE_SEGMENT_H_

#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "cuda_driver.h"
#include "tensorflow/core/common_runtime/device_mgr.h"
#include "tensorflow/core/framework/function.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/resource_handle.h"
#include "tensorflow/core/grappler/optimizers/meta_optimizer.h"
#include "tensorflow/core/protobuf/config.pb.h"
#include "xla/stream_executor/stream.h"

namespace graftrt {

// Instantiated at its first use, so that weights are read and kernels made only where it runs. It is a multi-device
// function, placed and optimised as PartitionedCall does it: a segment may hold ops that only a CPU has.
class NativeSegment {
 public:
  // The function's arguments are the op's first `num_arguments` inputs.
  NativeSegment(tensorflow::NameAttrList function, int num_arguments)
      : function_(std::move(function)), num_arguments_(num_arguments) {}

  ~NativeSegment() {
    for (const auto& [library, handle] : handles_) library->ReleaseHandle(handle).IgnoreError();
  }

  NativeSegment(const NativeSegment&) = delete;
  NativeSegment& operator=(const NativeSegment&) = delete;

  // Sets the kernel's outputs or status, then calls `done`. Never blocks on other work of the executor.
  void Run(tensorflow::OpKernelContext* ctx, tensorflow::AsyncOpKernel::DoneCallback done) {
    tensorflow::FunctionLibraryRuntime* library = ctx->function_library();
    tensorflow::FunctionLibraryRuntime::Handle handle;
    OP_REQUIRES_OK_ASYNC(ctx, Instantiate(ctx, library, &handle), done);

    // As PartitionedCall: a step of its own, because the rendezvous of a multi-device function is found by step and
    // two segments of one step would take each other's tensors.
    tensorflow::FunctionLibraryRuntime::Options options;
    tensorflow::ResourceMgr* resources = library->device()->resource_manager();
    auto* container = new tensorflow::ScopedStepContainer(
        options.step_id, [resources](const std::string& name) { resources->Cleanup(name).IgnoreError(); });
    options.step_container = container;
    options.cancellation_manager = ctx->cancellation_manager();
    options.collective_executor = ctx->collective_executor();
    options.stats_collector = ctx->stats_collector();
    options.stack_trace = ctx->stack_trace();
    options.runner = ctx->runner();
    options.run_all_kernels_inline = ctx->run_all_kernels_inline();
    options.source_device = library->device()->name();

    std::vector<tensorflow::Tensor> arguments;
    arguments.reserve(num_arguments_);
    for (int i = 0; i < num_arguments_; ++i) arguments.push_back(ctx->input(i));
    auto* results = new std::vector<tensorflow::Tensor>;
    library->Run(options, handle, arguments, results,
                 [ctx, results, container, done = std::move(done)](const absl::Status& status) {
                   ctx->SetStatus(status.ok() ? SetOutputs(ctx, *results) : status);
                   delete results;
                   delete container;
                   done();
                 });
  }

 private:
  static absl::Status SetOutputs(tensorflow::OpKernelContext* ctx, const std::vector<tensorflow::Tensor>& results) {
    if (static_cast<int>(results.size()) != ctx->num_outputs()) {
      return absl::InternalError(absl::StrCat("the native segment has ", results.size(), " results, the op ",
                                              ctx->num_outputs(), " outputs"));
    }
    for (int i = 0; i < ctx->num_outputs(); ++i) {
      if (results[i].dtype() != ctx->expected_output_dtype(i)) {
        return absl::InternalError(absl::StrCat("result ", i, " of the native segment is ",
                                                tensorflow::DataTypeString(results[i].dtype()), ", the op's output ",
                                                tensorflow::DataTypeString(ctx->expected_output_dtype(i))));
      }
      if (ctx->op_device_context() != nullptr && results[i].dtype() == tensorflow::DT_INT32) {
        TF_RETURN_IF_ERROR(CopyToDevice(ctx, i, results[i]));
      } else {
        ctx->set_output(i, results[i]);
      }
    }
    return absl::OkStatus();
  }

  absl::Status Instantiate(tensorflow::OpKernelContext* ctx, tensorflow::FunctionLibraryRuntime* library,
                           tensorflow::FunctionLibraryRuntime::Handle* handle) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto known = handles_.find(library);
    if (known != handles_.end()) {
      *handle = known->second;
      return absl::OkStatus();
    }
    tensorflow::FunctionLibraryRuntime::InstantiateOptions options;
    options.target = library->device()->name();
    options.is_multi_device_function = true;
    options.allow_soft_placement = true;
    options.graph_collector = ctx->graph_collector();
    if (library->config_proto() != nullptr) options.config_proto = *library->config_proto();
    options.input_devices = InputDevices(ctx, *library);
    options.output_devices = OutputDevices(ctx, *library);
    options.optimize_graph_fn = [config = options.config_proto, name = function_.name()](
                                    std::vector<std::string> results, std::vector<std::string> keep,
                                    tensorflow::FunctionLibraryDefinition* definitions,
                                    const tensorflow::DeviceSet& devices, tensorflow::Device* cpu,
                                    std::unique_ptr<tensorflow::Graph>* graph) {
      tensorflow::grappler::GrapplerItem::OptimizationOptions optimization;
      optimization.allow_pruning_stateful_and_dataset_ops = true;
      optimization.is_eager_mode = true;
      optimization.optimize_function_library = false;
      return tensorflow::grappler::OptimizeGraph(std::move(results), std::move(keep), definitions, devices, cpu, config,
                                                 name, optimization, graph);
    };
    TF_RETURN_IF_ERROR(
        library->Instantiate(function_.name(), tensorflow::AttrSlice(&function_.attr()), options, handle));
    handles_.emplace(library, *handle);
    return absl::OkStatus();
  }

  // int32 results of a function are in host memory, also on a GPU: ask for them there, and copy.
  static std::vector<std::string> OutputDevices(tensorflow::OpKernelContext* ctx,
                                                const tensorflow::FunctionLibraryRuntime& library) {
    std::vector<std::string> devices(ctx->num_outputs(), library.device()->name());
    if (ctx->op_device_context() == nullptr) return devices;
    for (int i = 0; i < ctx->num_outputs(); ++i) {
      if (ctx->expected_output_dtype(i) == tensorflow::DT_INT32) devices[i] = library.device_mgr()->HostCPU()->name();
    }
    return devices;
  }

  static absl::Status CopyToDevice(tensorflow::OpKernelContext* ctx, int index, const tensorflow::Tensor& result) {
    tensorflow::Tensor* output = nullptr;
    TF_RETURN_IF_ERROR(ctx->allocate_output(index, result.shape(), &output));
    if (result.NumElements() == 0) return absl::OkStatus();
    void* stream = ctx->op_device_context()->stream()->platform_specific_handle().stream;
    // From memory that is not pinned: it may be released as soon as the call returns.
    const CudaDriver& cuda = CudaDriver::Get();
    if (!cuda || cuda.copy_host_to_device(reinterpret_cast<uint64_t>(output->data()), result.data(),
                                          result.TotalBytes(), stream) != 0) {
      return absl::InternalError(absl::StrCat("result ", index, " of the native segment can't be copied to the GPU"));
    }
    return absl::OkStatus();
  }

  // A resource is where its owner is; everything else where the kernel has it.
  std::vector<std::string> InputDevices(tensorflow::OpKernelContext* ctx,
                                        const tensorflow::FunctionLibraryRuntime& library) const {
    const std::string own = library.device()->name();
    const bool on_cpu = library.device()->device_type() == tensorflow::DEVICE_CPU;
    const std::string host = on_cpu ? own : library.device_mgr()->HostCPU()->name();
    std::vector<std::string> devices;
    for (int i = 0; i < num_arguments_; ++i) {
      if (ctx->input_dtype(i) == tensorflow::DT_RESOURCE) {
        devices.push_back(ctx->input(i).flat<tensorflow::ResourceHandle>()(0).device());
      } else {
        devices.push_back(ctx->input_memory_type(i) == tensorflow::HOST_MEMORY ? host : own);
      }
    }
    return devices;
  }

  const tensorflow::NameAttrList function_;
  const int num_arguments_;
  std::mutex mutex_;
  // A kernel may be used with several libraries, as PartitionedCall's may.
  std::map<tensorflow::FunctionLibraryRuntime*, tensorflow::FunctionLibraryRuntime::Handle> handles_;
};

}  // namespace graftrt

#endif  // GRAFTRT_ENGINE_OP_NATIVE_SEGMENT_H_
