"""Open models that live in this process: Keras models, modules and functions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from stages.artifacts import Source
from stages.errors import ModelError
from stages.model import DEFAULT_SIGNATURE, KINDS, Model, close_matches, first_line, from_function

if TYPE_CHECKING:
    import tensorflow as tf


def open_live(model: object, signature: str | None) -> Model:
    """Open a Keras model, tf.Module (`signature` names one of its functions), tf.function or concrete function.

    Raises:
        ModelError: it is none of these, or its input shapes are unknown.
    """
    import tensorflow as tf

    from stages import keras_models

    source = Source("function", None, signature or DEFAULT_SIGNATURE)
    if keras_models.is_keras(model):
        if source.signature != DEFAULT_SIGNATURE:
            raise ModelError(f"{type(model).__name__}: a Keras model has no signature {signature}", "leave it out")
        return keras_models.open_keras_model(model, Source("keras", None))
    if isinstance(model, tf.types.experimental.ConcreteFunction):
        return from_function(model, source)
    if isinstance(model, tf.types.experimental.GenericFunction):
        return from_function(_trace(model), source)
    if isinstance(model, tf.Module):
        named = functions(model)
        if signature is None and len(named) == 1:
            signature = next(iter(named))
        if signature not in named:
            raise ModelError(
                f"{type(model).__name__}: has no tf.function {signature or ''} with an input signature".replace(
                    "  ", " "
                ),
                f"signature={close_matches(signature or '', named)}",
            )
        others = [_trace(function) for name, function in named.items() if name != signature]
        return from_function(_trace(named[signature]), replace(source, signature=signature), model, others)
    raise ModelError(f"{type(model).__name__}: is not a model", f"give {KINDS}, a Keras model or a tf.function")


def functions(module: object) -> dict[str, tf.types.experimental.GenericFunction]:
    """The tf.functions of a module that have an input signature, by attribute name."""
    import tensorflow as tf

    return {
        name: value
        for name in dir(module)
        if isinstance(value := getattr(module, name, None), tf.types.experimental.GenericFunction)
        and getattr(value, "input_signature", None) is not None
    }


def _trace(function: tf.types.experimental.GenericFunction) -> tf.types.experimental.ConcreteFunction:
    try:
        return function.get_concrete_function()
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"{getattr(function, '__name__', 'tf.function')}: has no input signature: {first_line(error)}",
            "declare it with tf.function(input_signature=…), or pass f.get_concrete_function(…)",
        ) from error
