"""Narrow what goes into a model and comes out: inputs fixed to constants (`is_training` to false), fewer outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from stages.errors import ModelError
from stages.model import Fixed, Model, close_matches

if TYPE_CHECKING:
    import tensorflow as tf

    from stages.compare import Array
    from stages.model import Scalar

_TRUTH = {"true": True, "1": True, "false": False, "0": False}


def fix_inputs(model: Model, constants: Mapping[str, Scalar | Array]) -> Model:
    """The model without the inputs named in `constants`, which have these values from now on.

    Args:
        constants: input (by the signature's name, or as a tensor) to a scalar; text is read as the input's dtype. An
            input whose shape is known and no scalar is filled with it.

    Raises:
        ModelError: there is no such input, or the value does not fit it.
    """
    for name, value in constants.items():
        own = next((own for own in (name, name.removesuffix(":0")) if own in model.input_names), None)
        if own is None:
            raise ModelError(f"{name}: no such input", f"--constant with {close_matches(name, model.input_names)}")
        index = model.input_names.index(own)
        spec = _spec(model, model.inputs[index])
        fixed = Fixed(own, model.inputs[index].partition(":")[0], _value(name, value, spec))
        model = replace(
            model,
            inputs=model.inputs[:index] + model.inputs[index + 1 :],
            input_names=model.input_names[:index] + model.input_names[index + 1 :],
            fixed=(*model.fixed, fixed),
        )
    return model


def make_constant(graph_def: tf.compat.v1.GraphDef, fixed: Fixed) -> None:
    """Give a fixed input's Placeholder its value, in place."""
    import tensorflow as tf

    node = next(node for node in graph_def.node if node.name == fixed.node)
    dtype = tf.as_dtype(node.attr["dtype"].type)
    node.op = "Const"
    del node.input[:]
    node.attr.clear()
    node.attr["dtype"].type = dtype.as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(fixed.value, dtype))


def _spec(model: Model, tensor: str) -> tf.TensorSpec:
    import tensorflow as tf

    if model.function is not None:
        found = model.function.graph.get_tensor_by_name(tensor)
        return tf.TensorSpec(found.shape, found.dtype)
    node = next(node for node in model.graph_def.node if node.name == tensor.partition(":")[0])  # type: ignore[union-attr]
    return tf.TensorSpec(tf.TensorShape(node.attr["shape"].shape), node.attr["dtype"].type)


def _value(name: str, value: Scalar | Array, spec: tf.TensorSpec) -> Array:
    import tensorflow as tf

    remedy = f"--constant {name}=VALUE with one {spec.dtype.name}"
    if isinstance(value, str) and spec.dtype == tf.bool:
        if value.lower() not in _TRUTH:
            raise ModelError(f"{name}: {value!r} is neither true nor false", f"--constant {name}=false")
        value = _TRUTH[value.lower()]
    try:
        array: Array = np.asarray(value).astype(spec.dtype.as_numpy_dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"{name}: {value!r} is no {spec.dtype.name}", remedy) from error
    if array.ndim == 0 and spec.shape.rank:
        if not spec.shape.is_fully_defined():
            raise ModelError(f"{name}: its shape {spec.shape} is open, so no constant can stand for it", "feed it")
        array = np.full(spec.shape, array)
    if not spec.shape.is_compatible_with(array.shape):
        raise ModelError(f"{name}: a value of shape {array.shape} does not fit {spec.shape}", remedy)
    return array


def restrict(model: Model, inputs: Sequence[str] | None, outputs: Sequence[str] | None) -> Model:
    """Restrict a signature to the outputs asked for; `inputs` may only repeat all of its inputs.

    Raises:
        ModelError: a name is unknown, or an input is left out.
    """
    for name in inputs or ():
        if name not in (*model.input_names, *model.inputs):
            raise ModelError(f"{name}: no such input", f"--inputs with {close_matches(name, model.input_names)}")
    if inputs is not None and len(set(inputs)) < len(model.inputs):
        raise ModelError(
            f"inputs {', '.join(inputs)}: the signature needs more", f"all of {', '.join(model.input_names)}"
        )
    if outputs is None:
        return model
    indices = []
    for name in outputs:
        known = model.output_names if name in model.output_names else model.outputs
        if name not in known:
            raise ModelError(f"{name}: no such output", f"--outputs with {close_matches(name, model.output_names)}")
        indices.append(known.index(name))
    return replace(
        model,
        outputs=tuple(model.outputs[index] for index in indices),
        output_names=tuple(model.output_names[index] for index in indices),
    )
