// EngineCall: runs a region of a TensorFlow graph in an engine, or in TensorFlow where no engine can run.

#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "counters.h"
#include "device_memory.h"
#include "google/protobuf/json/json.h"
#include "google/protobuf/struct.pb.h"
#include "graphs.h"
#include "native_segment.h"
#include "runtime_abi.h"
#include "runtime_lease.h"
#include "tensorflow/core/framework/cancellation.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/platform/env.h"
#include "xla/stream_executor/stream.h"
#include "xla/stream_executor/stream_executor.h"

namespace graftrt {
namespace {

using tensorflow::AsyncOpKernel;
using tensorflow::DataType;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;

constexpr int kFormatVersion = 1;

// Verification compares engines with native segments; nesting counts.
std::atomic<int32_t> native_only{0};

// Engine libraries read a null pointer as "not bound".
alignas(64) char empty_tensor_data[64];

absl::Status OutputShapes(tensorflow::shape_inference::InferenceContext* c) {
  std::vector<tensorflow::PartialTensorShape> shapes;
  TF_RETURN_IF_ERROR(c->GetAttr("output_shapes", &shapes));
  if (static_cast<int>(shapes.size()) != c->num_outputs()) {
    return absl::InvalidArgumentError(
        absl::StrCat("output_shapes has ", shapes.size(), " shapes for ", c->num_outputs(), " outputs"));
  }
  for (int i = 0; i < c->num_outputs(); ++i) {
    tensorflow::shape_inference::ShapeHandle shape;
    TF_RETURN_IF_ERROR(c->MakeShapeFromPartialTensorShape(shapes[i], &shape));
    c->set_output(i, shape);
  }
  return absl::OkStatus();
}

REGISTER_OP("EngineCall")
    .Input("device_inputs: Tin")
    .Input("host_inputs: Thost")
    .Input("captured: Tcap")
    .Input("plans: N * string")
    .Output("outputs: Tout")
    .Attr("Tin: list(type) >= 0")
    .Attr("Thost: list(type) >= 0")
    .Attr("Tcap: list(type) >= 0")
    .Attr("N: int >= 0")
    .Attr("Tout: list(type) >= 1")
    .Attr("output_shapes: list(shape)")
    .Attr("native_segment: func")
    .Attr("interface: string")
    .Attr("format_version: int = 1")
    .SetShapeFn(OutputShapes)
    .Doc(R"doc(
Runs a region in an engine, or its native segment where no engine can run.

device_inputs: the region's inputs that engines read on the device.
host_inputs: the region's inputs that engines read on the host.
captured: what only the native segment reads, usually variables.
plans: serialized engines in order of preference, as paths or bytes.
native_segment: the same computation; takes device_inputs, host_inputs, captured.
interface: JSON; names, bindings, digests and policy.
)doc");

// What the kernel itself needs of the interface; the runtime reads the rest.
struct Policy {
  std::string region;
  bool fail = false;
};

absl::Status ReadPolicy(const std::string& json, Policy* policy) {
  google::protobuf::Struct record;
  const absl::Status parsed = google::protobuf::json::JsonStringToMessage(json, &record);
  if (!parsed.ok()) return absl::InvalidArgumentError(absl::StrCat("interface is not JSON: ", parsed.message()));
  const auto& fields = record.fields();
  const auto region = fields.find("region");
  if (region == fields.end() || region->second.string_value().empty()) {
    return absl::InvalidArgumentError("interface names no region");
  }
  policy->region = region->second.string_value();
  const auto on_failure = fields.find("on_failure");
  if (on_failure == fields.end()) return absl::OkStatus();
  const std::string& choice = on_failure->second.string_value();
  if (choice != "native" && choice != "fail") {
    return absl::InvalidArgumentError(absl::StrCat("interface: on_failure is '", choice, "', not native or fail"));
  }
  policy->fail = choice == "fail";
  return absl::OkStatus();
}

// Allocates the op's outputs for the runtime. Releases them again unless the run succeeded, because the native segment
// sets them then.
class Outputs {
 public:
  explicit Outputs(OpKernelContext* ctx) : ctx_(ctx), allocated_(ctx->num_outputs(), false) {}

  ~Outputs() {
    if (kept_) return;
    for (size_t i = 0; i < allocated_.size(); ++i) {
      if (allocated_[i]) delete ctx_->release_output(i).tensor;
    }
  }

  static void* Allocate(void* context, int32_t index, int32_t dtype, int32_t rank, const int64_t* dims) {
    return static_cast<Outputs*>(context)->Allocate(index, dtype, rank, dims);
  }

  // False if the runtime has not made them all.
  bool Keep() {
    for (const bool allocated : allocated_) {
      if (!allocated) return false;
    }
    kept_ = true;
    return true;
  }

 private:
  void* Allocate(int32_t index, int32_t dtype, int32_t rank, const int64_t* dims) {
    if (index < 0 || index >= ctx_->num_outputs()) return nullptr;
    if (static_cast<DataType>(dtype) != ctx_->expected_output_dtype(index)) return nullptr;
    tensorflow::TensorShape shape;
    if (!tensorflow::TensorShape::BuildTensorShape(absl::MakeConstSpan(dims, rank), &shape).ok()) return nullptr;
    if (allocated_[index]) delete ctx_->release_output(index).tensor;
    allocated_[index] = false;
    Tensor* tensor = nullptr;
    if (!ctx_->allocate_output(index, shape, &tensor).ok()) return nullptr;
    allocated_[index] = true;
    return tensor->NumElements() == 0 ? empty_tensor_data : tensor->data();
  }

  OpKernelContext* const ctx_;
  std::vector<bool> allocated_;
  bool kept_ = false;
};

// A region's engines as opened by one registration of the runtime; `handle` is 0 if they could not be.
struct Engines {
  int64_t generation;
  int64_t handle;
  GraftFailure failure;
  std::shared_ptr<GraphTable> graphs;
};

class EngineCallOp : public AsyncOpKernel {
 public:
  explicit EngineCallOp(OpKernelConstruction* ctx) : AsyncOpKernel(ctx) {
    // Constant folding makes kernels on a device of its own and without functions. It must not load engines.
    const auto* library = ctx->function_library();
    OP_REQUIRES(ctx, library != nullptr && library->device() == ctx->device(),
                absl::FailedPreconditionError(absl::StrCat(name(), ": EngineCall runs only on a TensorFlow device "
                                                                   "with functions, not in constant folding")));
    tensorflow::NameAttrList function;
    OP_REQUIRES_OK(ctx, ctx->GetAttr("native_segment", &function));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("interface", &interface_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("format_version", &format_version_));
    tensorflow::DataTypeVector device, host, captured;
    OP_REQUIRES_OK(ctx, ctx->GetAttr("Tin", &device));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("Thost", &host));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("Tcap", &captured));
    OP_REQUIRES_OK(ctx, ReadPolicy(interface_, &policy_));
    num_inputs_ = device.size() + host.size();
    first_plan_ = num_inputs_ + captured.size();
    native_ = std::make_unique<NativeSegment>(std::move(function), first_plan_);
    counters_ = Counters::Get().ForRegion(policy_.region);
  }

  ~EngineCallOp() override {
    if (engines_ == nullptr || engines_->handle == 0) return;
    Graphs::Get().Close(engines_->handle);
    RuntimeLease runtime;
    if (runtime.generation() == engines_->generation) runtime->close(engines_->handle);
  }

  void ComputeAsync(OpKernelContext* ctx, DoneCallback done) override {
    OP_REQUIRES_ASYNC(ctx, ctx->cancellation_manager() == nullptr || !ctx->cancellation_manager()->IsCancelled(),
                      absl::CancelledError(absl::StrCat(name(), ": cancelled")), done);
    if (native_only.load() > 0) {
      counters_->CountFallback("native only", "asked for", name());
      return native_->Run(ctx, std::move(done));
    }
    if (format_version_ > kFormatVersion) {
      return Fallback(ctx, "format version", absl::StrCat("the op is of version ", format_version_), std::move(done));
    }
    RuntimeLease runtime;
    if (!runtime) return Fallback(ctx, "no runtime", "", std::move(done));
    const std::shared_ptr<const Engines> engines = OpenedBy(runtime);
    if (engines != nullptr) return Run(ctx, runtime, *engines, std::move(done));
    // Loading takes seconds and can be waited for by several calls; the executor's threads must not.
    tensorflow::Env::Default()->SchedClosure([this, ctx, done = std::move(done)]() mutable {
      RuntimeLease runtime;
      if (!runtime) return Fallback(ctx, "no runtime", "", std::move(done));
      Run(ctx, runtime, *Open(ctx, runtime), std::move(done));
    });
  }

 private:
  std::shared_ptr<const Engines> OpenedBy(const RuntimeLease& runtime) {
    std::lock_guard<std::mutex> lock(mutex_);
    return engines_ != nullptr && engines_->generation == runtime.generation() ? engines_ : nullptr;
  }

  // Calls that come together may all open; the runtime loads each engine once and the surplus handles are closed.
  std::shared_ptr<const Engines> Open(OpKernelContext* ctx, const RuntimeLease& runtime) {
    std::vector<GraftBytes> plans;
    for (int i = first_plan_; i < ctx->num_inputs(); ++i) {
      const tensorflow::tstring& plan = ctx->input(i).scalar<tensorflow::tstring>()();
      plans.push_back({plan.data(), static_cast<int64_t>(plan.size())});
    }
    const std::string device = DeviceName(ctx);
    const GraftOpenRequest request = {{interface_.data(), static_cast<int64_t>(interface_.size())},
                                      {device.data(), static_cast<int64_t>(device.size())},
                                      plans.data(),
                                      static_cast<int32_t>(plans.size()),
                                      Stream(ctx)};
    if (OnGpu(ctx)) DeviceMemory::Get().Register(Ordinal(ctx), ctx->device());
    auto opened = std::make_shared<Engines>();
    opened->generation = runtime.generation();
    opened->handle = runtime->open(&request, &opened->failure);
    if (opened->handle != 0) opened->graphs = Graphs::Get().Open(opened->handle);
    std::shared_ptr<const Engines> current;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (engines_ == nullptr || engines_->generation != opened->generation) engines_ = opened;
      current = engines_;
    }
    if (current != opened && opened->handle != 0) {
      Graphs::Get().Close(opened->handle);
      runtime->close(opened->handle);
    }
    return current;
  }

  static bool OnGpu(OpKernelContext* ctx) { return ctx->op_device_context() != nullptr; }

  static void* Stream(OpKernelContext* ctx) {
    return OnGpu(ctx) ? ctx->op_device_context()->stream()->platform_specific_handle().stream : nullptr;
  }

  // CUDA's number of the device; TensorFlow's own may differ, where only some devices are visible to it.
  static int Ordinal(OpKernelContext* ctx) { return ctx->op_device_context()->stream()->parent()->device_ordinal(); }

  static std::string DeviceName(OpKernelContext* ctx) {
    return OnGpu(ctx) ? absl::StrCat("gpu:", Ordinal(ctx)) : "cpu";
  }

  // On the executor's thread, as any kernel: an engine needs no other op to make progress.
  void Run(OpKernelContext* ctx, const RuntimeLease& runtime, const Engines& engines, DoneCallback done) {
    GraftFailure failure = engines.failure;
    if (engines.handle != 0 && RunEngine(ctx, runtime, engines, &failure)) {
      counters_->CountEngineCall();
      return done();
    }
    Fallback(ctx, failure.reason, failure.detail, std::move(done));
  }

  bool RunEngine(OpKernelContext* ctx, const RuntimeLease& runtime, const Engines& engines, GraftFailure* failure) {
    std::vector<GraftTensor> inputs(num_inputs_);
    std::vector<absl::InlinedVector<int64_t, 4>> dims(num_inputs_);
    for (int i = 0; i < num_inputs_; ++i) {
      const Tensor& tensor = ctx->input(i);
      dims[i] = tensor.shape().dim_sizes();
      inputs[i] = {tensor.NumElements() == 0 ? empty_tensor_data : tensor.data(), dims[i].data(), tensor.dims(),
                   static_cast<int32_t>(tensor.dtype()), ctx->input_memory_type(i) == tensorflow::HOST_MEMORY};
    }
    Outputs outputs(ctx);
    void* stream = Stream(ctx);
    if (stream != nullptr && LaunchGraph(inputs, engines, stream, &outputs)) return true;
    const GraftRunRequest request = {engines.handle,     inputs.data(), num_inputs_,
                                     ctx->num_outputs(), stream,        &outputs,
                                     &Outputs::Allocate};
    if (runtime->run(&request, failure) != 0) return false;
    if (outputs.Keep()) return true;
    std::strncpy(failure->reason, "engine failed", kGraftReasonSize);
    std::strncpy(failure->detail, "the runtime left an output out", kGraftDetailSize);
    return false;
  }

  // The steady state on a GPU: no runtime, no interpreter's lock.
  static bool LaunchGraph(const std::vector<GraftTensor>& inputs, const Engines& engines, void* stream,
                          Outputs* outputs) {
    const std::shared_ptr<CapturedGraph> graph = engines.graphs->Find(inputs);
    if (graph == nullptr) return false;
    std::vector<void*> targets;
    for (const CapturedGraph::Port& port : graph->outputs) {
      targets.push_back(Outputs::Allocate(outputs, port.index, port.dtype, static_cast<int32_t>(port.dims.size()),
                                          port.dims.data()));
      if (targets.back() == nullptr) return false;
    }
    return graph->Launch(inputs, targets, stream) && outputs->Keep();
  }

  void Fallback(OpKernelContext* ctx, const std::string& reason, const std::string& detail, DoneCallback done) {
    counters_->CountFallback(reason, detail, name());
    OP_REQUIRES_ASYNC(ctx, !policy_.fail,
                      absl::FailedPreconditionError(absl::StrCat(
                          "EngineCall node ", name(), ": ", policy_.region, " can't run in an engine: ", reason,
                          detail.empty() ? "" : ": ", detail, " (on_failure is 'fail')")),
                      done);
    native_->Run(ctx, std::move(done));
  }

  std::string interface_;
  int format_version_ = 0;
  Policy policy_;
  int num_inputs_ = 0;
  int first_plan_ = 0;
  std::unique_ptr<NativeSegment> native_;
  RegionCounters* counters_ = nullptr;
  std::mutex mutex_;
  std::shared_ptr<const Engines> engines_;
};

REGISTER_KERNEL_BUILDER(Name("EngineCall").Device(tensorflow::DEVICE_CPU), EngineCallOp);
REGISTER_KERNEL_BUILDER(Name("EngineCall")
                            .Device(tensorflow::DEVICE_GPU)
                            .HostMemory("host_inputs")
                            .HostMemory("captured")
                            .HostMemory("plans"),
                        EngineCallOp);

}  // namespace
}  // namespace graftrt

extern "C" {

int32_t GraftRegisterRuntime(const GraftRuntime* runtime) { return graftrt::RuntimeSlot::Get().Register(*runtime); }

int32_t GraftUnregisterRuntime(double timeout_seconds) {
  return graftrt::RuntimeSlot::Get().Unregister(timeout_seconds);
}

void GraftNativeOnly(int32_t on) { graftrt::native_only.fetch_add(on != 0 ? 1 : -1); }

int64_t GraftGraphCreate(const GraftGraphPort* ports, int32_t num_inputs, int32_t num_outputs,
                         void* const* executables, int32_t num_executables, void* context) {
  return graftrt::Graphs::Get().Create(
      std::make_shared<graftrt::CapturedGraph>(
      ports, num_inputs, num_outputs, executables, num_executables, context));
}

void GraftGraphInstall(int64_t engines, int64_t graph) { graftrt::Graphs::Get().Install(engines, graph); }

void GraftGraphDrop(int64_t graph) { graftrt::Graphs::Get().Drop(graph); }

void* GraftAllocate(int32_t device, int64_t bytes) { return graftrt::DeviceMemory::Get().Allocate(device, bytes); }

void GraftFree(int32_t device, void* address) { graftrt::DeviceMemory::Get().Free(device, address); }

char* GraftStats() { return strdup(graftrt::Counters::Get().Json().c_str()); }

void GraftFreeString(char* text) { free(text); }

void GraftResetStats() { graftrt::Counters::Get().Reset(); }

}  // extern "C"
