"""Which of TensorFlow's ops could be part of an inference engine, and why the others could not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tensorflow.core.framework.op_def_pb2 import OpDef

CLASSES: tuple[tuple[str, str], ...] = (
    (
        "datasets and input pipelines",
        r"Dataset|Iterator|Optional(?!ly)|^Experimental|StatsAggregator|^GetOptions|RewriteDataset|MultiDevice|"
        r"^(Un)?CompressElement|^GetElementAtIndex|^WindowOp|^DebugDataset|^Batch$|^Unbatch",
    ),
    (
        "TPUs and XLA's internals",
        r"TPU|^Xla|SparseCore|Infeed|Outfeed|^Prelinearize|^Tpu|^StoreMinibatch|^GlobalIterId",
    ),
    (
        "collectives and distribution",
        r"^Collective|^Nccl|^_|DTensor|^Send$|^Recv$|^CheckPinned|RemoteCall|^Cudnn|MklDNN",
    ),
    (
        "training and gradients",
        r"Grad(V\d|Grad)*(WithArgmax)?$|Grad(Input|Filter|Boxes|Image|A)|^Grad|Backprop(Filter|Input)(V2)?$|^Resource|^Apply|^SparseApply|Gradient|"
        r"^Sdca|^BoostedTrees|Accumulator|^NegTrain|^SkipgramWord|^ComputeAccidentalHits|CandidateSampler|Checkpoint|"
        r"^Kmeans|^KMC2|^CTCLoss|GradGrad",
    ),
    (
        "state: variables, queues, tables, files, summaries",
        r"^(Ref|Scatter)(?!Nd$)|Queue|Barrier|^Reader|^Stack|^TensorArray|Table|Variable|^Assign|Summary|^Stage|^Map(Stage|Peek|Clear|Size|Unstage|Incomplete)|"
        r"^OrderedMap|Session|^Save|^Restore|^MergeV2|^Inplace|^CountUpTo|^Mutex|^ConsumeMutex|^Audio(Summary)|^Record|File|StridedSliceAssign|^WriteImage",
    ),
    (
        "functions and control flow",
        r"^(Switch|Merge|Enter|Exit|NextIteration|LoopCond|ControlTrigger|Abort|If|While|Case|For|MapDefun|BatchFunction)$|^Stateless(If|While|Case)$|"
        r"PartitionedCall|^PyFunc|^EagerPyFunc|SymbolicGradient|^FakeParam|^NoOp|^(Device|Dummy|Fake)|_Arg|_Retval|^Placeholder|^Const$|^ImmutableConst|^HostConst|^Rpc|^TryRpc",
    ),
    (
        "debugging and checks",
        r"^Debug|^Copy|^Print|^Assert|^CheckNumerics|^Timestamp|^BytesProduced|^LatencyStats",
    ),
    (
        "random numbers",
        r"Random|^Stateless(Shuffle|Truncated|Parameter|Multinomial|Sample)|^Multinomial|^SampleDistorted|^ParameterizedTruncated|^TruncatedNormal|^Rng|^SobolSample|^FixedUnigram|^AllCandidate|^LogUniform|^LearnedUnigram|^ThreadUnsafe|^UniformCandidate|^FractionalMaxPool$|^FractionalAvgPool$|^GenerateVocab",
    ),
    (
        "strings, encoded files and protocol buffers",
        r"^Decode|^Encode|^Parse|^String|^Regex|^StaticRegex|^Unicode|^Substr|^AsString|Serialize|^ReduceJoin|^UnsortedSegmentJoin|^Sharded|^ExtractJpeg|^Fingerprint|^Wav|^ToHash|^EditDistance|^SparseCross|^RaggedCross",
    ),
    (
        "sparse and ragged tensors, maps and lists",
        r"^Sparse(?!Softmax|Segment|ToDense|MatMul)|Ragged|^CSR|^DenseTo|CSR|^TensorList|^TensorMap|^EmptyTensor|^CompositeTensor|^DeserializeSparse|^AddManySparse|^AddSparse|^TakeMany|^SetSize|^DenseCount|^GenerateBigQuery",
    ),
    (
        "kernels for quint8, qint32 and the like (TensorFlow 1's quantised graphs)",
        r"^Quantized|^Requant|^QuantizeDown|^Uniform(Quant|Dequant|Requant)|^QuantizeV2|^Dequantize$",
    ),
    ("without a kernel on CPUs", r"^Batch(Cholesky|FFT|IFFT|Matrix|SelfAdjoint|Svd)|^Conv$"),
)
"""Class -> names that belong to it; the first that matches counts."""

WANTED = frozenset(
    {"Conv2DBackpropInput", "Conv2DBackpropInputV2", "Conv3DBackpropInputV2", "DepthwiseConv2dNativeBackpropInput"}
    | {"FakeQuantWithMinMaxArgs", "FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxVarsPerChannel"}
    | {"PreventGradient", "StopGradient"}
)
"""In scope although their names look otherwise: transposed convolutions, quantisation, identities."""

_PLAIN = {
    "DT_FLOAT",
    "DT_HALF",
    "DT_BFLOAT16",
    "DT_INT32",
    "DT_INT64",
    "DT_INT8",
    "DT_UINT8",
    "DT_BOOL",
    "DT_COMPLEX64",
}


def out_of_scope(op: OpDef) -> str:
    """The class of an op that is out of scope; nothing for one that is in scope."""
    if op.deprecation.version:
        return "removed from TensorFlow"
    if op.name in WANTED:
        return ""
    for name, pattern in CLASSES:
        if re.search(pattern, op.name):
            return name
    if op.is_stateful:
        return "state: variables, queues, tables, files, summaries"
    if not op.output_arg:
        return "functions and control flow"
    for arg in (*op.input_arg, *op.output_arg):
        if arg.is_ref:
            return "state: variables, queues, tables, files, summaries"
        kinds = _kinds(op, arg.type, arg.type_attr)
        if kinds and not kinds & _PLAIN:
            strings = kinds <= {"DT_STRING"}
            return (
                "strings, encoded files and protocol buffers"
                if strings
                else "float64, variants and other dtypes that no engine takes"
            )
    return ""


def _kinds(op: OpDef, kind: int, attr_name: str) -> set[str]:
    from tensorflow.core.framework import types_pb2

    if kind:
        return {types_pb2.DataType.Name(kind)}
    for attr in op.attr:
        if attr.name == attr_name:
            return {types_pb2.DataType.Name(value) for value in attr.allowed_values.list.type}
    return set()


def split(ops: Mapping[str, OpDef]) -> tuple[dict[str, OpDef], dict[str, list[str]]]:
    """Ops in scope by name; the names of the others by class."""
    wanted: dict[str, OpDef] = {}
    others: dict[str, list[str]] = {}
    for name, op in sorted(ops.items()):
        if why := out_of_scope(op):
            others.setdefault(why, []).append(name)
        else:
            wanted[name] = op
    return wanted, others


def all_ops() -> dict[str, OpDef]:
    """Every op of the installed TensorFlow that has a raw op, by name."""
    import tensorflow as tf
    from tensorflow.python.framework import op_def_registry

    names = [name for name in dir(tf.raw_ops) if not name.startswith("_")]
    return {name: found for name in names if (found := op_def_registry.get(name)) is not None}
